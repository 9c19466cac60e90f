import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from distiller.completion_trainer import CompletionTrainer, collate, completion_loss, usual_weight
from distiller.examples import Encoded
from distiller.projection import Target
from distiller.train import TrainSettings, learning_model, training_arguments
from distiller.weights import load_for_training
from proxy.errors import Refused
from tests.distiller.test_train import SETTINGS, rows
from tests.distiller.toy import build_toy


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_toy(folder, ["any text will do"])
    return folder


def alone_and_together(base: Path, monkeypatch, packed: Any) -> tuple[Any, Any, dict[str, Any], list[Encoded]]:
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")  # Else rounding shows.
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    examples = rows(7)
    return plain, packed(base), collate(examples), examples


def plain_loss(model: Any, row: Encoded) -> torch.Tensor:
    """Of one row alone, by transformers' own means."""
    logits = model(torch.tensor([row.input_ids])).logits[0, row.prompt_length - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(row.input_ids[row.prompt_length :]))


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_packed_rows_learn_as_if_each_were_alone(base, monkeypatch):
    """Packing must not let a row see its neighbours: loss and gradients are those of plain transformers, row by row."""
    plain, packed, inputs, examples = alone_and_together(base, monkeypatch, load_for_training)
    loss = completion_loss(packed, inputs, alpha_hard=0.5)
    alone = torch.stack([plain_loss(plain, row) for row in examples]).mean()  # Each has two completion tokens.
    torch.testing.assert_close(loss, alone, atol=1e-5, rtol=0)
    expected = gradients(plain, alone)
    torch.testing.assert_close(gradients(packed, loss), expected, atol=1e-5, rtol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2  # The tolerance could fail.


def test_naive_packing_would_leak(base, monkeypatch):
    """What the test above would see: with a cache, as is transformers' default, packed rows attend to each other."""
    plain, packed, inputs, examples = alone_and_together(base, monkeypatch, AutoModelForCausalLM.from_pretrained)
    naive = {name: inputs[name] for name in ("input_ids", "position_ids", "logits_to_keep")}
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(packed(**naive).logits[0].float(), inputs["targets"])
        alone = torch.stack([plain_loss(plain, row) for row in examples]).mean()
    assert abs(float(loss - alone)) > 1e-2


def test_collate_asks_for_completion_tokens_only():
    inputs = collate([Encoded([5, 6, 7, 2], 2), Encoded([8, 9, 2], 1)])
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert inputs["targets"].tolist() == [7, 2, 9, 2]
    kept = inputs["logits_to_keep"]
    assert inputs["input_ids"][0][kept + 1].tolist() == inputs["targets"].tolist()


def test_collate_places_soft_targets_at_their_tokens():
    soft = (None, Target((7, 8), (0.6, 0.3), 0.1), None)
    rows = [Encoded([5, 6, 7, 2], 2), Encoded([8, 9, 7, 2], 1, soft), Encoded([4, 2], 1)]
    inputs = collate(rows)
    assert inputs["targets"].tolist() == [7, 2, 9, 7, 2, 2]
    assert inputs["soft"]["at"].tolist() == [3]
    assert inputs["soft"]["ids"].tolist() == [[7, 8]]
    assert inputs.keys() - collate(rows[:1]).keys() == {"soft"}


def test_weights_say_what_each_answer_counts_over_all_steps(base, monkeypatch):
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")  # Else rounding shows.
    model, (one, two, three) = load_for_training(base), rows(3)
    steps = [[one, replace(two, weight=0.25)], [replace(three, weight=0.25)]]
    usual = usual_weight(steps)
    assert usual == pytest.approx((2 + 0.5 + 0.5) / 2)
    with torch.no_grad():
        alone = [float(completion_loss(model, collate([row]), 0.5)) for row in (one, two, three)]
        weighed = [float(completion_loss(model, collate(step, usual), 0.5)) for step in steps]
    assert weighed == pytest.approx([(2 * alone[0] + 0.5 * alone[1]) / usual, 0.5 * alone[2] / usual], rel=1e-4)
    assert usual_weight([[one], [two, three]]) is None
    assert "weights" not in collate([one])


def test_a_row_that_counts_twice_is_learned_as_two_of_it(base, monkeypatch):
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")
    model, (one, other) = load_for_training(base), rows(2)
    step = [replace(one, weight=4 / 3), replace(other, weight=2 / 3)]
    weighted = collate(step, usual_weight([step]))
    twice = completion_loss(model, collate([one, one, other]), alpha_hard=0.5)
    torch.testing.assert_close(completion_loss(model, weighted, alpha_hard=0.5), twice, atol=1e-5, rtol=0)
    assert "weights" not in collate([one, other])


def trainer_of(
    model: Any, folder: Path, steps: list[list[Encoded]], lanes: int, on_loss: Callable[[float], None] = lambda _: None,
    settings: TrainSettings = SETTINGS,
) -> CompletionTrainer:  # fmt: skip
    arguments = training_arguments(settings, len(steps), folder, None)
    return CompletionTrainer(model, arguments, steps, on_loss, 0.3, lanes)


def one_step(base: Path, folder: Path, step: list[Encoded], method: str, lanes: int) -> tuple[float, Any]:
    """(loss, gradients) of a step as the trainer comes to them in so many lanes; a second step weighs otherwise."""
    settings = replace(SETTINGS, method=method)
    model = learning_model(base, settings)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # They start at zero, and so would half of all gradients be.
            torch.nn.init.normal_(weight, std=0.1)
    losses: list[float] = []
    found: dict[str, torch.Tensor] = {}

    class Stop(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            learning = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
            found.update({name: weight.grad.clone() for name, weight in learning})
            control.should_training_stop = True

    trainer = trainer_of(model, folder, [step, rows(2)], lanes, losses.append, settings)
    trainer.add_callback(Stop())
    trainer.train()
    return losses[0], found


# One answer is longer, so that a mean of means would be another number.
LONG = Encoded([11, 12, 13, 7, 7, 9, 2], 3)
PLAIN = [LONG, *rows(6)]
LIGHT = [replace(row, weight=0.25) if place % 3 else row for place, row in enumerate(PLAIN)]
SOFT = [LONG, *(replace(row, soft=(Target((7, 9), (0.6, 0.3), 0.1), None)) for row in rows(2)), *rows(1)]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("step", [PLAIN, LIGHT, SOFT, [LONG]], ids=["plain", "light", "soft", "one row"])
def test_lanes_learn_what_one_computation_does(base, tmp_path, monkeypatch, method: str, step: list[Encoded]):
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")  # Else rounding shows.
    monkeypatch.setattr("distiller.train.compute_dtype", lambda: "float32")
    loss, gradients = one_step(base, tmp_path, step, method, 1)
    for lanes in (2, 3):
        shared = one_step(base, tmp_path, step, method, lanes)
        assert shared[0] == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(shared[1], gradients, atol=1e-6, rtol=1e-3)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-2  # The tolerance could fail.


@pytest.mark.parametrize("method", ["lora", "full"])
def test_lanes_give_the_same_bytes_whichever_is_faster(base, tmp_path, method: str):
    one, two = (one_step(base, tmp_path, rows(9), method, 2) for _ in range(2))
    assert one[0] == two[0]
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_training_that_diverges_is_refused_and_no_thread_stays(base, tmp_path, lanes: int):
    settings = replace(SETTINGS, learning_rate=1e30)
    trainer = trainer_of(learning_model(base, settings), tmp_path, [rows(4)] * 3, lanes, settings=settings)
    with pytest.raises(Refused, match=r"step [23]\b.*lower distiller.learning_rate"):
        trainer.train()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_gradient_that_is_no_number_is_refused_before_it_is_learned(base, tmp_path, lanes: int):
    """The loss still is one."""
    model, losses = learning_model(base, SETTINGS), list[float]()
    weight = next(weight for weight in model.parameters() if weight.requires_grad)
    weight.register_hook(lambda gradient: gradient * math.nan)
    before = weight.detach().clone()
    with pytest.raises(Refused, match="step 1"):
        trainer_of(model, tmp_path, [rows(4)], lanes, losses.append).train()
    assert (len(losses), torch.equal(weight, before)) == (1, True)


def test_an_error_in_a_lane_ends_the_training(base, tmp_path):
    """A token that is not in the vocabulary."""
    broken = [*rows(3), Encoded([10**6, 7, 2], 1)]
    with pytest.raises(IndexError):
        trainer_of(learning_model(base, SETTINGS), tmp_path, [broken], 2).train()
