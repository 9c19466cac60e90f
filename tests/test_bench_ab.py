"""The benchmark of rationales, shortly and on a toy: `make bench-ab` does the same on recorded sets."""

import json
from dataclasses import replace
from pathlib import Path

from distiller.dataset import Dataset
from distiller.settings import Settings
from proxy.log import Log
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
    cells = [line.strip("| ").split(" | ") for line in lines("toy", rows(worked), settings, None)]
    assert [one[1] for one in cells] == ["without", "beside (96)", "before"]
    assert len({one[6] for one in cells}) == len({one[5] for one in cells}) == 1  # Steps and rows are the same.
    assert [len(one) for one in cells] == [8, 10, 10]


def test_nothing_is_tried_where_no_reason_is_recorded_and_nobody_tells_any(tmp_path: Path) -> None:
    (line,) = lines("toy", rows(ANSWERS), toy_settings(tmp_path), None)
    assert "| 0 to learn from, 0 contradict their answer: not tried |" in line


def test_reasons_that_are_told_are_learned_beside_labels(tmp_path: Path) -> None:
    given = toy_settings(tmp_path)
    settings = replace(given, distiller=replace(given.distiller, epochs=1, max_tokens=256))

    def tell(_: Log, __: Settings, data: Dataset) -> Dataset:
        reasons = {row.exchange_id: f"the lamp tells it: {row.answer}" for row in data.train}
        return replace(data, rationales=reasons)

    cells = [line.strip("| ").split(" | ") for line in lines("toy", rows(ANSWERS), settings, tell)]
    assert [one[1] for one in cells] == ["without", "beside (96)"]
    assert cells[0][5:7] == cells[1][5:7]
    assert cells[1][8].startswith(("+", "-"))
