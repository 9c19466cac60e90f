import json
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.dataset import dataset
from distiller.distill import distill
from distiller.embedding import Encoders
from distiller.label_student import label_student
from distiller.lineage import rebuild
from distiller.settings import Settings
from distiller.small import load_sealed
from proxy.errors import Refused
from proxy.log import Log
from router.registry import candidates
from tests.distiller.toy_task import ANSWERS, toy_log, toy_settings
from tests.router.conftest import TASK


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return toy_log(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    given = toy_settings(tmp_path)
    return replace(given, distiller=replace(given.distiller, students=("labels",)))


def test_it_is_made_served_by_the_small_server_and_made_again_to_the_same_name(log: Log, settings: Settings) -> None:
    steps: list[str] = []
    done = distill(log, settings, TASK, lambda step, *_: steps.append(step))
    (candidate,) = candidates(log)
    assert (done.kind, candidate.card["engine"], candidate.card["base"]) == ("labels", "small", settings.distiller.base)
    assert {"training", "holdout", "untuned base as control"} <= set(steps)
    assert done.holdout.base is not None
    assert done.holdout.student == 1.0 > max(done.holdout.base, done.holdout.majority)
    assert candidate.card["max_tokens"] < 20
    facts = json.loads((done.bundle.path / "small" / "small.json").read_text())
    assert (facts["kind"], facts["labels"]) == ("labels", sorted(ANSWERS.values()))
    golden = candidate.card["golden"]
    served = load_sealed(done.bundle.path / "small", Encoders([]))
    assert [one.text for one in served([case["messages"] for case in golden])] == [case["text"] for case in golden]
    assert rebuild(log, settings, done.bundle, lambda *_: None).same


def test_it_is_taught_the_spelling_it_is_asked_to_score(log: Log, settings: Settings, tmp_path: Path) -> None:
    given = replace(settings, distiller=replace(settings.distiller, epochs=1))
    data = dataset(log, TASK, settings)
    some = list(enumerate(data.train))
    loud = [replace(row, answer=row.answer.replace("stop", "Stop.")) if place % 4 == 0 else row for place, row in some]
    files = []
    for name, rows in (("mixed", loud), ("one", data.train)):
        (tmp_path / name).mkdir()
        made = label_student(
            replace(data, train=rows, holdout=data.holdout[:3]), given, tmp_path / name, lambda *_: None
        )
        assert (made.rows, len(made.answers)) == (len(data.train), 3)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name / "small").iterdir()})
    assert loud != data.train
    assert files[0] == files[1]


def test_it_is_for_labels_that_are_a_closed_set(log: Log, settings: Settings, tmp_path: Path) -> None:
    data = dataset(log, TASK, settings)
    with pytest.raises(Refused, match="this task is scored as json"):
        label_student(replace(data, evaluator="json"), settings, tmp_path, lambda *_: None)
    every = [replace(row, answer=f"answer {number}") for number, row in enumerate(data.train)]
    with pytest.raises(Refused, match="are no closed set to choose from"):
        label_student(replace(data, train=every), settings, tmp_path, lambda *_: None)
