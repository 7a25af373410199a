"""Habits of code in the wild: what it does with names, dtypes, helpers and scripts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hosts import Branch
from probing import calls
from torch import Tensor, nn
from torch.nn import functional

import attn_surgery

# A slot that nobody filled


class Has(Branch):
    attn: Any

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.branch(x))
        if hasattr(self, "attn"):
            y = self.attn(y)
        return x + y


class Gets(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.branch(x))
        attn = getattr(self, "attn", None)
        return x + (y if attn is None else attn(y))


class Tries(Branch):
    attn: Any

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.branch(x))
        try:
            return x + self.attn(y)
        except AttributeError:
            return x + y


class Slotted(nn.Module):
    """The branch of a block, with a slot of its own."""

    attn: Any

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x)))
        return self.attn(y) if hasattr(self, "attn") else y


class Attached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slotted = Slotted()

    def forward(self, x: Tensor) -> Tensor:
        with torch.profiler.record_function("block"):
            return x + self.slotted(x)


@pytest.mark.parametrize("kind", [Has, Gets, Tries, Attached])
def test_a_slot_of_the_hosts_stays_empty(kind):
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    attn_surgery.apply(host, "se")
    assert calls(host, x) == 1
    assert "attn" not in attn_surgery.inserted(host)


class Delegating(nn.Module):
    """Hands what it does not know to a child, which has an ``attn``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: Any = Branch()
        self.inner.attn = nn.Conv2d(8, 8, 1)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner.attn(self.inner.branch(x)))


def test_names_that_are_handed_to_a_child_are_taken():
    host, x = Delegating().eval(), torch.randn(2, 8, 8, 8)
    before = host(x)
    attn_surgery.apply(host, "se", existing="stack")
    assert torch.equal(host(x), before)
    assert calls(host, x) == 1


# The dtype of the map


class CastingNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x.float()).type(x.dtype)


class Half(nn.Module):
    """Convolutions in half precision between norms that are not."""

    def __init__(self, *, ends_in_norm: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = CastingNorm(4, 8), CastingNorm(4, 8)
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1).bfloat16() for _ in range(2))
        self.ends_in_norm = ends_in_norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(functional.silu(self.norm1(x)))
        if self.ends_in_norm:
            return x + self.norm2(self.b(functional.silu(y)))
        return x + self.b(functional.silu(self.norm2(y)))


@pytest.mark.parametrize("ends_in_norm", [True, False])
def test_attention_has_the_dtype_of_the_convolutions(ends_in_norm):
    host, x = Half(ends_in_norm=ends_in_norm).eval(), torch.randn(2, 8, 8, 8).bfloat16()
    before = host(x)
    attn_surgery.apply(host, "se")
    assert calls(host, x) == 1
    assert torch.equal(host(x), before)


def test_complex_maps_are_refused():
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1, dtype=torch.cfloat) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(x) * torch.sigmoid(self.a(x).abs()))

    (skipped,) = attn_surgery.plan(Complex(), "se").skipped
    assert skipped.reason == "its maps are complex, attention is real"


# Helpers that others call


class Wrapped(Branch):
    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return x + self.branch(x)


class Watching(nn.Module):
    """Calls a helper of its block, besides the block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Wrapped()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.block(x), self.block.branch(x).mean()


def test_a_helper_stays_what_it_was_for_others():
    host, x = Watching().eval(), torch.randn(2, 8, 8, 8)
    attn_surgery.apply(host, "se")
    assert calls(host, x) == 1


# Layers that a block holds twice


class Temporal(nn.Module):
    """Its layers are attributes, and in a Sequential besides (Bai et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.drop1 = nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Dropout()
        self.conv2, self.relu2, self.drop2 = nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Dropout()
        self.net = nn.Sequential(
            self.conv1, self.relu1, self.drop1, self.conv2, self.relu2, self.drop2
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.net(x) + x)


def test_what_one_block_holds_twice_is_not_shared():
    host, x = Temporal().eval(), torch.randn(2, 8, 16)
    before = host(x)
    attn_surgery.apply(host, "se")
    assert calls(host, x) == 1
    assert torch.equal(copy.deepcopy(host)(x), before)
    attn_surgery.remove(host)
    assert torch.equal(host(x), before)


def test_what_two_blocks_hold_is_shared():
    one, two = Temporal(), Temporal()
    two.relu2 = two.net[4] = one.relu2
    two.drop2 = two.net[5] = one.drop2
    reasons = [each.reason for each in attn_surgery.plan(nn.Sequential(one, two), "se").skipped]
    assert all("called more than once" in reason for reason in reasons)
    assert len(reasons) == 2


# Branches that are not linear


class Activated(Branch):
    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.act(self.a(x)))


NONLINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "max of two": lambda h: torch.max(h, 0.1 * h),
    "square": lambda h: h * h,
    "filled": lambda h: h.masked_fill(h < 0, 0),
    "spikes": lambda h: (h > 0).float(),
    "threshold": lambda h: functional.threshold(h, 0.0, 0.0),
    "atan": torch.atan,
    "log sigmoid": functional.logsigmoid,
    "heaviside": lambda h: torch.heaviside(h, h.new_zeros(1)),
    "maxout": lambda h: torch.stack([h, -h]).amax(0),
    "round": torch.round,
}
LINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda h: 2 * h,
    "summed": lambda h: h + 3 * h,
    "mirrored": lambda h: h.flip(-1),
    "cast": lambda h: h.to(torch.float32),
}


@pytest.mark.parametrize("act", NONLINEAR)
def test_a_branch_is_not_linear(act):
    assert len(attn_surgery.plan(Activated(NONLINEAR[act]), "se").sites) == 1


@pytest.mark.parametrize("act", LINEAR)
def test_a_branch_is_linear(act):
    reasons = [each.reason for each in attn_surgery.plan(Activated(LINEAR[act]), "se").skipped]
    assert "the branch is linear: no residual function" in reasons


# Scripts


def add_relu(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.relu(x + y)


scripted: Any = torch.jit.script
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch calls it deprecated
    add_relu = scripted(add_relu)


class Scripted(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return add_relu(self.branch(x), x)


def test_an_addition_that_is_scripted_is_told():
    (skipped,) = attn_surgery.plan(nn.Sequential(Scripted()), "se").skipped
    assert "could not be followed" in skipped.reason


class ThroughNumpy(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.branch(x).detach().numpy()) + x


def test_why_a_forward_could_not_be_followed_names_nothing_of_ours():
    (skipped,) = attn_surgery.plan(ThroughNumpy(), "se").skipped
    assert skipped.reason.endswith("TypeError: expected np.ndarray (got a traced tensor)")


def test_a_plan_leaves_scripted_children_as_they_were():
    host: Any = Branch().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.a = scripted(host.a)
    before = set(vars(host.a))
    attn_surgery.plan(host, "se")
    assert set(vars(host.a)) == before


# A helper that adds on one way only


class AddsInAMethod(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.added(x)

    def added(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return x + y if x.shape == y.shape else y


class AsksAndAddsInMethods(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return self.added(x, y) if self.fits(x, y) else y

    def fits(self, x: Tensor, y: Tensor) -> bool:
        return bool(x.shape == y.shape)

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class AddsInAStaticMethod(Branch):
    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return self.added(x, y) if x.shape == y.shape else y

    @staticmethod
    def added(x: Tensor, y: Tensor) -> Tensor:
        return x + y


def where_it_fits(y: Tensor, x: Tensor) -> Tensor:
    if x.shape == y.shape:
        return x + y
    return y


class AddsInAFunction(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return where_it_fits(self.branch(x), x)


@pytest.mark.parametrize("kind", [AddsInAMethod, AsksAndAddsInMethods])
def test_an_addition_on_one_way_through_a_helper_is_found(kind) -> None:
    block, x = kind().eval(), torch.randn(2, 8, 5, 5)
    before = block(x)
    assert torch.equal(attn_surgery.apply(block, "cbam")(x), before)
    assert len(attn_surgery.inserted(block)) == 1


class AddsInAMethodAndIsNotFollowed(AddsInAMethod):
    def forward(self, x: Tensor) -> Tensor:
        return self.added(torch.from_numpy(x.numpy()))


@pytest.mark.parametrize("kind", [AddsInAFunction, AddsInAStaticMethod])
def test_where_a_helper_cannot_be_changed_is_said(kind) -> None:
    (skipped,) = attn_surgery.plan(kind(), "se").skipped
    assert skipped.reason.startswith("cannot be rewritten")


def test_a_block_that_adds_in_a_helper_and_cannot_be_followed_is_named() -> None:
    (skipped,) = attn_surgery.plan(AddsInAMethodAndIsNotFollowed(), "se").skipped
    assert skipped.reason.startswith("its forward could not be followed")


# Sums of more than two


class Both(nn.Module):
    """Two branches of one tensor, added to it at once."""

    def __init__(self, add: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.p, self.q = (
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
            for _ in "pq"
        )
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.p(x), self.q(x))


SUMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "shortcut first": lambda x, p, q: x + p + q,
    "shortcut between": lambda x, p, q: p + x + q,
    "sum": lambda x, p, q: sum([x, p, q]),  # pyright: ignore
    "stack": lambda x, p, q: torch.stack([x, p, q]).sum(0),
    "scaled": lambda x, p, q: 0.5 * (x + p) + q,
}


@pytest.mark.parametrize("add", SUMS)
def test_each_branch_that_is_added_is_a_site(add: str) -> None:
    host, x = Both(SUMS[add]).eval(), torch.randn(2, 8, 6, 6)
    assert {each.after for each in attn_surgery.plan(host, "se").sites} == {"p", "q"}
    expected = host(x)
    attn_surgery.apply(host, "se")
    assert torch.equal(host(x), expected)
    assert calls(host, x) == 2


def test_a_sum_of_branches_is_one() -> None:
    host = Both(lambda x, p, q: p + q + x)
    assert [each.after for each in attn_surgery.plan(host, "se").sites] == ["add"]


def test_a_second_branch_of_something_else_is_none() -> None:
    host = Both(lambda x, p, q: (p + x.mean((2, 3), keepdim=True).relu()) + q)
    assert not attn_surgery.plan(host, "se").sites


# Norms that cast


@pytest.mark.parametrize("cast", [lambda h: h, lambda h: h.float(), lambda h: h.contiguous()])
def test_a_child_that_casts_is_the_end(cast: Callable[[Tensor], Tensor]) -> None:
    class Casting(Branch):
        def __init__(self) -> None:
            super().__init__()
            self.norm = CastingNorm(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + cast(self.branch(x))

    (site,) = attn_surgery.plan(nn.Sequential(Casting()), "se").sites
    assert (site.block, site.after) == ("0", "norm")


# Methods that others call without the forward


class Backbone(nn.Module):
    """The host itself adds, in a method that gives its features to others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.residual(self.stem(x))

    def residual(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))


class ByPrivateMethod(Backbone):
    def forward_features(self, x: Tensor) -> Tensor:
        return self._residual(self.stem(x))

    def _residual(self, x: Tensor) -> Tensor:
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + x).relu()


class Twice(Backbone):
    """Two residual blocks, one of them in the forward proper."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        x = x + torch.tanh(self.conv1(torch.relu(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("kind", [Backbone, ByPrivateMethod])
def test_a_method_that_others_call_has_the_attention_too(kind: type[Backbone]) -> None:
    torch.manual_seed(0)
    host, x = kind().eval(), torch.randn(2, 3, 8, 8)
    before = host.forward_features(x)
    attn_surgery.apply(host, "se")
    assert torch.equal(host.forward_features(x), before)
    for each in attn_surgery.inserted(host).values():
        nn.init.ones_(each.get_parameter("fc2.bias"))
    features = host.forward_features(x)
    assert not torch.allclose(features, before)
    assert torch.equal(host(x), host.head(features.mean((2, 3))))
    attn_surgery.remove(host)
    assert torch.equal(host.forward_features(x), before)


class Scaled(nn.Module):
    """A residual block with a method beside its forward, which runs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.joined(self.stack(x), x)

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.relu(x + skip)

    def scale_weights(self, factor: float) -> None:
        for own in self.stack.parameters():
            own.data.mul_(factor)


class Tapped(Scaled):
    """One with a method that runs its children in a way of its own."""

    def forward_with_tap(self, x: Tensor) -> tuple[Tensor, Tensor]:
        *first, last = self.stack
        tap = x
        for each in first:
            tap = each(tap)
        return self.joined(last(tap), x), tap


def test_a_method_that_runs_the_children_in_its_own_way_has_the_attention_too() -> None:
    torch.manual_seed(0)
    block, x = Tapped().eval(), torch.randn(2, 16, 8, 8)
    before = block.forward_with_tap(x)
    attn_surgery.apply(block, "se")
    assert torch.equal(block.forward_with_tap(x)[0], before[0])
    for each in attn_surgery.inserted(block).values():
        nn.init.ones_(each.get_parameter("fc2.bias"))
    assert not torch.allclose(block(x), before[0])
    assert torch.equal(block.forward_with_tap(x)[0], block(x))
    attn_surgery.remove(block)
    assert torch.equal(block.forward_with_tap(x)[0], before[0])


def test_a_block_is_rewritten_where_no_other_method_runs_the_child() -> None:
    assert [each.method for each in attn_surgery.plan(Tapped(), "se").sites] == ["attach"]
    assert [each.method for each in attn_surgery.plan(Scaled(), "se").sites] == ["rewrite"]


def test_no_site_is_lost_for_it() -> None:
    plan = attn_surgery.plan(Twice().eval(), "se")
    assert [site.method for site in plan.sites] == ["attach", "rewrite"]
    host, x = Twice().eval(), torch.randn(2, 3, 8, 8)
    before = host(x)
    assert torch.equal(attn_surgery.apply(host, "se")(x), before)
