"""Where the truth about a generated network comes from, and the layers that its blocks are made of.

Wherever a branch F ends, the source of the generated block says so: it passes the value through
``Marked.ends_here``, which hands it on untouched and leaves no step in a trace. Two other ways of
running the same source give the truth that the engine is held to: ``true_sites`` writes down
every end that is passed, and ``gated`` scales the branch there, as an attention would.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations

SIZES = {1: (8,), 2: (8, 8), 3: (4, 4, 4)}
"""Spatial size of the input, by the number of spatial dims."""
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
GLOBAL_POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
F_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


# The truth


class Marked(nn.Module):
    """A module that says where a branch ends."""

    def ends_here(
        self,
        f: Any,
        after: str | None = None,
        up: int = 0,
        order: int = 0,
        *,
        doubtful: bool = False,
        channels_at: int = 1,
    ) -> Any:
        """Return ``f``, the end of a branch F.

        Args:
            f: The end.
            after: The path of the child of the block that made it; None where a function did.
            up: How many modules up the block is: 0 where this module is the block.
            order: Tells apart the ends that the same child makes in one block.
            doubtful: Whether a plan may leave it out, or skip it.
            channels_at: The dim of the channels; the spatial ones follow.
        """
        return f


@dataclass(frozen=True)
class TrueSite:
    """What a plan has to find."""

    block: str
    after: str | None
    channels: int
    spatial_dims: int
    order: int = 0
    doubtful: bool = False


def true_sites(model: nn.Module, *inputs: Any) -> list[TrueSite]:
    """Run ``model`` and return the end of every branch that was passed, in order."""
    paths = {module: path for path, module in reversed(list(model.named_modules()))}
    found: list[TrueSite] = []

    def note(
        self: Marked,
        f: Tensor,
        after: str | None = None,
        up: int = 0,
        order: int = 0,
        *,
        doubtful: bool = False,
        channels_at: int = 1,
    ) -> Tensor:
        path = paths[self].split(".")
        block = ".".join(path[: len(path) - up])
        facts = (f.shape[channels_at], f.dim() - channels_at - 1)
        found.append(TrueSite(block, after, *facts, order, doubtful))
        return f

    with _ending(note), torch.no_grad():
        model(*inputs)
    return found


@contextmanager
def gated(gate: Tensor, but: Collection[nn.Module] = ()) -> Iterator[None]:
    """Scale every branch F by ``gate`` at its end, as an attention with a constant gate would.

    Args:
        gate: The factor.
        but: The modules whose own ends stay as they are.
    """

    def scale(self: Marked, f: Tensor, *where: Any, **more: Any) -> Tensor:
        return f if self in but else f * gate

    with _ending(scale):
        yield


@contextmanager
def _ending(ends_here: Any) -> Iterator[None]:
    plain = Marked.ends_here
    Marked.ends_here = ends_here
    try:
        yield
    finally:
        Marked.ends_here = plain


# Layers


@dataclass(frozen=True)
class Shape:
    """What the layers of one block have to fit."""

    dims: int
    inward: int
    outward: int
    stride: int = 1
    norm: str = "batch"
    conv: str = "plain"

    def same(self) -> Shape:
        """Return the shape of a layer that follows the first one."""
        return Shape(self.dims, self.outward, self.outward, 1, self.norm, self.conv)


class StandardisedConv2d(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019, arXiv:1903.10520)."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(
            input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class FrozenNorm(nn.Module):
    """A batch norm whose statistics are buffers, spelled out."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, dims: int):
        super().__init__()
        shape = (1, channels, *[1] * dims)
        self.register_buffer("weight", torch.rand(shape) + 0.5)
        self.register_buffer("bias", torch.randn(shape))
        self.register_buffer("mean", torch.randn(shape) / 10)
        self.register_buffer("variance", torch.rand(shape) + 0.5)

    def forward(self, x: Any) -> Any:
        scale = self.weight * (self.variance + 1e-5).rsqrt()
        return x * scale + (self.bias - self.mean * scale)


class DivisiveNorm(nn.Module):
    """GDN (Balle et al. 2016, arXiv:1511.06281), a norm: it looks at one position at a time."""

    def __init__(self, channels: int, dims: int):
        super().__init__()
        self.beta = nn.Parameter(torch.rand(channels) + 0.5)
        self.gamma = nn.Parameter(0.1 * torch.eye(channels) + 0.01 * torch.rand(channels, channels))
        self.kernel = (channels, channels, *[1] * dims)
        self.mix = F_CONV[dims]

    def forward(self, x: Any) -> Any:
        return x * torch.rsqrt(self.mix(x**2, self.gamma.reshape(self.kernel), self.beta))


def conv(
    shape: Shape, kernel: int = 3, *, inward: int = 0, outward: int = 0, **more: Any
) -> nn.Module:
    """Make a convolution that keeps the size, but for the stride in ``more``."""
    make = CONV[shape.dims]
    if shape.conv == "standardised" and shape.dims == 2 and kernel == 3:
        make = StandardisedConv2d
    made = make(
        inward or shape.inward,
        outward or shape.outward,
        kernel,
        padding=kernel // 2,
        **more,
    )
    return parametrizations.weight_norm(made) if shape.conv == "weight_norm" else made


def norm(shape: Shape, channels: int = 0) -> nn.Module:
    """Make a norm for the outward channels, of the drawn kind."""
    channels, dims = channels or shape.outward, shape.dims
    makers: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: BATCH_NORM[dims](channels),
        "group": lambda: nn.GroupNorm(2, channels),
        "instance": lambda: INSTANCE_NORM[dims](channels, affine=True),
        "frozen": lambda: FrozenNorm(channels, dims),
        "divisive": lambda: DivisiveNorm(channels, dims),
        "torchvision_frozen": lambda: torchvision.ops.FrozenBatchNorm2d(channels),
        "layer": lambda: LayerNorm2d(channels),
    }
    return makers[shape.norm]()


NORMS = ("batch", "group", "instance", "frozen", "divisive")
NORMS_2D = (*NORMS, "torchvision_frozen", "layer")
CONVS = ("plain", "plain", "weight_norm", "standardised")


class Residual(Marked):
    """``out = finish(drop(scale(F(x))) + S(x))``: what the classes below are put together to."""

    def __init__(self, shape: Shape, final: str):
        super().__init__()
        self.make_branch(shape)
        self.make_shortcut(shape)
        self.make_scale(shape)
        self.make_drop(shape)
        self.make_addition(shape)
        self.out: nn.Module = {"none": nn.Identity(), "relu": nn.ReLU(inplace=True)}[final]

    def make_branch(self, shape: Shape) -> None: ...
    def make_shortcut(self, shape: Shape) -> None: ...
    def make_scale(self, shape: Shape) -> None: ...
    def make_drop(self, shape: Shape) -> None: ...
    def make_addition(self, shape: Shape) -> None: ...

    def branch(self, x: Any) -> Any:
        raise NotImplementedError

    def shortcut(self, x: Any) -> Any:
        return x

    def scale(self, f: Any) -> Any:
        return f

    def drop(self, f: Any) -> Any:
        return f

    def end(self, x: Any) -> Any:
        """Return F as the addition receives it."""
        return self.drop(self.scale(self.branch(x)))


def basic_layers(shape: Shape) -> list[nn.Module]:
    return [
        conv(shape, stride=shape.stride, bias=False),
        norm(shape),
        nn.ReLU(),
        conv(shape.same(), bias=False),
        norm(shape),
    ]


def keeps_shape(shape: Shape) -> bool:
    return shape.stride == 1 and shape.inward == shape.outward
