import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.adapter_student import adapter_student, soft_student
from distiller.base import base_identity
from distiller.dataset import Dataset, dataset
from distiller.incumbent import Incumbent
from distiller.settings import Settings
from proxy.errors import Refused
from proxy.logprobs import Position, packed
from tests.distiller.toy_task import toy_log, toy_settings
from tests.router.conftest import TASK, insert


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return toy_settings(tmp_path)


@pytest.fixture
def data(tmp_path: Path, settings: Settings) -> Dataset:
    log = toy_log(tmp_path)
    insert(log, ["a very long one " * 40], "stop")
    for number in range(40):
        insert(log, [f"lamp {150 + number} is red"], "stop")
    return dataset(log, TASK, settings)


def made(data: Dataset, settings: Settings, folder: Path, **options: int) -> tuple[int, dict[str, int]]:
    folder.mkdir()
    given = replace(settings, distiller=replace(settings.distiller, epochs=1, **options))
    done = adapter_student(data, given, folder, lambda *_: None)
    assert len(done.answers) == len(data.holdout)
    assert len(json.loads((folder / "losses.json").read_text())) == done.facts["steps"]
    assert (folder / "adapter" / "adapter_config.json").is_file()
    return done.rows, dict(done.left_out)


def test_rows_that_do_not_fit_are_counted_by_reason(data: Dataset, settings: Settings, tmp_path: Path) -> None:
    assert made(data, settings, tmp_path / "a") == (len(data.train) - 1, {"too_long": 1})
    rows, left_out = made(data, settings, tmp_path / "b", train_tokens=400)
    assert rows + sum(left_out.values()) == len(data.train)
    assert left_out["over_budget"] > 0


def test_that_none_fits_is_said(data: Dataset, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no row fits into distiller.max_tokens = 8"):
        made(data, settings, tmp_path / "a", max_tokens=8)


def test_how_much_rows_count_changes_what_is_learned(data: Dataset, settings: Settings, tmp_path: Path) -> None:
    hashes = []
    for name, options in (("a", {}), ("b", {"class_balance": 1.0}), ("c", {"half_life_days": 1e-6})):
        (tmp_path / name).mkdir()
        given = replace(settings, distiller=replace(settings.distiller, epochs=1, **options))
        done = adapter_student(data, given, tmp_path / name, lambda *_: None)
        assert ("effective_rows" in done.facts) == bool(options)
        assert done.facts.get("effective_rows", 1) < done.rows
        hashes.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert len(set(hashes)) == 3


def test_where_too_few_older_rows_fit_the_training_starts_from_the_base(
    data: Dataset, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "first").mkdir()
    first = adapter_student(data, settings, tmp_path / "first", lambda *_: None)
    manifest = {"kind": "adapter", "base_sha256": base_identity(first.base)}
    learned = frozenset(row.exchange_id for row in data.train[:100])
    before = replace(data, incumbent=Incumbent("student-1", "live", tmp_path / "first", manifest, learned))
    seen = {}
    for name, tokens in (("all", 0), ("few", 1200)):
        (tmp_path / name).mkdir()
        given = replace(settings, distiller=replace(settings.distiller, init="previous", train_tokens=tokens))
        seen[name] = adapter_student(before, given, tmp_path / name, lambda *_: None)
    assert (seen["all"].parent, seen["all"].facts["from_base_because"]) == (before.incumbent, "")
    assert seen["all"].facts["first_loss"] < seen["few"].facts["first_loss"]
    assert seen["few"].parent is None
    assert "too few to go on from student-1" in seen["few"].facts["from_base_because"]


def test_what_the_teacher_thought_of_is_learned_where_it_was_recorded(tmp_path: Path, settings: Settings) -> None:
    log = toy_log(tmp_path)
    with pytest.raises(Refused, match=r"teacher.logprobs_share asks for them"):
        soft_student(dataset(log, TASK, settings), settings, tmp_path, lambda *_: None)
    for answer, other in (("stop", "wait"), ("wait", "go")):  # Of "go" nothing was recorded.
        odds = tuple((text.encode(), math.log(odd)) for text, odd in ((answer, 0.7), (other, 0.2)))
        known = packed([Position(*odds[0], odds)])
        log.query("UPDATE exchanges SET logprobs = ? WHERE answer = ?", [known, answer])
    data = dataset(log, TASK, settings)
    for name in ("soft", "hard"):
        (tmp_path / name).mkdir()
    soft = soft_student(data, settings, tmp_path / "soft", lambda *_: None)
    hard = adapter_student(data, settings, tmp_path / "hard", lambda *_: None)
    told = json.loads((tmp_path / "soft" / "projection_report.json").read_text())
    assert (told["rows_soft"], told["rows_hard"], told["coverage"]) == (80, 40, 1.0)
    assert (soft.rows, soft.facts["steps"]) == (hard.rows, hard.facts["steps"])
    sure = [
        sum(one.confidence for one, row in zip(made.answers, data.holdout, strict=True) if row.answer == "stop") / 10
        for made in (soft, hard)
    ]
    assert sure[0] < sure[1]  # The text alone says nothing of the odds.
