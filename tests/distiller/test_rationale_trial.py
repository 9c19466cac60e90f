import json
from dataclasses import replace
from pathlib import Path

import pytest

from distiller.dataset import Dataset, dataset
from distiller.examples import Encoded
from distiller.explained import BEFORE, SECOND
from distiller.rationale_trial import RESULT, Trial, trials, weighed, whys, write
from distiller.scoring import scoring
from distiller.settings import DistillerSettings, Settings
from distiller.terminal import trial_line
from distiller.train import TrainSettings, usual_weight
from proxy.errors import Refused
from proxy.log import Log
from router.settings import TaskSettings
from tests.distiller.toy import build_toy
from tests.distiller.toy_task import ANSWERS, toy_log
from tests.logs import migrated
from tests.router.conftest import TASK, insert

OPTIONS = TrainSettings(epochs=4, learning_rate=1e-2, rank=8, alpha=16, tokens_per_step=128, max_tokens=128, threads=1)
SETTINGS = Settings(distiller=DistillerSettings(min_exchanges=20, holdout=10))


def tried(
    log: Log, data: Dataset, why: dict[str, str], base: Path, scratch: Path, options: TrainSettings = OPTIONS
) -> list[Trial]:
    with scoring(log, SETTINGS, TASK, data.evaluator, TaskSettings()) as score:
        return trials(base, data, whys(data, why), options, score, scratch, lambda *_: None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    build_toy(folder, [f"lamp is {colour} {answer} because" for colour, answer in ANSWERS.items()])
    return folder


def test_two_students_of_the_same_rows_and_steps_are_compared(base: Path, tmp_path: Path) -> None:
    log = toy_log(tmp_path)
    data = dataset(log, TASK, SETTINGS)
    asked = {row.exchange_id: f"because {row.answer}" for row in data.train[::2]}
    asked[data.train[0].exchange_id] = "because stop" if data.train[0].answer != "stop" else "because go"
    (trial,) = tried(log, data, asked, base, tmp_path / "one")
    assert (trial.how, trial.keys, trial.contradicting) == (SECOND, (), 1)
    assert 20 <= trial.rationales < trial.rows
    assert trial.tokens[0] == pytest.approx(trial.tokens[1], abs=1)
    assert trial.keep == trial.compared.better
    assert trial.compared.n == 28
    assert trial.compared.one > 0.5  # The student without rationales did learn the task.
    assert "rationales as a second task: " in trial_line(trial)
    assert tried(log, data, asked, base, tmp_path / "two") == [trial]
    write(tmp_path, [trial])
    (stored,) = json.loads((tmp_path / RESULT).read_text())
    assert (stored["how"], stored["compared"]["difference"]) == (trial.how, trial.compared.difference)


def test_reasoning_in_the_answers_is_tried_both_ways_and_compared_without(base: Path, tmp_path: Path) -> None:
    log = migrated(tmp_path)
    for number in range(40):
        for colour, answer in ANSWERS.items():
            why = (
                f"lamp {number} is {colour} and whoever comes to a lamp that is {colour} knows what to do there: go on"
            )
            insert(log, [f"lamp {number} is {colour}"], json.dumps({"reasoning": why, "answer": answer}))
    data = dataset(log, TASK, SETTINGS)
    both = tried(log, data, {}, base, tmp_path / "arms", replace(OPTIONS, epochs=1))
    assert [(one.how, one.keys, one.contradicting) for one in both] == [
        (BEFORE, ("reasoning",), 0),
        (SECOND, ("reasoning",), 0),
    ]
    assert both[0].steps == both[1].steps
    assert both[0].compared.one == both[1].compared.one
    assert both[0].tokens[1] > 2 * both[0].tokens[0]


def test_too_few_rationales_are_not_tried(base: Path, tmp_path: Path) -> None:
    log = toy_log(tmp_path)
    data = dataset(log, TASK, SETTINGS)
    with pytest.raises(Refused, match="too few for an A/B"):
        tried(log, data, {data.train[0].exchange_id: "because"}, base, tmp_path / "one")


def test_rationales_weigh_as_much_as_all_answers_do() -> None:
    rows = [Encoded([1, 2, 3], 1), Encoded([1, *range(40)], 1), Encoded([1, 2], 1)]
    found = weighed(rows, [False, True, False], alpha=0.25)
    assert [one.weight for one in found] == [1.0, pytest.approx(3 * 3 / 40), 1.0]
    assert usual_weight([found[:2], found[2:]]) == pytest.approx((3 + 9) / 2)
    assert weighed(rows, [False] * 3) == rows
    assert usual_weight([rows]) is None
    assert usual_weight([[replace(rows[0], weight=0.5)]]) == 1.0
