"""What a host goes over, keeps and counts besides its weights is none of the surgery's."""

from __future__ import annotations

import collections
import itertools
import os
import random
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import numpy
import pytest
import torch
import torch.nn.functional as F
from hosts import Branch
from test_what_forwards_ask import check_undisturbed, gates, may_be_wrapped, sites
from torch import Tensor, nn

import attn_surgery
from attn_surgery.tracing import trace

# Forwards that go over their modules


class Over(Branch):
    _modules: dict[str, Any]


class OverModules(Over):
    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self._modules.values():
            h = torch.tanh(layer(h))
        return x + h


class ByName(Over):
    def forward(self, x: Tensor) -> Tensor:
        h = x
        for name, layer in self._modules.items():
            h = F.relu(layer(h)) if name != "norm" else torch.tanh(layer(h))
        return x + h


class Walk(Branch):
    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.modules():
            if layer is not self:
                h = layer(F.relu(h))
        return x + h


class OverChildren(Branch):
    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.children():
            h = torch.tanh(layer(h))
        return x + h


class OverNamedChildren(Branch):
    def forward(self, x: Tensor) -> Tensor:
        h = x
        for name, layer in self.named_children():
            h = F.relu(layer(h)) if name != "norm" else torch.tanh(layer(h))
        return x + h


class OverKeys(Over):
    def forward(self, x: Tensor) -> Tensor:
        h = x
        for name in list(self._modules):
            h = torch.tanh(getattr(self, name)(h))
        return x + h


class Layers(Over):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self._modules.values():
            x = torch.tanh(layer(x))
        return x


class OfAChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Layers()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@pytest.mark.parametrize(
    "kind",
    [
        OverModules,
        ByName,
        Walk,
        OverChildren,
        OverNamedChildren,
        OverKeys,
        OfAChild,
    ],
)
def test_attention_is_no_layer_to_go_over(kind: type[nn.Module]) -> None:
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    assert len(sites(host)) == 1
    check_undisturbed(host, x)


# Tensors that are neither parameters nor buffers


class Plain(Branch):
    """Holds a map that its state does not."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Any = torch.rand(1, 1, 4, 4)


class Resized(Plain):
    def forward(self, x: Tensor) -> Tensor:
        h = F.interpolate(self.table, size=x.shape[-2:], mode="nearest")
        return x + self.branch(x) * (1 + h)


class Split(Plain):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.split(self.table, x.shape[1] // 4, 2)[0][:, :, :1, :1]
        return x + self.branch(x) * (1 + h)


class Repeated(Plain):
    def forward(self, x: Tensor) -> Tensor:
        h = self.table.repeat(1, 1, x.shape[-2] // 4, x.shape[-1] // 4)
        return x + self.branch(x) * (1 + h)


class Pooled(Plain):
    def forward(self, x: Tensor) -> Tensor:
        h = F.adaptive_avg_pool2d(self.table, (x.shape[-2], x.shape[-1]))
        return x + self.branch(x) * (1 + h)


class Rolled(Plain):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.roll(self.table, x.shape[-1] // 8, -1)[:, :, :1, :1]
        return x + self.branch(x) * (1 + h)


class Spread(Plain):
    def forward(self, x: Tensor) -> Tensor:
        h = self.table[:, :, :1, :1].expand(x.shape[0], -1, *x.shape[2:])
        return x + self.branch(x) * (1 + h)


@pytest.mark.parametrize("kind", [Resized, Split, Repeated, Pooled, Rolled, Spread])
def test_a_plain_tensor_goes_by_the_size_of_the_map(kind: type[Plain]) -> None:
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    table, values = host.table, host.table.clone()
    assert len(sites(host)) == 1
    check_undisturbed(host, x)
    assert host.table is table
    assert torch.equal(table, values)


class Spade(Branch):
    table: Any = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        if self.table is not None:
            h = h * (1 + F.interpolate(self.table, size=h.shape[-2:], mode="nearest"))
        return x + h


class Painting(nn.Module):
    """Leaves the map to its block before each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Spade()

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        self.block.table = table
        return self.block(x)


