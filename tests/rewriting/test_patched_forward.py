"""A forward that was set on the instance runs on, wherever in the block attention goes."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
from hosts import WIDTH, Block
from torch import Tensor, nn

import attn_surgery


class Helped(Block):
    """Its class would do something else than what was set on the instance."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the forward of the class was run")

    def helped(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if y.sum() > 1e9:
            y = y + 1
        return 2.0 * torch.abs(y)  # attention goes before the constant factor


def plain(self: Any, x: Tensor) -> Tensor:
    return x + self.helped(x)


def made() -> Any:
    torch.manual_seed(0)
    block = Helped()
    block.forward = types.MethodType(plain, block)
    return nn.Sequential(nn.Conv2d(3, WIDTH, 1), block).eval()


def moved(host: Any) -> Tensor:
    """Return the output once the gates are no longer 1."""
    moved = copy.deepcopy(host)
    for attention in attn_surgery.inserted(moved).values():
        for each in attention.parameters():
            nn.init.constant_(each, 0.3)
    return moved(x())


def x() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


ORDERS = [("standard",), ("pre",), ("post",), ("identity",), ("standard", "post"), ("post", "pre")]


@pytest.mark.parametrize("positions", ORDERS, ids=" then ".join)
@pytest.mark.parametrize("training", [False, True])
def test_it_runs_on(positions: tuple[str, ...], training: bool) -> None:
    host = made()
    forward = vars(host[1])["forward"]
    expected = copy.deepcopy(host).train(training)(x())
    for position in positions:
        attn_surgery.apply(host, "se", position=position, existing="stack")
    assert len(attn_surgery.inserted(host)) == len(positions)
    assert torch.equal(copy.deepcopy(host).train(training)(x()), expected)
    assert not torch.equal(moved(host), expected)
    attn_surgery.remove(host)
    assert vars(host[1])["forward"] is forward
    assert torch.equal(host.train(training)(x()), expected)


def test_where_attention_is_in_another_method() -> None:
    plan = attn_surgery.plan(made(), "se")
    assert [site.method for site in plan.sites] == ["wrap"]
    host: Any = attn_surgery.apply(made(), plan)
    assert vars(host[1])["forward"].__func__ is plain  # it calls the method that was wrapped
