import hashlib
import json
import random
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from distiller.checkpoints import Checkpoints
from distiller.early_stop import EarlyStop
from distiller.examples import Encoded
from distiller.projection import Target
from distiller.train import Trained, TrainSettings, plan, train
from proxy.errors import BadInput
from tests.distiller.toy import build_toy

SETTINGS = TrainSettings(epochs=6, learning_rate=1e-2, rank=8, alpha=16, tokens_per_step=64, max_tokens=32, threads=1)


ROOT = Path(__file__).parent.parent.parent
# Kills itself in the middle of step 11, as the kernel would.
KILLED = """
import ast, os, signal, sys
from pathlib import Path
from distiller.checkpoints import Checkpoints
from distiller.train import TrainSettings, train
from tests.distiller.test_train import rows

def report(step, *_):
    if step == 11:
        os.kill(os.getpid(), signal.SIGKILL)

job = ast.literal_eval(sys.argv[1])
kept = Checkpoints(Path(job["checkpoints"]), every=4)
train(Path(job["base"]), rows(40), TrainSettings(**job["settings"]), Path(job["out"]), report, checkpoints=kept)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_toy(folder, ["any text will do"])
    return folder


def rows(count: int, seed: int = 0) -> list[Encoded]:
    """Prompts of random tokens; the answer is always 7, and 2 ends it."""
    pick = random.Random(seed)
    prompts = [[pick.randrange(10, 40) for _ in range(pick.randrange(3, 20))] for _ in range(count)]
    return [Encoded([*prompt, 7, 2], len(prompt)) for prompt in prompts]


def run(base: Path, out: Path, settings: TrainSettings = SETTINGS, **more: Any) -> Trained:
    return train(base, rows(40), settings, out, lambda *_: None, **more)


class Crashed(Exception):
    pass


def crash(base: Path, out: Path, settings: TrainSettings, at: int, **more: Any) -> None:
    """A run that ends in the middle of step `at`."""

    def report(step: int, *_: object) -> None:
        if step == at:
            raise Crashed

    with pytest.raises(Crashed):
        train(base, rows(40), settings, out, report, **more)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_as_many_steps_as_are_wanted_however_many_epochs_that_takes(base, tmp_path):
    assert run(base, tmp_path / "a", replace(SETTINGS, steps=5)).steps == 5
    lengths = [7, 9] * 9
    whole = plan(lengths, SETTINGS)
    assert plan(lengths, replace(SETTINGS, steps=3)) == whole[:3]
    assert plan(lengths, replace(SETTINGS, steps=len(whole), epochs=1)) == whole
    longer = plan(lengths, replace(SETTINGS, steps=len(whole) + 1))
    assert (longer[:-1], len(longer)) == (whole, len(whole) + 1)


def test_rows_without_a_single_target_train_as_rows_without_log_probabilities(base, tmp_path):
    short = replace(SETTINGS, epochs=1)
    empty = [replace(row, soft=(None, None)) for row in rows(40)]
    hard = train(base, rows(40), short, tmp_path / "hard", lambda *_: None)
    assert train(base, empty, short, tmp_path / "empty", lambda *_: None).losses == hard.losses


def test_soft_targets_teach_how_sure_the_teacher_was(base, tmp_path):
    """The text always says 7; the teacher would have said 9 in 3 cases of 10."""
    told = (Target((7, 9), (0.6, 0.3), 0.1), None)
    soft = [replace(row, soft=told) for row in rows(200)]
    train(base, soft, replace(SETTINGS, epochs=4, alpha_hard=0.0), tmp_path / "a", lambda *_: None)
    student = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tmp_path / "a")
    unseen = rows(5, seed=1)
    with torch.no_grad():
        odds = [student(torch.tensor([row.input_ids[:-2]])).logits[0, -1].softmax(-1)[[7, 9]] for row in unseen]
    torch.testing.assert_close(torch.stack(odds).mean(0), torch.tensor([0.6, 0.3]), atol=0.1, rtol=0)


def test_the_toy_learns_and_each_step_is_reported(base, tmp_path):
    seen: list[tuple[int, int, float]] = []
    trained = train(base, rows(40), SETTINGS, tmp_path / "a", lambda *step: seen.append(step))
    assert trained.last_loss < 0.7 * trained.first_loss
    assert [step for step, _, _ in seen] == list(range(1, trained.steps + 1))
    assert {steps for _, steps, _ in seen} == {trained.steps}
    assert tuple(loss for _, _, loss in seen) == trained.losses
    assert trained.tokens == SETTINGS.epochs * sum(len(row.input_ids) for row in rows(40))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_seed_decides_everything(base, tmp_path, threads: int):
    short = replace(SETTINGS, epochs=1, threads=threads)
    one, two = run(base, tmp_path / "one", short), run(base, tmp_path / "two", short)
    other = run(base, tmp_path / "other", replace(short, seed=1))
    assert one.losses == two.losses != other.losses
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_adapter_folder_holds_what_vllm_loads_and_no_path(base, tmp_path):
    run(base, tmp_path / "a", replace(SETTINGS, epochs=1))
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.name
    assert config["modules_to_save"] is None
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_training_goes_on_from_an_adapter(base, tmp_path):
    run(base, tmp_path / "first")
    still = replace(SETTINGS, epochs=1, learning_rate=0.0)
    run(base, tmp_path / "same", still, init=tmp_path / "first")
    assert content(tmp_path / "same") == content(tmp_path / "first")
    on = run(base, tmp_path / "on", replace(SETTINGS, epochs=1), init=tmp_path / "first")
    new = run(base, tmp_path / "new", replace(SETTINGS, epochs=1))
    assert on.first_loss < 0.7 * new.first_loss
    with pytest.raises(BadInput, match="another shape"):
        run(base, tmp_path / "wider", replace(still, rank=16), init=tmp_path / "first")


def test_every_epoch_holds_every_row_once_in_another_order():
    lengths = [7, 9, 11] * 10
    steps = plan(lengths, replace(SETTINGS, epochs=2))
    assert sorted(index for step in steps for index in step) == sorted([*range(30), *range(30)])
    half = len(steps) // 2
    assert steps[:half] != steps[half:]
    assert steps != plan(lengths, replace(SETTINGS, epochs=2, seed=1))


@pytest.mark.parametrize(("lengths", "says"), [([], "no examples"), ([3, 33], "33 tokens")])
def test_what_cannot_be_trained_on_is_refused(lengths: list[int], says: str):
    with pytest.raises(BadInput, match=says):
        plan(lengths, SETTINGS)


@pytest.mark.parametrize("change", [{"rank": 12}, {"rank": 4}, {"max_tokens": 65}, {"alpha_hard": 1.5}, {"steps": -1}])
def test_settings_that_cannot_work_are_refused(change: dict[str, float]):
    with pytest.raises(BadInput):
        replace(SETTINGS, **change)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("at", "threads"), [(3, 1), (5, 2), (16, 2)])
def test_a_run_that_crashed_ends_as_if_it_had_not(base, tmp_path, method: str, at: int, threads: int):
    settings = replace(SETTINGS, epochs=2, method=method, threads=threads)
    kept = Checkpoints(tmp_path / "kept", every=4)
    whole = run(base, tmp_path / "whole", settings)
    crash(base, tmp_path / "a", settings, at, checkpoints=kept)
    resumed: list[int] = []
    gone_on = train(base, rows(40), settings, tmp_path / "a", lambda step, *_: resumed.append(step), checkpoints=kept)
    assert content(tmp_path / "a") == content(tmp_path / "whole")
    assert gone_on.losses == whole.losses
    assert resumed[0] == (at - 1) // 4 * 4 + 1
    assert list(kept.folder.iterdir()) == []


def test_a_killed_process_is_gone_on_from(base, tmp_path):
    settings = replace(SETTINGS, epochs=2)
    job = {"base": str(base), "out": str(tmp_path / "a"), "checkpoints": str(tmp_path / "kept")}
    killed = subprocess.run([sys.executable, "-c", KILLED, repr(job | {"settings": asdict(settings)})], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "a").exists()
    resumed: list[int] = []
    kept = Checkpoints(tmp_path / "kept", every=4)
    train(base, rows(40), settings, tmp_path / "a", lambda step, *_: resumed.append(step), checkpoints=kept)
    run(base, tmp_path / "whole", settings)
    assert resumed[0] == 9
    assert content(tmp_path / "a") == content(tmp_path / "whole")


def test_other_inputs_do_not_go_on_from_a_checkpoint(base, tmp_path):
    kept = Checkpoints(tmp_path / "kept", every=2)
    crash(base, tmp_path / "a", replace(SETTINGS, epochs=1), 4, checkpoints=kept)
    other = run(base, tmp_path / "b", replace(SETTINGS, epochs=1, seed=1), checkpoints=kept)
    assert other.losses == run(base, tmp_path / "c", replace(SETTINGS, epochs=1, seed=1)).losses
    assert list(kept.folder.iterdir()) == []


def test_the_best_state_is_kept_and_training_stops_without_improvement(base, tmp_path):
    scored: dict[int, dict[str, bytes]] = {}
    scores = [0.2, 0.7, 0.7, 0.1, 0.9]

    def score(folder: Path) -> float:
        scored[len(scored)] = content(folder)
        return scores[len(scored) - 1]

    trained = run(base, tmp_path / "a", early_stop=EarlyStop(score, patience=2))
    epoch = len(plan([len(row.input_ids) for row in rows(40)], SETTINGS)) // SETTINGS.epochs
    assert trained.scores == ((epoch, 0.2), (2 * epoch, 0.7), (3 * epoch, 0.7), (4 * epoch, 0.1))
    assert (trained.steps, trained.kept_step) == (4 * epoch, 2 * epoch)
    assert content(tmp_path / "a") == scored[1] != scored[3]
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


@pytest.mark.parametrize("at", [6, 11, 16])
def test_a_crash_changes_nothing_about_which_state_is_kept(base, tmp_path, at: int):
    """The states differ from one another, so that a wrong one would show; 16 crashes after training was stopped."""
    settings = replace(SETTINGS, epochs=3)
    by_digest: dict[str, float] = {}

    def score(folder: Path) -> float:
        digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        return by_digest.setdefault(digest, [0.1, 0.5, 0.3, 0.2, 0.9][len(by_digest)])

    stop = EarlyStop(score, patience=2, every=4)
    whole = run(base, tmp_path / "whole", settings, early_stop=stop)
    assert [value for _, value in whole.scores] == [0.1, 0.5, 0.3, 0.2]
    kept = Checkpoints(tmp_path / "kept", every=3)
    crash(base, tmp_path / "a", settings, at, early_stop=stop, checkpoints=kept)
    gone_on = run(base, tmp_path / "a", settings, early_stop=stop, checkpoints=kept)
    assert (gone_on.scores, gone_on.kept_step, gone_on.losses) == (whole.scores, 8, whole.losses)
    assert content(tmp_path / "a") == content(tmp_path / "whole")
    assert len(by_digest) == 4


def test_all_weights_learn_and_make_a_whole_model(base, tmp_path):
    trained = run(base, tmp_path / "model", replace(SETTINGS, epochs=2, method="full", learning_rate=3e-3))
    assert trained.last_loss < 0.5 * trained.first_loss
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (base, tmp_path / "model"))
    assert {name for name in before if torch.equal(before[name], after[name])} == set()
    AutoTokenizer.from_pretrained(tmp_path / "model")


def test_speed_and_memory_are_those_of_the_run(base, tmp_path):
    trained = run(base, tmp_path / "a", replace(SETTINGS, epochs=2))
    assert trained.completion_tokens == 2 * 40 * 2
    assert trained.tokens_per_second == pytest.approx(trained.tokens / trained.seconds)
    assert trained.completion_tokens_per_second == pytest.approx(trained.completion_tokens / trained.seconds)
    assert 50 < trained.peak_mb < 100_000
