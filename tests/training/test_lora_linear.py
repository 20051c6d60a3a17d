"""The fused layer is peft's: same output, same gradients, same files; its dropout is a dropout."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora

from lora_ops.training.lora_linear import CpuLoraLinear, _keep


def layer(kind: type[lora.Linear], dropout: float = 0.0, bias: bool = True) -> Any:
    """An adapted linear layer, 6 features to 5, whose adapter does something."""
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5, bias=bias).requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=6, lora_dropout=dropout)
    made = kind(base, "default", config=config, r=2, lora_alpha=6)
    torch.nn.init.normal_(made.lora_B["default"].weight)
    return made.train()


def gradients(made: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of the input and of the adapter."""
    x = x.clone().requires_grad_()
    output = made(x)
    (output * torch.arange(output.numel()).view_as(output)).sum().backward()
    return [output.detach(), x.grad, made.lora_A["default"].weight.grad, made.lora_B["default"].weight.grad]


@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6), (1, 0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_peft(shape: tuple[int, ...], bias: bool) -> None:
    x = torch.randn(shape)
    expected, got = (gradients(layer(kind, bias=bias), x) for kind in (lora.Linear, CpuLoraLinear))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_with_dropout_they_are_those_of_the_same_mask_applied_by_hand() -> None:
    made, x = layer(CpuLoraLinear, dropout=0.4), torch.randn(3, 6)
    torch.manual_seed(5)
    got = gradients(made, x)
    torch.manual_seed(5)
    keep = _keep(x, 0.4)
    assert 0 < keep.sum() < keep.numel()
    a, b = made.lora_A["default"].weight, made.lora_B["default"].weight
    made.zero_grad()

    class ByHand(torch.nn.Module):
        lora_A, lora_B = made.lora_A, made.lora_B

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return made.base_layer(x) + (x * keep / 0.6) @ a.T @ b.T * 3.0

    torch.testing.assert_close(got, gradients(ByHand(), x), rtol=1e-4, atol=1e-5)


def test_evaluation_and_an_input_without_gradient_are_unchanged() -> None:
    made, x = layer(CpuLoraLinear, dropout=0.5).eval(), torch.randn(4, 6)
    assert torch.equal(made(x), layer(lora.Linear, dropout=0.5).eval()(x))
    made.train()(x).sum().backward()
    assert x.grad is None and made.base_layer.weight.grad is None
    assert made.lora_A["default"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dropout", [0.05, 0.5])
def test_dropout_drops_each_element_as_often_as_it_says_and_repeats_with_the_seed(dropout: float) -> None:
    x = torch.empty(999, 1001)
    torch.manual_seed(1)
    keep = _keep(x, dropout)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert keep.mean().item() == pytest.approx(1 - dropout, abs=0.002)
    # Four elements come from one random number: neighbours are as independent as all others.
    assert (keep[:, 1:] * keep[:, :-1]).mean().item() == pytest.approx((1 - dropout) ** 2, abs=0.003)
    torch.manual_seed(1)
    assert torch.equal(keep, _keep(x, dropout))
    assert not torch.equal(keep, _keep(x, dropout))
