"""A convolution of two channels to one and the norm behind it, for which torch's way is a detour.

oneDNN is made for many channels. On a tiny map it spends most of its time on preparing itself: the
convolution as a product of matrices, which torch has as well, takes a fifth. On a larger one it
makes several rows at once, as channels, in a fourth of the time. The numbers are the same but for
rounding (and what is not finite is so in all of those rows). Layers are called where somebody would
miss their calls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_surgery.attention.construction.ordinary import is_untouched
from attn_surgery.attention.construction.products import as_product, may_be_product

_TINY = 1 << 13
"""Elements of a batch, below which a product of matrices is faster."""
_FEWEST_ROWS, _MOST_ROWS = 4, 16
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convolved(x: Tensor, layers: Any) -> Tensor:
    """Run a convolution of few channels, and a norm: ``(N, C, *spatial)`` -> ``(N, 1, *spatial)``.

    Args:
        x: An ordinary map.
        layers: An ``nn.Sequential`` of the convolution and, if there is one, the norm.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3), nn.BatchNorm2d(1)).eval()
        >>> x = torch.randn(1, 2, 14, 14)
        >>> torch.allclose(convolved(x, layers), layers(x), atol=1e-5)
        True
    """
    if not is_untouched(layers, nn.Sequential):
        return layers(x)
    conv, *norms = layers
    x = _convolved(x, conv) if _may_be_rearranged(x, conv) else conv(x)
    for norm in norms:
        x = _normed(x, norm)
    return x


def _may_be_rearranged(x: Tensor, conv: Any) -> bool:
    return (
        is_untouched(conv, nn.Conv2d)
        and may_be_product(x, conv.weight)
        and conv.padding_mode == "zeros"
        and type(conv.padding) is tuple
        and _keeps_size(*conv.kernel_size, *conv.padding)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == conv.out_channels == 1
    )


def _keeps_size(height: int, width: int, rows: int, columns: int) -> bool:
    return height == 2 * rows + 1 and width == 2 * columns + 1


def _convolved(x: Tensor, conv: Any) -> Tensor:
    weight, bias, padding = conv.weight.contiguous(), conv.bias, conv.padding
    if x.numel() < _TINY:
        return as_product(x, weight, bias, conv.kernel_size, padding)
    several = _rows_at_once(x.shape[2])
    if several == 1:
        return torch.conv2d(x, weight, bias, 1, padding)
    weight = _of_rows(weight, several)
    bias = None if bias is None else bias.expand(several)
    rows = torch.conv2d(x, weight, bias, (several, 1), padding)
    return rows.transpose(1, 2).reshape(x.shape[0], 1, *x.shape[2:])


def _rows_at_once(rows: int) -> int:
    """Return how many rows are made at once: as many as there are some times, or one."""
    for several in range(_MOST_ROWS, _FEWEST_ROWS - 1, -1):
        if rows % several == 0:
            return several
    return 1


def _of_rows(weight: Tensor, several: int) -> Tensor:
    """Shift a kernel down, row by row: ``(1, C, K, L)`` -> ``(R, C, K + R - 1, L)``."""
    more = several - 1
    padded = F.pad(weight[0], (0, 0, more, more))
    return padded.unfold(1, weight.shape[2] + more, 1).flip(1).permute(1, 0, 3, 2)


def _normed(x: Tensor, norm: Any) -> Tensor:
    if not (x.is_cpu and _is_affine(norm)):
        return norm(x)
    mean, variance = norm.running_mean, norm.running_var
    return torch.batch_norm(
        x, norm.weight, norm.bias, mean, variance, False, 0.0, norm.eps, cudnn_enabled=False
    )


def _is_affine(norm: Any) -> bool:
    return is_untouched(norm, *_NORMS) and not norm.training and norm.running_mean is not None
