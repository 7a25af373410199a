"""Hosts on their way to int8, after the surgery."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import attn_surgery


class Arithmetic(nn.Module):
    """A block that adds by a module, for which quantization puts another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.conv2, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.skip = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip.add_relu(self.bn(self.conv2(self.relu(self.conv1(x)))), x)


class Doubled(FXFloatFunctional):
    """Adds, and tells that it did."""

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * super().add_relu(x, y)


def test_arithmetic_that_is_exchanged_behind_the_block_is_followed() -> None:
    block, x = Arithmetic().eval(), torch.randn(2, 8, 6, 6)
    assert [each.method for each in attn_surgery.plan(block, "se").sites] == ["rewrite"]
    before = block(x)
    assert torch.equal(attn_surgery.apply(block, "se")(x), before)
    block._modules["skip"] = Doubled()  # as FX's quantization does it
    assert torch.equal(block(x), 2 * before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_block_whose_addition_is_a_module_is_scripted() -> None:
    block, x = attn_surgery.apply(Arithmetic().eval(), "se"), torch.randn(2, 8, 6, 6)
    assert torch.equal(torch.jit.script(block)(x), block(x))


@pytest.mark.filterwarnings("ignore")
def test_fx_makes_int8_of_a_block_whose_addition_is_a_module() -> None:
    torch.manual_seed(0)
    block, x = Arithmetic().eval(), torch.randn(4, 8, 6, 6)
    attn_surgery.apply(block, "se", init="paper")
    expected = block(x)
    prepared = prepare_fx(block, get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    quantized = convert_fx(prepared)(x)
    assert not torch.equal(quantized, expected)
    assert (quantized - expected).norm() < 0.05 * expected.norm()
