"""A map's passes through memory, as few as there can be.

Attention is little arithmetic and much memory traffic: a map is pooled, scaled, described over its
channels, scaled again. The functions here give bit for bit what the plain steps do, which they run;
for backward they keep the map and small tensors and nothing else of the map's size, work in place
on what is theirs, and take a large batch a few samples at a time, as many as a core's cache holds.

Maps are ``(N, C, *spatial)``, a channel's factors ``(N, C, 1, ...)``, a position's
``(N, 1, *spatial)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from attn_surgery.attention.construction.maxima import (
    maximum_over_channels,
    maximum_over_positions,
)
from attn_surgery.attention.construction.ordinary import is_dense

POOLS = ("avg", "max", "lp", "lse")
NO_POOL = "none"
"""In the place of a pool: every position for itself."""
_POOLED = frozenset(("avg", "max"))
"""Those whose gradient is known here."""

_LARGE = 1 << 24
"""Bytes of a batch that is taken apart: below, the parts cost more than they save."""
_PART = 1 << 21
"""Bytes of a part, which stays in a core's cache with what is made of it."""


def has_passes(x: Tensor, kinds: Sequence[str]) -> bool:
    """Tell whether a map lies as the passes take it, and is pooled in ways that they know.

    Example:
        >>> x = torch.zeros(8, 64, 7, 7)
        >>> has_passes(x, ["avg", "max"]), has_passes(x, ["lse"]), has_passes(x.mT, ["avg"])
        (True, False, False)
    """
    return _POOLED.issuperset(kinds) and is_dense(x)


def is_taken_whole(x: Tensor) -> bool:
    """Tell whether a batch is worked on at once, and not a few samples at a time.

    Example:
        >>> is_taken_whole(torch.zeros(8, 64, 7, 7)), is_taken_whole(torch.zeros(32, 256, 56, 56))
        (True, False)
    """
    return x.nbytes < _LARGE or not x.is_cpu


def in_parts(x: Tensor, *others: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Return a map and what goes with it, a few samples at a time; None with every part.

    Example:
        >>> x, gate = torch.zeros(32, 256, 56, 56), torch.zeros(32, 256, 1, 1)
        >>> [tuple(each.shape) for each in next(iter(in_parts(x, gate)))]
        [(1, 256, 56, 56), (1, 256, 1, 1)]
    """
    if is_taken_whole(x):
        return [(x, *others)]
    several = max(1, _PART * x.shape[0] // x.nbytes)
    parts = (
        itertools.repeat(None) if each is None else each.split(several) for each in (x, *others)
    )
    return zip(*parts, strict=False)


# Pooled over positions


def pool(x: Tensor, kind: str, dims: list[int]) -> Tensor:
    """Pool a map over its spatial dimensions: ``(N, C, *spatial)`` -> ``(N, C, 1, ...)``.

    ``avg`` is the mean, ``max`` the maximum, ``lp`` the L2 norm ``sqrt(sum x^2)`` (a sum, not a
    mean, like ``F.lp_pool2d(x, 2, ...)`` in CBAM's official code, and with a gradient of 0
    instead of NaN where a channel is all zero), ``lse`` the smooth maximum
    ``log(sum exp(x))``, computed without overflow.

    Args:
        x: The map, ``(N, C, *spatial)``.
        kind: One of ``avg``, ``max``, ``lp``, ``lse``; or ``none``, for the map as it is.
        dims: The spatial dimensions. Listed, and not counted from ``x``, so that ``torch.fx`` can
            trace through.

    Example:
        >>> x = torch.tensor([[[3.0, 4.0]]])
        >>> [round(pool(x, kind, [2]).item(), 2) for kind in POOLS]
        [3.5, 4.0, 5.0, 4.31]
    """
    if kind == "none":
        return x
    if kind == "avg":
        return x.mean(dims, keepdim=True)
    if kind == "max":
        return x.amax(dims, keepdim=True)
    if kind == "lp":
        return torch.linalg.vector_norm(x, 2.0, dims, keepdim=True)
    return torch.logsumexp(x, dims, keepdim=True)


def pool_each(x: Tensor, kinds: list[str], dims: list[int]) -> list[Tensor]:
    """Pool a map in several ways, ``(N, C, 1, ...)`` each, step by step."""
    return [pool(x, kind, dims) for kind in kinds]


def pooled(x: Tensor, kinds: Sequence[str], dims: list[int]) -> list[Tensor]:
    """Pool a map in several ways, ``(N, C, 1, ...)`` each, a few samples at a time."""
    if is_taken_whole(x):
        return _pooled(x, kinds, dims)
    parts = [_pooled(of, kinds, dims) for (of,) in in_parts(x)]
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def _pooled(x: Tensor, kinds: Sequence[str], dims: list[int]) -> list[Tensor]:
    return [maximum_over_positions(x) if kind == "max" else pool(x, kind, dims) for kind in kinds]


class Pooled(Function):
    """A map and its pools, ``(N, C, 1, ...)`` for each kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kinds: Sequence[str], dims: list[int]) -> Any:
        """Read the map once."""
        pools = pooled(x, kinds, dims)
        ctx.save_for_backward(x, *pools)
        ctx.kinds = kinds
        return x, *pools

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Add what the pools give to what the map has got."""
        x, *pools = ctx.saved_tensors
        of_map, *of_pools = grads
        added = []
        for of, into, *both in _flat_parts(x, of_map, *pools, *of_pools):
            whole = into
            for kind, pool, of_pool in zip(
                ctx.kinds, both[: len(pools)], both[len(pools) :], strict=True
            ):
                if kind == "avg":
                    whole = _plus(whole, of_pool / of.shape[2])
                else:
                    whole = _plus(whole, _of_maximum(_attaining(of, pool), of_pool, 2))
            added.append(whole)
        return _like(of_map, added), None, None


# Described over channels


def described(scaled: Tensor, maximum: Tensor, *, mean_first: bool) -> Tensor:
    """Join maximum and mean over channels: ``(N, C, *spatial)`` -> ``(N, 2, *spatial)``."""
    mean = scaled.mean(1, keepdim=True)
    return torch.cat([mean, maximum] if mean_first else [maximum, mean], 1)


class Described(Function):
    """A map, and maximum and mean over its scaled channels, ``(N, 2, *spatial)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, mean_first: bool) -> tuple[Tensor, Tensor]:
        """Read the map once; the scaled map never leaves the cache."""
        told = []
        for of, by in in_parts(x, gate):
            scaled = of * by
            told.append(described(scaled, maximum_over_channels(scaled), mean_first=mean_first))
        result = joined(told)
        ctx.save_for_backward(x, gate, result)
        ctx.mean_first = mean_first
        return x, result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Add what the description gives to what the map has got; and the gate's gradient."""
        x, gate, result = ctx.saved_tensors
        of_map, of_result = grads
        added, of_gate = [], []
        for of, into, by, told, of_told in _flat_parts(x, of_map, gate, result, of_result):
            (largest, _), (of_largest, of_mean) = (
                each.split(1, 1)[:: -1 if ctx.mean_first else 1] for each in (told, of_told)
            )
            scaled = _of_maximum(_attaining(of * by, largest), of_largest, 1)
            scaled = _plus(scaled, of_mean / of.shape[1])
            of_gate.append((scaled * of).sum(2, keepdim=True))
            added.append(_plus(into, _times(scaled, by)))
        return _like(of_map, added), joined(of_gate).view_as(gate), None


