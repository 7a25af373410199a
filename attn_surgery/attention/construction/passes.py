"""A map's passes through memory, as few as there can be.

Attention is little arithmetic and much memory traffic: a map is pooled, scaled, described over its
channels, scaled again. The functions here keep the map and small tensors for backward and nothing
else of the map's size, work in place on what is theirs, and take a large batch a few samples at a
time, as many as a core's cache holds.

Maps are ``(N, C, S)`` here, S the positions; a channel's factors are ``(N, C, 1)``, a position's
``(N, 1, S)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

POOLED = frozenset(("avg", "max"))
"""The pools that there are here."""

_LARGE = 1 << 23
"""Bytes of a batch that is taken apart: below, the parts cost more than they save."""
_PART = 1 << 20
"""Bytes of a part, which stays in a core's cache with what is made of it."""


def samples_at_once(x: Tensor) -> int:
    """Return how many samples of a batch are worked on at a time, one at least.

    Example:
        >>> samples_at_once(torch.zeros(32, 256, 56, 56)), samples_at_once(torch.zeros(8, 64, 7, 7))
        (1, 8)
    """
    size = x.numel() * x.element_size()
    if size < _LARGE or x.device.type != "cpu":
        return x.shape[0]
    return max(1, _PART * x.shape[0] // size)


def in_parts(x: Tensor, *others: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Return a map and what goes with it, flat and a few samples at a time; None with every part.

    Example:
        >>> x, gate = torch.zeros(32, 256, 56, 56), torch.zeros(32, 256, 1)
        >>> [tuple(each.shape) for each in next(iter(in_parts(x, gate)))]
        [(1, 256, 3136), (1, 256, 1)]
    """
    flat = [each if each is None else each.flatten(2) for each in (x, *others)]
    several = samples_at_once(x)
    if several == x.shape[0]:
        return [tuple(flat)]
    parts = (itertools.repeat(None) if each is None else each.split(several) for each in flat)
    return zip(*parts, strict=False)


def is_dense(x: Tensor) -> bool:
    """Tell whether a map's positions are one dimension as it lies: contiguous, or channels last.

    Example:
        >>> x = torch.zeros(2, 8, 4, 4)
        >>> is_dense(x), is_dense(x.transpose(2, 3))
        (True, False)
    """
    return x.is_contiguous() or x.movedim(1, -1).is_contiguous()


# Pooled over positions


def pooled(x: Tensor, kinds: Sequence[str]) -> Tensor:
    """Pool a map, in each of K ways: ``(N, C, S)`` -> ``(N, K, C)``."""
    return torch.stack([_pool(x, kind) for kind in kinds], 1)


def _pool(x: Tensor, kind: str) -> Tensor:
    return x.mean(-1) if kind == "avg" else x.amax(-1)


class Pooled(Function):
    """A map and its pools: ``(N, C, *spatial)`` -> itself, and ``(N, K, C)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kinds: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Read the map once."""
        pools = _joined([pooled(of, kinds) for (of,) in in_parts(x)])
        ctx.save_for_backward(x, pools)
        ctx.kinds = kinds
        return x, pools

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Add what the pools give to what the map has got."""
        x, pools = ctx.saved_tensors
        of_map, of_pools = grads
        added = []
        for of, into, pool, of_pool in in_parts(x, of_map, pools, of_pools):
            # last of all, as it is broadcast
            for kind, one, of_one in sorted(
                zip(ctx.kinds, pool.unbind(1), of_pool.unbind(1), strict=True),
                key=lambda each: each[0],
                reverse=True,
            ):
                if kind == "avg":
                    into = _plus(into, (of_one / of.shape[-1]).unsqueeze(-1))
                else:
                    into = _plus(into, _of_maximum(_attaining(of, one, -1), of_one, -1))
            added.append(into)
        return _like(of_map, added), None


# Described over channels


def described(scaled: Tensor, *, mean_first: bool) -> Tensor:
    """Return maximum and mean over channels: ``(N, C, S)`` -> ``(N, 2, S)``."""
    result = scaled.new_empty(scaled.shape[0], 2, scaled.shape[2])
    torch.amax(scaled, 1, out=result[:, int(mean_first)])
    torch.mean(scaled, 1, out=result[:, int(not mean_first)])
    return result


class Described(Function):
    """A map, and maximum and mean over its scaled channels: -> itself, and ``(N, 2, S)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, mean_first: bool) -> tuple[Tensor, Tensor]:
        """Read the map once; the scaled map never leaves the cache."""
        parts = in_parts(x, gate)
        result = _joined([described(of * by, mean_first=mean_first) for of, by in parts])
        ctx.save_for_backward(x, gate, result)
        ctx.mean_first = mean_first
        return x, result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Add what the description gives to what the map has got; and the gate's gradient."""
        x, gate, result = ctx.saved_tensors
        of_map, of_result = grads
        which, other = int(ctx.mean_first), int(not ctx.mean_first)
        added, of_gate = [], []
        for of, into, by, told, of_told in in_parts(x, of_map, gate, result, of_result):
            scaled = _of_maximum(_attaining(of * by, told[:, which], 1), of_told[:, which], 1)
            scaled = _plus(scaled, (of_told[:, other] / of.shape[1]).unsqueeze(1))
            of_gate.append((scaled * of).sum(-1, keepdim=True))
            added.append(_plus(into, _times(scaled, by)))
        return _like(of_map, added), _joined(of_gate), None


def _attaining(x: Tensor, maximum: Tensor, dim: int) -> Tensor:
    """Return 1 where a map attains its maximum and 0 elsewhere, in the map's own dtype.

    Comparisons that give ``bool``, and what is computed with that, take a multiple of the time.
    """
    with torch.no_grad():
        return torch.eq(x, maximum.unsqueeze(dim), out=torch.empty_like(x))


def _of_maximum(attaining: Tensor, grad: Tensor, dim: int) -> Tensor:
    """Return the gradient of a maximum, shared among all that attain it, as ``amax`` does."""
    return _times(attaining, (grad / attaining.sum(dim)).unsqueeze(dim))


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
        of_x = None if torch.is_grad_enabled() else torch.empty_like(x)
        made, of_channel, of_position = [], [], []
        for of, given, by, at, into in in_parts(x, of_result, channel, position, of_x):
            both, one = of * given, torch.mul(given, by, out=into)
            if at is None:
                of_channel.append(both.sum(-1, keepdim=True))
            else:
                of_channel.append(both @ at.mT)
                of_position.append(by.mT @ both)
                one = _times(one, at)
            made.append(one)
        return (
            _like(x, made) if of_x is None else of_x,
            _joined(of_channel),
            _joined(of_position) if of_position else None,
        )


# In place where nothing is differentiated once more


def _times(ours: Tensor, factor: Tensor) -> Tensor:
    return ours * factor if torch.is_grad_enabled() else ours.mul_(factor)


def _plus(ours: Tensor, more: Tensor) -> Tensor:
    return ours + more if torch.is_grad_enabled() else ours.add_(more)


def _like(grad: Tensor, parts: list[Tensor]) -> Tensor:
    """Return a map's gradient that was worked on in its parts, in place or not."""
    if torch.is_grad_enabled():
        return _joined(parts).unflatten(2, grad.shape[2:])
    return grad


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
