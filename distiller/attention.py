"""Owns attention over packed rows: each row sees itself alone, nothing is padded and no mask of the whole is built.

Knows nothing of models or training.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from proxy.errors import BadInput

# Up to so many tokens a row's attention is kept whole for the backward pass, at two bytes a head and pair of tokens; a
# CPU then needs half to a third of the time of torch's own, which computes it anew piece by piece.
SHORT = 512


def attend_row_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_lengths: list[int],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row. In: `(1, heads, tokens, head size)`, out: `(1, tokens, heads, head size)`.

    transformers builds no mask for an attention it does not know, so there is none to ignore.
    """
    if sliding_window is not None and max(row_lengths) > sliding_window:
        raise BadInput(f"rows are longer than the base model's attention window of {sliding_window}: lower max_tokens")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Under autocast, rotary positions have made queries and keys wider than the values.
    parts = (torch.split(tensor.to(value.dtype), row_lengths, dim=2) for tensor in (query, key, value))
    out = [_attend(q, k, v, scale) for q, k, v in zip(*parts, strict=True)]
    return torch.cat(out, dim=2).transpose(1, 2), None


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    if query.device.type == "cpu" and query.shape[2] <= SHORT:
        attended: torch.Tensor = _Short.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
        return attended
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)


class _Short(torch.autograd.Function):
    """Causal attention of one row; heads that share a key are computed as one taller matrix."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Shapes as those of `attend_row_by_row`'s input."""
        _, heads, tokens, size = query.shape
        shared = heads // key.shape[1]
        tall = (query * scale).reshape(-1, shared * tokens, size)
        future = torch.full((tokens, tokens), -torch.inf, dtype=query.dtype).triu_(1).repeat(shared, 1)
        weights = torch.baddbmm(future, tall, key[0].transpose(1, 2)).softmax(-1)
        ctx.save_for_backward(tall, key, value, weights)
        ctx.scale = scale
        return torch.bmm(weights, value[0]).view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """The softmax's own derivative, between products of matrices."""
        tall, key, value, weights = ctx.saved_tensors
        above = gradient.reshape(tall.shape)
        of_weights = torch.bmm(above, value[0].transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_query = torch.bmm(of_scores, key[0]).mul_(ctx.scale).view(gradient.shape)
        of_key = torch.bmm(of_scores.transpose(1, 2), tall)
        return of_query, of_key[None], torch.bmm(weights.transpose(1, 2), above)[None], None
