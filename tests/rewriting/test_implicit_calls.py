"""What a forward runs without naming it means, after surgery, what it meant before."""

from __future__ import annotations

import copy
import functools
import operator
from typing import Any

import pytest
import torch
from hosts import Branch
from torch import Tensor, nn

import attn_surgery
from attn_surgery.host import inspect_forward

STATE = {"scale": 1.0}


class Own(Branch):
    own = 1.0

    def scaled(self, x: Tensor) -> Tensor:
        return x * STATE["scale"]


class OwnItem(Own):
    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self["own"]


class OwnContents(Own):
    def __contains__(self, name: str) -> bool:
        return STATE[name] > 2

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if "scale" in self else 1.0)


class OwnLength(Own):
    def __len__(self) -> int:
        return int(STATE["scale"])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * len(self)


class OwnTruth(Own):
    def __bool__(self) -> bool:
        return STATE["scale"] > 2

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (0.5 if self else 1.0)


class OwnAttributes(Own):
    def __getattr__(self, name: str) -> Any:
        return STATE[name] if name == "scale" else super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.scale


class Counted(nn.Module):
    def __len__(self) -> int:
        return int(STATE["scale"])


class AChildsLength(Own):
    def __init__(self) -> None:
        super().__init__()
        self.counted = Counted()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * len(self.counted)


class Setting:
    def __get__(self, instance: object, owner: object = None) -> float:
        return STATE["scale"]


class ADescriptor(Own):
    scale = Setting()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.scale


class ATable(Own):
    table = STATE

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.table["scale"]


class Map:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __matmul__(self, other: Map) -> Tensor:
        return self.tensor + other.tensor * STATE["scale"]


class AHelpersOperator(Own):
    def forward(self, x: Tensor) -> Tensor:
        return Map(x) @ Map(self.branch(x))


class Scaled:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor * STATE["scale"]


class AHelpersMaking(Own):
    def forward(self, x: Tensor) -> Tensor:
        return x + Scaled(self.branch(x)).tensor


class Scale:
    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor * STATE["scale"]

    def __mul__(self, tensor: Tensor) -> Tensor:
        return self(tensor)


class AHelpersCall(Own):
    def forward(self, x: Tensor) -> Tensor:
        return x + Scale()(self.branch(x))


SCALE = Scale()


class AGlobalsOperator(Own):
    def forward(self, x: Tensor) -> Tensor:
        return x + SCALE * self.branch(x)


class AMethodCaller(Own):
    def forward(self, x: Tensor) -> Tensor:
        return x + operator.methodcaller("scaled", self.branch(x))(self)


class AnAttributeGetter(Own):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * operator.attrgetter("own")(self)


class WhatGetattrCalls(Own):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.__getattribute__("own")


class GetattrAsAValue(Own):
    def forward(self, x: Tensor) -> Tensor:
        itself: Any = self
        return x + self.branch(x) * functools.reduce(getattr, ("own",), itself)


class GetattrOfEach(Own):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * sum(getattr(self, name) for name in ("own",))


class OfItsParameters(Own):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) / (2 + all(each.requires_grad for each in self.parameters()))


HOSTS = [each for each in Own.__subclasses__() if each.__module__ == __name__]


@pytest.mark.parametrize("kind", HOSTS)
def test_what_it_reads_is_followed(kind, monkeypatch):
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    operated: Any = attn_surgery.apply(copy.deepcopy(host), "se")
    before = host(x)
    assert torch.equal(operated(x), before)
    monkeypatch.setitem(STATE, "scale", 3.0)
    for each in (host, operated):
        each.own = 3.0
        each.a.requires_grad_(False)
    assert not torch.equal(host(x), before)
    assert torch.equal(operated(x), host(x))


class Pair:
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __neg__(self) -> Pair:
        return Pair(-self.x, -self.y)

    def sum(self) -> Tensor:
        return self.x + self.y


class WithNamedHelp(Own):
    """Names what it reads, and makes a helper that goes by what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x) * getattr(self, "own") * getattr(self, "other", 1.0)  # noqa: B009
        return Pair(x, y * getattr(self, "more", self.own)).sum()


def test_what_is_pure_is_no_obstacle():
    assert not inspect_forward(WithNamedHelp()).obstacles
