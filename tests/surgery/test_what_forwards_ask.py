"""What a forward asks of its values, and which way it goes, is what it was before the surgery."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hosts import Branch
from torch import Tensor, nn

import attn_surgery

may_be_wrapped = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python does not tell where in a line something is"
)


def sites(host: nn.Module, **asked: Any) -> list[tuple[str, str]]:
    return [(site.block, site.after) for site in attn_surgery.plan(host, "se", **asked).sites]


def gates(host: nn.Module) -> list[nn.Module]:
    return list(attn_surgery.inserted(host).values())


def move_gates(host: nn.Module) -> None:
    """Stand for some training."""
    torch.manual_seed(0)
    for gate in gates(host):
        for parameter in gate.parameters():
            nn.init.normal_(parameter)


def runs(host: nn.Module, *args: Any) -> int:
    """Count how often a forward pass runs attention."""
    seen: list[object] = []
    handles = [each.register_forward_hook(lambda *told: seen.append(told)) for each in gates(host)]
    host(*args)
    for handle in handles:
        handle.remove()
    return len(seen)


def check_undisturbed(host: nn.Module, *args: Any) -> None:
    """Attention runs once, changes no bit of the output, and leaves nothing when it is removed."""
    kind, keys, expected = type(host), list(host.state_dict()), host(*args)
    attn_surgery.apply(host, "se")
    assert torch.equal(host(*args), expected)
    assert runs(host, *args) == 1
    attn_surgery.remove(host)
    assert type(host) is kind
    assert list(host.state_dict()) == keys
    assert torch.equal(host(*args), expected)


def check_acts_on(host: nn.Module, x: Tensor, branch: Callable[[Any], Tensor]) -> None:
    """Attention acts once, at the end of the branch that this input goes through.

    Args:
        host: With attention, its gates moved.
        x: The input.
        branch: What the host without attention computes of it, up to the end of the branch.
    """
    h = branch(attn_surgery.remove(copy.deepcopy(host)))
    out = host(x)
    assert any(torch.allclose(out, x + gate(h), atol=1e-5) for gate in gates(host))
    assert not torch.allclose(out, x + h, atol=1e-5)
    assert runs(host, x) == 1


def shifted(host: Any) -> Any:
    """Give the norm a bias, so that before it is not behind it."""
    nn.init.normal_(host.norm.bias, std=5)
    return host.eval()


# Whether it is a tensor


class Asking(Branch):
    """Goes by the branch for a tensor, by another convolution for anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Conv2d(8, 8, 3, padding=1)

    def other(self, x: Any) -> Tensor:
        return self.q(torch.relu(x[0]))


class AsksTorch(Asking):
    def forward(self, x: Any) -> Tensor:
        h = self.branch(x) if torch.is_tensor(x) else self.other(x)
        return x + h


class AsksScripts(Asking):
    def forward(self, x: Any) -> Tensor:
        h = self.branch(x) if torch.jit.isinstance(x, torch.Tensor) else self.other(x)
        return x + h


class AsksTheClass(Asking):
    def forward(self, x: Any) -> Tensor:
        h = self.branch(x) if x.__class__ is torch.Tensor else self.other(x)
        return x + h


class AsksForSubclasses(Asking):
    def forward(self, x: Any) -> Tensor:
        h = self.branch(x) if issubclass(type(x), torch.Tensor) else self.other(x)
        return x + h


class AsksForAllOfThem(Asking):
    def forward(self, *maps: Any) -> Tensor:
        h = self.branch(maps[0]) if all(map(torch.is_tensor, maps)) else self.other(maps)
        return maps[0] + h


@pytest.mark.parametrize(
    "kind",
    [
        AsksTorch,
        AsksScripts,
        AsksTheClass,
        AsksForSubclasses,
        AsksForAllOfThem,
    ],
)
def test_what_is_asked_for_a_tensor_is_one(kind: type[nn.Module]) -> None:
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    assert sites(host) == [("", "norm")]
    check_undisturbed(host, x)


