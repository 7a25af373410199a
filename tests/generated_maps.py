"""Branches, blocks and decoys whose maps are not what a quick look takes them for.

Stacked branches and fresh zeros have fewer channels than a concatenation would have; other maps
are broadcast over the channels or over space, or have time before the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from generated_layers import (
    BATCH_NORM,
    GLOBAL_POOL,
    Marked,
    Residual,
    Shape,
    basic_layers,
    conv,
    norm,
)
from torch import nn

# Branches F that stack


def stacked_sum(maps: Any) -> Any:
    return torch.stack(maps, dim=1).sum(dim=1)


def stacked_mean(maps: Any) -> Any:
    return torch.stack(maps).mean(0)


def stacked_amax(maps: Any) -> Any:
    return torch.stack(maps, 0).amax(0)


def stacked_last(maps: Any) -> Any:
    return torch.sum(torch.stack(maps, dim=-1), dim=-1)


def stacked_max(maps: Any) -> Any:
    return torch.max(torch.stack(maps, 2), 2).values


def half_zeros(maps: Any) -> Any:
    half = maps[0].shape[1] // 2
    return torch.cat([maps[0][:, :half], torch.zeros_like(maps[1][:, half:])], 1)


def folded_sum(maps: Any) -> Any:
    """ResNeSt's way: as many parts as branches, out of their concatenation."""
    return torch.cat(maps, 1).unflatten(1, (2, -1)).sum(1)


JOINS: dict[str, Callable[[Any], Any]] = {
    "stack, sum": stacked_sum,
    "stack, mean": stacked_mean,
    "stack, amax": stacked_amax,
    "stack last, sum": stacked_last,
}
HARD_JOINS: dict[str, Callable[[Any], Any]] = {
    "stack, max": stacked_max,
    "zeros": half_zeros,
    "cat, fold": folded_sum,
}
"""Joins whose channels a plan need not know."""


class Ways(nn.Module):
    """Two dilations side by side, joined."""

    def __init__(self, shape: Shape, join: Callable[[Any], Any]):
        super().__init__()
        self.ways = nn.ModuleList(
            conv(shape, kernel, stride=shape.stride, bias=False) for kernel in (3, 5)
        )
        self.norms = nn.ModuleList(norm(shape) for _ in range(2))
        self.join = join

    def forward(self, x: Any) -> Any:
        ways = zip(self.ways, self.norms, strict=True)
        return self.join([F.relu(after(way(x))) for way, after in ways])


class Joined(Residual):
    join: Callable[[Any], Any]
    is_hard = False

    def make_branch(self, shape: Shape) -> None:
        self.first = nn.Sequential(conv(shape, 1), norm(shape), nn.ReLU())
        self.ways = Ways(
            Shape(shape.dims, shape.outward, shape.outward, shape.stride, shape.norm, shape.conv),
            self.join,
        )

    def branch(self, x: Any) -> Any:
        return self.ends_here(self.ways(self.first(x)), "ways", doubtful=self.is_hard)


class JoinedWithin(Joined):
    """Another convolution after the join."""

    def make_branch(self, shape: Shape) -> None:
        super().make_branch(shape)
        self.last = conv(shape.same())

    def branch(self, x: Any) -> Any:
        f = self.last(self.ways(self.first(x)))
        return self.ends_here(f, "last", doubtful=self.is_hard)


class JoinedInline(Residual):
    """The join in the block's own forward."""

    join: Callable[[Any], Any]
    is_hard = False

    def make_branch(self, shape: Shape) -> None:
        self.a = nn.Sequential(conv(shape, stride=shape.stride), norm(shape), nn.ReLU())
        self.b = nn.Sequential(conv(shape, 5, stride=shape.stride), norm(shape), nn.ReLU())

    def branch(self, x: Any) -> Any:
        return self.ends_here(self.join([self.a(x), self.b(x)]), doubtful=self.is_hard)


