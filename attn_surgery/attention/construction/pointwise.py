"""1x1 convolutions of pooled maps, as products of matrices: on so few positions they cost less.

They are convolutions in all that others ask them for: class, parameters, keys, start, hooks. Two of
them with a rectifier between, an MLP, are worked out without their calls where nobody would see
those; the numbers are the same to the last bit.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.jit import is_scripting, is_tracing  # pyright: ignore[reportPrivateImportUsage]
from torch.nn import functional as F

from attn_surgery.attention.construction.ordinary import are_modules_watched, is_untouched
from attn_surgery.attention.construction.products import as_product, may_be_product


class _Pointwise:
    """What goes before the class of a convolution that is a product of matrices."""

    def forward(self: Any, input: Tensor) -> Tensor:
        """Multiply at every position: ``(N, C, *spatial)`` -> ``(N, C', *spatial)``.

        Raises:
            RuntimeError: The input is neither such a batch nor one map, ``(C, *spatial)``.
        """
        spatial_dims = len(self.kernel_size)
        if not is_scripting():  # noqa: SIM102 - TorchScript compiles what is in one condition
            if not isinstance(input, fx.Proxy):
                _check(input, spatial_dims)
        positions = input.flatten(-spatial_dims).transpose(-1, -2).contiguous()
        y = F.linear(positions, self.weight.flatten(1), self.bias).transpose(-1, -2)
        # Quantizers know this step as one that hands numbers on; not so `unflatten`.
        return y.reshape(y.shape[:-1] + input.shape[-spatial_dims:])


def _check(x: Tensor, spatial_dims: int) -> None:
    if x.dim() - spatial_dims not in (1, 2):
        accepted = f"{spatial_dims + 1} or {spatial_dims + 2}"
        raise RuntimeError(
            f"expected a map with {accepted} dimensions, with or without a batch; got {x.dim()}"
        )


class PointwiseConv1d(_Pointwise, nn.Conv1d):
    """A 1x1 convolution of few positions, ``(N, C, L)`` -> ``(N, C', L)``."""


class PointwiseConv2d(_Pointwise, nn.Conv2d):
    """A 1x1 convolution of few positions, ``(N, C, H, W)`` -> ``(N, C', H, W)``."""


class PointwiseConv3d(_Pointwise, nn.Conv3d):
    """A 1x1 convolution of few positions, ``(N, C, D, H, W)`` -> ``(N, C', D, H, W)``."""


POINTWISE = {1: PointwiseConv1d, 2: PointwiseConv2d, 3: PointwiseConv3d}
"""By the number of spatial dimensions."""
_KINDS = tuple(POINTWISE.values())
_Layer = tuple[Tensor, Tensor | None]
"""Weight and bias."""
_FEW = 1 << 14
"""Multiplications by a weight, from which a product of the whole batch is faster."""


def mlp_of_pools(
    pools: list[Tensor], fc1: Any, act: nn.Module, fc2: Any, *, ordinary: bool = False
) -> Tensor | None:
    """Work out the sum of an MLP's logits of several pools, if nobody would miss its layers' calls.

    Args:
        pools: Pooled maps, ``(N, C, 1, ...)`` each.
        fc1: The first layer of the MLP.
        act: What comes between.
        fc2: The second layer.
        ordinary: Whether the pooled maps are known to be ordinary tensors.

    Returns:
        ``(N, C, 1, ...)``; None where the layers have to be called.

    Example:
        >>> fc1, fc2 = PointwiseConv2d(8, 2, 1), PointwiseConv2d(2, 8, 1)
        >>> x = torch.randn(4, 8, 1, 1)
        >>> torch.equal(mlp_of_pools([x], fc1, nn.ReLU(), fc2), fc2(fc1(x).relu()))
        True
    """
    x = pools[0]
    if not (ordinary or _is_unseen(x)):
        return None
    if not (
        is_untouched(fc1, *_KINDS) and is_untouched(act, nn.ReLU) and is_untouched(fc2, *_KINDS)
    ):
        return None
    first, second = (fc1.weight, fc1.bias), (fc2.weight, fc2.bias)
    if x.dim() != first[0].dim() or x.numel() != x.shape[0] * fc1.in_channels:
        return None
    if ordinary and _are_few(x, len(pools), fc1) and may_be_product(x, first[0], second[0]):
        return _convolved(pools, first, second)
    return _multiplied(pools, first, second)


def _is_unseen(x: Tensor) -> bool:
    return not (
        torch.compiler.is_compiling()
        or type(x) is not Tensor
        or is_tracing()
        or are_modules_watched()
    )


def _are_few(x: Tensor, pools: int, fc1: Any) -> bool:
    return pools * x.numel() * fc1.out_channels < _FEW or x.shape[0] == pools == 1


def _convolved(pools: list[Tensor], first: _Layer, second: _Layer) -> Tensor:
    """Do it in fewer steps, sample by sample; the numbers are the same but for rounding."""
    rows = pools[0] if len(pools) == 1 else torch.cat(pools, 2)
    hidden = as_product(rows, *first, (1, 1)).relu_()
    logits = as_product(hidden, *second, (1, 1))
    return logits if len(pools) == 1 else functools.reduce(torch.add, logits.split(1, 2))


def _multiplied(pools: list[Tensor], first: _Layer, second: _Layer) -> Tensor:
    (weight1, bias1), (weight2, bias2) = first, second
    x, several = pools[0], len(pools)
    if several == 1:
        rows = x.flatten(1)
    else:
        rows = torch.cat(pools, 1).view(x.shape[0], several, x.shape[1])
    hidden = F.linear(rows, weight1.flatten(1), bias1).relu_()
    logits = F.linear(hidden, weight2.flatten(1), bias2)
    if several > 1:
        logits = functools.reduce(torch.add, logits.unbind(1))
    return logits.view_as(x)
