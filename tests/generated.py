"""Random residual networks whose true sites are known: the building blocks, and how to draw them.

A block is put together from one class per dimension (addition, scale, drop, branch, shortcut), so
that every forward is ordinary source and holds nothing that its own spelling does not need.
"""

from __future__ import annotations

import functools
import operator
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from generated_containers import CONTAINERS
from generated_hosts import CONDITIONED, HOSTS
from generated_layers import (
    AVG_POOL,
    BATCH_NORM,
    CONV,
    CONVS,
    F_CONV,
    GLOBAL_POOL,
    MAX_POOL,
    NORMS,
    NORMS_2D,
    SIZES,
    Marked,
    Residual,
    Shape,
    basic_layers,
    conv,
    keeps_shape,
    norm,
)
from generated_maps import (
    DOUBTFUL,
    DOUBTFUL_BRANCHES,
    MAP_BRANCHES,
    MAP_DECOYS,
    MAP_ENDS_IN_CHILD,
    MAP_UNITS,
)
from generated_spellings import (
    SPELLED_ADDITIONS,
    SPELLED_BRANCHES,
    SPELLED_IN_CHILD,
    UNFAITHFULLY_SPELLED,
)
from hypothesis import strategies as st
from torch import fx, nn
from torch.ao.nn.quantized import FloatFunctional

# Branches F


class Basic(Residual):
    def make_branch(self, shape: Shape) -> None:
        self.conv1 = conv(shape, stride=shape.stride, bias=False)
        self.bn1 = norm(shape)
        self.conv2 = conv(shape.same(), bias=False)
        self.bn2 = norm(shape)
        self.act = nn.ReLU(inplace=True)

    def branch(self, x: Any) -> Any:
        f = self.act(self.bn1(self.conv1(x)))
        return self.ends_here(self.bn2(self.conv2(f)), "bn2")


class ForwardCalled(Basic):
    """Children called by their forward, as some quantisation and profiling code does."""

    def branch(self, x: Any) -> Any:
        f = F.relu(self.bn1.forward(self.conv1.forward(x)))
        return self.ends_here(self.bn2.forward(self.conv2.forward(f)), "bn2")


class NestedFunction(Basic):
    """mmdetection's inner function, which may be checkpointed."""

    def make_branch(self, shape: Shape) -> None:
        super().make_branch(shape)
        self.with_cp = False

    def branch(self, x: Any) -> Any:
        def inner(x: Any) -> Any:
            f = torch.relu(self.bn1(self.conv1(x)))
            return self.bn2(self.conv2(f))

        if self.with_cp and x.requires_grad:
            raise NotImplementedError
        return self.ends_here(inner(x), "bn2")


class FinalActivation(Basic):
    def branch(self, x: Any) -> Any:
        f = F.relu(self.bn1(self.conv1(x)))
        return self.ends_here(self.act(self.bn2(self.conv2(f))), "act")


class SharedActivation(Basic):
    """One ReLU module at two places of F."""

    def branch(self, x: Any) -> Any:
        f = self.act(self.bn1(self.conv1(x)))
        return self.ends_here(self.act(self.bn2(self.conv2(f))), "act")


class FinalFunction(Basic):
    def branch(self, x: Any) -> Any:
        f = F.relu(self.bn1(self.conv1(x)))
        return self.ends_here(F.leaky_relu(self.bn2(self.conv2(f)), 0.1))


class OneConvolution(Residual):
    def make_branch(self, shape: Shape) -> None:
        self.conv = conv(shape, stride=shape.stride, bias=False)
        self.bn = norm(shape)
        self.act = nn.SiLU()

    def branch(self, x: Any) -> Any:
        return self.ends_here(self.act(self.bn(self.conv(x))), "act")


