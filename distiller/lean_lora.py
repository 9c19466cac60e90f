"""Owns the arithmetic of an adapted layer: all products in the base's number format, in one pass forward and one back.

Knows nothing of models or training. peft's own layer widens the whole input and result to the adapter's float32 and
back, which costs a CPU more than the adapter's products do. Weights and their gradients stay float32 all the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch.autograd.function import once_differentiable


class LeanLinear(lora.Linear):  # type: ignore[misc]  # peft is untyped
    """peft's adapted linear layer for what is done here: one adapter without dropout, trained and never merged."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """`(..., in)` to `(..., out)`: base and adapter."""
        (name,) = self.active_adapters
        base, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if base.bias is None else base.bias.to(x.dtype)
        weights = base.weight.to(x.dtype), bias, down, up, self.scaling[name]
        result: torch.Tensor = _Adapted.apply(x, *weights)  # type: ignore[no-untyped-call]
        return result


class _Adapted(torch.autograd.Function):
    """y = x W' + b + s (x A') B', with W and b frozen (LoRA, arXiv:2106.09685)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """A is `(rank, in)`, B is `(out, rank)`."""
        flat = x.reshape(-1, x.shape[-1])
        narrow, wide = down.to(x.dtype), (up * scale).to(x.dtype)
        inner = flat @ narrow.T
        ctx.save_for_backward(flat, weight, narrow, wide, inner)
        ctx.scale, ctx.formats = scale, (down.dtype, up.dtype)
        return F.linear(flat, weight, bias).addmm_(inner, wide.T).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of input, A and B; below the lowest adapter nobody asks for the input's."""
        flat, weight, narrow, wide, inner = ctx.saved_tensors
        above = gradient.reshape(-1, gradient.shape[-1])
        of_inner = above @ wide
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (above @ weight).addmm_(of_inner, narrow).view(*gradient.shape[:-1], -1)
        of_down = (of_inner.T @ flat).to(ctx.formats[0])
        of_up = (above.T @ inner).to(ctx.formats[1]) * ctx.scale
        return of_x, None, None, of_down, of_up, None