@pytest.mark.parametrize("given", [True, False])
def test_a_plain_tensor_that_is_left_to_the_block(given: bool) -> None:
    host, x = Painting().eval(), torch.randn(2, 8, 8, 8)
    assert [block for block, _ in sites(host)] == ["block"]
    check_undisturbed(host, x, *([torch.rand(2, 1, 4, 4)] if given else []))


# Registries


REGISTRY: dict[str, Any] = {}


class Registered(Branch):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        REGISTRY[cls.__name__] = cls


class ByInheritance(Registered):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.branch(x))


class RegisteredByName(Branch):
    def __init_subclass__(cls, *, name: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        REGISTRY[name] = cls


class ByKeyword(RegisteredByName, name="ByKeyword"):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.branch(x))


class Registering(type):
    def __init__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> None:
        super().__init__(name, bases, members)
        REGISTRY[name] = cls


class ByMetaclass(Branch, metaclass=Registering):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.branch(x))


class Making(type):
    def __new__(
        mcs, name: str, bases: tuple[type, ...], members: dict[str, Any], **kwargs: Any
    ) -> Making:
        made = super().__new__(mcs, name, bases, members)
        REGISTRY[name] = made
        return made


class ByNewOfMetaclass(Branch, metaclass=Making):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.branch(x))


class Strict(type):
    """Takes no name twice."""

    def __init__(cls, name: str, bases: tuple[type, ...], members: dict[str, Any]) -> None:
        super().__init__(name, bases, members)
        if name in REGISTRY:
            raise ValueError(f"there is a {name} already")
        REGISTRY[name] = cls


class ByStrictMetaclass(Branch, metaclass=Strict):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.branch(x))


