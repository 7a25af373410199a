"""Residual blocks whose own forward runs its own children, in every spelling of that.

Each is a block of one kind, made of the layers of ``basic_layers``, and keeps the shape of its
input. Whatever becomes one more child of such a block, its forward would run. The names of the
ends are written out: a forward that reads globals could not be rewritten.
"""

# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from generated_layers import Marked, Shape, basic_layers
from torch import Tensor, nn

NAMES = ("first", "norm1", "act", "second", "norm2")
"""The basic layers' names where they are not numbered."""


# Sequential


class OfSequential(nn.Sequential, Marked):
    """A Sequential that adds its input: each class below holds one spelling of that."""

    @classmethod
    def of(cls, shape: Shape) -> nn.Module:
        return cls(*basic_layers(shape))


class Super(OfSequential):
    def forward(self, x: Any) -> Any:
        return x + self.ends_here(super().forward(x), "4")


class SuperInPlace(OfSequential):
    def forward(self, input: Tensor) -> Tensor:
        out = self.ends_here(super().forward(input), "4")
        out += input
        return F.relu(out, inplace=True)


class SuperByName(OfSequential):
    def forward(self, x: Any) -> Any:
        return self.ends_here(nn.Sequential.forward(self, x), "4").add(x)


class SuperScaled(OfSequential):
    """With a parameter of its own beside the children."""

    def __init__(self, *layers: nn.Module):
        super().__init__(*layers)
        self.gain = nn.Parameter(next(iter(layers[0].parameters())).new_tensor(0.7))

    def forward(self, x: Any) -> Any:
        return x + self.gain * self.ends_here(super().forward(x), "4")


class SuperDropped(OfSequential):
    """Does something else in training mode."""

    def forward(self, x: Any) -> Any:
        f = self.ends_here(super().forward(x), "4")
        if self.training:
            f = F.dropout(f, 0.3)
        return x + f


class SuperMasked(OfSequential):
    """No one graph stands for it: the attention is attached to a child."""

    def forward(self, x: Any, mask: Any = None) -> Any:
        f = self.ends_here(super().forward(x), "4")
        if mask is not None:
            f = f * mask
        return x + f


class SuperWriting(OfSequential):
    """Counts its own calls."""

    calls = 0

    def forward(self, x: Any) -> Any:
        self.calls = self.calls + 1
        return x + self.ends_here(super().forward(x), "4")


class Iterated(OfSequential):
    def forward(self, x: Any) -> Any:
        f = x
        for layer in self:
            f = layer(f)
        return x + self.ends_here(f, "4")


class Enumerated(OfSequential):
    def forward(self, x: Any) -> Any:
        f = x
        for i, layer in enumerate(self):
            f = layer(f) if i < len(self) else x
        return F.relu(self.ends_here(f, "4") + x)


class Unpacked(OfSequential):
    def forward(self, x: Any) -> Any:
        first, *rest = self
        f = first(x)
        for layer in rest:
            f = layer(f)
        return x + self.ends_here(f, "4")


class OverChildren(OfSequential):
    def forward(self, x: Any) -> Any:
        f = x
        for layer in self.children():
            f = layer(f)
        return x + self.ends_here(f, "4")


class OverNamedChildren(OfSequential):
    def forward(self, x: Any) -> Any:
        f = x
        for name, layer in self.named_children():
            f = layer(f) if name != "shortcut" else f
        return x + self.ends_here(f, "4")


class OverModules(OfSequential):
    """All that holds no others, however deep."""

    def forward(self, x: Any) -> Any:
        f = x
        for module in self.modules():
            if not list(module.children()):
                f = module(f)
        return x + self.ends_here(f, "4")


class ByLength(OfSequential):
    def forward(self, x: Any) -> Any:
        f = x
        for i in range(len(self)):
            f = self[i](f)
        return x + self.ends_here(f, "4")


class BySubmodule(OfSequential):
    def forward(self, x: Any) -> Any:
        f = x
        for i in range(len(self)):
            f = self.get_submodule(str(i))(f)
        return x + self.ends_here(f, "4")


class ByIndex(OfSequential):
    def forward(self, x: Any) -> Any:
        f = self[2](self[1](self[0](x)))
        return x + self.ends_here(self[-1](self[-2](f)), "4")


class Sliced(OfSequential):
    def forward(self, x: Any) -> Any:
        f = x
        for layer in self[:-1]:
            f = layer(f)
        return x + self.ends_here(self[-1](f), "4")


class OverValues(OfSequential):
    def forward(self, x: Any) -> Any:
        f = x
        for layer in self._modules.values():
            f = layer(f) if layer is not None else f
        return x + self.ends_here(f, "4")


class Folded(OfSequential):
    def forward(self, x: Any) -> Any:
        f = functools.reduce(lambda value, layer: layer(value), self, x)
        return x + self.ends_here(f, "4")


class Reversed(OfSequential):
    """Runs its children last to first."""

    @classmethod
    def of(cls, shape: Shape) -> nn.Module:
        return cls(*reversed(basic_layers(shape)))

    def forward(self, x: Any) -> Any:
        f = x
        for layer in reversed(self):
            f = layer(f)
        return x + self.ends_here(f, "0")


class Wrapped(nn.Module):
    """Holds the Sequential that adds."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.body = Super(*basic_layers(shape))
        self.act = nn.ReLU()

    def forward(self, x: Any) -> Any:
        return self.act(self.body(x))


def stage(shape: Shape) -> nn.Module:
    """Make a block in a block: the outer one's last child adds, too."""
    *others, _ = basic_layers(shape)
    return Super(*others, Super(*basic_layers(shape)))


