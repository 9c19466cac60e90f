"""The benchmark of languages, shortly and on a toy: `make bench-languages` does the same on a recorded set."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distiller.settings import DistillerSettings
from proxy.traffic_file import Row
from tests.bench.distill_answers import Limits, Line
from tests.bench.languages import LATE, budget, fertilities, language, made, parts, skewed, with_late
from tests.bench.languages_table import BALANCED, FERTILITY, JOINT, OWN, SKEWED, tables
from tests.distiller.toy_task import ANSWERS, head_settings, toy_settings


def lines(count: int, *langs: str) -> list[Line]:
    """So many rows of each language, which take turns."""
    colours = list(ANSWERS)
    return [
        Line(Row(({"role": "user", "content": f"{lang} lamp {n} is {colour}"},), ANSWERS[colour], None, "gold", None),
             None, {"lang": lang})
        for n in range(count) for lang in langs for colour in (colours[n % 3],)
    ]  # fmt: skip


def test_what_a_language_without_later_rows_is_asked_is_learned_by_nobody() -> None:
    earlier, later = with_late(lines(100, "de", "en"), lines(5, "de"))
    assert Counter(map(language, earlier)) == {"de": 100, "en": 100 - LATE}
    assert Counter(map(language, later)) == {"de": 5, "en": LATE}
    asked = [line.row.messages for line in later if language(line) == "en"]
    assert not [line for line in earlier if line.row.messages in asked]


def test_skewed_traffic_has_ever_fewer_rows_of_each_language() -> None:
    given = lines(64, "ar", "de", "en")
    found = skewed(given)
    assert Counter(map(language, found)) == {"ar": 64, "de": 48, "en": 36}
    assert [line for line in given if line in found] == found


def test_a_student_of_a_part_costs_its_part() -> None:
    limits = Limits(DistillerSettings(encoder_tokens=1000, train_tokens=500), 10, 10, 5)
    found = budget(limits, 30, 120).options
    assert (found.encoder_tokens, found.train_tokens) == (250, 125)
    assert budget(Limits(DistillerSettings(encoder_tokens=1000), 10, 10, 5), 30, 120).options.train_tokens == 0


def test_the_students_are_made_and_compared_row_by_row(tmp_path: Path) -> None:
    given = head_settings(tmp_path).distiller
    base = toy_settings(tmp_path).distiller.base
    limits = Limits(DistillerSettings(
        encoder=given.encoder, base=base, min_exchanges=20, control_rows=4, threads=1, holdout=10,
    ), 100, 10_000, 80)  # fmt: skip
    earlier, later = lines(60, "de", "en"), lines(12, "de", "en")
    (tmp_path / "made").mkdir()
    found: list[dict[str, Any]] = [{"part": FERTILITY, **fertilities(earlier, limits, tmp_path / "made")}]
    for part in parts("lamps", earlier, later):
        found.append(made(part, "head", limits, len(earlier), tmp_path / "made", lambda _: None))
    assert [one["part"] for one in found[1:]] == [JOINT, OWN, OWN, SKEWED, BALANCED]
    assert [len(one["test"]) for one in found[1:]] == [24, 24, 12, 24, 24]  # Of equal ones the first is asked all.
    weights = [{one["name"]: one["weight"] for one in each["languages"]["table"]} for each in found[-2:]]
    assert weights[0]["en"] < weights[1]["en"] < 0.5
    shown = tables(found, 1)
    assert "| de (" in shown
    assert "| (the same) |" in shown
    assert "### Fertility" in shown
    assert shown.count("| all (") == 2


def test_what_gave_no_student_is_said() -> None:
    found = [{"part": JOINT, "kind": "head", "set": "x", "why": "not for JSON"}]
    assert "head, joint (x): none, not for JSON" in tables(found, 1)


@pytest.mark.parametrize("better", [True, False])
def test_differences_have_the_sign_they_say(better: bool) -> None:
    def answers(part: str, name: str, right: int) -> dict[str, Any]:
        test = [
            {"text": "a" if place < right else "b", "teacher": "a", "finished": True, "meta": {"lang": "de"}}
            for place in range(10)
        ]
        return {
            "part": part, "kind": "head", "set": name, "evaluator": "label", "rows": 50, "seconds": 60, "test": test,
        }  # fmt: skip

    shown = tables([answers(JOINT, "x", 9 if better else 1), answers(OWN, "x-de", 5)], 1)
    assert "(the same)" not in shown  # It was asked its own language only.
    assert f"| de (50, 10) | 0.500 | {0.9 if better else 0.1:.3f} | {0.4 if better else -0.4:+.3f} (" in shown
    assert f"{0 if better else 1} are more than 2 points behind" in shown
