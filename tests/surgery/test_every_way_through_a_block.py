"""Whatever value chooses the way, and whichever method is called: each branch has its attention."""

from __future__ import annotations

import copy
import dataclasses
import enum
import random
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attn_surgery


class Kind(enum.Enum):
    PHOTO = "photo"
    SKETCH = "sketch"


@dataclasses.dataclass
class Deeper:
    domain: int = 0


@dataclasses.dataclass
class Settings:
    style: str = "plain"
    deeper: Deeper = dataclasses.field(default_factory=Deeper)


class Attributed(dict[str, Any]):
    """Its items are read as attributes, and set by its own rules."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("settings stay as they are")

    def __deepcopy__(self, memo: object) -> Attributed:
        return Attributed(self)


class Within:
    """Its values stand in a dict of its own."""

    def __init__(self, **values: Any):
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name == "_values" or name not in self._values:
            raise AttributeError(name)
        return self._values[name]


class Block(nn.Module):
    """The parts of a block with norms to choose from."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.bn3 = nn.BatchNorm2d(8)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.by_name = nn.ModuleDict({name: nn.BatchNorm2d(8) for name in ("photo", "sketch")})
        self.domain = 0
        self.name = "photo"
        self.kind = Kind.PHOTO
        self.factor = 1.0
        self.settings = Settings()
        self.told: dict[str, Any] = {"style": "plain"}
        self.attributed = Attributed(style="plain")
        self.within = Within(style="plain")

    def _convolved(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn1(self.conv1(x))))


class ArgumentEqual(Block):
    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        y = self._convolved(x)
        y = self.bn2(y) if domain == 0 else self.bn3(y)
        return F.relu(x + y)


class ArgumentTrue(Block):
    def forward(self, x: Tensor, other: bool = False) -> Tensor:
        y = self._convolved(x)
        norm = self.bn3 if other else self.bn2
        return F.relu(x + norm(y))


class ArgumentThere(Block):
    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        y = self._convolved(x)
        y = self.bn2(y) if scale is None else self.bn3(y) * scale
        return F.relu(x + y)


class ArgumentCounts(Block):
    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        return F.relu(x + self.norms[domain](self._convolved(x)))


class ArgumentNames(Block):
    def forward(self, x: Tensor, name: str = "photo") -> Tensor:
        return F.relu(x + self.by_name[name](self._convolved(x)))


class ArgumentNeeded(Block):
    def forward(self, x: Tensor, name: str) -> Tensor:
        return F.relu(x + self.by_name[name](self._convolved(x)))


class AttributeEqual(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        y = self.bn2(y) if self.domain == 0 else self.bn3(y)
        return F.relu(x + y)


class AttributeCounts(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norms[self.domain](self._convolved(x)))


class AttributeNames(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.by_name[self.name](self._convolved(x)))


class AttributeOfAKind(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn2(y) if self.kind is Kind.PHOTO else self.bn3(y)))


class AttributeReturns(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        if self.domain == 1:
            return F.relu(x + self.bn3(y))
        return F.relu(x + self.bn2(y))


class AttributeInAMethod(Block):
    def _normed(self, y: Tensor) -> Tensor:
        return self.bn2(y) if self.domain == 0 else self.bn3(y)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self._normed(self._convolved(x)))


class AttributeOfTheClass(Block):
    is_plain = True

    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn2(y) if self.is_plain else self.bn3(y)))


class AttributeInAName(Block):
    def __init__(self) -> None:
        super().__init__()
        self.domain = 2

    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + getattr(self, f"bn{self.domain}")(y))


class AttributeOtherwise(Block):
    """Of the other way the code names no value."""

    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn2(y) if self.name == "photo" else self.bn3(y)))


class AttributeMore(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn3(y) if self.domain > 10 else self.bn2(y)))


class AttributeFraction(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn3(y) if self.factor == 0 else self.bn2(y)))


class SettingOtherwise(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn2(y) if self.settings.style == "plain" else self.bn3(y)))


class SettingCounts(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norms[self.settings.deeper.domain](self._convolved(x)))


class SettingInADict(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn2(y) if self.told["style"] == "plain" else self.bn3(y)))


class SettingInAnAttribute(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn2(y) if self.attributed.style == "plain" else self.bn3(y)))


class SettingWithin(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn2(y) if self.within.style == "plain" else self.bn3(y)))


class AttributeLess(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn2(y) if self.domain >= 0 else self.bn3(y)))


