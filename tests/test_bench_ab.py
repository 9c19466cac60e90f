"""The benchmark of rationales, shortly and on a toy: `make bench-ab` does the same on recorded sets."""

import json
from dataclasses import replace
from pathlib import Path

from proxy.traffic_file import Row
from tests.bench.ab import lines
from tests.distiller.toy_task import ANSWERS, toy_settings


def rows(answers: dict[str, str]) -> list[Row]:
    return [
        Row(({"role": "user", "content": f"lamp {n} is {colour}"},), answer.replace("N", str(n)), None, "gpt-4o", None)
        for n in range(40)
        for colour, answer in answers.items()
    ]


def test_reasons_are_left_out_learned_beside_or_before_and_each_is_a_line(tmp_path: Path) -> None:
    given = toy_settings(tmp_path)
    settings = replace(given, distiller=replace(given.distiller, epochs=1, max_tokens=256))
    why = "lamp N is COLOUR and whoever comes to a lamp that is COLOUR knows what is to be done at that one: go on"
    worked = {
        colour: json.dumps({"reasoning": why.replace("COLOUR", colour), "answer": answer})
        for colour, answer in ANSWERS.items()
    }
    cells = [line.strip("| ").split(" | ") for line in lines("toy", rows(worked), settings)]
    assert [one[1] for one in cells] == ["without", "beside", "before"]
    assert len({one[6] for one in cells}) == len({one[5] for one in cells}) == 1  # Steps and rows are the same.
    assert [len(one) for one in cells] == [8, 10, 10]


def test_nothing_is_tried_where_no_reason_is_recorded(tmp_path: Path) -> None:
    (line,) = lines("toy", rows(ANSWERS), toy_settings(tmp_path))
    assert "none recorded: asking the teacher why" in line
