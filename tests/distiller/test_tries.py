from dataclasses import replace
from pathlib import Path

import pytest

from distiller.distill import distill
from distiller.lineage import rebuild
from distiller.settings import DistillerSettings
from distiller.tries import tries
from proxy.errors import Refused
from proxy.log import Log
from tests.distiller.toy import build_toy
from tests.distiller.toy_task import toy_log, toy_settings
from tests.router.conftest import TASK


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return toy_log(tmp_path)


def test_small_students_are_tried_once_and_language_models_with_every_base_and_rank() -> None:
    named = tries(DistillerSettings(students=("head", "adapter"), base="a", bases=("b",), rank=4, ranks=(8,)))
    assert [(one.kind.name, *one.grown.values()) for one in named] == [
        ("head",), ("adapter", "a", 4), ("adapter", "a", 8), ("adapter", "b", 4), ("adapter", "b", 8),
    ]  # fmt: skip
    assert all(tries(one.options)[-1] == one for one in named[1:])


def test_every_base_is_tried_with_every_rank_and_the_best_can_be_made_again(log: Log, tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    other = tmp_path / "other"
    build_toy(other, ["nothing of the kind"])
    wanted = replace(settings.distiller, bases=(str(other),), rank=8, ranks=(16,), epochs=2, enough_coverage=1.0)
    done = distill(log, replace(settings, distiller=wanted), TASK, lambda *_: None)
    assert [(one.base, one.rank) for one in done.tried] == [
        (base, rank) for base in (wanted.base, str(other)) for rank in (8, 16)
    ]
    best = max(done.tried, key=lambda one: (one.coverage, one.score))
    made = done.bundle.manifest["settings"]
    assert (made["base"], made["rank"], *made["bases"], *made["ranks"]) == (best.base, best.rank)
    assert done.bundle.manifest["card"]["base"] == best.base
    assert rebuild(log, settings, done.bundle, lambda *_: None).same


def test_no_student_is_begun_after_the_hours_once_there_is_one(log: Log, tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    short = replace(settings.distiller, ranks=(8,), hours=1e-9, enough_coverage=1.0)
    done = distill(log, replace(settings, distiller=short), TASK, lambda *_: None)
    assert [one.why for one in done.tried] == ["", "not begun within 1e-09 hours"]
    assert done.bundle.manifest["settings"]["rank"] == 16


def test_kinds_that_diverge_are_refused_each_with_what_to_do(log: Log, tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    wild = replace(settings.distiller, ranks=(8,), epochs=1, learning_rate=1e30)
    with pytest.raises(Refused, match=r"adapter: .*lower distiller.learning_rate; adapter: .*diverged at step"):
        distill(log, replace(settings, distiller=wild), TASK, lambda *_: None)
