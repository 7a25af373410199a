"""The convolutions of gates: their maps are so small that a call costs more than the work.

A convolution's own call sets up a kernel that is made for large maps. The same sums are had by
products of matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_surgery.attention.construction.ordinary import is_untouched

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POINTWISE = {((1,) * dims, (0,) * dims, 1) for dims in (1, 2, 3)}
_SMALL = 1 << 11
"""Elements of a batch, below which one step counts more than what it does."""
_LARGE = 1 << 16
"""Elements of a batch, above which its windows no longer fit in a cache."""
_WIDTH = 64
"""Of a map, above which the band is mostly zeros, and its product no gain."""


def is_pointwise(layer: Any) -> bool:
    """Tell whether a layer is a 1x1 convolution that nobody would miss a call of.

    Example:
        >>> is_pointwise(nn.Conv2d(8, 4, 1)), is_pointwise(nn.Conv2d(8, 4, 3, padding=1))
        (True, False)
    """
    return (
        is_untouched(layer, *_CONVOLUTIONS)
        and (layer.kernel_size, layer.padding, layer.groups) in _POINTWISE
    )


def pointwise(layer: Any, pooled: Tensor) -> Tensor:
    """Convolve maps of one position, ``(..., C)`` -> ``(..., C')``, by a product of matrices.

    Example:
        >>> conv, x = nn.Conv2d(8, 4, 1), torch.randn(2, 8)
        >>> torch.allclose(pointwise(conv, x), conv(x[:, :, None, None])[:, :, 0, 0], atol=1e-6)
        True
    """
    return F.linear(pooled, layer.weight.flatten(1), layer.bias)


def convolved(layer: Any, x: Tensor) -> Tensor:
    """Convolve few channels to one, ``(N, C, *spatial)`` -> ``(N, 1, *spatial)``, the quickest way.

    Args:
        layer: A convolution that nobody would miss a call of.
        x: Its map.

    Example:
        >>> conv, x = nn.Conv2d(2, 1, 7, padding=3), torch.randn(1, 2, 14, 14)
        >>> torch.allclose(convolved(conv, x), conv(x), atol=1e-5)
        True
    """
    if not _is_known(layer) or x.dtype is not torch.float32 or x.device.type != "cpu":
        return layer(x)
    values = x.numel()
    if values <= (_LARGE if torch.is_grad_enabled() else _SMALL):
        return _by_windows(layer, x)
    if torch.is_grad_enabled() or x.shape[3] > _WIDTH:
        return layer(x)
    return _by_rows(layer, x)


def _is_known(layer: Any) -> bool:
    """Tell whether a layer is a two-dimensional convolution to one map, of the size of its own."""
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or layer.out_channels != 1:
        return False
    height, width = layer.kernel_size
    return (
        height % 2 == width % 2 == 1
        and layer.padding == (height // 2, width // 2)
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
    )


def _by_windows(layer: Any, x: Tensor) -> Tensor:
    """Convolve by a product with the windows of the map, whose way back is a product, too."""
    weight = layer.weight.contiguous()  # in channels last it takes another way, twice as long
    return torch.ops.aten.thnn_conv2d(
        x, weight, layer.kernel_size, layer.bias, layer.stride, layer.padding
    )


def _by_rows(layer: Any, x: Tensor) -> Tensor:
    """Convolve by a product of a map's rows with a banded matrix, of the weights on its diagonals.

    Each row of the result is a product of as many rows of the map as the kernel is high.
    """
    samples, channels, height, width = x.shape
    rows, columns = layer.kernel_size
    padded = F.pad(x, (0, 0, rows // 2, rows // 2))
    sample, channel, row, column = padded.stride()
    around = padded.as_strided(
        (samples, height, channels, rows, width), (sample, row, channel, row, column)
    )
    beside = width - 1 - columns // 2
    taps = F.pad(layer.weight[0], (beside, beside))
    channel, row, tap = taps.stride()
    band = taps.as_strided((channels, rows, width, width), (channel, row, tap, tap)).flip(3)
    y = around.reshape(samples * height, -1) @ band.view(-1, width)
    y = y.view(samples, 1, height, width)
    return y if layer.bias is None else y.add_(layer.bias)