def _attaining(x: Tensor, maximum: Tensor) -> Tensor:
    """Return 1 where a map attains its maximum and 0 elsewhere, in the map's own dtype.

    Comparisons that give ``bool``, and what is computed with that, take a multiple of the time.
    """
    with torch.no_grad():
        return torch.eq(x, maximum, out=torch.empty_like(x))


def _of_maximum(attaining: Tensor, grad: Tensor, dim: int) -> Tensor:
    """Return the gradient of a maximum, shared among all that attain it, as ``amax`` does."""
    return _times(attaining, grad / attaining.sum(dim, keepdim=True))


# Scaled


class Scaled(Function):
    """A map times a factor per channel and, where there is one, a factor per position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, channel: Tensor, position: Tensor | None) -> Tensor:
        """Read the map once and write it once."""
        result = torch.empty_like(x)
        for of, into, by, at in in_parts(x, result, channel, position):
            torch.mul(of, by, out=into)
            if at is not None:
                into.mul_(at)
        ctx.save_for_backward(x, channel, position)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Read map and gradient once."""
        x, channel, position = ctx.saved_tensors
        (of_result,) = grads
        of_x = None if torch.is_grad_enabled() else torch.empty_like(of_result)
        made, of_channel, of_position = [], [], []
        for of, given, by, at, into in _flat_parts(x, of_result, channel, position, of_x):
            both, one = of * given, torch.mul(given, by, out=into)
            if at is None:
                of_channel.append(both.sum(2, keepdim=True))
            else:
                of_channel.append(both @ at.mT)
                of_position.append(by.mT @ both)
                one = _times(one, at)
            made.append(one)
        return (
            _like(x, made) if of_x is None else of_x,
            joined(of_channel).view_as(channel),
            None if position is None else joined(of_position).view_as(position),
        )


def _flat_parts(x: Tensor, *others: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Return a map and what goes with it, ``(N, C, S)``, a few samples at a time."""
    flat = (each if each is None else each.flatten(2) for each in others)
    return in_parts(x.flatten(2), *flat)


# In place where nothing is differentiated once more


def _times(ours: Tensor, factor: Tensor) -> Tensor:
    return ours * factor if torch.is_grad_enabled() else ours.mul_(factor)


def _plus(ours: Tensor, more: Tensor) -> Tensor:
    return ours + more if torch.is_grad_enabled() else ours.add_(more)


def _like(grad: Tensor, parts: list[Tensor]) -> Tensor:
    """Return a map's gradient that was worked on in its parts, in place or not."""
    if torch.is_grad_enabled():
        return joined(parts).unflatten(2, grad.shape[2:])
    return grad


def joined(parts: list[Tensor]) -> Tensor:
    """Return the batch whose parts are given."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
