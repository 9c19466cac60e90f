from dataclasses import replace
from pathlib import Path

import pytest

from distiller.cascade_student import cascade_student
from distiller.dataset import dataset
from distiller.distill import distill
from distiller.embedding import Encoders
from distiller.lineage import rebuild
from distiller.settings import Settings
from distiller.small import load_sealed
from proxy.errors import Refused
from proxy.log import Log
from router.registry import candidates
from tests.distiller.toy_encoder import build_toy_encoder
from tests.distiller.toy_task import ANSWERS, toy_log, toy_settings
from tests.router.conftest import TASK


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return toy_log(tmp_path)


def settings_with(folder: Path, encoder_knows: str) -> Settings:
    build_toy_encoder(folder / "encoder", [f"lamp is {word}" for word in encoder_knows.split()])
    given = toy_settings(folder)
    options = replace(given.distiller, students=("cascade",), encoder=str(folder / "encoder"))
    return replace(given, distiller=options)


def test_the_language_model_answers_what_the_head_cannot_tell_apart(log: Log, tmp_path: Path) -> None:
    settings = settings_with(tmp_path, encoder_knows="red")  # amber and green are one unknown word to it
    done = distill(log, settings, TASK, lambda *_: None)
    (candidate,) = candidates(log)
    assert (done.kind, candidate.card["engine"], candidate.card["base"]) == (
        "cascade",
        "small",
        settings.distiller.base,
    )
    assert candidate.card["reads"] == [settings.distiller.encoder]
    assert done.holdout.student == 1.0 > max(done.holdout.base or 0.0, done.holdout.majority)
    assert (done.trained_rows, done.dropped["calibration"]) == (96, 24)
    assert done.trained["first_coverage"] < done.trained["asked_twice"] < done.trained["coverage"]
    golden = candidate.card["golden"]
    served = load_sealed(done.bundle.path / "small", Encoders([]))
    assert [one.text for one in served([case["messages"] for case in golden])] == [case["text"] for case in golden]
    assert rebuild(log, settings, done.bundle, lambda *_: None).same


def test_a_head_that_knows_all_needs_nobody_behind_it(log: Log, tmp_path: Path) -> None:
    settings = settings_with(tmp_path, encoder_knows=" ".join([*ANSWERS, "0 1 2 3 4 5 6 7 8 9"]))
    with pytest.raises(Refused, match="a second part would not help: the first alone covers 100%"):
        cascade_student(dataset(log, TASK, settings), settings, made(tmp_path), lambda *_: None)


def test_it_is_for_labels(log: Log, tmp_path: Path) -> None:
    settings = settings_with(tmp_path, encoder_knows="red")
    data = replace(dataset(log, TASK, settings), evaluator="json")
    with pytest.raises(Refused, match="this task is scored as json"):
        cascade_student(data, settings, made(tmp_path), lambda *_: None)


def made(folder: Path) -> Path:
    (folder / "made").mkdir()
    return folder / "made"
