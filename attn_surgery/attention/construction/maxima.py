"""Maxima of a map, as its processor's registers like them.

torch reduces 32 neighbours at a time, and those that are left over one by one, which takes up to 20
times as long: of 49 positions (7 x 7) 17 are left over, of 24 channels all. A maximum may be taken
in any order, of some twice: the value is the same to the last bit. Its gradient is not, where
several attain it: nothing here is for autograd.

Maps are dense: contiguous, or channels last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_AT_ONCE = 32
_FEW = 128
"""Neighbours, of which those left over no longer matter."""
_MANY = 1 << 14
"""Elements that are left over, below which the detour costs more."""
_POSITIONS = {3: (2,), 4: (2, 3), 5: (2, 3, 4)}


def maximum_over_positions(x: Tensor) -> Tensor:
    """Return the maximum of every channel: ``(N, C, *spatial)`` -> ``(N, C, 1, ...)``.

    Example:
        >>> x = torch.randn(32, 24, 7, 7)
        >>> torch.equal(maximum_over_positions(x), x.amax((2, 3), keepdim=True))
        True
    """
    contiguous = x.is_contiguous()
    if x.numel() < _MANY or not _is_folded(x, contiguous):
        return x.amax(_POSITIONS[x.dim()], keepdim=True)
    shape = [*x.shape[:2], *[1] * (x.dim() - 2)]
    if contiguous:
        return _of_rows(x.flatten(2)).view(shape)
    return _of_columns(x.movedim(1, -1).flatten(1, -2)).view(shape)


def maximum_over_channels(x: Tensor) -> Tensor:
    """Return the maximum at every position: ``(N, C, *spatial)`` -> ``(N, 1, *spatial)``.

    Example:
        >>> x = torch.randn(32, 24, 7, 7)
        >>> torch.equal(maximum_over_channels(x), x.amax(1, keepdim=True))
        True
    """
    contiguous = x.is_contiguous()
    if x.numel() < _MANY or not _is_folded(x, contiguous):
        return x.amax(1, keepdim=True)
    shape = [x.shape[0], 1, *x.shape[2:]]
    if contiguous:
        return _of_columns(x.flatten(2)).view(shape)
    return _of_rows(x.movedim(1, -1).flatten(1, -2)).view(shape)


def _is_folded(x: Tensor, contiguous: bool) -> bool:
    samples, channels = x.shape[:2]
    size = x.numel()
    neighbours = size // (samples * channels) if contiguous else channels
    left_over = size // neighbours * (neighbours % _AT_ONCE)
    return 1 < neighbours < _FEW and left_over >= _MANY and x.is_cpu


def _of_rows(x: Tensor) -> Tensor:
    """Return the maximum of each row, ``(N, R, S)`` -> ``(N, R)``: of its two ends, overlapping."""
    several = x.shape[2]
    end = several // _AT_ONCE * _AT_ONCE or (several + 1) // 2
    return torch.maximum(x[..., :end], x[..., several - end :]).amax(2)


def _of_columns(x: Tensor) -> Tensor:
    """Return the maximum of each column, ``(N, R, S)`` -> ``(N, S)``: some rows are one, first."""
    _, rows, several = x.shape
    as_one = _AT_ONCE // math.gcd(_AT_ONCE, several)
    whole = rows // as_one * as_one
    if whole <= as_one:
        return x.amax(1)
    found = x[:, :whole].reshape(-1, whole // as_one, as_one * several).amax(1)
    found = found.view(-1, as_one, several)
    return torch.cat([found, x[:, whole:]], 1).amax(1) if whole < rows else found.amax(1)
