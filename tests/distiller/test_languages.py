from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distiller.answer_loss import Loss
from distiller.curate import Recorded
from distiller.distill import distill
from distiller.generate import Generated
from distiller.languages import Languages, interval, languages
from distiller.lineage import rebuild
from distiller.row_groups import LANGUAGE, TEACHER
from distiller.settings import DistillerSettings
from router.coverage import Threshold
from router.settings import TaskSettings
from tests.distiller.test_curate import row
from tests.distiller.toy_task import ANSWERS, head_settings, toy_log, toy_settings
from tests.logs import migrated
from tests.router.conftest import TASK, insert


def told(
    train: list[Recorded], verdicts: list[float], losses: list[Loss | None], threshold: float | None, **options: float
) -> Languages:
    """The last rows of `train` once more are the holdout; the answers are ever less sure."""
    holdout = train[-len(verdicts) :]
    data: Any = SimpleNamespace(
        train=train, holdout=holdout, evaluator="label", labels=("billing",), declared=TaskSettings()
    )
    answers = [Generated("billing", 0.9 - place / 10, True, (0.0,)) for place in range(len(verdicts))]
    least = threshold and Threshold(threshold, 0.5, 1.0, 0.9, 10, None, 0.0, False)
    chosen: Any = SimpleNamespace(
        verdicts=verdicts, threshold=least, calibration=SimpleNamespace(knots=()),
        made=SimpleNamespace(answers=answers, losses=losses),
    )  # fmt: skip
    return languages(data, chosen, DistillerSettings(**options))  # type: ignore[arg-type]


def test_each_group_is_told_apart() -> None:
    rows = [row(place, lang="en", model="gpt-4o") for place in range(6)]
    rows += [row(6, lang="de", teacher="eu"), row(7, lang="de", teacher="eu")]
    found = told(rows, [1.0, 0.5, 1.0, 0.0], [Loss(4, 2), None, Loss(1, 1), Loss(5, 1)], 0.65, language_temperature=2)
    assert found.by == LANGUAGE
    english, german = found.table
    assert (english.name, english.teachers, english.rows, english.judged) == ("en", ("gpt-4o",), 6, 2)
    assert (german.name, german.teachers, german.rows, german.judged) == ("de", ("eu",), 2, 2)
    assert english.weight / german.weight == pytest.approx(3**0.5)
    assert english.weight + german.weight == pytest.approx(1)
    assert (english.score, german.score) == (0.75, 0.5)
    assert (english.coverage, english.agreement) == (1.0, 0.75)
    assert (german.coverage, german.agreement) == (0.5, 1.0)
    assert (english.loss, german.loss) == (2.0, 3.0)


def test_what_is_not_known_is_none() -> None:
    rows = [row(place, teacher="a") for place in range(3)] + [row(9, teacher="b")]
    found = told(rows, [1.0], [], None)
    assert found.by == TEACHER
    one, other = found.table
    assert (one.judged, one.score, (one.low, one.high), one.coverage, one.loss) == (0, None, (0, 1), None, None)
    assert (other.score, other.coverage, other.agreement) == (1.0, None, None)


def test_one_language_is_no_table() -> None:
    assert told([row(place, lang="de") for place in range(4)], [1.0], [], None).table == ()


@given(st.lists(st.floats(0, 1), max_size=40))
def test_the_interval_holds_the_mean(verdicts: list[float]) -> None:
    low, high = interval(verdicts)
    mean = sum(verdicts) / len(verdicts) if verdicts else 0.5
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1


def test_a_student_of_two_languages_tells_both_in_its_manifest_and_can_be_made_again(tmp_path: Path) -> None:
    log = migrated(tmp_path)
    for start in range(0, 150, 3):
        lang = "de" if start % 5 == 0 else "en"
        for place, (colour, answer) in enumerate(ANSWERS.items()):
            insert(log, [f"lamp {start + place} is {colour}"], answer, lang=lang, teacher=f"t-{lang}")
    settings = toy_settings(tmp_path)
    settings = replace(settings, distiller=replace(settings.distiller, language_temperature=3.0))
    done = distill(log, settings, TASK, lambda *_: None)
    english, german = done.languages.table
    assert (english.teachers, german.teachers) == (("t-en",), ("t-de",))
    assert english.rows + german.rows == done.trained_rows
    assert english.judged + german.judged == done.holdout.rows
    assert german.weight > german.rows / done.trained_rows
    assert all(one.loss is not None and 0 < one.loss < 3 for one in done.languages.table)
    assert [one["name"] for one in done.bundle.manifest["languages"]["table"]] == ["en", "de"]
    assert rebuild(log, settings, done.bundle, lambda *_: None).same


def test_a_head_of_one_language_has_no_table(tmp_path: Path) -> None:
    done = distill(toy_log(tmp_path), head_settings(tmp_path), TASK, lambda *_: None)
    assert done.languages.table == ()
