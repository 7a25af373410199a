"""Triplet attention."""

import torch
from torch import Tensor, nn

from attn_surgery.attention.cbam import SpatialAttention
from attn_surgery.attention.construction import flag, register


@register("triplet", paper="Misra et al. 2020, arXiv:2010.03045", dims=(2,))
class TripletAttention(nn.Module):
    """Triplet attention (Misra et al. 2020, arXiv:2010.03045, section 3.2, eq. 3 and 4).

    Three branches, each CBAM's spatial attention along another axis of ``(C, H, W)``: maximum and
    mean over the axis (the paper's Z-pool), concatenated, a k x k convolution over the other two
    axes with batch norm, sigmoid, scale. The output is the mean of the three. ``cw`` pools over H
    and convolves over (C, W), ``hc`` pools over W and convolves over (C, H), ``hw`` pools over C:
    the names of the official code, so that its weights load by name.

    What differs from the paper: the mean is taken of the three gates, which is the same. With
    ``init="identity"`` they are ``2 sigmoid(...)``, and the norms' weights start at zero. On 1-D
    and 3-D maps there would be two and four branches, which nobody has published: it takes 2-D
    maps.

    Shapes: ``(N, C, H, W)`` -> ``(N, C, H, W)``.

    Args:
        channels: C; unused, as the module does not depend on it.
        kernel_size: k, odd.
        spatial: Whether there is the branch ``hw``; without it the mean is that of two.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> triplet, x = TripletAttention(64), torch.randn(2, 64, 7, 7)
        >>> sum(p.numel() for p in triplet.parameters()), triplet(x).shape == x.shape
        (300, True)
    """

    def __init__(
        self, channels: int, kernel_size: int = 7, *, spatial: bool = True, init: str = "identity"
    ):
        super().__init__()
        self.cw = _branch(channels, kernel_size, init)
        self.hc = _branch(channels, kernel_size, init)
        self.hw = _branch(channels, kernel_size, init) if flag("spatial", spatial) else None

    def forward(self, x: Tensor) -> Tensor:
        """Scale every element: ``(N, C, H, W)`` -> ``(N, C, H, W)``."""
        rows = self.cw.gate(x.transpose(-3, -2)).transpose(-3, -2)  # (N, C, 1, W)
        columns = self.hc.gate(x.transpose(-3, -1)).transpose(-3, -1)  # (N, C, H, 1)
        if self.hw is not None:
            return x * ((self.hw.gate(x) + rows + columns) / 3)
        return x * ((rows + columns) / 2)


def _branch(channels: int, kernel_size: int, init: str) -> SpatialAttention:
    branch = SpatialAttention(channels, kernel_size, init=init)
    if init == "identity":
        return branch
    # CBAM's norm starts at zero; that of the published triplet attention starts as any other.
    torch.nn.init.ones_(branch.conv[1].weight)  # type: ignore[arg-type]
    return branch
