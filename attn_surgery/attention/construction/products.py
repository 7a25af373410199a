"""Small convolutions as products of matrices, sample by sample.

On a processor torch leaves convolutions in float32 to oneDNN, which prepares itself at every call:
for some hundred numbers that takes several times what the convolution does. Torch's own way, a
product of matrices, gives the same numbers but for rounding, gradients of every order included.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_CONVOLUTION = torch._C._nn.thnn_conv2d  # pyright: ignore[reportAttributeAccessIssue]


def may_be_product(x: Tensor, *weights: Tensor) -> bool:
    """Tell whether oneDNN would do convolutions in two dimensions, of an ordinary tensor.

    Example:
        >>> conv, x = nn.Conv2d(2, 1, 7), torch.randn(1, 2, 14, 14)
        >>> may_be_product(x, conv.weight), may_be_product(x.double(), conv.double().weight)
        (True, False)
    """
    for weight in weights:
        if type(weight) is not nn.Parameter or weight.dtype is not torch.float32:
            return False
        if weight.dim() != 4:
            return False
    return x.dtype is torch.float32 and x.is_cpu and x.dim() == 4


def as_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: tuple[int, ...],
    padding: tuple[int, ...] = (0, 0),
) -> Tensor:
    """Convolve by a product of matrices: ``(N, C, H, W)`` -> ``(N, C', H', W')``.

    The size of the kernel is told, as to ask the weight for it takes a tenth of the time.

    Example:
        >>> conv, x = nn.Conv2d(2, 1, 7), torch.randn(1, 2, 14, 14)
        >>> y = as_product(x, conv.weight, conv.bias, (7, 7))
        >>> torch.allclose(y, conv(x), atol=1e-5)
        True
    """
    return _CONVOLUTION(x, weight, kernel_size, bias, (1, 1), padding)
