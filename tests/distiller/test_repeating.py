from dataclasses import replace
from pathlib import Path

import pytest

from distiller.bundle import load_bundle
from distiller.dataset import Dataset, dataset
from distiller.distill import distill
from distiller.lineage import rebuild
from distiller.repeating import consistent, due
from distiller.repeats import INCONSISTENT
from distiller.settings import Settings
from proxy.errors import BadInput, Refused
from proxy.log import Log
from proxy.logprobs import packed
from proxy.settings import TeacherSettings
from router.settings import MoneySettings, Price, RouterSettings, TaskSettings
from tests.distiller.test_doubt import position
from tests.distiller.toy_task import head_settings, toy_log
from tests.router.conftest import TASK
from tests.servers import serving
from tests.tutors import Tutor

PRICES = MoneySettings(prices={"gpt-4o": Price(input=1.0, output=2.0)})
SURE, UNSURE = packed([position("x", 0.9, 0.1)]), packed([position("x", 0.5, 0.4)])


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    """Of 150 lamps the teacher was unsure about twelve, all of them red: to stop at."""
    monkeypatch.setenv("TUTOR_KEY", "sk-ours")
    log = toy_log(tmp_path)
    log.query("UPDATE exchanges SET logprobs = ?", [SURE])
    unsure = "SELECT id FROM exchanges WHERE answer = 'stop' ORDER BY id LIMIT 12"
    log.query(f"UPDATE exchanges SET logprobs = ? WHERE id IN ({unsure})", [UNSURE])
    return log


def given(tmp_path: Path, url: str = "", **options: float) -> Settings:
    settings = head_settings(tmp_path)
    teacher = TeacherSettings(url=url or "http://localhost:1", key_env="TUTOR_KEY")
    return replace(
        settings, teacher=teacher, money=PRICES,
        distiller=replace(settings.distiller, **options),  # type: ignore[arg-type]
    )  # fmt: skip


def learned(log: Log, tmp_path: Path, tutor: Tutor, **options: float) -> Dataset:
    with serving(tutor.app()) as url:
        settings = given(tmp_path, url, **options)
        return consistent(log, settings, dataset(log, TASK, settings), lambda *_: None)


def test_only_rows_in_doubt_are_asked_again_and_those_that_waver_are_not_learned(log: Log, tmp_path: Path) -> None:
    before = dataset(log, TASK, given(tmp_path))
    tutor = Tutor(text="wait")
    data = learned(log, tmp_path, tutor, repeat_budget=1.0)
    assert len(tutor.asked) == 12
    assert {one["authorization"] for one in tutor.asked} == {"Bearer sk-ours"}
    assert data.dropped == {**before.dropped, INCONSISTENT: 12}
    assert len(data.train) + sum(data.dropped.values()) + len(data.holdout) == data.read
    assert data.holdout == before.holdout
    again = learned(log, tmp_path, tutor, repeat_budget=1.0)
    unpaid = learned(log, tmp_path, tutor)  # What is known counts, also when nothing is paid for any more.
    assert len(tutor.asked) == 12
    assert [(one.train, one.dropped) for one in (again, unpaid)] == [(data.train, data.dropped)] * 2


def test_rows_the_teacher_stands_by_are_kept(log: Log, tmp_path: Path) -> None:
    tutor = Tutor(text="Stop.")
    data = learned(log, tmp_path, tutor, repeat_budget=1.0)
    assert len(tutor.asked) == 12
    assert INCONSISTENT not in data.dropped


def test_the_share_and_the_margin_bound_what_is_asked(log: Log, tmp_path: Path) -> None:
    data = dataset(log, TASK, given(tmp_path))
    assert len(data.train) == 120
    asked = (
        ({}, 12), ({"repeat_share": 0.05}, 6), ({"repeat_margin": 0.05}, 0),
        ({"repeat_margin": 0.85, "repeat_share": 1.0}, 120),
    )  # fmt: skip
    for options, count in asked:
        assert len(due(given(tmp_path, **options), data)) == count
    assert {row.answer for row in due(given(tmp_path, repeat_margin=0.85, repeat_share=0.1), data)} == {"stop"}


def test_without_a_budget_nobody_is_asked_and_without_a_price_it_is_said(log: Log, tmp_path: Path) -> None:
    tutor = Tutor(text="wait")
    assert INCONSISTENT not in learned(log, tmp_path, tutor).dropped
    assert tutor.asked == []
    settings = replace(given(tmp_path, repeat_budget=1.0), money=MoneySettings())
    log.query("UPDATE exchanges SET request = replace(request, 'gpt-4o', 'nobody-knows-me')")
    with pytest.raises(Refused, match=r"'nobody-knows-me' has no price.*set one under \[money.prices\]$"):
        consistent(log, settings, dataset(log, TASK, settings), lambda *_: None)
    keyless = replace(settings, teacher=TeacherSettings())
    with pytest.raises(BadInput, match=r"set teacher\.key_env"):
        consistent(log, keyless, dataset(log, TASK, keyless), lambda *_: None)


def test_free_text_is_never_asked_again(log: Log, tmp_path: Path) -> None:
    declared = RouterSettings(tasks={TASK: TaskSettings(evaluator="exact")})
    with serving((tutor := Tutor()).app()) as url:
        settings = replace(given(tmp_path, url, repeat_budget=1.0), router=declared)
        data = dataset(log, TASK, settings)
        assert consistent(log, settings, data, lambda *_: None) is data
    assert tutor.asked == []


def test_a_teacher_that_fails_is_no_reason_not_to_learn(
    log: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = learned(log, tmp_path, Tutor(text="wait", fails_at=4), repeat_budget=1.0)
    assert data.dropped[INCONSISTENT] == 4
    assert "not every row in doubt was asked again: the teacher answered with status 503" in caplog.text


def test_a_student_is_made_without_them_and_can_be_made_again(log: Log, tmp_path: Path) -> None:
    with serving(Tutor(text="wait").app()) as url:
        settings = given(tmp_path, url, repeat_budget=1.0)
        done = distill(log, settings, TASK, lambda *_: None)
    assert (done.trained_rows, done.dropped[INCONSISTENT]) == (108, 12)
    assert load_bundle(done.bundle.path).manifest["dropped"][INCONSISTENT] == 12
    assert rebuild(log, settings, done.bundle, lambda *_: None).same
