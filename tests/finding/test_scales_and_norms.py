"""Scales, norms, mixtures and changes of resolution that belong to a branch are taken for that."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hosts import Branch
from test_what_forwards_ask import check_undisturbed, sites
from torch import Tensor, nn

import attn_surgery
from attn_surgery import SurgeryError

# Layer scales that are cast like a map


class Scaled(Branch):
    def __init__(self, cast: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.gamma, self.cast = nn.Parameter(torch.full((8,), 0.5)), cast

    def scale(self, like: Tensor) -> Tensor:
        return self.cast(self.gamma.view(1, -1, 1, 1), like)


class LikeTheInput(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(x) * self.branch(x)


class LikeTheBranch(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        return x + h * self.scale(h)


class LikeTheBranchBefore(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        return x + self.scale(h) * h


class OfTheShortcut(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x) * x + self.branch(x)


CASTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "type_as": lambda scale, like: scale.type_as(like),
    "to": lambda scale, like: scale.to(like),
    "expand_as": lambda scale, like: scale.expand_as(like),
    "type": lambda scale, like: scale.type(like.type()),
    "dtype": lambda scale, like: scale.to(like.dtype),
    "expand": lambda scale, like: scale.expand(like.shape),
    "broadcast": lambda scale, like: torch.broadcast_to(scale, like.shape),
}
SCALED: list[Callable[[Callable[[Tensor, Tensor], Tensor]], Scaled]] = [
    LikeTheInput,
    LikeTheBranch,
    LikeTheBranchBefore,
    OfTheShortcut,
]


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("kind", SCALED)
def test_attention_is_before_a_layer_scale_that_is_cast(
    kind: Callable[[Callable[[Tensor, Tensor], Tensor]], Scaled], cast: str
) -> None:
    host, x = kind(CASTS[cast]).eval(), torch.randn(2, 8, 8, 8)
    assert attn_surgery.plan(host, "se").skipped == ()
    assert sites(host) == [("", "norm")]
    check_undisturbed(host, x)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("kind", SCALED)
def test_a_layer_scale_that_is_cast_is_no_attention_to_replace(
    kind: Callable[[Callable[[Tensor, Tensor], Tensor]], Scaled], cast: str
) -> None:
    host, x = kind(CASTS[cast]).eval(), torch.randn(2, 8, 8, 8)
    before, expected = set(host.state_dict()), host(x)
    attn_surgery.apply(host, "se", existing="replace")
    assert before < set(host.state_dict())
    assert torch.equal(host(x), expected)


# Norms that shift before they scale


class ScaleFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(8, 1, 1))
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.loc


class ShiftFirst(ScaleFirst):
    """Glow's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x + self.loc)


class Initialised(ScaleFirst):
    """By the first batch in training, as Glow's."""

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.initialized.item():
            with torch.no_grad():
                self.loc.copy_(-x.mean((0, 2, 3))[:, None, None])
                self.scale.copy_(1 / (x.std((0, 2, 3))[:, None, None] + 1e-6))
                self.initialized.fill_(1)
        return self.scale * (x + self.loc)


class ShiftBack(ScaleFirst):
    def forward(self, x: Tensor) -> Tensor:
        return (x - self.loc) / self.scale


class LogScale(ScaleFirst):
    def forward(self, x: Tensor) -> Tensor:
        return (x + self.loc) * torch.exp(self.scale)


class EndsInNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), norm

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(F.relu(x)))


@pytest.mark.parametrize("norm", [ScaleFirst, ShiftFirst, Initialised, ShiftBack, LogScale])
def test_attention_is_behind_the_norm_that_ends_the_branch(norm: type[nn.Module]) -> None:
    host, x = EndsInNorm(norm()).eval(), torch.randn(2, 8, 8, 8)
    assert attn_surgery.plan(host, "se").skipped == ()
    assert sites(host) == [("", "norm")]
    check_undisturbed(host, x)


# Branches that go up and down again