class AttributeTaken(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        return F.relu(x + (self.bn2(y) if self.factor is not None else self.bn3(y)))


class ArgumentAmong(Block):
    def forward(self, x: Tensor, name: str) -> Tensor:
        y = self._convolved(x)
        return F.relu((self.by_name[name](y) if name in self.by_name else self.bn2(y)) + x)


class Net(nn.Module):
    a: Any
    b: Any
    blocks: Any

    def __init__(self, block: type[Block]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = block(), block()
        self.blocks = nn.ModuleList([block()])

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = self.b(self.a(self.stem(x), *args), *args)
        for block in self.blocks:
            x = block(x, *args)
        return x.mean((2, 3))


def _set(net: Net, **attributes: Any) -> None:
    for block in (net.a, net.b, *net.blocks):
        for name, value in attributes.items():
            setattr(block, name, value)


def _check(net: nn.Module, before: nn.Module, *args: Any) -> None:
    """Check that the attention of each of the three blocks runs, once, and changes nothing."""
    ran: list[str] = []
    handles = [
        attention.register_forward_hook(lambda *_, path=path: ran.append(path))
        for path, attention in attn_surgery.inserted(net).items()
    ]
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(net(x, *args), before(x, *args))
    for each in handles:
        each.remove()
    blocks = [".".join(path.split(".")[:2]) if path[:6] == "blocks" else path[0] for path in ran]
    assert blocks == ["a", "b", "blocks.0"]


def _named(value: object) -> str:
    return getattr(value, "__name__", "")


ARGUMENTS: list[tuple[type[Block], list[tuple[Any, ...]]]] = [
    (ArgumentEqual, [(), (1,), (0,)]),
    (ArgumentTrue, [(), (True,)]),
    (ArgumentThere, [(), (0.5,)]),
    (ArgumentCounts, [(), (1,), (2,)]),
    (ArgumentNames, [(), ("sketch",)]),
    (ArgumentNeeded, [("photo",), ("sketch",)]),
    (ArgumentAmong, [("photo",), ("sketch",), ("painting",)]),
]


@pytest.mark.parametrize(("block", "ways"), ARGUMENTS, ids=_named)
@pytest.mark.parametrize("training", [False, True])
def test_an_argument_chooses_the_end(
    block: type[Block], ways: list[tuple[Any, ...]], training: bool
) -> None:
    net = Net(block).train(training)
    before = copy.deepcopy(net)
    attn_surgery.apply(net, "se")
    for args in ways:
        _check(net, before, *args)
    assert attn_surgery.remove(net).state_dict().keys() == before.state_dict().keys()


ATTRIBUTES: list[tuple[type[Block], list[dict[str, Any]]]] = [
    (AttributeEqual, [{"domain": 1}, {"domain": 0}]),
    (AttributeCounts, [{"domain": 1}, {"domain": 2}, {"domain": 0}]),
    (AttributeNames, [{"name": "sketch"}, {"name": "photo"}]),
    (AttributeOfAKind, [{"kind": Kind.SKETCH}, {"kind": Kind.PHOTO}]),
    (AttributeReturns, [{"domain": 1}]),
    (AttributeInAMethod, [{"domain": 1}]),
    (AttributeOfTheClass, [{"is_plain": False}]),
    (AttributeInAName, [{"domain": 3}]),
    (AttributeOtherwise, [{"name": "painting"}]),
    (AttributeMore, [{"domain": 11}]),
    (AttributeFraction, [{"factor": 0.0}]),
    (SettingOtherwise, [{"settings": Settings("fancy")}]),
    (SettingCounts, [{"settings": Settings(deeper=Deeper(2))}]),
    (SettingInADict, [{"told": {"style": "fancy"}}]),
    (SettingInAnAttribute, [{"attributed": Attributed(style="fancy")}]),
    (SettingWithin, [{"within": Within(style="fancy")}]),
    (AttributeLess, [{"domain": -2}]),
    (AttributeTaken, [{"factor": None}]),
]


@pytest.mark.parametrize(("block", "ways"), ATTRIBUTES, ids=_named)
@pytest.mark.parametrize("training", [False, True])
def test_an_attribute_chooses_the_end(
    block: type[Block], ways: list[dict[str, Any]], training: bool
) -> None:
    net = Net(block).train(training)
    before = copy.deepcopy(net)
    attn_surgery.apply(net, "se")
    for attributes in ({}, *ways):
        _set(net, **attributes)
        _set(before, **attributes)
        _check(net, before)
        _check(copy.deepcopy(net), before)


class Given(Net):
    """Gives each block another value, none of them the default."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = self.b(self.a(self.stem(x), *(args or (1,))), *(args or (2,)))
        return self.blocks[0](x, *args).mean((2, 3))


@pytest.mark.parametrize("args", [(), (0,), (1,), (2,)])
def test_a_whole_gives_the_argument(args: tuple[int, ...]) -> None:
    net = Given(ArgumentCounts).eval()
    before = copy.deepcopy(net)
    attn_surgery.apply(net, "se")
    _check(net, before, *args)


@pytest.mark.parametrize(
    "block", [AttributeOfTheClass, AttributeEqual, SettingOtherwise, SettingCounts, SettingInADict]
)
def test_planning_leaves_attributes_as_they_are(block: type[Block]) -> None:
    net = Net(block)
    before = [list(vars(each).items()) for each in net.modules()]
    settings = copy.deepcopy([(each.settings, each.told) for each in (net.a, net.b)])
    attn_surgery.plan(net, "se")
    assert [list(vars(each).items()) for each in net.modules()] == before
    assert [(each.settings, each.told) for each in (net.a, net.b)] == settings


class OfSeveralLayers(Block):
    """The ends to choose from are modules of several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for _ in range(3)
        )

    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        return F.relu(x + self.ends[number](F.relu(self.conv1(x))))


def test_the_ends_are_of_several_layers() -> None:
    net = Net(OfSeveralLayers).eval()
    before = copy.deepcopy(net)
    attn_surgery.apply(net, "se")
    for number in range(3):
        _check(net, before, number)


class Leaving(Block):
    """Words of one question are tried as answers to another."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = "batch", "relu"

    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        if self.norm == "batch":
            y = self.bn2(y)
        elif self.norm == "other":
            y = self.bn3(y)
        else:
            sys.exit(f"unknown norm {self.norm}")
        return F.relu(x + y) if self.act == "relu" else F.gelu(x + y)


def test_a_value_with_which_the_host_leaves() -> None:
    sites = attn_surgery.plan(Net(Leaving), "se").sites
    assert [each.after for each in sites] == 3 * ["bn2", "bn3"]


class WithOneNorm(Block):
    """Whatever is attached to a norm that others have, too, is theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = nn.ModuleList([self.bn1, nn.BatchNorm2d(8)])

    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        return F.relu(x + self.ends[domain](self._convolved(x)))


def test_an_expression_that_every_value_evaluates() -> None:
    net = Net(WithOneNorm).eval()
    before = copy.deepcopy(net)
    attn_surgery.apply(net, "se")
    for domain in (0, 1):
        _check(net, before, domain)


class ChoosingNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.domain = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.domain](x)