class Timed(Branch):
    """Takes a number or a tensor, as diffusers does."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(1, 8)

    def forward(self, x: Tensor, t: Any = 0.5) -> Tensor:
        if not torch.is_tensor(t):
            t = torch.tensor([t], dtype=torch.float32, device=x.device)
        h = self.a(x) + self.lin(t[:, None])[:, :, None, None]
        return x + self.norm(self.b(F.relu(h)))


@pytest.mark.parametrize("args", [(torch.ones(2),), (0.25,), ()])
def test_a_number_or_a_tensor(args: tuple[Any, ...]) -> None:
    check_undisturbed(Timed().eval(), torch.randn(2, 8, 8, 8), *args)


# What a tensor does not have


class Defaults(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * getattr(x, "scale", 0.5)


class DefaultsOfTheBranch(Branch):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        return x + h * getattr(h, "scale", 0.5)


class AsksFirst(Branch):
    def forward(self, x: Any) -> Tensor:
        return x + self.branch(x) * (x.scale if hasattr(x, "scale") else 0.5)


@pytest.mark.parametrize("given", [None, 2.0])
@pytest.mark.parametrize("kind", [Defaults, DefaultsOfTheBranch, AsksFirst])
def test_an_attribute_that_tensors_may_lack(kind: type[nn.Module], given: float | None) -> None:
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    if given is not None:
        setattr(x, "scale", given)  # noqa: B010
    check_undisturbed(host, x)


# What changes later


class Schedule:
    def __init__(self) -> None:
        self.weight = 1.0

    def __call__(self, h: Tensor) -> Tensor:
        return h * self.weight


class Settings:
    scale: ClassVar[float] = 1.0

    @classmethod
    def current(cls) -> float:
        return cls.scale

    @staticmethod
    def stated() -> float:
        return Settings.scale


@pytest.fixture
def settings() -> Iterator[None]:
    yield
    Settings.scale = 1.0


class Changing(Branch):
    """Scales its branch by what its user changes, as schedules of drop path do every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()

    def change(self) -> None:
        self.schedule.weight = 0.25


class ByCallable(Changing):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.schedule(self.branch(x))


class BySeveralCallables(Changing):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.schedule, Schedule()]

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        for step in self.steps:
            h = step(h)
        return x + h


class ByBoundMethod(Changing):
    def __init__(self) -> None:
        super().__init__()
        self.step = self.schedule.__call__

    def forward(self, x: Tensor) -> Tensor:
        return x + self.step(self.branch(x))


class ByClassMethod(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * Settings.current()

    def change(self) -> None:
        Settings.scale = 0.25


class ByStaticMethod(ByClassMethod):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * Settings.stated()


class ByOwnDict(Branch):
    gain: float

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * self.__dict__.get("gain", 1.0)

    def change(self) -> None:
        self.gain = 0.25


class ByVars(ByOwnDict):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * vars(self).get("gain", 1.0)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    "kind",
    [
        ByCallable,
        BySeveralCallables,
        ByBoundMethod,
        ByClassMethod,
        ByStaticMethod,
        ByOwnDict,
        ByVars,
    ],
)
def test_later_changes_are_followed(kind: type[Any]) -> None:
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    plain, expected = copy.deepcopy(host), host(x)
    attn_surgery.apply(host, "se")
    assert torch.equal(host(x), expected)
    for each in (host, plain):
        each.change()
    changed = plain(x)
    assert not torch.equal(changed, expected)
    assert torch.equal(host(x), changed)
    assert torch.equal(attn_surgery.remove(host)(x), changed)


# Several ways to the end of the branch


class Chunked(Branch):
    """Goes one by one over a batch, which saves memory."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            h = torch.cat([self.branch(each) for each in x.split(1)])
        else:
            h = self.branch(x)
        return x + h


class Bounded(Branch):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 64:
            return x + torch.tanh(self.branch(x))
        return x + self.branch(x)


class GoingOn(Branch):
    """Has a longer branch for large maps."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        if x.shape[-1] > 64:
            h = torch.relu(self.q(h))
        return x + h