# ModuleList and ModuleDict


class OfList(nn.ModuleList, Marked):
    @classmethod
    def of(cls, shape: Shape) -> nn.Module:
        return cls(basic_layers(shape))


class IteratedList(OfList):
    def forward(self, x: Any) -> Any:
        f = x
        for layer in self:
            f = layer(f)
        return x + self.ends_here(f, "4")


class ListByLength(OfList):
    def forward(self, x: Any) -> Any:
        f = x
        for i in range(len(self)):
            f = self[i](f)
        return F.relu(self.ends_here(f, "4") + x)


class SlicedList(OfList):
    def forward(self, x: Any) -> Any:
        f = self[0](x)
        for layer in self[1:]:
            f = layer(f)
        return x + self.ends_here(f, "4")


class OfDict(nn.ModuleDict, Marked):
    @classmethod
    def of(cls, shape: Shape) -> nn.Module:
        return cls(dict(zip(NAMES, basic_layers(shape), strict=True)))


class DictByName(OfDict):
    def forward(self, x: Any) -> Any:
        f = x
        for name in self:
            f = self[name](f)
        return x + self.ends_here(f, "norm2")


class DictValues(OfDict):
    def forward(self, x: Any) -> Any:
        f = x
        for layer in self.values():
            f = layer(f)
        return x + self.ends_here(f, "norm2")


class DictItems(OfDict):
    def forward(self, x: Any) -> Any:
        f = x
        for name, layer in self.items():
            f = layer(f) if name in self else x
        return x + self.ends_here(f, "norm2")


# Plain modules


class OfModule(Marked):
    first: nn.Module
    norm1: nn.Module
    act: nn.Module
    second: nn.Module
    norm2: nn.Module

    @classmethod
    def of(cls, shape: Shape) -> nn.Module:
        return cls(shape)

    def __init__(self, shape: Shape):
        super().__init__()
        for name, layer in zip(NAMES, basic_layers(shape), strict=True):
            self.add_module(name, layer)


class PlainChildren(OfModule):
    def forward(self, x: Any) -> Any:
        f = x
        for layer in self.children():
            f = layer(f)
        return x + self.ends_here(f, "norm2")


class PlainNamedChildren(OfModule):
    def forward(self, x: Any) -> Any:
        f = x
        for name, layer in self.named_children():
            f = F.relu(layer(f)) if name.startswith("norm") else layer(f)
        return x + self.ends_here(f)


class PlainModules(OfModule):
    def forward(self, x: Any) -> Any:
        f = x
        for name in list(self._modules):
            f = getattr(self, name)(f)
        return x + self.ends_here(f, "norm2")


# A class that overrides __call__


class Called(OfModule):
    """pytorchcv's TResNet: no forward."""

    def __call__(self, x: Any) -> Any:
        f = self.second(self.act(self.norm1(self.first(x))))
        return F.relu(x + self.ends_here(self.norm2(f), "norm2"))


class CalledBody(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.conv1, self.bn1, self.act, self.conv2, self.bn2 = basic_layers(shape)

    def __call__(self, x: Any) -> Any:
        return self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))


class CalledTwice(Marked):
    """pytorchcv's TResNet: neither the block nor its body has a forward."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.body = CalledBody(shape)

    def __call__(self, x: Any) -> Any:
        return x + self.ends_here(self.body(x), "body")


class CallsBody(Marked):
    """Only the body has no forward."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.body = CalledBody(shape)

    def forward(self, x: Any) -> Any:
        return x + self.ends_here(self.body(x), "body")


class HoldsCalled(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.unit = Called(shape)

    def forward(self, x: Any) -> Any:
        return self.unit(x)


def in_sequential(make: Callable[[Shape], nn.Module]) -> Callable[[Shape], nn.Module]:
    return lambda shape: nn.Sequential(make(shape), nn.Identity())


CONTAINERS: dict[str, Callable[[Shape], nn.Module]] = {
    "super": Super.of,
    "super in place": SuperInPlace.of,
    "super by name": SuperByName.of,
    "super, scaled": SuperScaled.of,
    "super, dropped": SuperDropped.of,
    "super, masked": SuperMasked.of,
    "super, writing": SuperWriting.of,
    "iterated": Iterated.of,
    "enumerated": Enumerated.of,
    "unpacked": Unpacked.of,
    "children": OverChildren.of,
    "named children": OverNamedChildren.of,
    "modules": OverModules.of,
    "by length": ByLength.of,
    "by submodule": BySubmodule.of,
    "by index": ByIndex.of,
    "sliced": Sliced.of,
    "values": OverValues.of,
    "folded": Folded.of,
    "reversed": Reversed.of,
    "wrapped": Wrapped,
    "stage": stage,
    "list": IteratedList.of,
    "list by length": ListByLength.of,
    "sliced list": SlicedList.of,
    "dict": DictByName.of,
    "dict values": DictValues.of,
    "dict items": DictItems.of,
    "plain children": PlainChildren.of,
    "plain named children": PlainNamedChildren.of,
    "plain modules": PlainModules.of,
    "called": in_sequential(Called),
    "called twice": in_sequential(CalledTwice),
    "calls body": CallsBody,
    "holds called": HoldsCalled,
}