class Bottleneck(Residual):
    def make_branch(self, shape: Shape) -> None:
        mid = max(2, shape.outward // 2)
        mid += mid % 2
        self.conv1 = conv(shape, 1, outward=mid, bias=False)
        self.bn1 = norm(shape, mid)
        self.conv2 = conv(shape, inward=mid, outward=mid, stride=shape.stride, bias=False)
        self.bn2 = norm(shape, mid)
        self.conv3 = conv(shape, 1, inward=mid, bias=False)
        self.bn3 = norm(shape)
        self.relu = nn.ReLU()

    def branch(self, x: Any) -> Any:
        f = self.relu(self.bn1(self.conv1(x)))
        f = self.relu(self.bn2(self.middle(f)))
        return self.ends_here(self.bn3(self.conv3(f)), "bn3")

    def middle(self, f: Any) -> Any:
        return self.conv2(f)


class SelfAttending(Bottleneck):
    """Self-attention beside the 3x3 convolution of a bottleneck (BoTNet, arXiv:2101.11605)."""

    def make_branch(self, shape: Shape) -> None:
        super().make_branch(shape)
        mid = self.bn2_channels = max(2, shape.outward // 2) + max(2, shape.outward // 2) % 2
        self.attn = conv(shape, 1, inward=mid, outward=3 * mid)

    def middle(self, f: Any) -> Any:
        f = self.conv2(f)
        q, k, v = self.attn(f).flatten(2).chunk(3, dim=1)
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        return (v @ weights.transpose(1, 2)).reshape(f.shape)


class Res2(Bottleneck):
    """Res2Net's splits inside a bottleneck (arXiv:1904.01169): their sums are no sites."""

    def make_branch(self, shape: Shape) -> None:
        super().make_branch(shape)
        mid = max(2, shape.outward // 2) + max(2, shape.outward // 2) % 2
        self.conv2 = conv(shape, inward=shape.inward, outward=mid, stride=shape.stride)
        self.conv1 = nn.Identity()
        self.bn1 = norm(shape, shape.inward)
        self.splits = nn.ModuleList(
            conv(shape, inward=mid // 2, outward=mid // 2, bias=False) for _ in range(2)
        )

    def middle(self, f: Any) -> Any:
        a, b = torch.chunk(self.conv2(f), 2, 1)
        a = torch.relu(self.splits[0](a))
        return torch.cat([a, torch.relu(self.splits[1](a + b))], 1)


class PreActivation(Residual):
    def make_branch(self, shape: Shape) -> None:
        self.bn1 = norm(shape, shape.inward)
        self.conv1 = conv(shape, stride=shape.stride, bias=False)
        self.bn2 = norm(shape)
        self.conv2 = conv(shape.same(), bias=False)

    def branch(self, x: Any) -> Any:
        f = self.conv1(F.relu(self.bn1(x)))
        f = self.conv2(F.relu(self.bn2(f), inplace=True))
        return self.ends_here(f, "conv2")


class InPlaceFirst(Residual):
    """Xception's order, its first ReLU in place: the shortcut may see x before or after it."""

    def make_branch(self, shape: Shape) -> None:
        self.body = nn.Sequential(
            nn.ReLU(inplace=True),
            conv(shape, stride=shape.stride, bias=False),
            norm(shape),
            nn.ReLU(inplace=True),
            conv(shape.same(), bias=False),
            norm(shape),
        )

    def branch(self, x: Any) -> Any:
        return self.ends_here(self.body(x), "body")


class NormFree(Residual):
    """Scaled activations in place of norms (Brock et al. 2021, arXiv:2102.06171)."""

    def make_branch(self, shape: Shape) -> None:
        self.beta = 0.9
        self.conv1 = conv(shape, stride=shape.stride)
        self.conv2 = conv(shape.same())

    def branch(self, x: Any) -> Any:
        f = self.conv1(F.silu(x) * self.beta)
        return self.ends_here(self.conv2(F.silu(f) * 1.7), "conv2")


class Inverted(Residual):
    """MBConv with named children."""

    gate: nn.Module | None = None

    def make_branch(self, shape: Shape) -> None:
        wide = 2 * shape.inward
        self.expand = conv(shape, 1, outward=wide, bias=False)
        self.bn1 = norm(shape, wide)
        self.depthwise = conv(
            shape, inward=wide, outward=wide, groups=wide, stride=shape.stride, bias=False
        )
        self.bn2 = norm(shape, wide)
        self.project = conv(shape, 1, inward=wide, bias=False)
        self.bn3 = norm(shape)

    def branch(self, x: Any) -> Any:
        f = F.relu6(self.bn1(self.expand(x)))
        f = self.gates(F.relu6(self.bn2(self.depthwise(f))))
        return self.ends_here(self.bn3(self.project(f)), "bn3")

    def gates(self, f: Any) -> Any:
        return f


class Squeezed(Inverted):
    """The SE of MBConv, as a child."""

    def make_branch(self, shape: Shape) -> None:
        super().make_branch(shape)
        self.se = SqueezeExcite(2 * shape.inward, shape.dims)

    def gates(self, f: Any) -> Any:
        return self.se(f)


class SqueezedInline(Inverted):
    """The SE of MBConv, spelled out in the block's own forward."""

    def make_branch(self, shape: Shape) -> None:
        super().make_branch(shape)
        self.down = conv(shape, 1, inward=2 * shape.inward, outward=2)
        self.up = conv(shape, 1, inward=2, outward=2 * shape.inward)
        self.over = tuple(range(2, 2 + shape.dims))

    def gates(self, f: Any) -> Any:
        return f * torch.sigmoid(self.up(F.relu(self.down(f.mean(self.over, keepdim=True)))))


class SqueezedEnd(Basic):
    """SE-ResNet: an attention of the host's at the very end, which F then ends in."""

    def make_branch(self, shape: Shape) -> None:
        super().make_branch(shape)
        self.se = SqueezeExcite(shape.outward, shape.dims)

    def branch(self, x: Any) -> Any:
        f = self.act(self.bn1(self.conv1(x)))
        return self.ends_here(self.se(self.bn2(self.conv2(f))), "se")


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, dims: int):
        super().__init__()
        self.pool = GLOBAL_POOL[dims](1)
        self.fc1 = CONV[dims](channels, 2, 1)
        self.fc2 = CONV[dims](2, channels, 1)

    def forward(self, x: Any) -> Any:
        return x * self.fc2(self.fc1(self.pool(x)).relu()).sigmoid()


class InSequential(Residual):
    def make_branch(self, shape: Shape) -> None:
        self.body = nn.Sequential(*basic_layers(shape))

    def branch(self, x: Any) -> Any:
        return self.ends_here(self.body(x), "body")


class InNestedSequential(Residual):
    def make_branch(self, shape: Shape) -> None:
        first, *rest = basic_layers(shape)
        self.body = nn.Sequential(first, nn.Sequential(*rest, nn.Identity()))

    def branch(self, x: Any) -> Any:
        return self.ends_here(self.body(x), "body")


class InList(Residual):
    def make_branch(self, shape: Shape) -> None:
        self.layers = nn.ModuleList(basic_layers(shape))

    def branch(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.ends_here(x, "layers.4")


class InDict(Residual):
    def make_branch(self, shape: Shape) -> None:
        names = ("first", "norm1", "act", "second", "norm2")
        self.layers = nn.ModuleDict(dict(zip(names, basic_layers(shape), strict=True)))

    def branch(self, x: Any) -> Any:
        f = self.layers["first"](x)
        f = self.layers["act"](self.layers["norm1"](f))
        return self.ends_here(self.layers["norm2"](self.layers["second"](f)), "layers.norm2")


class Body(Marked):
    """F with a forward of its own, its end dropped or scaled within."""

    def __init__(self, shape: Shape, tail: str):
        super().__init__()
        self.conv1, self.bn1, self.act, self.conv2, self.bn2 = basic_layers(shape)
        self.drop = nn.Dropout(0.3)
        self.gamma = nn.Parameter(torch.rand(shape.outward, *[1] * shape.dims) + 0.5)
        self.tail = tail

    def forward(self, x: Any) -> Any:
        f = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        if self.tail == "drop":
            return self.drop(self.ends_here(f, "body.bn2", up=1))
        if self.tail == "gamma":
            return self.gamma * self.ends_here(f, "body.bn2", up=1)
        return f


class InChild(Residual):
    def make_branch(self, shape: Shape) -> None:
        self.body = Body(shape, "")

    def branch(self, x: Any) -> Any:
        return self.ends_here(self.body(x), "body")


class DroppedInChild(Residual):
    def make_branch(self, shape: Shape) -> None:
        self.body = Body(shape, "drop")

    def branch(self, x: Any) -> Any:
        return self.body(x)


class ScaledInChild(DroppedInChild):
    def make_branch(self, shape: Shape) -> None:
        self.body = Body(shape, "gamma")


class ConvNeXt(Residual):
    """Depthwise convolution, then an MLP on channels-last maps."""

    def make_branch(self, shape: Shape) -> None:
        groups = shape.inward if shape.outward % shape.inward == 0 else 1
        self.dwconv = conv(shape, stride=shape.stride, groups=groups)
        self.norm = nn.LayerNorm(shape.outward)
        self.fc1 = nn.Linear(shape.outward, 2 * shape.outward)
        self.fc2 = nn.Linear(2 * shape.outward, shape.outward)
        self.last = (0, *range(2, 2 + shape.dims), 1)
        self.first = (0, 1 + shape.dims, *range(1, 1 + shape.dims))

    def branch(self, x: Any) -> Any:
        f = self.dwconv(x).permute(self.last)
        f = self.fc2(F.gelu(self.fc1(self.norm(f))))
        return self.ends_here(f.permute(self.first))


class Functional(Residual):
    """Convolutions by function, on parameters of the block's own."""

    def make_branch(self, shape: Shape) -> None:
        kernel = [3] * shape.dims
        self.w1 = nn.Parameter(torch.randn(shape.outward, shape.inward, *kernel) / 5)
        self.w2 = nn.Parameter(torch.randn(shape.outward, shape.outward, *kernel) / 5)
        self.convolve = F_CONV[shape.dims]
        self.stride = shape.stride

    def branch(self, x: Any) -> Any:
        f = F.relu(self.convolve(x, self.w1, stride=self.stride, padding=1))
        return self.ends_here(self.convolve(f, self.w2, padding=1))


class Inception(Residual):
    """Two ways concatenated (Inception-ResNet, arXiv:1602.07261)."""

    def make_branch(self, shape: Shape) -> None:
        self.b0 = nn.Sequential(conv(shape, 1, stride=shape.stride), nn.ReLU())
        self.b1 = nn.Sequential(
            conv(shape, 1), nn.ReLU(), conv(shape.same(), stride=shape.stride), nn.ReLU()
        )
        self.merge = conv(shape, 1, inward=2 * shape.outward)

    def branch(self, x: Any) -> Any:
        return self.ends_here(self.merge(torch.cat((self.b0(x), self.b1(x)), 1)), "merge")


class Reparameterised(Residual):
    """A RepVGG layer as the first of F: its own sum is no site."""

    def make_branch(self, shape: Shape) -> None:
        self.rep = RepVGG(shape)
        self.conv2 = conv(shape.same(), bias=False)
        self.bn2 = norm(shape)

    def branch(self, x: Any) -> Any:
        return self.ends_here(self.bn2(self.conv2(self.rep(x))), "bn2")


class LocalFeedForward(Residual):
    """A transformer's feed-forward with a depthwise convolution inside, on maps."""

    def make_branch(self, shape: Shape) -> None:
        self.norm = nn.GroupNorm(1, shape.inward)
        self.fc1 = conv(shape, 1)
        self.local = conv(shape.same(), groups=shape.outward, stride=shape.stride)
        self.fc2 = conv(shape.same(), 1)
        self.drop_inside = nn.Dropout(0.1)

    def branch(self, x: Any) -> Any:
        f = F.gelu(self.local(self.fc1(self.norm(x))))
        return self.ends_here(self.fc2(self.drop_inside(f)), "fc2")


ENDS_IN_CHILD = {
    "basic": Basic,
    "forward called": ForwardCalled,
    "nested function": NestedFunction,
    "one convolution": OneConvolution,
    "final activation": FinalActivation,
    "bottleneck": Bottleneck,
    "self-attending": SelfAttending,
    "res2": Res2,
    "preactivation": PreActivation,
    "in place first": InPlaceFirst,
    "norm-free": NormFree,
    "inverted": Inverted,
    "squeezed": Squeezed,
    "squeezed inline": SqueezedInline,
    "squeezed end": SqueezedEnd,
    "sequential": InSequential,
    "nested sequential": InNestedSequential,
    "list": InList,
    "dict": InDict,
    "child": InChild,
    "dropped in child": DroppedInChild,
    "scaled in child": ScaledInChild,
    "inception": Inception,
    "reparameterised": Reparameterised,
    "local feed-forward": LocalFeedForward,
    **MAP_ENDS_IN_CHILD,
    **SPELLED_IN_CHILD,
}
"""Branches whose end one child makes, in one call."""
BRANCHES: dict[str, type[Residual]] = {
    **ENDS_IN_CHILD,
    "shared activation": SharedActivation,
    "final function": FinalFunction,
    "convnext": ConvNeXt,
    "functional": Functional,
    **MAP_BRANCHES,
    **SPELLED_BRANCHES,
}


# Shortcuts S


class Optional(Residual):
    """``if self.downsample is not None``, as torchvision spells it."""

    def make_shortcut(self, shape: Shape) -> None:
        self.downsample: nn.Module | None = None

    def shortcut(self, x: Any) -> Any:
        if self.downsample is not None:
            x = self.downsample(x)
        return x


class IdentityChild(Residual):
    def make_shortcut(self, shape: Shape) -> None:
        self.short = nn.Identity()

    def shortcut(self, x: Any) -> Any:
        return self.short(x)


class ScaledShortcut(Residual):
    def make_shortcut(self, shape: Shape) -> None:
        self.alpha = nn.Parameter(torch.tensor(0.7))

    def shortcut(self, x: Any) -> Any:
        return self.alpha * x


class NormedShortcut(Residual):
    def make_shortcut(self, shape: Shape) -> None:
        self.short = BATCH_NORM[shape.dims](shape.inward)

    def shortcut(self, x: Any) -> Any:
        return self.short(x)


class Projected(Residual):
    def make_shortcut(self, shape: Shape) -> None:
        self.short = CONV[shape.dims](shape.inward, shape.outward, 1, stride=shape.stride)

    def shortcut(self, x: Any) -> Any:
        return self.short(x)


class ProjectedNormed(Optional):
    def make_shortcut(self, shape: Shape) -> None:
        self.downsample = nn.Sequential(
            CONV[shape.dims](shape.inward, shape.outward, 1, stride=shape.stride, bias=False),
            BATCH_NORM[shape.dims](shape.outward),
        )


class PooledProjected(Optional):
    """ResNet-D (arXiv:1812.01187)."""

    def make_shortcut(self, shape: Shape) -> None:
        pool = AVG_POOL[shape.dims](2, 2) if shape.stride == 2 else nn.Identity()
        self.downsample = nn.Sequential(
            pool,
            CONV[shape.dims](shape.inward, shape.outward, 1, bias=False),
            BATCH_NORM[shape.dims](shape.outward),
        )


class MaxPooled(Residual):
    def make_shortcut(self, shape: Shape) -> None:
        self.pool = MAX_POOL[shape.dims](3, stride=shape.stride, padding=1)

    def shortcut(self, x: Any) -> Any:
        return self.pool(x)


class Strided(Residual):
    def make_shortcut(self, shape: Shape) -> None:
        self.steps = (..., *[slice(None, None, shape.stride)] * shape.dims)

    def shortcut(self, x: Any) -> Any:
        return x[self.steps]


class StridedInline(Residual):
    def shortcut(self, x: Any) -> Any:
        return x[..., ::2, ::2]


class PaddedChannels(Strided):
    """Option A of He et al. 2015, with ``F.pad``."""

    def make_shortcut(self, shape: Shape) -> None:
        super().make_shortcut(shape)
        self.pads = (*[0, 0] * shape.dims, 0, shape.outward - shape.inward)

    def shortcut(self, x: Any) -> Any:
        return F.pad(x[self.steps], self.pads)


class CatZeros(Strided):
    """Option A of He et al. 2015, with zeros concatenated."""

    def make_shortcut(self, shape: Shape) -> None:
        super().make_shortcut(shape)
        self.missing = shape.outward - shape.inward

    def shortcut(self, x: Any) -> Any:
        x = x[self.steps]
        return torch.cat([x, torch.zeros_like(x)[:, : self.missing]], dim=1)


def _grows(shape: Shape) -> bool:
    return shape.inward < shape.outward <= 2 * shape.inward


SHORTCUTS: dict[str, tuple[type[Residual], Callable[[Shape], bool]]] = {
    "identity": (Residual, keeps_shape),
    "optional": (Optional, keeps_shape),
    "identity child": (IdentityChild, keeps_shape),
    "scaled": (ScaledShortcut, keeps_shape),
    "normed": (NormedShortcut, keeps_shape),
    "projected": (Projected, lambda shape: True),
    "projected, normed": (ProjectedNormed, lambda shape: True),
    "pooled, projected": (PooledProjected, lambda shape: True),
    "max-pooled": (MaxPooled, lambda shape: shape.inward == shape.outward),
    "strided": (Strided, lambda shape: shape.inward == shape.outward),
    "strided inline": (
        StridedInline,
        lambda shape: shape.inward == shape.outward and shape.stride == 2 and shape.dims == 2,
    ),
    "padded": (PaddedChannels, _grows),
    "zeros": (CatZeros, _grows),
}


# Scales


class Halved(Residual):
    def scale(self, f: Any) -> Any:
        return f * 0.5


class Divided(Residual):
    def scale(self, f: Any) -> Any:
        return f / 3


class FloatScaled(Residual):
    def make_scale(self, shape: Shape) -> None:
        self.factor = 0.2

    def scale(self, f: Any) -> Any:
        return self.factor * f


class BufferScaled(Residual):
    def make_scale(self, shape: Shape) -> None:
        self.register_buffer("factor", torch.tensor(0.3))

    def scale(self, f: Any) -> Any:
        return torch.mul(f, self.factor)  # pyright: ignore[reportArgumentType]


class ScaledInPlace(Residual):
    def scale(self, f: Any) -> Any:
        return f.mul_(0.25)


class ScaledByStatement(Residual):
    def scale(self, f: Any) -> Any:
        f.mul_(0.25)
        return f


class LayerScaled(Residual):
    def make_scale(self, shape: Shape) -> None:
        self.gamma = nn.Parameter(torch.rand(shape.outward, *[1] * shape.dims) + 0.5)

    def scale(self, f: Any) -> Any:
        return self.gamma * f


class LayerScaledView(Residual):
    def make_scale(self, shape: Shape) -> None:
        self.gamma = nn.Parameter(torch.rand(shape.outward) + 0.5)
        self.as_map = (1, -1, *[1] * shape.dims)

    def scale(self, f: Any) -> Any:
        return f.mul(self.gamma.view(self.as_map))


class LayerScaledChild(Residual):
    def make_scale(self, shape: Shape) -> None:
        self.ls = Scale(shape)

    def scale(self, f: Any) -> Any:
        return self.ls(f)


class Scale(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(shape.outward, *[1] * shape.dims) + 0.5)

    def forward(self, x: Any) -> Any:
        return x * self.gamma


class SkipInit(Residual):
    def make_scale(self, shape: Shape) -> None:
        self.gain = nn.Parameter(torch.tensor(0.6))

    def scale(self, f: Any) -> Any:
        f = f * self.gain
        return f * 1.5


class Fixup(Residual):
    """A scalar factor and a scalar bias (arXiv:1901.09321)."""

    def make_scale(self, shape: Shape) -> None:
        self.factor = nn.Parameter(torch.tensor(0.8))
        self.offset = nn.Parameter(torch.tensor(0.1))

    def scale(self, f: Any) -> Any:
        return f * self.factor + self.offset


SCALES: dict[str, type[Residual]] = {
    "none": Residual,
    "halved": Halved,
    "divided": Divided,
    "float": FloatScaled,
    "buffer": BufferScaled,
    "in place": ScaledInPlace,
    "statement": ScaledByStatement,
    "layer scale": LayerScaled,
    "layer scale, viewed": LayerScaledView,
    "layer scale, child": LayerScaledChild,
    "skipinit": SkipInit,
    "fixup": Fixup,
}


# Drops


class DropoutChild(Residual):
    def make_drop(self, shape: Shape) -> None:
        self.dropout = nn.Dropout(0.4)

    def drop(self, f: Any) -> Any:
        return self.dropout(f)


class DropoutFunction(Residual):
    def drop(self, f: Any) -> Any:
        return F.dropout(f, 0.4, training=self.training)


class DropoutIfTraining(Residual):
    def make_drop(self, shape: Shape) -> None:
        self.p = 0.4

    def drop(self, f: Any) -> Any:
        if self.training and self.p > 0:
            f = F.dropout(f, self.p)
        return f


class DropPath(nn.Module):
    """timm's implementation: a mask made by a method of the tensor's."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Any) -> Any:
        return drop_path(x, self.p, self.training)


def drop_path(x: Any, p: float, training: bool) -> Any:
    if p == 0.0 or not training:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    return x * x.new_empty(shape).bernoulli_(1 - p).div_(1 - p)


class RandomDropPath(nn.Module):
    """The older implementation: ``torch.rand(shape)``, which no trace can hold."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Any) -> Any:
        return random_drop_path(x, self.p, self.training)


def random_drop_path(x: Any, p: float, training: bool) -> Any:
    if p == 0.0 or not training:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    mask = torch.rand(shape, dtype=x.dtype, device=x.device) + (1 - p)
    return x.div(1 - p) * mask.floor()


class DropPathChild(Residual):
    def make_drop(self, shape: Shape) -> None:
        self.drop_path: nn.Module = DropPath(0.4)

    def drop(self, f: Any) -> Any:
        return self.drop_path(f)


class RandomDropPathChild(DropPathChild):
    def make_drop(self, shape: Shape) -> None:
        self.drop_path = RandomDropPath(0.4)


class StochasticDepthChild(DropPathChild):
    def make_drop(self, shape: Shape) -> None:
        self.drop_path = torchvision.ops.StochasticDepth(0.4, "row")


class DropPathFunction(Residual):
    def drop(self, f: Any) -> Any:
        return drop_path(f, 0.4, self.training)


class RandomDropPathFunction(Residual):
    def drop(self, f: Any) -> Any:
        return random_drop_path(f, 0.4, self.training)


class StochasticDepthFunction(Residual):
    def drop(self, f: Any) -> Any:
        return torchvision.ops.stochastic_depth(f, 0.4, "batch", self.training)


DROPS: dict[str, type[Residual]] = {
    "none": Residual,
    "dropout child": DropoutChild,
    "dropout function": DropoutFunction,
    "dropout if training": DropoutIfTraining,
    "drop path child": DropPathChild,
    "random drop path child": RandomDropPathChild,
    "stochastic depth child": StochasticDepthChild,
    "drop path function": DropPathFunction,
    "random drop path function": RandomDropPathFunction,
    "stochastic depth function": StochasticDepthFunction,
}


UNFAITHFUL_DROPS = ("random drop path function", "stochastic depth function")
"""Drops that no graph stands for."""


# Additions: each class holds one spelling


class BranchFirst(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(self.end(x) + self.shortcut(x))


class ShortcutFirst(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(self.shortcut(x) + self.end(x))


class Augmented(Residual):
    def forward(self, x: Any) -> Any:
        identity = self.shortcut(x)
        f = self.end(x)
        f += identity
        return self.out(f)


class AugmentedShortcut(Residual):
    """Adds in place to what may be the block's own input."""

    def forward(self, x: Any) -> Any:
        f = self.end(x)
        x = self.shortcut(x)
        x += f
        return self.out(x)


class TorchAdd(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(torch.add(self.end(x), self.shortcut(x)))


class TorchAddByName(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(torch.add(input=self.shortcut(x), other=self.end(x)))


class TorchAddAlpha(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(torch.add(self.shortcut(x), self.end(x), alpha=0.5))


class MethodAdd(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(self.end(x).add(self.shortcut(x)))


class MethodAddAlpha(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(self.end(x).add(self.shortcut(x), alpha=0.9))


class MethodAddInPlace(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(self.end(x).add_(self.shortcut(x)))


class StatementAdd(Residual):
    """The sum is read from the tensor that was changed, not from the result."""

    def forward(self, x: Any) -> Any:
        identity = self.shortcut(x)
        f = self.end(x)
        f.add_(identity)
        return self.out(f)


class StatementAddToShortcut(Residual):
    def forward(self, x: Any) -> Any:
        f = self.end(x)
        identity = self.shortcut(x)
        identity.add_(f)
        return self.out(identity)


class OperatorAdd(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(operator.add(self.shortcut(x), self.end(x)))


class OperatorAugmented(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(operator.iadd(self.end(x), self.shortcut(x)))


class AtenAdd(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(torch.ops.aten.add.Tensor(self.end(x), self.shortcut(x)))


class Reduced(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(functools.reduce(operator.add, [self.end(x), self.shortcut(x)]))


class ReducedByLambda(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(functools.reduce(lambda a, b: a + b, (self.shortcut(x), self.end(x))))


class Summed(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(sum([self.end(x), self.shortcut(x)]))


class SummedShortcutFirst(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(sum((self.shortcut(x), self.end(x))))


class Looped(Residual):
    def forward(self, x: Any) -> Any:
        total = self.shortcut(x)
        for way in (self.end,):
            total = total + way(x)
        return self.out(total)


class Floating(Residual):
    def make_addition(self, shape: Shape) -> None:
        self.skip_add = FloatFunctional()

    def forward(self, x: Any) -> Any:
        return self.out(self.skip_add.add(self.end(x), self.shortcut(x)))


class FloatingReLU(Floating):
    def forward(self, x: Any) -> Any:
        return self.skip_add.add_relu(self.end(x), self.shortcut(x))


class LambdaAttribute(Residual):
    def make_addition(self, shape: Shape) -> None:
        self.joined: Callable[[Any, Any], Any] = lambda a, b: a + b

    def forward(self, x: Any) -> Any:
        return self.out(self.joined(self.end(x), self.shortcut(x)))


class PartialAttribute(LambdaAttribute):
    def make_addition(self, shape: Shape) -> None:
        self.joined = functools.partial(torch.add, alpha=1.0)


class HelperMethod(Residual):
    def forward(self, x: Any) -> Any:
        return self.close(self.end(x), self.shortcut(x))

    def close(self, f: Any, identity: Any) -> Any:
        return self.out(identity + f)


class StaticHelper(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(self.added(self.end(x), self.shortcut(x)))

    @staticmethod
    def added(a: Any, b: Any) -> Any:
        return a + b


def add_up(*terms: Any) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class FreeHelper(Residual):
    def forward(self, x: Any) -> Any:
        return self.out(add_up(self.shortcut(x), self.end(x)))


class Add(nn.Module):
    def forward(self, a: Any, b: Any) -> Any:
        return a + b


class AddAll(nn.Module):
    def forward(self, terms: Any) -> Any:
        return terms[0] + terms[1]


class AddNamed(nn.Module):
    def forward(self, terms: Any) -> Any:
        return torch.add(terms["f"], terms["x"])


class ChildAdds(Residual):
    def make_addition(self, shape: Shape) -> None:
        self.add = Add()

    def forward(self, x: Any) -> Any:
        return self.out(self.add(self.end(x), self.shortcut(x)))


class ChildAddsList(Residual):
    def make_addition(self, shape: Shape) -> None:
        self.add = AddAll()

    def forward(self, x: Any) -> Any:
        return self.out(self.add([self.shortcut(x), self.end(x)]))


class ChildAddsDict(Residual):
    def make_addition(self, shape: Shape) -> None:
        self.add = nn.Sequential(AddNamed(), nn.Identity())

    def forward(self, x: Any) -> Any:
        return self.out(self.add({"x": self.shortcut(x), "f": self.end(x)}))


class WithMask(Residual):
    """A second argument that is seldom given."""

    def forward(self, x: Any, mask: Any = None) -> Any:
        f = self.end(x)
        if mask is not None:
            f = f * mask
        return self.out(f + self.shortcut(x))


class WithFlag(Residual):
    """A Python argument that decides the way."""

    def forward(self, x: Any, skip: bool = False) -> Any:
        if skip:
            return x
        return self.out(self.end(x) + self.shortcut(x))


class InContext(Residual):
    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            f = self.end(x)
            return self.out(f + self.shortcut(x))


class Writing(Residual):
    """Counts its own calls."""

    def make_addition(self, shape: Shape) -> None:
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls = self.calls + 1
        return self.out(self.end(x) + self.shortcut(x))


UNFAITHFUL: dict[str, type[Residual]] = {
    "mask": WithMask,
    "flag": WithFlag,
    "context": InContext,
    "writing": Writing,
    **UNFAITHFULLY_SPELLED,
}
"""Forwards that no one graph stands for: the attention is attached, or wraps an expression."""
ADDITIONS: dict[str, type[Residual]] = {
    "f + s": BranchFirst,
    "s + f": ShortcutFirst,
    "f += s": Augmented,
    "s += f": AugmentedShortcut,
    "torch.add": TorchAdd,
    "torch.add by name": TorchAddByName,
    "torch.add alpha": TorchAddAlpha,
    "f.add": MethodAdd,
    "f.add alpha": MethodAddAlpha,
    "f.add_": MethodAddInPlace,
    "f.add_ statement": StatementAdd,
    "s.add_ statement": StatementAddToShortcut,
    "operator.add": OperatorAdd,
    "operator.iadd": OperatorAugmented,
    "aten.add": AtenAdd,
    "reduce": Reduced,
    "reduce lambda": ReducedByLambda,
    "sum": Summed,
    "sum, shortcut first": SummedShortcutFirst,
    "loop": Looped,
    "FloatFunctional.add": Floating,
    "FloatFunctional.add_relu": FloatingReLU,
    "lambda": LambdaAttribute,
    "partial": PartialAttribute,
    "helper": HelperMethod,
    "static helper": StaticHelper,
    "free helper": FreeHelper,
    "child": ChildAdds,
    "child, list": ChildAddsList,
    "child, dict": ChildAddsDict,
    **SPELLED_ADDITIONS,
    **UNFAITHFUL,
}


@dataclass(frozen=True)
class BlockSpec:
    """One residual block, drawn."""

    shape: Shape
    branch: str = "basic"
    shortcut: str = "identity"
    scale: str = "none"
    drop: str = "none"
    addition: str = "f + s"
    final: str = "none"
    patched: str = ""
    """How forward is replaced on the instance: "", ``method`` or ``closure``."""
    hooked: bool = False

    def build(self) -> nn.Module:
        bases = (
            ADDITIONS[self.addition],
            DROPS[self.drop],
            SCALES[self.scale],
            SHORTCUTS[self.shortcut][0],
            {**BRANCHES, **DOUBTFUL_BRANCHES}[self.branch],
        )
        block = _put_together(bases)(self.shape, self.final)
        if self.patched == "method":
            block.forward = types.MethodType(_plain_forward, block)
        if self.patched == "closure":
            block.forward = _closure_forward(block)
        if self.hooked:
            block.register_forward_hook(_double)
        return block


@functools.cache
def _put_together(bases: tuple[type[Residual], ...]) -> type[Residual]:
    """Make the class, where ``pickle`` finds it."""
    parts = tuple(dict.fromkeys(base for base in bases if base is not Residual))
    name = "".join(["Block", *(part.__name__ for part in parts)])
    return globals().setdefault(name, type(name, parts, {"__module__": __name__}))


def _plain_forward(self: Residual, x: Any) -> Any:
    return self.out(self.end(x) + self.shortcut(x))


def _closure_forward(block: Residual) -> Callable[[Any], Any]:
    def forward(x: Any) -> Any:
        return block.out(block.shortcut(x) + block.end(x))

    return forward


def _double(module: nn.Module, args: Any, out: Any) -> Any:
    return 2 * out


# Whole blocks of their own kind, which keep the shape of their input


class Closing(Marked):
    """Receives x as its second argument and adds it to what it computes itself."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.conv = conv(shape.same(), bias=False)
        self.bn = norm(shape)

    def forward(self, f: Any, x: Any) -> Any:
        f = self.ends_here(self.bn(self.conv(f)), "bn")
        return F.relu(f + x)


class ClosedByChild(nn.Module):
    """The fork in the parent, the end of F and the addition in the child."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.first = nn.Sequential(conv(shape, bias=False), norm(shape), nn.ReLU())
        self.closing = Closing(shape)

    def forward(self, x: Any) -> Any:
        return self.closing(self.first(x), x)


class Fork(nn.Module):
    def forward(self, x: Any) -> Any:
        return [x, x]


class OnSecond(Marked):
    """Works on one element of a list and hands the list on."""

    def __init__(self, *layers: nn.Module, end: bool = False):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.end = end

    def forward(self, terms: Any) -> Any:
        f = self.layers(terms[1])
        if self.end:
            name = "2.layers"
            f = self.ends_here(f, name, up=1)
        return [terms[0], f]


class Join(nn.Module):
    def forward(self, terms: Any) -> Any:
        return terms[0] + terms[1]


def passing_lists(shape: Shape) -> nn.Module:
    """Make a Sequential of modules that pass lists on: it is the block."""
    return nn.Sequential(
        Fork(),
        OnSecond(conv(shape), norm(shape), nn.ReLU()),
        OnSecond(conv(shape), norm(shape), end=True),
        Join(),
    )


class SharedPreActivation(Marked):
    """He et al. 2016 (arXiv:1603.05027): where S projects, it starts from the activation, too."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.bn1 = norm(shape)
        self.conv1 = conv(shape)
        self.bn2 = norm(shape)
        self.conv2 = conv(shape)
        self.short = conv(shape, 1)

    def forward(self, x: Any) -> Any:
        x = F.relu(self.bn1(x))
        identity = self.short(x)
        f = self.conv1(x)
        f = self.ends_here(self.conv2(F.relu(self.bn2(f))), "conv2")
        f += identity
        return f


class TwoAdditions(Marked):
    """Two residual additions in one forward."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.first = nn.Sequential(*basic_layers(shape))
        self.conv = conv(shape)
        self.act = nn.GELU()
        self.last = conv(shape, 1)

    def forward(self, x: Any) -> Any:
        x = x + self.ends_here(self.first(x), "first")
        return x + self.ends_here(self.last(self.act(self.conv(x))), "last")


class SameChildTwice(Marked):
    """One child at the end of two branches."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(*basic_layers(shape))

    def forward(self, x: Any) -> Any:
        x = F.relu(x + self.ends_here(self.body(x), "body"))
        return F.relu(x + self.ends_here(self.body(x), "body", order=1))


class TransformerLike(Marked):
    """Attention on maps, which is no site, then a feed-forward with a convolution, which is one."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.attn = SelfAttention(shape)
        self.norm = nn.GroupNorm(1, shape.outward)
        self.fc1 = conv(shape, 1, outward=2 * shape.outward)
        self.local = conv(
            shape, inward=2 * shape.outward, outward=2 * shape.outward, groups=shape.outward
        )
        self.fc2 = conv(shape, 1, inward=2 * shape.outward)

    def forward(self, x: Any) -> Any:
        x = self.attn(x)
        f = self.fc2(F.gelu(self.local(self.fc1(self.norm(x)))))
        return x + self.ends_here(f, "fc2")


UNITS: dict[str, Callable[[Shape], nn.Module]] = {
    "closed by child": ClosedByChild,
    "passing lists": passing_lists,
    "shared preactivation": SharedPreActivation,
    "two additions": TwoAdditions,
    "same child twice": SameChildTwice,
    "transformer-like": TransformerLike,
    **CONTAINERS,
    **MAP_UNITS,
}


# Decoys: none holds a site


class RepVGG(nn.Module):
    """Linear branches side by side, one kernel after training (arXiv:2101.03697)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.dense = nn.Sequential(
            conv(shape, stride=shape.stride, bias=False), BATCH_NORM[shape.dims](shape.outward)
        )
        self.point = nn.Sequential(
            conv(shape, 1, stride=shape.stride, bias=False), BATCH_NORM[shape.dims](shape.outward)
        )
        same = keeps_shape(shape)
        self.identity = BATCH_NORM[shape.dims](shape.outward) if same else None

    def forward(self, x: Any) -> Any:
        total = self.dense(x) + self.point(x)
        if self.identity is not None:
            total = total + self.identity(x)
        return F.relu(total)


class PositionalConvolution(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.dwconv = conv(shape, groups=shape.outward)

    def forward(self, x: Any) -> Any:
        return x + self.dwconv(x)


class LinearBranch(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(conv(shape), norm(shape), conv(shape, 1), nn.Dropout(0.1))

    def forward(self, x: Any) -> Any:
        x = F.relu(x)
        return x + self.body(x)


class Splits(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        half = shape.outward // 2
        self.conv1 = conv(shape, inward=half, outward=half)
        self.conv2 = conv(shape, inward=half, outward=half)

    def forward(self, x: Any) -> Any:
        a, b = x.chunk(2, 1)
        a = F.relu(self.conv1(a))
        b = F.relu(self.conv2(a + b))
        return torch.cat([a, b], 1)


class SizedSplits(Splits):
    def __init__(self, shape: Shape):
        super().__init__(shape)
        self.part = shape.outward // 2

    def forward(self, x: Any) -> Any:
        parts = torch.split(x, self.part, 1)
        total = parts[0] + F.relu(self.conv1(parts[1]))
        return torch.cat([F.relu(self.conv2(total)), parts[0]], dim=1)


class Parts(nn.Module):
    """Slices of one tensor are different tensors."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.part = shape.outward // 2
        self.body = nn.Sequential(
            conv(shape, inward=self.part, outward=self.part),
            nn.ReLU(),
            conv(shape, inward=self.part, outward=self.part),
        )
        self.widen = conv(shape, 1, inward=self.part)

    def forward(self, x: Any) -> Any:
        return self.widen(x[:, : self.part] + self.body(x[:, self.part :]))


class Pyramid(nn.Module):
    """A lateral connection and the resolution above (FPN, arXiv:1612.03144)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.down = nn.Sequential(conv(shape, stride=2), nn.ReLU())
        self.lateral = conv(shape, 1)
        self.inner = conv(shape, 1)

    def forward(self, x: Any) -> Any:
        top = self.inner(self.down(x))
        top = F.interpolate(top, size=x.shape[2:], mode="nearest")
        return self.lateral(x) + top


class Exchange(nn.Module):
    """HRNet's sum of two resolutions."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.high = nn.Sequential(conv(shape), norm(shape), nn.ReLU())
        self.low = nn.Sequential(conv(shape, stride=2), norm(shape), nn.ReLU())
        self.fuse = nn.Sequential(conv(shape, 1), norm(shape), nn.Upsample(scale_factor=2))

    def forward(self, x: Any) -> Any:
        high, low = self.high(x), self.low(x)
        return F.relu(high + self.fuse(low))


class LiteHead(nn.Module):
    """LRASPP (arXiv:1905.02244): a product, then the sum of two classifiers."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.cbr = nn.Sequential(conv(shape, 1), norm(shape), nn.ReLU())
        self.scale = nn.Sequential(GLOBAL_POOL[shape.dims](1), conv(shape, 1), nn.Sigmoid())
        self.high_up = conv(shape, stride=2)
        self.low = conv(shape, 1)
        self.high = conv(shape, 1)

    def forward(self, x: Any) -> Any:
        high = F.relu(self.high_up(x))
        high = self.cbr(high) * self.scale(high)
        high = F.interpolate(high, size=x.shape[2:])
        return self.low(x) + self.high(high)


class Recurrent(nn.Module):
    """A convolutional GRU's update."""

    def __init__(self, shape: Shape):
        super().__init__()
        double = 2 * shape.outward
        self.z = conv(shape, inward=double)
        self.r = conv(shape, inward=double)
        self.q = conv(shape, inward=double)
        self.inward = conv(shape)

    def forward(self, h: Any) -> Any:
        x = F.relu(self.inward(h))
        both = torch.cat([h, x], dim=1)
        z = torch.sigmoid(self.z(both))
        r = torch.sigmoid(self.r(both))
        q = torch.tanh(self.q(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * q


class TwoBranches(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.a = nn.Sequential(conv(shape), norm(shape), nn.ReLU())
        self.b = nn.Sequential(conv(shape), norm(shape), nn.ReLU(), conv(shape), nn.ReLU())

    def forward(self, x: Any) -> Any:
        return self.a(x) + self.b(x)


class Tokens(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.norm = nn.LayerNorm(shape.outward)
        self.fc1 = nn.Linear(shape.outward, 8)
        self.fc2 = nn.Linear(8, shape.outward)

    def forward(self, x: Any) -> Any:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norm(tokens))))
        return tokens.transpose(1, 2).reshape(x.shape)


class ChannelsLast(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.norm = nn.LayerNorm(shape.outward)
        self.fc1 = nn.Linear(shape.outward, 8)
        self.fc2 = nn.Linear(8, shape.outward)
        self.last = (0, *range(2, 2 + shape.dims), 1)
        self.first = (0, 1 + shape.dims, *range(1, 1 + shape.dims))

    def forward(self, x: Any) -> Any:
        x = x.permute(self.last)
        x = x + self.fc2(F.gelu(self.fc1(self.norm(x))))
        return x.permute(self.first)


class ConvolvedChannelsLast(ChannelsLast):
    """A convolution inside, but the addition on channels-last maps."""

    def __init__(self, shape: Shape):
        super().__init__(shape)
        self.dwconv = conv(shape, groups=shape.outward)

    def forward(self, x: Any) -> Any:
        x = x.permute(self.last)
        f = self.dwconv(x.permute(self.first)).permute(self.last)
        x = x + self.fc2(F.gelu(self.fc1(f)))
        return x.permute(self.first)


class SelfAttention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.norm = nn.GroupNorm(1, shape.outward)
        self.qkv = conv(shape, 1, outward=3 * shape.outward)
        self.proj = conv(shape, 1)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        return x + self.proj((v @ weights.transpose(1, 2)).reshape(x.shape))


class NonLocal(nn.Module):
    """Wang et al. 2018, arXiv:1711.07971."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.theta = conv(shape, 1)
        self.phi = conv(shape, 1)
        self.g = conv(shape, 1)
        self.w = nn.Sequential(conv(shape, 1), BATCH_NORM[shape.dims](shape.outward))

    def forward(self, x: Any) -> Any:
        theta = self.theta(x).flatten(2).transpose(1, 2)
        weights = torch.softmax(torch.bmm(theta, self.phi(x).flatten(2)), -1)
        y = torch.bmm(weights, self.g(x).flatten(2).transpose(1, 2))
        return self.w(y.transpose(1, 2).reshape(x.shape)) + x


class PointwiseMLP(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.GroupNorm(1, shape.outward), conv(shape, 1), nn.GELU(), conv(shape, 1)
        )

    def forward(self, x: Any) -> Any:
        return x + self.mlp(x)


class Unconvolved(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.bn = norm(shape)

    def forward(self, x: Any) -> Any:
        x = x + F.gelu(self.bn(x))
        return x + x


class CBAM(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.mlp = nn.Sequential(conv(shape, 1), nn.ReLU(), conv(shape, 1))
        self.conv = conv(shape, inward=2, outward=1)
        self.over = tuple(range(2, 2 + shape.dims))

    def forward(self, x: Any) -> Any:
        mean, most = x.mean(self.over, keepdim=True), x.amax(self.over, keepdim=True)
        x = x * torch.sigmoid(self.mlp(mean) + self.mlp(most))
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(maps))


class GlobalContext(nn.Module):
    """GCNet (arXiv:1904.11492): adds a transformed context vector to every position."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.mask = conv(shape, 1, outward=1)
        self.add = nn.Sequential(
            conv(shape, 1), nn.GroupNorm(1, shape.outward), nn.ReLU(), conv(shape, 1)
        )
        self.dims = shape.dims

    def forward(self, x: Any) -> Any:
        weights = self.mask(x).flatten(2).softmax(-1)
        context = torch.matmul(x.flatten(2), weights.transpose(1, 2))
        context = context.reshape(x.shape[0], x.shape[1], *[1] * self.dims)
        return x + self.add(context)


class SelectiveKernel(nn.Module):
    """SKNet (arXiv:1903.06586): the two kernels' maps are summed inside the attention."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.a = nn.Sequential(conv(shape), norm(shape), nn.ReLU())
        self.b = nn.Sequential(conv(shape, 5), norm(shape), nn.ReLU())
        self.fc = conv(shape, 1)
        self.over = tuple(range(2, 2 + shape.dims))

    def forward(self, x: Any) -> Any:
        a, b = self.a(x), self.b(x)
        z = torch.sigmoid(self.fc((a + b).mean(self.over, keepdim=True)))
        return a * z + b * (1 - z)


class Biased(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, shape.outward, *[1] * shape.dims))
        self.conv = conv(shape, bias=False)

    def forward(self, x: Any) -> Any:
        return F.relu(self.conv(x + self.bias) + self.bias)


class Positions(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(1, shape.outward, *[1] * shape.dims))
        self.mix = conv(shape)

    def forward(self, x: Any) -> Any:
        return x + F.relu(self.mix(self.embedding.expand(1, -1, *[3] * (x.dim() - 2)))).mean()


class Embedded(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(1, shape.outward, *[1] * shape.dims))

    def forward(self, x: Any) -> Any:
        return x + self.embedding.expand_as(x)


class Dense(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.layer = nn.Sequential(norm(shape), nn.ReLU(), conv(shape))
        self.transition = conv(shape, 1, inward=2 * shape.outward)

    def forward(self, x: Any) -> Any:
        return self.transition(torch.cat([x, self.layer(x)], 1))


class Gate(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(conv(shape), nn.ReLU(), conv(shape), nn.Sigmoid())

    def forward(self, x: Any) -> Any:
        return x * (1 + self.body(x))


DECOYS: dict[str, Callable[[Shape], nn.Module]] = {
    "repvgg": RepVGG,
    "positional convolution": PositionalConvolution,
    "linear branch": LinearBranch,
    "splits": Splits,
    "sized splits": SizedSplits,
    "parts": Parts,
    "pyramid": Pyramid,
    "exchange": Exchange,
    "lite head": LiteHead,
    "recurrent": Recurrent,
    "two branches": TwoBranches,
    "tokens": Tokens,
    "channels last": ChannelsLast,
    "convolved channels last": ConvolvedChannelsLast,
    "self-attention": SelfAttention,
    "non-local": NonLocal,
    "pointwise mlp": PointwiseMLP,
    "unconvolved": Unconvolved,
    "cbam": CBAM,
    "global context": GlobalContext,
    "selective kernel": SelectiveKernel,
    "biased": Biased,
    "embedded": Embedded,
    "dense": Dense,
    "gate": Gate,
    **MAP_DECOYS,
}
PLAIN = ("repvgg", "dense", "biased", "cbam", "gate")
"""Decoys that may stand inside a group without making its own branch doubtful."""


@dataclass(frozen=True)
class UnitSpec:
    """A block of its own kind, a decoy, or what may be either, by name."""

    shape: Shape
    kind: str

    def build(self) -> nn.Module:
        return {**UNITS, **DECOYS, **DOUBTFUL, **CONDITIONED}[self.kind](self.shape)


ATTENDING = (
    *("self-attending", "squeezed", "squeezed inline", "squeezed end"),
    *("transformer-like", "cbam", "gate", "global context", "selective kernel"),
    *("self-attention", "non-local"),
)
"""Branches, units and decoys with attention of their own."""


# Nesting


class Group(Marked):
    """Blocks, then a convolution, around all of which goes one more shortcut (EDSR, RCAN)."""

    def __init__(self, shape: Shape, parts: list[nn.Module]):
        super().__init__()
        self.body = nn.Sequential(*parts)
        self.conv = conv(shape)

    def forward(self, x: Any) -> Any:
        return x + self.ends_here(self.conv(self.body(x)), "conv")


class SequentialGroup(Marked):
    def __init__(self, shape: Shape, parts: list[nn.Module]):
        super().__init__()
        self.body = nn.Sequential(*parts, conv(shape))

    def forward(self, x: Any) -> Any:
        f = self.ends_here(self.body(x), "body")
        f += x
        return f


class EndsInBlock(Marked):
    """A branch that ends in another block."""

    def __init__(self, shape: Shape, parts: list[nn.Module]):
        super().__init__()
        self.conv = conv(shape)
        self.bn = norm(shape)
        self.inner = nn.Sequential(*parts)

    def forward(self, x: Any) -> Any:
        f = self.inner(F.relu(self.bn(self.conv(x))))
        return self.ends_here(f, "inner") + x


class Stage(nn.Module):
    """Calls what it holds one after the other."""

    def __init__(self, shape: Shape, parts: list[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


class Twice(nn.Module):
    """Calls what it holds a second time."""

    def __init__(self, shape: Shape, parts: list[nn.Module]):
        super().__init__()
        self.body = nn.Sequential(*parts)

    def forward(self, x: Any) -> Any:
        return self.body(self.body(x))


class SharedByTwo(nn.Module):
    """Two parents with the same children."""

    def __init__(self, shape: Shape, parts: list[nn.Module]):
        super().__init__()
        self.left = nn.Sequential(*parts)
        self.right = nn.Sequential(conv(shape), *parts)

    def forward(self, x: Any) -> Any:
        return self.right(self.left(x))


class Undecided(nn.Module):
    """Which way is taken depends on the data."""

    def __init__(self, shape: Shape, parts: list[nn.Module]):
        super().__init__()
        self.body = nn.Sequential(*parts)

    def forward(self, x: Any) -> Any:
        if x.abs().sum() > 0:
            x = self.body(x)
        return F.relu(x)


class Ungrouped(nn.Module):
    """Something that no trace can follow: numbers read back from a tensor."""

    def __init__(self, shape: Shape, parts: list[nn.Module]):
        super().__init__()
        self.body = nn.Sequential(*parts)

    def forward(self, x: Any) -> Any:
        pieces = [self.body(piece) for piece in torch.split(x, len(x) // 2)]
        return torch.cat(pieces)


NESTS: dict[str, Callable[[Shape, list[nn.Module]], nn.Module]] = {
    "group": Group,
    "sequential group": SequentialGroup,
    "ends in block": EndsInBlock,
    "stage": Stage,
    "twice": Twice,
    "shared by two": SharedByTwo,
    "undecided": Undecided,
    "ungrouped": Ungrouped,
}


@dataclass(frozen=True)
class NestSpec:
    """Parts within another module, all of one shape."""

    shape: Shape
    kind: str
    parts: tuple[Spec, ...]

    def build(self) -> nn.Module:
        return NESTS[self.kind](self.shape, [part.build() for part in self.parts])


Spec = BlockSpec | UnitSpec | NestSpec


# Hosts


@dataclass(frozen=True)
class Recipe:
    """One host, drawn, and what happens to it once it was operated on."""

    host: str
    """A name in HOSTS; ``bare``: the parts alone; ``fx``: a ``GraphModule`` of them."""
    parts: tuple[Spec, ...]
    copied: str = ""
    """How it is copied: "", ``deepcopy`` or ``save``."""
    changed: str = ""
    """What befalls containers that were operated on: "" or a name in CHANGES."""
    again: bool = False
    """Whether it is operated on a second time."""
    touched: bool = False
    """Whether attributes are set to what they are."""
    training: bool = True
    """The mode in which it is looked at after all that, if it has both."""

    @property
    def shape(self) -> Shape:
        return self.parts[0].shape

    def inputs(self) -> tuple[Any, ...]:
        """Make the arguments of the host, always the same."""
        generator = torch.Generator().manual_seed(1)
        channels = self.shape.inward if self.host in ("bare", "fx") else 3
        x = torch.randn(2, channels, *SIZES[self.shape.dims], generator=generator)
        if self.host == "list net":
            return (list(x),)
        if self.host == "conditioned":
            return (x, torch.randn(2, 4, generator=generator))
        if self.host == "optional pair":
            return (None, x)
        return (x, torch.ones(())) if self.host == "two inputs" else (x,)

    def modes(self) -> tuple[bool, ...]:
        """Return the modes to run in: a ``GraphModule`` knows only the one it was traced in."""
        return (False,) if self.host == "fx" else (False, True)

    def mode(self) -> tuple[bool, ...]:
        """Return the one mode for what is not tried in both."""
        return (self.training and self.host != "fx",)

    def specs(self) -> Iterator[Spec]:
        """Yield what it is made of, however deep."""
        pending = list(self.parts)
        while pending:
            spec = pending.pop()
            yield spec
            pending += spec.parts if isinstance(spec, NestSpec) else ()

    @property
    def is_copied_whole(self) -> bool:
        """Whether a copy of the host has nothing of the host: a closure keeps its block."""
        return all(getattr(spec, "patched", "") != "closure" for spec in self.specs())

    @property
    def holds_attention(self) -> bool:
        """Whether a branch may be said to hold attention of the host's own."""
        return any(
            spec.branch in ATTENDING if isinstance(spec, BlockSpec) else spec.kind in ATTENDING
            for spec in self.specs()
        )

    def source(self) -> nn.Module:
        """Build the host with fixed weights, but not as a ``GraphModule``."""
        torch.manual_seed(0)
        parts = [part.build() for part in self.parts]
        if self.host in HOSTS:
            return HOSTS[self.host](self.shape.dims, self.shape.inward, parts)
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts)

    def build(self) -> nn.Module:
        """Build the host."""
        model = self.source()
        return fx.symbolic_trace(model.eval()) if self.host == "fx" else model


# How to draw them

CHANGES = ("append", "delete", "replace", "insert")
"""What a user may do with a container."""

_CHANNELS = (4, 6, 8)

_ASKS_OF_ITS_INPUT = "super, masked"
"""A graph of it takes the mask for given, and does not run without."""


def blocks(
    shape: Shape, *, traceable: bool = False, doubtful: bool = False
) -> st.SearchStrategy[BlockSpec]:
    """Draw a block of the given shape.

    Args:
        shape: The shape; norm and convolution are drawn.
        traceable: Whether ``fx.symbolic_trace`` has to get through and keep all there is to know:
            it folds a norm that is spelled out in buffers to plain constants, and forgets that
            ``+=`` works in place.
        doubtful: Whether the plan may leave it out: nothing around it can be known then.
    """

    @st.composite
    def draw_block(draw: st.DrawFn) -> BlockSpec:
        norms = list(NORMS_2D if shape.dims == 2 else NORMS)
        if traceable:
            norms = [each for each in norms if "frozen" not in each]
        additions = [
            name
            for name in ADDITIONS
            if not traceable or name not in (*UNFAITHFUL, *SPELLED_ADDITIONS, "s += f")
        ]
        addition = draw(st.sampled_from(additions))
        drop = draw(st.sampled_from(list(DROPS)))
        is_unfaithful = addition in UNFAITHFUL or drop in UNFAITHFUL_DROPS
        # before, no expression can be wrapped, and never one that a loop calls; nor can a
        # parametrized convolution be attached to
        needs_child = is_unfaithful and (sys.version_info < (3, 11) or addition == "loop")
        convs = ("plain", "standardised") if needs_child else CONVS
        full = Shape(
            shape.dims,
            shape.inward,
            shape.outward,
            shape.stride,
            draw(st.sampled_from(norms)),
            draw(st.sampled_from(convs)),
        )
        names = [name for name, (_, fits) in SHORTCUTS.items() if fits(full)]
        branches = [*ENDS_IN_CHILD] if needs_child else [*BRANCHES]
        if traceable:
            branches = [
                each for each in branches if each not in ("forward called", *SPELLED_BRANCHES)
            ]
        elif doubtful and not is_unfaithful:
            branches += DOUBTFUL_BRANCHES
        patched = "" if is_unfaithful else draw(st.sampled_from(["", "", "", "method", "closure"]))
        return BlockSpec(
            full,
            branch=draw(st.sampled_from(branches)),
            shortcut=draw(st.sampled_from(names)),
            scale=draw(st.sampled_from(list(SCALES))),
            drop=drop,
            addition=addition,
            final=draw(st.sampled_from(["none", "relu"])),
            patched="" if traceable else patched,
            hooked=not traceable and draw(st.integers(0, 7)) == 7,
        )

    return draw_block()


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Draw a host of one to four parts."""
    dims = draw(st.sampled_from([2, 2, 2, 1, 3]))
    host = draw(st.sampled_from([*HOSTS, "bare", "bare", "fx"]))
    channels = draw(st.sampled_from(_CHANNELS))
    parts: list[Spec] = []
    may_stride = True
    for _ in range(draw(st.integers(1, 4))):
        part = draw(_parts(dims, channels, may_stride, host))
        channels, may_stride = part.shape.outward, may_stride and part.shape.stride == 1
        parts.append(part)
    return Recipe(
        host,
        tuple(parts),
        copied=draw(st.sampled_from(["", "deepcopy", "save"])),
        changed=draw(st.sampled_from(["", *CHANGES])),
        again=draw(st.integers(0, 3)) == 3,
        touched=draw(st.integers(0, 3)) == 3,
        training=draw(st.booleans()),
    )


@st.composite
def _parts(draw: st.DrawFn, dims: int, channels: int, may_stride: bool, host: str) -> Spec:
    kinds = ["block", "block", "block", "decoy", "decoy", "unit", "container", "nest"]
    kind = draw(st.sampled_from([*kinds, *["conditioned"] * (4 if host == "conditioned" else 0)]))
    same, traceable = Shape(dims, channels, channels), host == "fx"
    if kind == "block":
        outward = draw(st.sampled_from([channels, channels, *_CHANNELS]))
        stride = draw(st.sampled_from([1, 2])) if may_stride else 1
        shape = Shape(dims, channels, outward, stride)
        return draw(blocks(shape, traceable=traceable, doubtful=True))
    if kind == "nest":
        kinds = [name for name in NESTS if not traceable or name not in ("undecided", "ungrouped")]
        # a block that writes on its input changes what the shortcut around it brings, too
        block = blocks(same, traceable=traceable).filter(
            lambda each: each.addition not in ("s += f", "s.add_ statement")
        )
        inner = st.one_of(
            block,
            block,
            st.builds(UnitSpec, st.just(same), st.sampled_from([*PLAIN, *UNITS])),
        )
        parts = draw(st.lists(inner, min_size=1, max_size=2))
        return NestSpec(same, draw(st.sampled_from(kinds)), tuple(parts))
    known: dict[str, list[str]] = {
        "decoy": [*DECOYS, *(() if traceable else DOUBTFUL)],
        "unit": [name for name in UNITS if name not in CONTAINERS],
        "container": [name for name in CONTAINERS if not traceable or name != _ASKS_OF_ITS_INPUT],
        "conditioned": list(CONDITIONED),
    }
    return UnitSpec(same, draw(st.sampled_from(known[kind])))


# Each of them once


@functools.cache
def spellings() -> dict[str, list[Recipe]]:
    """Return small hosts, by name, that have all there is to draw, each at least once."""
    same = Shape(2, 4, 4)
    blocks = {
        **{f"addition {name}": BlockSpec(same, addition=name) for name in ADDITIONS},
        **{
            f"branch {name}": BlockSpec(same, branch=name)
            for name in (*BRANCHES, *DOUBTFUL_BRANCHES)
        },
        **{f"scale {name}": BlockSpec(same, scale=name) for name in SCALES},
        **{f"drop {name}": BlockSpec(same, drop=name) for name in DROPS},
        **{f"shortcut {name}": _with_shortcut(name) for name in SHORTCUTS},
        **{f"norm {name}": BlockSpec(Shape(2, 4, 4, norm=name)) for name in NORMS_2D},
        **{f"conv {name}": BlockSpec(Shape(2, 4, 4, conv=name)) for name in CONVS},
        **{f"patched {name}": BlockSpec(same, patched=name) for name in ("method", "closure")},
        "hooked": BlockSpec(same, hooked=True),
    }
    units = [name for name in (*UNITS, *DECOYS, *DOUBTFUL) if name not in CONTAINERS]
    nests = {f"nest {name}": NestSpec(same, name, (BlockSpec(same),)) for name in NESTS}
    single = {**blocks, **{f"unit {name}": UnitSpec(same, name) for name in units}, **nests}
    after: dict[str, Any] = {"copied": "save", "again": True, "touched": True}
    found = {name: [Recipe("bare", (spec,), **after)] for name, spec in single.items()}
    for name in CONTAINERS:
        unit = UnitSpec(same, name)
        found[f"container {name}"] = [Recipe("bare", (unit,), **after)]
        for change in CHANGES:
            more: dict[str, Any] = {"copied": "deepcopy", "changed": change}
            found[f"container {name}, {change}"] = [Recipe("net", (unit,), **more)]
    for name in CONDITIONED:
        unit = UnitSpec(same, name)
        found[f"conditioned {name}"] = [Recipe("conditioned", (unit, unit), **after)]
    for name in (*HOSTS, "fx"):
        parts = (BlockSpec(same), UnitSpec(same, "super"))
        found[f"host {name}"] = [Recipe(name, parts, **after)]
    return found


def _with_shortcut(name: str) -> BlockSpec:
    shapes = (Shape(2, 4, 4), Shape(2, 4, 6), Shape(2, 4, 4, 2))
    fits = SHORTCUTS[name][1]
    return BlockSpec(next(shape for shape in shapes if fits(shape)), shortcut=name)
