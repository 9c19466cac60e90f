import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from distiller.sweep import choose_learning_rate, set_aside, validation_loss
from distiller.weights import load_for_training
from proxy.errors import BadInput
from tests.distiller.test_completion_trainer import plain_loss
from tests.distiller.test_train import SETTINGS, rows
from tests.distiller.toy import build_toy


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_toy(folder, ["any text will do"])
    return folder


def test_the_rate_that_learns_is_chosen_and_every_candidate_reported(base):
    sweep = choose_learning_rate(base, rows(40), SETTINGS, (1e-6, 1e-2, 1e-4), steps=12)
    assert sweep.chosen == 1e-2
    assert list(sweep.losses) == [1e-6, 1e-2, 1e-4]
    assert sweep.losses[1e-2] < 0.8 * sweep.losses[1e-6]
    assert choose_learning_rate(base, rows(40), SETTINGS, (1e-2,), steps=12).losses == {1e-2: sweep.losses[1e-2]}


def test_rates_that_all_diverge_are_refused(base):
    with pytest.raises(BadInput, match="diverges"):
        choose_learning_rate(base, rows(40), SETTINGS, (math.inf,), steps=3)


@pytest.mark.parametrize(("candidates", "steps"), [((), 5), ((1e-3,), 0)])
def test_a_sweep_needs_candidates_and_steps(base, candidates: tuple[float, ...], steps: int):
    with pytest.raises(BadInput):
        choose_learning_rate(base, rows(40), SETTINGS, candidates, steps)


def test_the_validation_loss_is_the_mean_over_all_completion_tokens(base, monkeypatch):
    monkeypatch.setattr("distiller.base.compute_dtype", lambda: "float32")
    model, examples = load_for_training(base), rows(30)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        alone = torch.stack([plain_loss(plain, row) for row in examples]).mean()
    assert validation_loss(model, examples, 64) == pytest.approx(float(alone), abs=1e-4)


@given(st.integers(5, 3000), st.integers(0, 5))
def test_what_is_set_aside_is_not_trained_on(count: int, seed: int):
    train, aside = set_aside(count, seed)
    assert sorted(train + aside) == list(range(count))
    assert len(aside) == min(count // 5, 200)
    assert (train, aside) == set_aside(count, seed)


def test_too_few_rows_to_set_aside_are_refused():
    with pytest.raises(BadInput, match="at least 5"):
        set_aside(4, 0)
