"""What a forward asks by ``match`` is asked after surgery, too, or the plan says why not."""

from __future__ import annotations

import copy

import pytest
import torch
from hosts import Branch
from torch import Tensor, nn

import attn_surgery
from attn_surgery.host import MATCHES, inspect_forward


class OfAShape(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        match x.shape:
            case (_, _, _, _):
                return x + 0.5 * y
        return x + y


class OfAClass(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        match y:
            case Tensor():
                return x + 0.5 * y
        return x + y


class OfATruth(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        match (x.shape[1] == y.shape[1], y.shape[2]):
            case (True, _):
                return x + 0.5 * y
        return x + y


class OfAMapping(Branch):
    def scale(self, values: object) -> float:
        match values:
            case {"x": _}:
                return 0.5
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.scale({"x": x})


class OnAnotherWay(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        match x.shape:
            case (_, c, _, _) if c == y.shape[1]:
                return x + y
            case _:
                return y


KINDS = (OfAShape, OfAClass, OfATruth, OfAMapping, OnAnotherWay)


@pytest.mark.parametrize("kind", KINDS)
def test_a_match_is_made_each_time(kind):
    host, x = nn.Sequential(nn.Conv2d(8, 8, 1), kind()).eval(), torch.randn(2, 8, 8, 8)
    plan = attn_surgery.plan(host, "se")
    assert plan.sites or MATCHES in plan.skipped[0].reason
    assert all(each.method != "rewrite" for each in plan.sites)
    assert MATCHES in inspect_forward(host[1]).obstacles
    if plan.sites:
        assert torch.equal(attn_surgery.apply(copy.deepcopy(host), "se")(x), host(x))


def test_a_way_that_cannot_be_followed_is_told_of():
    plan = attn_surgery.plan(nn.Sequential(nn.Conv2d(8, 8, 1), OnAnotherWay()), "se")
    assert [each.block for each in plan.skipped] == ["1"]


class OfAName(Branch):
    kind = "halved"

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "halved":
                return x + self.branch(x) * 0.5
            case _:
                return x + self.branch(x)


def test_a_match_of_names_is_no_obstacle():
    assert not inspect_forward(OfAName()).obstacles