class Tiled(Branch):
    """Goes by halves over large maps."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 64:
            return x + self.tiled(x)
        return x + self.branch(x)

    def tiled(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch(each) for each in x.chunk(2, -1)], -1)


Way = tuple[type[Branch], tuple[int, ...], Callable[[Any, Tensor], Tensor]]
WAYS: dict[str, Way] = {
    "chunks": (Chunked, (2, 8, 8, 8), lambda host, x: host.branch(x)),
    "one chunk": (Chunked, (1, 8, 8, 8), lambda host, x: host.branch(x)),
    "bounded": (Bounded, (2, 8, 80, 80), lambda host, x: torch.tanh(host.branch(x))),
    "not bounded": (Bounded, (2, 8, 8, 8), lambda host, x: host.branch(x)),
    "longer": (
        GoingOn,
        (2, 8, 80, 80),
        lambda host, x: torch.relu(host.q(host.branch(x))),
    ),
    "not longer": (GoingOn, (2, 8, 8, 8), lambda host, x: host.branch(x)),
    "tiles": (Tiled, (2, 8, 8, 80), lambda host, x: host.tiled(x)),
    "one tile": (Tiled, (2, 8, 8, 8), lambda host, x: host.branch(x)),
}


@may_be_wrapped
@pytest.mark.parametrize("way", WAYS)
def test_attention_acts_at_the_end_of_each_way(way: str) -> None:
    kind, shape, branch = WAYS[way]
    host, x = kind().eval(), torch.randn(shape)
    before = host(x)
    attn_surgery.apply(host, "se")
    assert torch.equal(host(x), before)
    # what all ways make and one makes more of has its place in the addition
    assert len(gates(host)) == (1 if kind is GoingOn else 2)
    move_gates(host)
    check_acts_on(host, x, lambda plain: branch(plain, x))
    attn_surgery.remove(host)
    assert torch.equal(host(x), before)


# Which way an input goes


class Choosing(Branch):
    """Goes by the branch for maps of some sizes, by less of it for others."""

    def short(self, x: Tensor) -> Tensor:
        return self.b(F.relu(x))


class InSet(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x) if x.shape[-1] in {8, 16} else self.short(x)
        return x + h


class InDict(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        way = {8: self.branch, 16: self.branch}.get(x.shape[-1], lambda t: self.b(F.relu(t)))
        return x + way(x)


class InTuple(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x) if x.shape[-1] in (8, 16) else self.short(x)
        return x + h


class InRange(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x) if x.shape[-1] in range(8, 17, 8) else self.short(x)
        return x + h


class InSetOfShapes(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x) if tuple(x.shape[-2:]) in {(8, 8), (16, 16)} else self.short(x)
        return x + h


@may_be_wrapped
@pytest.mark.parametrize("size", [8, 12, 16])
@pytest.mark.parametrize("kind", [InSet, InDict, InTuple, InRange, InSetOfShapes])
def test_attention_acts_where_maps_of_this_size_end(kind: type[Choosing], size: int) -> None:
    host, x = shifted(kind()), torch.randn(2, 8, size, size)
    before = host(x)
    attn_surgery.apply(host, "se")
    assert torch.equal(host(x), before)
    move_gates(host)
    check_acts_on(host, x, lambda plain: plain.short(x) if size == 12 else plain.branch(x))
    attn_surgery.remove(host)
    assert torch.equal(host(x), before)


class OfTypes(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x) if type(x) in (torch.Tensor, nn.Parameter) else self.short(x)
        return x + h


class OfSizesThatAreNumbers(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x) if isinstance(x.shape[0], int) else self.short(x)
        return x + h


class OfDtypes(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x) if x.dtype in {torch.float32, torch.float64} else self.short(x)
        return x + h


class OfDevices(Choosing):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x) if x.device.type in {"cpu", "cuda"} else self.short(x)
        return x + h


@pytest.mark.parametrize(
    "kind",
    [
        OfTypes,
        OfSizesThatAreNumbers,
        pytest.param(OfDtypes, marks=may_be_wrapped),
        pytest.param(OfDevices, marks=may_be_wrapped),
    ],
)
def test_attention_acts_where_such_inputs_end(kind: type[Choosing]) -> None:
    host, x = shifted(kind()), torch.randn(2, 8, 8, 8)
    check_undisturbed(host, x)
    attn_surgery.apply(host, "se")
    move_gates(host)
    check_acts_on(host, x, lambda plain: plain.branch(x))


# Sums that are dispatched by type


class ByMethod(Branch):
    @functools.singledispatchmethod
    def merge(self, x: Any, h: Tensor) -> Tensor:
        raise NotImplementedError(type(x))

    @merge.register
    def _(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return x + h

    @merge.register(tuple)
    def _(self, x: tuple[Tensor, ...], h: Tensor) -> Tensor:
        return x[0] + h

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(x, self.branch(x))


@functools.singledispatch
def merge(x: Any, h: Tensor) -> Tensor:
    raise NotImplementedError(type(x))


@merge.register
def _(x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return x + h


class ByFunction(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return merge(x, self.branch(x))


class ByDict(Branch):
    def merged(self, x: Tensor, h: Tensor) -> Tensor:
        return x + h

    def forward(self, x: Tensor) -> Tensor:
        return {torch.Tensor: self.merged}[type(x)](x, self.branch(x))


@pytest.mark.parametrize("kind", [ByMethod, ByFunction, ByDict])
def test_a_sum_that_is_dispatched_by_type_is_found(kind: type[nn.Module]) -> None:
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    assert sites(host) == [("", "norm")]
    check_undisturbed(host, x)


# Experts


class Experts(nn.Module):
    """A mixture of experts as most write it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Branch() for _ in range(2))
        self.router = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        chosen, out = self.router(x.mean((2, 3))).argmax(-1), torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            mask = chosen == k
            if mask.any():
                out[mask] = self.of(expert, x[mask])
        return x + out

    def of(self, expert: Any, x: Tensor) -> Tensor:
        return expert.branch(x)


class ExpertsAsked(Experts):
    def forward(self, x: Tensor) -> Tensor:
        chosen, out = self.router(x.mean((2, 3))).argmax(-1), torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            if (rows := torch.where(chosen == k)[0]).numel():
                out[rows] = self.of(expert, x[rows])
        return x + out


@pytest.mark.parametrize("kind", [Experts, ExpertsAsked])
def test_experts_of_some_of_a_batch_are_told(kind: type[nn.Module]) -> None:
    plan = attn_surgery.plan(kind(), "se")
    assert not plan.sites
    assert {each.reason for each in plan.skipped} == {"the layout of the sum is unknown"}
