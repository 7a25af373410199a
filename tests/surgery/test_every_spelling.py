"""Residual blocks in the spellings of people who do not write for a tracer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attn_surgery

einops: Any = pytest.importorskip("einops", reason="einops is not installed")
layers: Any = pytest.importorskip("einops.layers.torch")
rearrange, reduce, repeat = einops.rearrange, einops.reduce, einops.repeat

C = 8
FACTOR: Any = np.float32(0.3)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(C, C, 3, padding=1) for _ in "ab")
        self.norm = nn.BatchNorm2d(C)

    def branch(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.norm(self.a(x))))


# einops


class There(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = rearrange(x, "b c h w -> b h w c")
        return x + self.branch(einops.rearrange(h, "b h w c -> b c h w"))


class Squeezed(Block):
    """`reduce` is imported by its name, and calls no other of einops' functions."""

    def forward(self, x: Tensor) -> Tensor:
        mean = reduce(self.a(x), "b c h w -> b c 1 1", "mean")
        mean = repeat(mean, "b c 1 1 -> b c h w", h=x.shape[2], w=x.shape[3])
        return x + self.b(torch.relu(self.a(x) - mean))


class Packed(Block):
    def forward(self, x: Tensor) -> Tensor:
        both, sizes = einops.pack([x, x], "b * h w")
        first, _ = einops.unpack(both, sizes, "b * h w")
        return x + self.branch(first)


