"""What a forward reads elsewhere than on its own module means, after surgery, what it meant before.

Each host is built twice over, operated on once, changed twice in the same way, and has to give the
same bits.
"""

from __future__ import annotations

import copy
import types
from collections import Counter, UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hosts import Branch
from torch import Tensor, nn
from torch.nn import functional

import attn_surgery


class Inner(nn.Module):
    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(8, 8, 3, padding=1), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(x))


class OfAGrandchild(Branch):
    """Reads a number two steps away; one of the same name is its own."""

    scale = 1.0

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Inner(scale)])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.layers[0](self.branch(x)) * self.layers[0].scale


class OfAConvolution(Branch):
    """Runs a child's weights by a function, as its settings say."""

    def __init__(self, dilation: int = 1) -> None:
        super().__init__()
        self.b.dilation = self.b.padding = (dilation, dilation)

    def forward(self, x: Tensor) -> Tensor:
        b = self.b
        y = functional.conv2d(
            torch.relu(self.a(x)), b.weight * 2, b.bias, padding=b.padding, dilation=b.dilation
        )
        return x + self.norm(y)


class OfItsOwnMethod(Branch):
    """Lets torch's own code read a child's settings."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return x + self.norm(self.b._conv_forward(y, self.b.weight * 2, self.b.bias))


class OfTheLast(nn.Module):
    """Goes by the end of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Inner(), nn.ReLU(), Inner()])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers[-1](self.layers[1](self.layers[0](x)))


class OfASlice(OfTheLast):
    """Hands on a part of a list."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers[:-1]:
            y = layer(y)
        return x + y


class Defaults:
    scale = 0.5


class Settings(Defaults):
    pass


class OfAnInheritedSetting(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * Settings.scale


class OfADict(Branch):
    def __init__(self, kind: Callable[..., Any] = UserDict) -> None:
        super().__init__()
        self.settings = kind(scale=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.settings["scale"]


class Held(Branch):
    """Reads a module that is no child of it."""

    def __init__(self) -> None:
        super().__init__()
        self.apart = [Inner()]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.apart[0].scale


def set_dilation(host: Branch) -> None:
    host.b.dilation = host.b.padding = (2, 2)


def set_bias(host: Branch) -> None:
    host.b.bias = nn.Parameter(torch.ones(8))


def append(host: OfTheLast) -> None:
    torch.manual_seed(1)
    host.layers.append(Inner())


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "of a grandchild": (OfAGrandchild, lambda host: setattr(host.layers[0], "scale", 3.0)),
    "of a convolution": (OfAConvolution, set_dilation),
    "by a method of torch's": (OfItsOwnMethod, set_dilation),
    "of a module apart": (Held, lambda host: setattr(host.apart[0], "scale", 3.0)),
    "from the end": (OfTheLast, append),
    "a slice": (OfASlice, append),
    "of a UserDict": (OfADict, lambda host: host.settings.update(scale=3.0)),
    "of a Counter": (lambda: OfADict(Counter), lambda host: host.settings.update(scale=3.0)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_followed(what):
    build, change = CHANGES[what]
    host, x = build().eval(), torch.randn(2, 8, 8, 8)
    operated = attn_surgery.apply(copy.deepcopy(host), "se")
    assert torch.equal(operated(x), host(x))
    before = host(x)
    for each in (host, operated):
        change(each)
    assert not torch.equal(host(x), before)
    assert torch.equal(operated(x), host(x))


def test_a_bias_that_is_set_later():
    host, x = OfAConvolution().eval(), torch.randn(2, 8, 8, 8)
    host.b.bias = None
    operated: Any = attn_surgery.apply(copy.deepcopy(host), "se")
    for each in (host, operated):
        set_bias(each)
    assert torch.equal(operated(x), host(x))


def test_a_setting_that_a_class_inherits(monkeypatch):
    host, x = OfAnInheritedSetting().eval(), torch.randn(2, 8, 8, 8)
    operated = attn_surgery.apply(copy.deepcopy(host), "se")
    monkeypatch.setattr(Defaults, "scale", 3.0)
    assert torch.equal(operated(x), host(x))


@pytest.mark.parametrize("kind", [OfAGrandchild, OfAConvolution])
def test_blocks_that_differ_in_what_is_read_elsewhere(kind):
    host, x = nn.Sequential(kind(1), kind(2)).eval(), torch.randn(2, 8, 8, 8)
    before = host(x)
    assert torch.equal(attn_surgery.apply(host, "se")(x), before)


class Dropping(nn.Module):
    """Goes by its own mode, in a method that others call."""

    def drop(this, x: Tensor) -> Tensor:  # noqa: N805 - any name will do
        return x * 0.5 if this.training else x

    def halve(self, x: Tensor) -> Tensor:
        return x * 0.5 if self.training else x


class OfAnothersMode(Branch):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.dropping, self.method = Dropping(), method

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return x + (self.dropping.drop(y) if self.method == "drop" else self.dropping.halve(y))


@pytest.mark.parametrize("method", ["drop", "halve"])
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_a_child(method, training):
    host, x = OfAnothersMode(method).train(training), torch.randn(2, 8, 8, 8)
    host.dropping.train(not training)
    operated: Any = attn_surgery.apply(copy.deepcopy(host), "se")
    assert torch.equal(operated(x), host(x))
    for each in (host, operated):
        each.dropping.train(training)
    assert torch.equal(operated(x), host(x))


def patched(scale: float) -> Callable[[Branch, Tensor], Tensor]:
    def forward(self: Branch, x: Tensor) -> Tensor:
        y = self.branch(x)
        while y.abs().max() > 100:
            y = y / 2
        return x + torch.tanh(y) * scale

    return forward


def test_forwards_that_one_function_made():
    blocks = Branch().eval(), Branch().eval()
    for block, scale in zip(blocks, (1.0, 5.0), strict=True):
        block.forward = types.MethodType(patched(scale), block)
    host, x = nn.Sequential(*blocks), torch.randn(2, 8, 8, 8)
    before = host(x)
    assert torch.equal(attn_surgery.apply(host, "se")(x), before)
    assert len(attn_surgery.inserted(host)) == 2


def test_reading_leaves_the_classes_as_they_were():
    host = OfAGrandchild()
    attn_surgery.apply(host, "se")
    for cls in (Inner, nn.Conv2d, nn.BatchNorm2d, nn.ModuleList):
        assert "__getattribute__" not in vars(cls)
