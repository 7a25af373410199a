"""SimAM, the attention without parameters."""

import torch
from torch import Tensor, nn

from attn_surgery.attention.construction import (
    CONV,
    choice,
    flag,
    is_empty,
    positive,
    register,
    whole,
)


@register("simam", paper="Yang et al. 2021, ICML, PMLR 139:11863", dims=(1, 2, 3))
class SimAM(nn.Module):
    """SimAM (Yang et al. 2021, ICML, PMLR 139:11863, section 3, eq. 5 and 6).

    ``out = sigmoid(1 / E) * x``. E is the minimal energy of each position t of each channel,
    ``4 (var + lambda) / ((t - mean)^2 + 2 var + 2 lambda)``, with mean and variance of that channel
    over space, so that ``1 / E = (t - mean)^2 / (4 (var + lambda)) + 1/2``.

    What differs from the paper: nothing by default. The official code and the listing in the paper
    divide the sum of squares by M - 1, with M positions, where eq. 5 divides by M:
    ``unbiased=True`` (for maps of more than one position).

    It has no parameters: with an identity start, ``alpha`` of the wrapper is the only one.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C; unused, as the module does not depend on it.
        lam: The paper's lambda, the regulariser of the energy.
        unbiased: Divide by M - 1 instead of M.
        spatial_dims: 1, 2 or 3.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> simam, x = SimAM(64), torch.zeros(1, 64, 7, 7)
        >>> x[0, 0, 0, 0] = 1.0  # the one position that stands out is let through
        >>> round(simam(x)[0, 0, 0, 0].item(), 4)
        1.0
    """

    def __init__(
        self,
        channels: int,
        lam: float = 1e-4,
        *,
        unbiased: bool = False,
        spatial_dims: int = 2,
    ):
        super().__init__()
        whole("channels", channels)
        choice("spatial_dims", spatial_dims, tuple(CONV))
        self.lam: float = positive("lam", lam)
        self.correction: int = int(flag("unbiased", unbiased))
        self.dims = list(range(-spatial_dims, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Scale every element: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        if is_empty(x):  # of which torch computes no variance without a warning
            return x.clone()
        var, mean = torch.var_mean(x, self.dims, correction=self.correction, keepdim=True)
        # Divided first, squared then: the square of a deviation overflows in half precision.
        distance = (x - mean) / (2 * torch.sqrt(var + self.lam))
        return x * torch.sigmoid(distance * distance + 0.5)

    def extra_repr(self) -> str:
        """Name the options."""
        return f"lam={self.lam}, unbiased={bool(self.correction)}"