class Layers(Block):
    def __init__(self) -> None:
        super().__init__()
        there, back = "b c h w -> b (h w) c", "b (h w) c -> b c h w"
        self.there = nn.Sequential(layers.Rearrange(there), layers.Rearrange(back, h=8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.there(x))


class LayersMadeHere(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = layers.Rearrange("b (g c) h w -> (b g) c h w", g=2)(x)
        h = layers.Rearrange("(b g) c h w -> b (g c) h w", g=2)(h)
        return x + self.branch(h)


class Embedded(Block):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, C)
        self.time = nn.Parameter(torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x + rearrange(self.linear(self.time), "b c -> b c 1 1"))


# Modules made in forward


class MadeHere(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = nn.ReLU()(self.norm(self.a(x)))
        return nn.ReLU()(self.b(nn.Dropout(0.0)(h)) + x)


class ChainMadeHere(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(nn.Sequential(nn.LeakyReLU(0.1), nn.Identity())(self.a(x)))


# Writes into fresh tensors


class ByItems(Block):
    def forward(self, x: Tensor) -> Tensor:
        h, out = self.branch(x), torch.empty_like(x)
        out[:, :4] = h[:, 4:]
        out[:, 4:] = h[:, :4]
        return x + out


class BySlices(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(x.size())
        out[:, :4].copy_(x[:, 4:])
        out.narrow(1, 4, 4).add_(x[:, :4])
        return x + self.branch(out)


class ByCopy(Block):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], C, x.shape[2], x.shape[3])
        out.copy_(self.branch(x))
        return x + out


class HalfOfTheResult(Block):
    """The last write is on a part of what is added."""

    def forward(self, x: Tensor) -> Tensor:
        h, out = self.branch(x), torch.zeros_like(x)
        out[:, 4:] = h[:, 4:]
        out[:, :4].copy_(h[:, :4])
        return x + out


# Loops and unpacking


class Starred(Block):
    def forward(self, x: Tensor) -> Tensor:
        batch, *sizes = x.shape
        return x + self.branch(x).view(batch, *sizes)


class StarredParts(Block):
    def forward(self, x: Tensor) -> Tensor:
        first, *others = torch.chunk(x, 4, 1)
        return x + self.branch(torch.cat([first, *others], 1))


class Split(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(torch.cat([part * 2 for part in x.split([4, 4], 1)], 1))


class Unbound(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(torch.stack([part for part in x.unbind(1)], 1))  # noqa: C416


class OverModules(Block):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(C, C, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for conv in self.convs:
            h = F.relu(conv(h))
        return x + h


# Control flow


class Asserted(Block):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.branch(x)
        if x.dim() > 9:
            assert condition is not None
            h = h + condition
        return x + torch.tanh(h)


class AskedForNone(Block):
    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.branch(x)
        if condition is not None:
            h = h + condition
        return x + torch.tanh(h)


class TwoWays(Block):
    """Each way ends elsewhere: each is a site."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.branch(x)) if x.sum() > 1e6 else torch.sigmoid(self.branch(x))
        return x + h


class While(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.branch(x))
        while h.abs().max() > 100:
            h = h / 2
        return x + h


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1e3:
            return x
        x = x.clone()
        x += torch.tanh(self.branch(x))
        return x


class Typed(Block):
    def forward(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return x + torch.tanh(self.branch(x))
        return [self.forward(each) for each in x]


class Nested(Block):
    """As mmdetection's ResNet does, to be able to checkpoint it."""

    def forward(self, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return x + torch.tanh(self.branch(x))

        out = inner(x) if x.sum() > 1e6 else inner(1 * x)
        return torch.relu(out)


class Helped(Block):
    def helper(self, x: Tensor) -> Tensor:
        return torch.tanh(self.branch(x)) if x.sum() > 1e6 else torch.tanh(self.branch(-x))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.helper(x)


# Sums


class Addcmul(Block):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, self.branch(x), self.scale)


class StackedSum(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, self.branch(x)]).sum(0)


# What torch insists on


class WithoutAutocast(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return x + self.branch(x.float())


class InItsDtype(Block):
    def forward(self, x: Tensor) -> Tensor:
        enabled = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if enabled else x.dtype
        with torch.amp.autocast(device_type=x.device.type, dtype=x.dtype, enabled=enabled):
            return x + self.branch(x).to(dtype)


class Precise(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        return x + h / (1 + torch.finfo(h.dtype).eps * torch.iinfo(torch.int8).max)


class OnItsDevice(Block):
    def forward(self, x: Tensor) -> Tensor:
        if str(x.device).startswith("cpu") and f"{x.dtype}" == "torch.float32":
            return x + self.branch(x) * FACTOR
        return x


class Checked(Block):
    def forward(self, x: Tensor) -> Tensor:
        torch._check(x.shape[1] == C, lambda: f"{x.shape[1]} channels")
        return x + self.branch(x)


class AsTensors(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.b(torch.relu(self.a(torch.as_tensor(x, dtype=x.dtype))))
        return torch.as_tensor(h + torch.as_tensor(x))


class Windowed(Block):
    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(x.shape[-1], periodic=False) + torch.logspace(0, 1, x.size(-1))
        shape = torch.broadcast_shapes(x.shape, (1, C, 1, 1))
        return x + self.branch(x * window).expand(shape)


ONE = [There, Squeezed, Packed, Layers, LayersMadeHere, Embedded, MadeHere, ChainMadeHere, ByItems]
ONE += [BySlices, ByCopy, HalfOfTheResult, Starred, StarredParts, Split, Unbound, OverModules]
ONE += [Asserted, AskedForNone, While, InPlace, Typed, Nested, Helped, Addcmul, StackedSum]
ONE += [WithoutAutocast, InItsDtype, Precise, OnItsDevice, Checked, AsTensors, Windowed]


def network(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, C, 1), kind(), kind()).eval()


def check(model: nn.Module, x: Tensor, position: str = "standard") -> None:
    """The identity, the copies after the gates have moved, and the way back."""
    before, classes = model(x), [type(each) for each in model.modules()]
    attn_surgery.apply(model, "cbam", position=position)
    assert torch.equal(model(x), before)
    for attention in attn_surgery.inserted(model).values():
        for parameter in attention.parameters():
            nn.init.normal_(parameter)
    attended = model(x)
    assert not torch.equal(attended, before)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), attended)
    attn_surgery.remove(model)
    assert torch.equal(model(x), before)
    assert [type(each) for each in model.modules()] == classes


@pytest.mark.parametrize("kind", ONE)
def test_each_block_is_a_site(kind: type[Block]):
    model = network(kind)
    sites = attn_surgery.plan(model).sites
    assert [(each.block, each.channels, each.spatial_dims) for each in sites] == [
        ("1", C, 2),
        ("2", C, 2),
    ]
    check(model, torch.randn(2, 3, 8, 8))


def test_two_ends_on_two_ways():
    model = network(TwoWays)
    assert [each.after for each in attn_surgery.plan(model).sites] == [
        "sigmoid",
        "sigmoid",
        "tanh",
        "tanh",
    ]
    check(model, torch.randn(2, 3, 8, 8))


class AsksInTheMiddle(Block):
    """On each way another step makes what the second convolution takes."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.a(x)))
        if x.sum() > 0:
            h = h * 2
        return x + torch.tanh(self.b(h))


class AsksAtFirst(Block):
    """What enters the branch goes into a function, and stands in the sum, too."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(torch.tanh(x))
        return x + (torch.sigmoid(h) if x.sum() > 0 else torch.sigmoid(1 * h))


@pytest.mark.parametrize("position", ["pre", "mid", "identity", "post"])
@pytest.mark.parametrize("kind", [AsksInTheMiddle, AsksAtFirst])
def test_a_place_that_two_ways_lead_to_is_one_site(kind: type[Block], position: str):
    model, x = network(kind), torch.randn(2, 3, 8, 8)
    attn_surgery.apply(model, "se", position=position)
    for sign in (1, -1):
        assert calls_of(model, sign * x.abs()) == [1, 1]
    attn_surgery.remove(model)
    check(model, x, position)


def calls_of(model: nn.Module, x: Tensor) -> list[int]:
    """Return how often each attention works in a pass."""
    counts = dict.fromkeys(attn_surgery.inserted(model), 0)

    def count(name: str) -> None:
        counts[name] += 1

    hooks = [
        each.register_forward_hook(lambda *_, name=name: count(name))
        for name, each in attn_surgery.inserted(model).items()
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return list(counts.values())


class Subtracting(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x - self.branch(x)


class Interpolating(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.branch(x), 0.5)


class PartOfTheShortcut(Block):
    def __init__(self) -> None:
        super().__init__()
        self.less = nn.Conv2d(C, C // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, : C // 2] + self.less(torch.relu(self.a(x)))
        return torch.cat([y, y], 1)


class Parts(PartOfTheShortcut):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([a + self.less(torch.relu(torch.cat([b, b], 1))), b], 1)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Subtracting, "subtracts: x - f(x) is no residual sum"),
        (Interpolating, "interpolates between x and f(x) by torch.lerp: no residual sum"),
        (PartOfTheShortcut, "the shortcut keeps only a part of what the branch takes"),
        (Parts, "the operands are different parts of one tensor"),
    ],
)
def test_what_is_no_site_is_named(kind: type[nn.Module], reason: str):
    plan = attn_surgery.plan(network(kind))
    assert plan.sites == ()
    assert [each.reason for each in plan.skipped] == [reason] * 2


class PooledWithIndices(Block):
    """As in ENet, whose indices are for unpooling."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.down = nn.Conv2d(C, C, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled, _ = self.pool(x)
        return pooled + self.b(torch.relu(self.down(x)))


def test_a_shortcut_that_pools_with_indices_is_a_projection():
    model = network(PooledWithIndices)
    assert len(attn_surgery.plan(model).sites) == 2
    check(model, torch.randn(2, 3, 8, 8))


class Refusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        return {"x": x}["y"]


def test_what_could_not_be_followed_is_not_said_to_have_no_block():
    with pytest.raises(attn_surgery.SurgeryError, match="could not follow 1 of its modules, '1'"):
        attn_surgery.apply(nn.Sequential(nn.Conv2d(3, C, 1), Refusing()))


class Noting(nn.Module):
    """Never called: what uses it calls a method that writes (RAFT's correlation block)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def note(self, x: Tensor) -> Tensor:
        self.seen = [x.detach()]
        return x


class Noted(Block):
    def __init__(self) -> None:
        super().__init__()
        self.noting = Noting()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.noting.note(x))


def test_what_a_method_of_a_child_writes_is_put_back():
    model = network(Noted)
    assert len(attn_surgery.plan(model).sites) == 2
    assert [each.seen for each in model.modules() if isinstance(each, Noting)] == [[], []]
    check(model, torch.randn(2, 3, 8, 8))


def test_einops_is_itself_again():
    x, code = torch.randn(1, 2, 3), einops.rearrange.__code__
    attn_surgery.plan(network(There))
    assert einops.rearrange.__code__ is code
    assert einops.rearrange(x, "a b c -> c b a").shape == (3, 2, 1)
    assert not [name for name in einops.rearrange.__globals__ if "attn_surgery" in name]


class ActivatedWhilePermuted(Block):
    """The activation changes a view of the norm's result, which nobody reads as it was."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(self.b(torch.relu(self.a(x))).permute(0, 2, 3, 1), (8,))
        return F.relu(h.permute(0, 3, 1, 2), inplace=True) + x


def test_a_view_that_is_changed_in_place_is_what_it_is():
    (site, _) = attn_surgery.plan(network(ActivatedWhilePermuted)).sites
    assert (site.after, site.channels, site.method) == ("relu_1", C, "rewrite")
    check(network(ActivatedWhilePermuted), torch.randn(2, 3, 8, 8))
