import json
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.dataset import Dataset, dataset
from distiller.distill import distill
from distiller.lineage import rebuild
from distiller.settings import Settings
from distiller.small_students import encoder_student, head_student
from proxy.errors import Refused
from proxy.log import Log
from router.registry import candidates
from tests.distiller.toy_encoder import build_toy_encoder
from tests.distiller.toy_task import ANSWERS, toy_log, toy_settings
from tests.logs import migrated
from tests.router.conftest import TASK, insert


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return toy_log(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    encoder = tmp_path / "encoder"
    build_toy_encoder(encoder, [f"lamp is {colour} {answer}" for colour, answer in ANSWERS.items()])
    given = toy_settings(tmp_path)
    return replace(given, distiller=replace(given.distiller, encoder=str(encoder)))


@pytest.fixture
def data(log: Log, settings: Settings) -> Dataset:
    return dataset(log, TASK, settings)


@pytest.mark.parametrize("recipe", [head_student, encoder_student])
def test_a_small_student_learns_a_task_of_labels(
    recipe: object, data: Dataset, settings: Settings, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    folder = tmp_path / "made"
    folder.mkdir()
    made = recipe(data, settings, folder, lambda _, at, of: steps.append((at, of)))  # type: ignore[operator]
    assert [one.text for one in made.answers] == [row.answer for row in data.holdout]
    assert (made.rows, steps[-1][0] <= steps[-1][1]) == (len(data.train), True)
    assert json.loads((folder / "small" / "small.json").read_text())["kind"] == recipe.__name__.partition("_")[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("recipe", [head_student, encoder_student])
def test_a_rare_language_counts_more_where_it_is_wanted(
    recipe: object, data: Dataset, settings: Settings, tmp_path: Path
) -> None:
    rows = [replace(row, lang="de" if place % 10 == 0 else "en") for place, row in enumerate(data.train)]
    said = []
    for temperature in (1.0, 5.0):
        folder = tmp_path / f"made-{temperature}"
        folder.mkdir()
        given = replace(settings, distiller=replace(settings.distiller, language_temperature=temperature))
        made = recipe(replace(data, train=rows), given, folder, lambda *_: None)  # type: ignore[operator]
        said.append([answer.logprobs for answer in made.answers])
    assert said[0] != said[1]


def test_a_head_is_for_labels(data: Dataset, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="this task is scored as json"):
        head_student(replace(data, evaluator="json"), settings, tmp_path, lambda *_: None)


def test_the_cheapest_that_answers_enough_is_taken_and_made_again_to_the_same_name(
    log: Log, settings: Settings
) -> None:
    every = replace(settings, distiller=replace(settings.distiller, students=("head", "encoder", "adapter")))
    done = distill(log, every, TASK, lambda *_: None)
    tried = {one.kind: one for one in done.tried}
    best = max(tried.values(), key=lambda one: (one.coverage or 0.0, one.score or 0.0))
    assert (done.kind, done.holdout.student) == (best.kind, best.score)
    assert list(tried) == ["head", "encoder", "adapter"]  # 30 rows of holdout let nobody answer, so all are tried.
    (candidate,) = candidates(log)
    assert candidate.card["engine"] == ("vllm" if done.kind == "adapter" else "small")
    assert rebuild(log, settings, done.bundle, lambda *_: None).same


def test_why_no_kind_does_is_told_of_each(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "free").mkdir()
    log = migrated(tmp_path / "free")
    for number in range(120):
        insert(log, [f"lamp {number} is red"], f"{number} lamps, {number * 7} bulbs and {number * 13} moths were seen.")
    small = replace(settings, distiller=replace(settings.distiller, students=("head", "encoder")))
    with pytest.raises(Refused, match=r"head: a linear head answers with labels; .*; encoder: "):
        distill(log, small, TASK, lambda *_: None)