class ZerosAppended(Residual):
    """Half of the branch's channels are nothing."""

    def make_branch(self, shape: Shape) -> None:
        self.body = nn.Sequential(
            conv(shape, stride=shape.stride),
            norm(shape),
            nn.ReLU(),
            conv(shape.same(), outward=shape.outward // 2),
        )

    def branch(self, x: Any) -> Any:
        f = self.body(x)
        return self.ends_here(torch.cat([f, torch.zeros_like(f)], dim=1))


def _joining(base: type[Residual], name: str) -> type[Residual]:
    """Make the class that joins in one way, where ``pickle`` finds it."""
    title = base.__name__ + "".join(part.title() for part in name.replace(",", "").split())
    body = {
        "join": staticmethod({**JOINS, **HARD_JOINS}[name]),
        "is_hard": name in HARD_JOINS,
        "__module__": __name__,
    }
    return globals().setdefault(title, type(title, (base,), body))


def _joined(names: Iterable[str]) -> dict[str, type[Residual]]:
    return {
        f"{name}, {where}": _joining(base, name)
        for name in names
        for base, where in ((Joined, "child"), (JoinedWithin, "within"))
    }


MAP_ENDS_IN_CHILD: dict[str, type[Residual]] = _joined(JOINS)
MAP_BRANCHES: dict[str, type[Residual]] = {
    **MAP_ENDS_IN_CHILD,
    **{f"{name}, inline": _joining(JoinedInline, name) for name in JOINS},
    "zeros appended": ZerosAppended,
}
DOUBTFUL_BRANCHES: dict[str, type[Residual]] = {
    **_joined(HARD_JOINS),
    **{f"{name}, inline": _joining(JoinedInline, name) for name in HARD_JOINS},
}
"""Branches that a plan may skip, but not mistake."""


# Whole blocks


class PooledVector(nn.Module):
    """A vector made of the whole map."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(shape.outward, 4), nn.SiLU(), nn.Linear(4, 4))
        self.over = tuple(range(2, 2 + shape.dims))

    def forward(self, x: Any) -> Any:
        return self.map(x.mean(self.over))


class Shifted(Marked):
    """Adds a vector to the map within F, as diffusion models add the time."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, shape.outward), conv(shape)
        self.emb = nn.Linear(4, shape.outward)
        self.norm2, self.conv2 = nn.GroupNorm(2, shape.outward), conv(shape)
        self.as_map = (..., *[None] * shape.dims)

    def forward(self, x: Any, t: Any) -> Any:
        h = self.conv1(F.relu(self.norm1(x)))
        h = h + self.emb(t)[self.as_map]
        return x + self.ends_here(self.conv2(F.relu(self.norm2(h))), "conv2")


class SharedVector(nn.Module):
    """Two blocks and the vector, made of their own input."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.vector = PooledVector(shape)
        self.a, self.b = Shifted(shape), Shifted(shape)

    def forward(self, x: Any) -> Any:
        t = self.vector(x)
        return self.b(self.a(x, t), t)


MAP_UNITS: dict[str, Callable[[Shape], nn.Module]] = {"shared vector": SharedVector}


# Decoys


class PooledShortcut(nn.Module):
    """A convolutional branch and a shortcut that is the same everywhere."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(*basic_layers(shape))
        self.over = tuple(range(2, 2 + shape.dims))

    def forward(self, x: Any) -> Any:
        return x.mean(self.over, keepdim=True) + self.body(x)


class PooledByChild(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(*basic_layers(shape))
        self.pool = GLOBAL_POOL[shape.dims](1)

    def forward(self, x: Any) -> Any:
        return self.body(x) + self.pool(x)


class PooledProjectedShortcut(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(*basic_layers(shape))
        self.short = nn.Sequential(
            GLOBAL_POOL[shape.dims](1),
            conv(shape, 1, bias=False),
            BATCH_NORM[shape.dims](shape.outward),
        )

    def forward(self, x: Any) -> Any:
        return F.relu(self.body(x) + self.short(x))


class VectorShortcut(nn.Module):
    """A vector through a Linear of its own, added to a convolutional branch."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(*basic_layers(shape))
        self.vector = PooledVector(shape)
        self.emb = nn.Linear(4, shape.outward)
        self.as_map = (..., *[None] * shape.dims)

    def forward(self, x: Any) -> Any:
        return F.relu(self.body(x) + self.emb(self.vector(x))[self.as_map])


class VectorAdded(nn.Module):
    """A vector added to the map: nothing convolves over space."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.vector = PooledVector(shape)
        self.emb = nn.Linear(4, shape.outward)
        self.as_map = (-1, shape.outward, *[1] * shape.dims)

    def forward(self, x: Any) -> Any:
        return x + self.emb(self.vector(x)).view(self.as_map)


MAP_DECOYS: dict[str, Callable[[Shape], nn.Module]] = {
    "pooled shortcut": PooledShortcut,
    "pooled by child": PooledByChild,
    "pooled, projected shortcut": PooledProjectedShortcut,
    "vector shortcut": VectorShortcut,
    "vector added": VectorAdded,
}


# Doubtful: nothing may be found, or a site that is refused, or one that works


class OneChannel(Marked):
    """F ends in one channel, which the addition broadcasts."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(conv(shape), nn.ReLU(), conv(shape), nn.ReLU())

    def forward(self, x: Any) -> Any:
        f = self.body(x).mean(1, keepdim=True)
        return x + self.ends_here(f, doubtful=True)


class Mean(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.mean(1, keepdim=True)


class OneChannelByChild(Marked):
    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(conv(shape), nn.ReLU(), conv(shape), nn.ReLU(), Mean())

    def forward(self, x: Any) -> Any:
        return self.ends_here(self.body(x), "body", doubtful=True) + x


class OneChannelConvolved(Marked):
    def __init__(self, shape: Shape):
        super().__init__()
        self.conv1, self.conv2 = conv(shape), conv(shape, outward=1)

    def forward(self, x: Any) -> Any:
        return x + self.ends_here(self.conv2(F.relu(self.conv1(x))), "conv2", doubtful=True)


class BroadcastBranch(Marked):
    """F is a vector, the same everywhere."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.body = nn.Sequential(*basic_layers(shape))
        self.pool, self.fc = GLOBAL_POOL[shape.dims](1), conv(shape, 1)

    def forward(self, x: Any) -> Any:
        f = self.fc(self.pool(F.relu(self.body(x))))
        return x + self.ends_here(f, "fc", doubtful=True)


def folded(x: Any, f: Callable[[Any], Any]) -> Any:
    """Run ``f`` on maps with time before the batch, as multi-step spiking networks do."""
    y = f(x.flatten(0, 1))
    return y.view(x.shape[0], x.shape[1], *y.shape[1:])


class FoldedConv2d(nn.Conv2d):
    def forward(self, input: Any) -> Any:
        return folded(input, super().forward)


class FoldedNorm2d(nn.BatchNorm2d):
    def forward(self, input: Any) -> Any:
        return folded(input, super().forward)


class TimeBlock(Marked):
    """A block on ``(T, N, C, H, W)``."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = FoldedConv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = FoldedNorm2d(channels)
        self.conv2 = FoldedConv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = FoldedNorm2d(channels)

    def forward(self, x: Any) -> Any:
        f = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return x + self.ends_here(f, "bn2", doubtful=True, channels_at=2)


class Timed(nn.Module):
    """Takes the batch for time, whatever the number of its spatial dims."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.blocks = nn.Sequential(TimeBlock(shape.outward), TimeBlock(shape.outward))

    def forward(self, x: Any) -> Any:
        maps = x.flatten(3) if x.dim() > 3 else x[..., None]
        return self.blocks(maps[:, None])[:, 0].reshape(x.shape)


DOUBTFUL: dict[str, Callable[[Shape], nn.Module]] = {
    "one channel": OneChannel,
    "one channel by child": OneChannelByChild,
    "one channel, convolved": OneChannelConvolved,
    "broadcast branch": BroadcastBranch,
    "timed": Timed,
}
