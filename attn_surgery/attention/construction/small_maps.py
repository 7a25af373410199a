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
_POSITIONS = 1 << 15
"""Of a batch, above which its windows no longer fit in a cache."""
_SAMPLES = 8
"""More are quicker by the convolution's own call, where there is no way back."""


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


def windowed(layer: Any, x: Tensor) -> Tensor:
    """Convolve few channels, ``(N, C, *spatial)``, by a product with the map's windows if it pays.

    Args:
        layer: A convolution that nobody would miss a call of.
        x: Its map.

    Example:
        >>> conv, x = nn.Conv2d(2, 1, 7, padding=3), torch.randn(1, 2, 14, 14)
        >>> torch.allclose(windowed(conv, x), conv(x), atol=1e-5)
        True
    """
    if (
        x.dim() == 4
        and x.numel() <= _POSITIONS * x.shape[1]
        and (x.shape[0] <= _SAMPLES or torch.is_grad_enabled())
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    ):
        return torch.ops.aten.thnn_conv2d(
            x, layer.weight, layer.kernel_size, layer.bias, layer.stride, layer.padding
        )
    return layer(x)
