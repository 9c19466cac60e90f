import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from distiller import attention
from distiller.attention import attend_row_by_row
from proxy.errors import BadInput

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=5)
HEADS = st.sampled_from([(1, 1), (4, 4), (6, 2), (9, 3)])  # of queries, of keys


def inputs(lengths: list[int], heads: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    shapes = [(1, count, sum(lengths), 8) for count in (heads[0], heads[1], heads[1])]
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def attended(lengths: list[int], parts: list[torch.Tensor]) -> torch.Tensor:
    return attend_row_by_row(torch.nn.Identity(), *parts, None, row_lengths=lengths, scaling=0.3)[0]


def masked(lengths: list[int], parts: list[torch.Tensor]) -> torch.Tensor:
    """The same by torch's own attention, under a mask of the whole that keeps the rows apart."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (row[:, None] == row) & torch.ones(len(row), len(row), dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)


@given(LENGTHS, HEADS, st.sampled_from([0, 6, 512]))
@settings(deadline=None)
def test_rows_attend_as_under_a_mask_and_so_do_gradients(lengths: list[int], heads: tuple[int, int], short: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SHORT", short)
        ours, theirs = inputs(lengths, heads), inputs(lengths, heads)
        got, expected = attended(lengths, ours), masked(lengths, theirs)
        torch.testing.assert_close(got, expected)
        weight = torch.arange(expected.numel(), dtype=torch.float64).view(expected.shape).sin()
        (got * weight).sum().backward()
        (expected * weight).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_in_bfloat16_it_rounds_no_worse_than_torch():
    lengths, heads = [40, 100], (9, 3)
    exact, torchs, ours = (inputs(lengths, heads, dtype) for dtype in (torch.float64, torch.bfloat16, torch.bfloat16))
    results = [masked(lengths, exact), masked(lengths, torchs), attended(lengths, ours)]
    for result in results:
        result.double().square().sum().backward()
    for truth, other, own in zip(exact, torchs, ours, strict=True):
        error = [float((part.grad.double() - truth.grad).norm() / truth.grad.norm()) for part in (other, own)]
        assert error[1] < max(2 * error[0], 0.01)


def test_rows_beyond_the_attention_window_are_refused():
    rows = torch.zeros(1, 1, 6, 4)
    with pytest.raises(BadInput, match="window of 3"):
        attend_row_by_row(torch.nn.Identity(), rows, rows, rows, None, row_lengths=[2, 4], sliding_window=3)