class WithAChoosingNorm(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = ChoosingNorm()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self._convolved(x)))


class Masked(Block):
    """What the other value adds is no other end."""

    def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = False) -> Tensor:
        y = self.bn2(self._convolved(x))
        y = self.bn3(y) if twice else y
        return F.relu(x + (y if mask is None else y * mask))


@pytest.mark.parametrize("block", [WithAChoosingNorm, Masked])
def test_one_end_has_one_attention(block: type[Block]) -> None:
    assert len(attn_surgery.plan(Net(block), "se").sites) == 3


class Stepping(Block):
    def step(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self._convolved(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


class SteppingBeside(Stepping):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self._convolved(x)))


class Underscored(Block):
    def _step(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self._convolved(x)))

    step = _step

    def forward(self, x: Tensor) -> Tensor:
        return self._step(x)


class Branching(Block):
    def step(self, x: Tensor) -> Tensor:
        return self.bn2(self._convolved(x))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.step(x))


class ByMethods(Net):
    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = self.b.step(self.a.step(self.stem(x)))
        for block in self.blocks:
            x = block.step(x)
        return x.mean((2, 3))


class ByBoth(Net):
    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return self.blocks[0](self.b.step(self.a(self.stem(x)))).mean((2, 3))


class AddingItself(Net):
    def forward(self, x: Tensor, *args: Any) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.a.step(x))
        x = F.relu(x + self.b.step(x))
        return self.blocks[0](x).mean((2, 3))


METHODS = [
    (net, block) for net in (ByMethods, ByBoth) for block in (Stepping, SteppingBeside, Underscored)
]


@pytest.mark.parametrize(("net", "block"), [*METHODS, (AddingItself, Branching)])
def test_a_whole_calls_another_method(net: type[Net], block: type[Block]) -> None:
    model = net(block).eval()
    before = copy.deepcopy(model)
    plan = attn_surgery.plan(model, "se")
    assert [each.block for each in plan.sites] == ["a", "b", "blocks.0"]
    _check(attn_surgery.apply(model, plan), before)
    for one, other in zip(model.children(), before.children(), strict=True):
        if isinstance(one, Block):  # whoever calls a block has its attention, too
            x = torch.randn(2, 8, 8, 8)
            assert torch.equal(one(x), other(x))
            assert len(attn_surgery.inserted(one)) == 1


class SteppingTwice(Block):
    def step(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn1(self._convolved(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


def test_what_cannot_be_attached_is_there_for_each_that_has_it_made() -> None:
    """A norm that is called twice."""

    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.b.step(self.a.step(self.stem(x))).mean((2, 3))

    model = Model(SteppingTwice).eval()
    before = copy.deepcopy(model)
    plan = attn_surgery.plan(model, "se")
    assert [each.block for each in plan.sites] == ["", "a", "", "b", "blocks.0"]
    attn_surgery.apply(model, plan)
    ran: list[str] = []
    for path, attention in attn_surgery.inserted(model).items():
        attention.register_forward_hook(lambda *_, path=path: ran.append(path))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), before(x))
    assert ran == ["attn", "attn_1"]
    y = torch.randn(2, 8, 8, 8)
    assert torch.equal(model.a(y), before.a(y))
    assert ran[2:] == ["a.attn"]


class OfChance(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norms[random.randrange(3)](self._convolved(x)))


def test_chance_chooses_the_end() -> None:
    """Which end is found is up to chance, and nothing but a plan comes of it."""
    for seed in range(6):
        random.seed(seed)
        state = random.getstate()
        attn_surgery.plan(nn.Sequential(OfChance(), OfChance()), "se")
        assert random.getstate() == state
