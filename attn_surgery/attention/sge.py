"""Spatial group-wise enhancement."""

import math

import torch
from torch import Tensor, nn

from attn_surgery.attention.construction import (
    CONV,
    INITS,
    batched,
    choice,
    positive,
    register,
    sigmoid_gate,
    std_mean,
    unbatched,
    whole,
)
from attn_surgery.errors import SurgeryError


@register("sge", paper="Li et al. 2019, arXiv:1905.09646", dims=(1, 2, 3))
class SGE(nn.Module):
    """Spatial group-wise enhancement (Li et al. 2019, arXiv:1905.09646, section 3, eq. 1 to 5).

    In every group of channels: g, the mean over space; ``c = g . x`` at every position; c minus
    its mean over space, divided by its standard deviation plus epsilon; ``a = weight c' + bias``,
    two numbers a group, 0 and 1 at the start; ``out = sigmoid(a) * x``. The parameters have the
    names of the official code, so that its weights load by name.

    What differs from the paper: it has 64 groups, and so does this module where 64 divides C; where
    it does not, the number of groups is their greatest common divisor (8 for 24 channels). (The
    official code divides the variance by M - 1, for M positions, where eq. 3 divides by M.) With
    ``init="identity"`` the gate is ``2 sigmoid(a)`` and the bias starts at 0.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        groups: The number of groups, which has to divide C; None: ``gcd(64, C)``.
        epsilon: What keeps the division finite.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> sge, x = SGE(256), torch.randn(2, 256, 7, 7)
        >>> sum(p.numel() for p in sge.parameters()), sge(x).shape == x.shape
        (128, True)
    """

    def __init__(
        self,
        channels: int,
        groups: int | None = None,
        *,
        epsilon: float = 1e-5,
        spatial_dims: int = 2,
        init: str = "identity",
    ):
        super().__init__()
        self.groups: int = _group_count(channels, groups)
        self.width: int = channels // self.groups
        self.init: str = choice("init", init, INITS)
        self.epsilon: float = positive("epsilon", epsilon)
        choice("spatial_dims", spatial_dims, tuple(CONV))
        self.dims = list(range(2, 2 + spatial_dims))
        shape = (1, self.groups, *[1] * spatial_dims)
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(shape) if init == "identity" else torch.ones(shape))

    def gate(self, grouped: Tensor) -> Tensor:
        """Compute the factors: ``(N, G, C / G, *spatial)`` -> ``(N, G, *spatial)``."""
        means = grouped.mean([dim + 1 for dim in self.dims], keepdim=True)
        likeness = (grouped * means).sum(2)
        std, mean = std_mean(likeness, self.dims)
        normed = (likeness - mean) / (std + self.epsilon)
        return sigmoid_gate(normed * self.weight + self.bias, self.init)

    def forward(self, x: Tensor) -> Tensor:
        """Scale every position of every group: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        grouped = batched(x, len(self.dims)).unflatten(1, [self.groups, self.width])
        scaled = grouped * self.gate(grouped).to(x.dtype).unsqueeze(2)
        return unbatched(scaled.flatten(1, 2), x, len(self.dims))

    def extra_repr(self) -> str:
        """Name the options."""
        return f"groups={self.groups}, epsilon={self.epsilon}"


def _group_count(channels: int, groups: int | None) -> int:
    whole("channels", channels)
    if groups is None:
        return math.gcd(64, channels)
    if channels % whole("groups", groups):
        raise SurgeryError(f"groups={groups}: must divide the {channels} channels")
    return groups
