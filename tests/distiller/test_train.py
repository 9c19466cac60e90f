import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from distiller.examples import Encoded
from distiller.train import (
    Trained,
    TrainSettings,
    collate,
    completion_loss,
    load_for_training,
    plan,
    train,
    usual_weight,
    with_adapter,
)
from proxy.errors import BadInput
from tests.distiller.toy import build_toy

SETTINGS = TrainSettings(epochs=6, learning_rate=1e-2, rank=8, alpha=16, tokens_per_step=64, max_tokens=32, threads=1)


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


def run(base: Path, out: Path, settings: TrainSettings = SETTINGS) -> Trained:
    return train(base, rows(40), settings, out, lambda *_: None)


def test_packed_rows_score_as_if_each_were_alone(base, monkeypatch):
    """Packing must not let a row see its neighbours: compare with plain transformers, one row at a time."""
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")  # Else rounding shows.
    packed, plain = load_for_training(base), AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    examples = rows(7)
    inputs = collate(examples)
    targets = inputs.pop("targets")
    alone, losses = [], []
    with torch.no_grad():
        together = packed(**inputs, use_cache=False).logits[0]
        for row in examples:
            logits = plain(torch.tensor([row.input_ids])).logits[0, row.prompt_length - 1 : -1]
            alone.append(logits)
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row.input_ids[row.prompt_length :])))
        loss = completion_loss(packed, {**inputs, "targets": targets})
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-4, rtol=0)


def test_collate_asks_for_completion_tokens_only():
    inputs = collate([Encoded([5, 6, 7, 2], 2), Encoded([8, 9, 2], 1)])
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert inputs["targets"].tolist() == [7, 2, 9, 2]
    kept = inputs["logits_to_keep"]
    assert inputs["input_ids"][0][kept + 1].tolist() == inputs["targets"].tolist()


def test_weights_say_what_each_answer_counts_over_all_steps(base, monkeypatch):
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")  # Else rounding shows.
    model, (one, two, three) = load_for_training(base), rows(3)
    steps = [[one, replace(two, weight=0.25)], [replace(three, weight=0.25)]]
    usual = usual_weight(steps)
    assert usual == pytest.approx((2 + 0.5 + 0.5) / 2)
    with torch.no_grad():
        alone = [float(completion_loss(model, collate([row]))) for row in (one, two, three)]
        weighed = [float(completion_loss(model, collate(step, usual))) for step in steps]
    assert weighed == pytest.approx([(2 * alone[0] + 0.5 * alone[1]) / usual, 0.5 * alone[2] / usual], rel=1e-4)
    assert usual_weight([[one], [two, three]]) is None
    assert "weights" not in collate([one])


def test_steps_end_a_training_sooner(base, tmp_path):
    trained = run(base, tmp_path / "a", replace(SETTINGS, steps=5))
    assert trained.steps == 5
    assert plan([7, 9] * 9, replace(SETTINGS, steps=3)) == plan([7, 9] * 9, SETTINGS)[:3]


def test_the_toy_learns_and_each_step_is_reported(base, tmp_path):
    seen: list[tuple[int, int, float]] = []
    trained = train(base, rows(40), SETTINGS, tmp_path / "a", lambda *step: seen.append(step))
    assert trained.last_loss < 0.7 * trained.first_loss
    assert [step for step, _, _ in seen] == list(range(1, trained.steps + 1))
    assert {steps for _, steps, _ in seen} == {trained.steps}
    assert tuple(loss for _, _, loss in seen) == trained.losses
    assert trained.tokens == SETTINGS.epochs * sum(len(row.input_ids) for row in rows(40))


def test_a_seed_decides_everything(base, tmp_path):
    short = replace(SETTINGS, epochs=1)
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


def test_only_the_uppermost_layers_learn_when_asked(base):
    model = with_adapter(load_for_training(base), replace(SETTINGS, layers=1))
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(learning) == 14
    assert all(".layers.1." in name and "lora_" in name for name in learning)


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


@pytest.mark.parametrize("change", [{"rank": 12}, {"rank": 4}, {"max_tokens": 65}])
def test_settings_that_cannot_work_are_refused(change: dict[str, int]):
    with pytest.raises(BadInput):
        replace(SETTINGS, **change)
