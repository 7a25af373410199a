"""Convolutions whose forward somebody else wrote: which of them still map as a convolution does.

Most only prepare their weight or their padding, and are steps like any other convolution. Others
run it over something else than a map, ``(T, N, C, *spatial)`` for one, or are residual blocks of
their own, and have to be followed.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from attn_surgery.errors import is_exhausted
from attn_surgery.host import lent_tensors, marks, spells_addition

_known: WeakKeyDictionary[type[nn.Module], dict[object, bool]] = WeakKeyDictionary()
"""Whether a convolution of this class, with these attributes, maps as a convolution does."""

_USUAL = frozenset(vars(nn.Conv1d(1, 1, 1, device="meta")))  # which draws nothing
"""The attributes of every convolution, which do not change what it does to dims and channels."""


def unusual_convolutions(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Return the convolutions that do not map ``(N, C, *spatial)`` to ``(N, C', *spatial)``.

    Nor does one, of whatever shape, that adds its input to what it computes.
    """
    written = (each for each in modules if isinstance(each, _ConvNd) and _is_written_anew(each))
    return {each for each in written if not _is_usual(each)}


def _is_written_anew(conv: _ConvNd) -> bool:
    home = getattr(type(conv).forward, "__module__", None) or ""
    return not home.startswith(("torch.nn.", "torch.ao.", "attn_surgery"))


def _is_usual(conv: _ConvNd) -> bool:
    known = _known.setdefault(type(conv), {})
    alike = marks(conv, _USUAL)
    if alike not in known:
        known[alike] = _maps_as_a_convolution(conv) and not _adds_its_input(conv)
    return known[alike]


def _maps_as_a_convolution(conv: _ConvNd) -> bool:
    """Try it on the meta device."""
    with lent_tensors(conv, lambda tensor: tensor.to("meta")):
        result = _tried(conv, torch.device("meta"))
    return (
        isinstance(result, torch.Tensor)
        and result.dim() == 2 + len(conv.kernel_size)
        and result.shape[:2] == (2, conv.out_channels)
    )


def _adds_its_input(conv: _ConvNd) -> bool:
    """Tell whether anything is left of its input where all its weights are zero."""
    if not spells_addition(conv):
        return False
    with lent_tensors(conv, lambda tensor: torch.zeros_like(tensor, device="cpu")):
        result = _tried(conv, torch.device("cpu"))
    return isinstance(result, torch.Tensor) and bool(result.count_nonzero())


def _tried(conv: _ConvNd, device: torch.device) -> object:
    """Return what a convolution makes of a map of ones; None where it fails."""
    needed = [(k - 1) * d + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    given = torch.ones(2, conv.in_channels, *(2 * size + 2 for size in needed), device=device)
    try:
        with torch.no_grad():
            return conv.forward(given.to(conv.weight.dtype))
    except Exception as error:
        if is_exhausted(error):
            raise
        return None