KINDS: list[type[nn.Module]] = [
    ByInheritance,
    ByKeyword,
    ByMetaclass,
    ByNewOfMetaclass,
    ByStrictMetaclass,
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_registry_holds_the_class_of_the_host(kind: type[nn.Module]) -> None:
    before, x = dict(REGISTRY), torch.randn(2, 8, 8, 8)
    assert before[kind.__name__] is kind
    host = before[kind.__name__]().eval()
    assert len(sites(host)) == 1
    assert before == REGISTRY
    expected = host(x)
    attn_surgery.apply(host, "se")
    assert before == REGISTRY
    assert torch.equal(host(x), expected)
    assert len(gates(host)) == 1
    other = REGISTRY[kind.__name__]().eval()
    assert other(x).shape == x.shape
    assert not attn_surgery.inserted(other)
    attn_surgery.remove(host)
    assert before == REGISTRY
    assert type(host) is kind
    assert torch.equal(host(x), expected)


# What a forward counts and keeps


HISTORY: list[int] = []
LAST: dict[str, Any] = {}


class Keeping(Branch):
    def __init__(self) -> None:
        super().__init__()
        self.ema, self.stats = torch.zeros(1), types.SimpleNamespace(calls=0)
        self.log, self.ids = {"calls": [0]}, itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        self.ema.mul_(0.9).add_(0.1)
        self.stats.calls += 1
        self.log["calls"][0] += 1
        next(self.ids)
        HISTORY.append(x.shape[0])
        LAST["h"] = h
        return x + h

    def kept(self) -> Any:
        return (
            self.ema.tolist(),
            self.stats.calls,
            self.log,
            repr(self.ids),
            list(HISTORY),
            {key: type(each) for key, each in LAST.items()},
        )


class KeepingCollections(Branch):
    def __init__(self) -> None:
        super().__init__()
        self.last: Any = collections.deque(maxlen=2)
        self.counts: Any = collections.Counter()
        self.seen = {0}

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        self.last.append(h)
        self.counts["calls"] += 1
        self.seen.add(x.dim())
        return x + h

    def kept(self) -> Any:
        return list(self.last), dict(self.counts), set(self.seen)


class KeepingInAttributes(Branch):
    steps: Tensor
    calls: int = 0
    last: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        self.calls += 1
        self.last = h
        self.steps += 1
        return x + h

    def kept(self) -> Any:
        return self.calls, self.last, self.steps.item(), "calls" in vars(self)


def count() -> None:
    COUNTED.calls += 1


COUNTED = types.SimpleNamespace(calls=0)


class KeepingInFunctions(Branch):
    """Counts in an object that only a function of its module knows."""

    def forward(self, x: Tensor) -> Tensor:
        count()
        return x + self.branch(x)

    def kept(self) -> Any:
        return COUNTED.calls


class Drawing(Branch):
    def __init__(self) -> None:
        super().__init__()
        self.ids: Any = iter([0, 1, 2])

    def forward(self, x: Tensor) -> Tensor:
        next(self.ids)
        return x + self.branch(x) + 0 * random.random()

    def kept(self) -> Any:
        return self.ids.__length_hint__(), random.getstate()


class KeepingOnItsClass(Branch):
    calls: ClassVar = 0
    log: ClassVar[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        KeepingOnItsClass.log.append(x)
        return x + self.branch(x)

    def kept(self) -> Any:
        return type(self).calls, len(type(self).log)


def counter() -> tuple[Callable[[], None], Callable[[], int]]:
    number = 0

    def step() -> None:
        nonlocal number
        number += 1

    return step, lambda: number


CALLS = 0


class KeepingInVariables(Branch):
    def __init__(self) -> None:
        super().__init__()
        self.step, self.number = counter()

    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        self.step()
        return x + self.branch(x)

    def kept(self) -> Any:
        return self.number(), CALLS


class KeepingNumbers(Branch):
    def __init__(self) -> None:
        super().__init__()
        self.counts, self.generator = numpy.zeros(2), torch.Generator()
        self.random, self.numpy = random.Random(0), numpy.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        self.counts[0] += 1
        torch.rand(1, generator=self.generator)
        self.random.random()
        self.numpy.random()
        return x + self.branch(x)

    def kept(self) -> Any:
        return (
            self.counts.tolist(),
            self.generator.get_state().tolist(),
            self.random.getstate(),
            str(self.numpy.bit_generator.state),
        )


@pytest.mark.parametrize("table", [numpy.array([1.0, numpy.nan]), numpy.zeros(100_000)])
def test_an_array_that_is_only_read_is_no_write(table: Any) -> None:
    class Reading(Branch):
        table: Any

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x) * float(self.table[0])

    host: Any = Reading().eval()
    host.table = table
    (traced,), _ = trace(host)
    assert not traced.wrote


@pytest.mark.parametrize(
    "kind",
    [
        Keeping,
        KeepingOnItsClass,
        KeepingInVariables,
        KeepingNumbers,
        pytest.param(KeepingCollections, marks=may_be_wrapped),
        KeepingInAttributes,
        KeepingInFunctions,
        Drawing,
    ],
)
def test_a_plan_changes_nothing_that_a_forward_keeps(kind: type[Any]) -> None:
    host = kind().eval()
    before, state = host.kept(), {key: each.clone() for key, each in host.state_dict().items()}
    assert len(sites(host)) == 1
    assert host.kept() == before
    assert host.state_dict().keys() == state.keys()
    assert all(torch.equal(each, state[key]) for key, each in host.state_dict().items())
    attn_surgery.apply(host, "se")
    attn_surgery.remove(host)
    assert host.kept() == before


def test_the_first_plan_of_a_process_draws_nothing() -> None:
    program = """
import torch, torchvision, attn_surgery
host, state = torchvision.models.resnet18(), torch.get_rng_state()
attn_surgery.plan(host)
assert torch.equal(torch.get_rng_state(), state)
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ})


def test_the_first_pass_after_a_plan_is_the_first() -> None:
    host = Keeping().eval()
    HISTORY.clear()
    LAST.clear()
    attn_surgery.plan(host, "se")
    assert (HISTORY, LAST, next(host.ids)) == ([], {}, 0)
    host(torch.randn(2, 8, 8, 8))
    assert (HISTORY, list(LAST), next(host.ids)) == ([2], ["h"], 2)
    assert type(LAST["h"]) is Tensor
    assert (host.ema.item(), host.stats.calls, host.log) == (
        pytest.approx(0.1),
        1,
        {"calls": [1]},
    )


class Lazy(dict[str, Any]):
    """Makes what it is asked for, as the table of activations of transformers does."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


ACTIVATIONS = Lazy(relu=nn.ReLU)


class FromATable(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(ACTIVATIONS["relu"](x))


def test_a_table_with_ways_of_its_own_stays_what_it_was() -> None:
    attn_surgery.plan(FromATable().eval(), "se")
    assert dict.__getitem__(ACTIVATIONS, "relu") is nn.ReLU
