"""Scale and shift: a constant gate per channel."""

import torch
from torch import Tensor, nn

from attn_surgery.attention.construction import CONV, INITS, choice, flag, register, whole

DEVIATION = 0.02
"""Standard deviation of the published start."""


@register("scale", paper="Lian et al. 2022, arXiv:2210.08823", dims=(1, 2, 3))
class Scale(nn.Module):
    """Scaling and shifting of features, SSF (Lian et al. 2022, arXiv:2210.08823, section 3.2).

    ``out = scale * x + shift``, two learned numbers a channel, the same for every input: what any
    attention has to beat that claims to look at its input.

    What differs from the paper: nothing with ``init="paper"``, where scale starts as N(1, 0.02^2)
    and shift as N(0, 0.02^2), as in the official code. With ``init="identity"`` scale starts at 1
    and shift at the negative zero, the one number whose addition leaves every x as it is, 0.0 and
    -0.0 too.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        shift: Whether there is a shift; without it this is a constant gate per channel.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> scale, x = Scale(64), torch.randn(2, 64, 7, 7)
        >>> sum(p.numel() for p in scale.parameters()), torch.equal(scale(x), x)
        (128, True)
    """

    def __init__(
        self,
        channels: int,
        *,
        shift: bool = True,
        spatial_dims: int = 2,
        init: str = "identity",
    ):
        super().__init__()
        whole("channels", channels)
        shape = (channels, *[1] * choice("spatial_dims", spatial_dims, tuple(CONV)))
        self.scale = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.full(shape, -0.0)) if flag("shift", shift) else None
        if choice("init", init, INITS) == "paper":
            nn.init.normal_(self.scale, mean=1.0, std=DEVIATION)
            if self.shift is not None:
                nn.init.normal_(self.shift, std=DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift every channel: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        scaled = x * self.scale.to(x.dtype)
        if self.shift is None:
            return scaled
        return scaled + self.shift.to(x.dtype)

    def extra_repr(self) -> str:
        """Name what there are no children for."""
        return f"{self.scale.shape[0]}, shift={self.shift is not None}"
