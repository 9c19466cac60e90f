import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distiller.losses import coarse_divergence, hard_loss, mixed_loss, pad_soft
from distiller.projection import Target

VOCABULARY = 12


@st.composite
def teachers(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, Target]:
    """Logits of student and teacher over one vocabulary, and the teacher's target with the support of a part of it."""
    numbers = st.lists(st.floats(-8, 8), min_size=VOCABULARY, max_size=VOCABULARY)
    student, teacher = torch.tensor(draw(numbers)), torch.tensor(draw(numbers))
    support = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=VOCABULARY, unique=True))
    return student, teacher, target_of(teacher, support)


def target_of(logits: torch.Tensor, support: list[int]) -> Target:
    odds = logits.double().softmax(-1)
    mass = odds[support].tolist()
    others = [token for token in range(len(logits)) if token not in support]
    return Target(tuple(support), tuple(mass), float(odds[others].sum()))


@given(teachers())
def test_coarse_graining_never_raises_the_divergence(case):
    student, teacher, target = case
    full = torch.nn.functional.kl_div(
        student.double().log_softmax(-1), teacher.double().log_softmax(-1), reduction="sum", log_target=True
    )
    coarse = float(coarse_divergence(student[None], pad_soft([target])))
    assert -1e-5 <= coarse <= float(full) + 1e-5


@given(teachers())
def test_at_the_teacher_loss_and_gradient_are_zero(case):
    _, teacher, target = case
    student = teacher[None].clone().requires_grad_()
    loss = coarse_divergence(student, pad_soft([target])).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-5, rtol=0)


@given(teachers())
def test_the_gradient_is_the_one_in_closed_form(case):
    """Inside the support p - q; outside, the student's probability times (1 - tail / its sum outside)."""
    student, _, target = case
    logits = student[None].clone().requires_grad_()
    coarse_divergence(logits, pad_soft([target])).sum().backward()
    odds = student.double().softmax(-1)
    outside = [token for token in range(VOCABULARY) if token not in target.ids]
    expected = odds.clone()
    expected[list(target.ids)] -= torch.tensor(target.probabilities, dtype=torch.float64)
    expected[outside] *= 1 - target.tail / odds[outside].sum()
    torch.testing.assert_close(logits.grad[0].double(), expected, atol=1e-5, rtol=1e-4)


def test_a_sure_student_is_still_measured_where_one_minus_p_has_no_digits_left():
    logits = torch.tensor([[40.0, 0.0, 0.0, 0.0]])
    soft = pad_soft([Target((0,), (0.9,), 0.1)])
    expected = 0.9 * math.log(0.9) + 0.1 * (math.log(0.1) + 40 - math.log(3))
    assert float(coarse_divergence(logits, soft)) == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(_gradient(logits, soft)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_numbers(dtype: torch.dtype):
    logits = torch.tensor([[30000.0, -30000.0, 0.0, 5.0]] * 2, dtype=dtype)
    soft = pad_soft([Target((0, 1, 2, 3), (0.25,) * 4, 0.0), Target((1,), (0.5,), 0.5)])
    assert torch.isfinite(coarse_divergence(logits, soft)).all()
    assert torch.isfinite(_gradient(logits, soft)).all()


def test_bfloat16_is_computed_in_float32():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    soft = pad_soft([target_of(row.float(), [1, 2, 3]) for row in logits.flip(0)])
    same = coarse_divergence(logits.float(), soft)
    assert torch.equal(coarse_divergence(logits, soft), same)
    assert same.dtype == torch.float32


def test_supports_of_different_sizes_do_not_change_each_other():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, VOCABULARY, generator=generator)
    targets = [Target((3,), (0.7,), 0.3), Target((1, 5, 2), (0.5, 0.2, 0.1), 0.2), Target((0, 9), (0.6, 0.4), 0.0)]
    together = coarse_divergence(logits, pad_soft(targets))
    alone = [coarse_divergence(row[None], pad_soft([target])) for row, target in zip(logits, targets, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_padding_remembers_which_positions_are_soft():
    soft = pad_soft([None, Target((7, 4), (0.5, 0.25), 0.25), None, Target((3,), (1.0,), 0.0)])
    assert soft["at"].tolist() == [1, 3]
    assert soft["ids"].tolist() == [[7, 4], [3, 3]]
    assert soft["probabilities"].tolist() == [[0.5, 0.25], [1.0, 0.0]]
    assert soft["tail"].tolist() == [0.25, 0.0]


def test_the_mix_is_a_mean_over_all_positions():
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([1, 2, 3])
    soft = pad_soft([None, Target((2, 5), (0.6, 0.3), 0.1), None])
    ones = [float(hard_loss(logits[place, None], targets[place, None])) for place in range(3)]
    kl = float(coarse_divergence(logits[1, None], soft))
    expected = (ones[0] + 0.3 * ones[1] + 0.7 * kl + ones[2]) / 3
    assert float(mixed_loss(logits, targets, soft, alpha_hard=0.3)) == pytest.approx(expected, rel=1e-5)
    whole = float(hard_loss(logits, targets))
    assert float(mixed_loss(logits, targets, soft, alpha_hard=1.0)) == pytest.approx(whole, rel=1e-6)


@given(st.lists(st.floats(0, 4), min_size=3, max_size=3))
def test_weights_count_positions_and_equal_ones_give_the_mean(given_weights):
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(3))
    targets, weights = torch.tensor([1, 2, 3]), torch.tensor(given_weights)
    soft = pad_soft([None, Target((2, 5), (0.6, 0.3), 0.1), None])
    for loss in (hard_loss, lambda *given: mixed_loss(given[0], given[1], soft, 0.3, *given[2:])):
        alone = loss(logits, targets)
        assert float(loss(logits, targets, torch.full((3,), 1 / 3))) == pytest.approx(float(alone), rel=1e-6)
    ones = torch.stack([hard_loss(logits[place, None], targets[place, None]) for place in range(3)])
    wanted = float((weights * ones).sum())
    assert float(hard_loss(logits, targets, weights)) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    kl = coarse_divergence(logits[1, None], soft)[0]
    mixed = float((weights * torch.stack([ones[0], 0.3 * ones[1] + 0.7 * kl, ones[2]])).sum())
    assert float(mixed_loss(logits, targets, soft, 0.3, weights)) == pytest.approx(mixed, rel=1e-5, abs=1e-6)


def test_a_renormalised_loss_would_still_pull_at_the_teacher():
    """Why there is a tail: without one, a student that equals its teacher is moved away from it."""
    teacher = torch.linspace(-1, 1, VOCABULARY)
    kept = target_of(teacher, [9, 10, 11])
    mass = sum(kept.probabilities)
    renormalised = pad_soft([Target(kept.ids, tuple(one / mass for one in kept.probabilities), 0.0)])
    assert float(_gradient(teacher[None], renormalised).abs().max()) > 0.05
    assert float(_gradient(teacher[None], pad_soft([kept])).abs().max()) < 1e-6


def _gradient(logits: torch.Tensor, soft) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    coarse_divergence(logits, soft).sum().backward()
    return logits.grad
