import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora

from distiller.lean_lora import LeanLinear


def adapted(bias: bool, dtype: torch.dtype) -> torch.nn.Module:
    """One layer whose adapter has learned something already."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias, dtype=dtype))
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["0"])
    config._register_custom_module({torch.nn.Linear: LeanLinear})
    wrapped = get_peft_model(model, config)
    torch.nn.init.normal_(wrapped.base_model.model[0].lora_B["default"].weight)
    return wrapped


def outcome(model: torch.nn.Module, forward: object, x: torch.Tensor) -> list[torch.Tensor]:
    """What comes out, and the gradients of input and adapter."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LeanLinear, "forward", forward)
        y = model(x)
    (y.float() * torch.linspace(-1, 1, y.shape[-1])).square().sum().backward()
    return [y.detach(), x.grad, *(weight.grad for weight in model.parameters() if weight.requires_grad)]


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_peft_computes(bias: bool):
    model, x = adapted(bias, torch.float32), torch.randn(2, 5, 24)
    ours, theirs = outcome(model, LeanLinear.forward, x), outcome(model, lora.Linear.forward, x)
    assert len(ours) == 4
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_in_bfloat16_the_adapter_stays_float32_and_rounds_a_little():
    model, x = adapted(True, torch.bfloat16), torch.randn(2, 50, 24).bfloat16()
    ours, theirs = outcome(model, LeanLinear.forward, x), outcome(model, lora.Linear.forward, x)
    assert [part.dtype for part in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip(ours, theirs, strict=True):
        assert float((one.float() - other.float()).norm() / other.float().norm()) < 0.01


def test_under_autocast_it_computes_in_its_format():
    model, x = adapted(True, torch.float32), torch.randn(2, 5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x.requires_grad_())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_an_input_that_learns_nothing_gets_no_gradient():
    model, x = adapted(False, torch.float32), torch.randn(3, 24)
    model(x).sum().backward()
    assert x.grad is None
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