class Smooth(nn.Module):
    """BigVGAN's activation, at twice the rate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Upsample(scale_factor=2, mode="linear"), nn.AvgPool1d(2)
        self.alpha = nn.Parameter(torch.ones(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(x + torch.sin(x * self.alpha).pow(2) / (self.alpha + 1e-9))


class SmoothBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=d, dilation=d) for d in (1, 3))
        self.convs2 = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1) for _ in range(2))
        self.activations: Any = nn.ModuleList(Smooth() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        acts1, acts2 = self.activations[::2], self.activations[1::2]
        for c1, c2, a1, a2 in zip(self.convs1, self.convs2, acts1, acts2, strict=True):
            x = c2(a2(c1(a1(x)))) + x
        return x


def test_each_branch_with_an_activation_at_twice_the_rate_is_a_site() -> None:
    host, x = SmoothBlock().eval(), torch.randn(2, 8, 16)
    assert attn_surgery.plan(host, "se").skipped == ()
    assert sites(host) == [("", "convs2.0"), ("", "convs2.1")]
    expected = host(x)
    attn_surgery.apply(host, "se")
    assert torch.equal(host(x), expected)
    assert len(attn_surgery.inserted(host)) == 2
    assert torch.equal(attn_surgery.remove(host)(x), expected)


class UpAndDown(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.avg_pool2d(self.branch(F.interpolate(x, scale_factor=2)), 2)


class UpAndDownByShuffles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(F.pixel_shuffle(x, 2)))
        return x + self.b(F.pixel_unshuffle(h, 2))


class UpAndDownByConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


@pytest.mark.parametrize(
    ("kind", "after"),
    [(UpAndDown, "avg_pool2d"), (UpAndDownByConvolutions, "down"), (UpAndDownByShuffles, "b")],
)
def test_a_branch_that_goes_up_and_down_is_a_site(kind: type[nn.Module], after: str) -> None:
    host, x = kind().eval(), torch.randn(2, 8, 8, 8)
    assert sites(host) == [("", after)]
    check_undisturbed(host, x)


class DownAndUp(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(self.branch(F.avg_pool2d(x, 2)), scale_factor=2)


def test_a_branch_that_goes_down_and_up_is_none() -> None:
    (skipped,) = attn_surgery.plan(DownAndUp(), "se").skipped
    assert skipped.reason == "merges resolutions: the branch goes down and up again"


# Mixtures of experts


class Mixture(nn.Module):
    """Mixes maps by weights of the whole image."""

    def __init__(self, mix: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.router, self.norm, self.mix = nn.Linear(8, 3), nn.BatchNorm2d(8), mix

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x.mean((2, 3))).softmax(-1)
        maps = torch.stack([F.relu(expert(x)) for expert in self.experts], 1)
        return x + self.norm(self.mix(weights, maps))


MIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda w, maps: (maps * w[:, :, None, None, None]).sum(1),
    "einsum": lambda w, maps: torch.einsum("bk,bkchw->bchw", w, maps),
    "einsum, maps first": lambda w, maps: torch.einsum("bkchw,bk->bchw", maps, w),
    "einsum, dots": lambda w, maps: torch.einsum("bk,bk...->b...", w, maps),
}


@pytest.mark.parametrize("mix", MIXES)
def test_a_mixture_by_a_product_mixes_no_positions(mix: str) -> None:
    host, x = Mixture(MIXES[mix]).eval(), torch.randn(2, 8, 8, 8)
    plan = attn_surgery.plan(host, "se", existing="stack")
    assert ([site.after for site in plan.sites], plan.skipped) == (["norm"], ())
    expected = host(x)
    attn_surgery.apply(host, "se", existing="stack")
    assert torch.equal(host(x), expected)


class GatedByProduct(Branch):
    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(x.mean((2, 3)))
        return x + self.norm(torch.einsum("bc,bchw->bchw", weights, F.relu(self.a(x))))


def test_a_gate_by_a_product_mixes_no_positions() -> None:
    host, x = GatedByProduct().eval(), torch.randn(2, 8, 8, 8)
    plan = attn_surgery.plan(host, "se", existing="stack")
    assert ([site.after for site in plan.sites], plan.skipped) == (["norm"], ())
    expected = host(x)
    attn_surgery.apply(host, "se", existing="stack")
    assert torch.equal(host(x), expected)


class MixesPositions(Branch):
    def forward(self, x: Tensor) -> Tensor:
        flat = self.a(x).flatten(2)
        weights = torch.einsum("bcn,bcm->bnm", flat, self.b(x).flatten(2)).softmax(-1)
        return x + self.norm(torch.einsum("bnm,bcm->bcn", weights, flat).view_as(x))


def test_a_product_over_positions_mixes_them() -> None:
    plan = attn_surgery.plan(MixesPositions(), "se", existing="stack")
    assert not plan.sites
    assert all("self-attention: mixes positions" in each.reason for each in plan.skipped)
    assert plan.skipped


# Blocks that are convolutions


class ResidualConv(nn.Conv2d):
    """A convolution that adds its input to what it makes of it."""

    def __init__(self) -> None:
        super().__init__(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.norm(F.relu(super().forward(input)))


class ResidualConvByFunction(ResidualConv):
    def forward(self, input: Tensor) -> Tensor:
        h = F.conv2d(input, self.weight, self.bias, padding=self.padding)
        return input + self.norm(F.relu(h))


class ResidualNorm(nn.BatchNorm2d):
    def __init__(self) -> None:
        super().__init__(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.conv(F.relu(super().forward(input)))


@pytest.mark.parametrize(
    ("kind", "after"),
    [(ResidualConv, "norm"), (ResidualConvByFunction, "norm"), (ResidualNorm, "conv")],
)
def test_a_block_that_is_a_layer_itself(kind: type[nn.Module], after: str) -> None:
    host, x = nn.Sequential(nn.Conv2d(3, 8, 1), kind()).eval(), torch.randn(2, 3, 8, 8)
    assert sites(host) == [("1", after)]
    check_undisturbed(host, x)


# Reasons that hold


class Compiled(nn.Module):
    def __init__(self, compiled: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        first, last = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.branch = compiled(nn.Sequential(first, nn.ReLU(), last))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def traced(branch: nn.Module) -> Any:
    return torch.jit.trace(branch.eval(), torch.randn(1, 8, 8, 8))


def scripted(branch: nn.Module) -> Any:
    script: Any = torch.jit.script
    return script(branch)


def frozen(branch: nn.Module) -> Any:
    freeze: Any = torch.jit.freeze
    return freeze(traced(branch.eval()))


def compiled(by: Callable[[nn.Module], Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        return Compiled(by).eval()


@pytest.mark.parametrize("by", [traced, scripted, frozen])
def test_a_compiled_branch_may_have_convolutions(by: Callable[[nn.Module], Any]) -> None:
    host, x = nn.Sequential(nn.Conv2d(3, 8, 1), compiled(by)).eval(), torch.randn(2, 3, 8, 8)
    assert attn_surgery.plan(host, "se").skipped == ()
    assert sites(host) == [("1", "branch")]
    check_undisturbed(host, x)


@pytest.mark.parametrize("by", [traced, scripted])
def test_of_a_compiled_branch_alone_only_the_layout_is_unknown(
    by: Callable[[nn.Module], Any],
) -> None:
    host = compiled(by)
    (skipped,) = attn_surgery.plan(host, "se").skipped
    assert skipped.reason == "the layout of the sum is unknown"
    with pytest.raises(SurgeryError, match="the layout of the sum is unknown"):
        attn_surgery.apply(host, "se")


class Hyper(nn.Module):
    """Makes its kernel by a layer."""

    def __init__(self, shaped: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.z, self.make = nn.Parameter(torch.randn(4)), nn.Linear(4, 8 * 8 * 3 * 3)
        self.norm, self.shaped = nn.BatchNorm2d(8), shaped

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.shaped(self.make(self.z))
        return x + self.norm(F.relu(F.conv2d(x, kernel, padding=1)))


SHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "unflatten": lambda kernel: kernel.unflatten(0, (8, 8, 3, 3)),
    "view": lambda kernel: kernel.view(8, 8, 3, 3),
    "reshape": lambda kernel: torch.reshape(kernel, (8, 8, 3, 3)),
    "torch.unflatten": lambda kernel: torch.unflatten(kernel, 0, (8, -1, 3, 3)),
}


@pytest.mark.parametrize("shaped", SHAPED)
def test_a_kernel_that_a_layer_makes_is_as_large_as_it_is(shaped: str) -> None:
    host, x = Hyper(SHAPED[shaped]).eval(), torch.randn(2, 8, 8, 8)
    assert attn_surgery.plan(host, "se").skipped == ()
    assert sites(host) == [("", "norm")]
    check_undisturbed(host, x)
