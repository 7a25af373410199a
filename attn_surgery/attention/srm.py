"""Style-based recalibration."""

import torch
from torch import Tensor, nn

from attn_surgery.attention.construction import (
    BATCH_NORM,
    INITS,
    batched,
    choice,
    register,
    sigmoid_gate,
    std_mean,
    unbatched,
    whole,
)


@register("srm", paper="Lee et al. 2019, arXiv:1903.10829", dims=(1, 2, 3))
class SRM(nn.Module):
    """Style-based recalibration (Lee et al. 2019, arXiv:1903.10829, section 3, eq. 1 to 6).

    Style pooling: mean and standard deviation of every channel over space. Style integration: the
    two numbers of a channel times that channel's two weights (``cfc``, zero at the start), summed;
    batch norm; sigmoid: ``out = g * x``. The parameters have the names of the official code, so
    that its weights load by name.

    What differs from the paper: nothing. (The official code divides the variance by M - 1, for M
    positions, where eq. 2 divides by M.)

    With ``init="identity"`` the gate is ``2 sigmoid(...)``, and the norm's weight starts at zero
    instead of ``cfc``: a norm of zeros would multiply the first gradient by 316.

    Its batch norm refuses to train on a batch of one.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> srm, x = SRM(64), torch.randn(2, 64, 7, 7)
        >>> sum(p.numel() for p in srm.parameters()), srm.gate(x).shape
        (256, torch.Size([2, 64, 1, 1]))
    """

    def __init__(self, channels: int, *, spatial_dims: int = 2, init: str = "identity"):
        super().__init__()
        whole("channels", channels)
        norm = BATCH_NORM[choice("spatial_dims", spatial_dims, tuple(BATCH_NORM))]
        self.init: str = choice("init", init, INITS)
        self.dims = list(range(2, 2 + spatial_dims))
        self.cfc = nn.Parameter(torch.zeros(channels, 2))
        self.bn = norm(channels)
        if init == "identity":
            nn.init.normal_(self.cfc)
            nn.init.zeros_(self.bn.weight)

    def gate(self, x: Tensor) -> Tensor:
        """Compute the factors for ``x``: ``(N, C, *spatial)`` -> ``(N, C, 1, ...)``."""
        batch = batched(x, len(self.dims))
        std, mean = std_mean(batch, self.dims)
        style = torch.stack([mean.flatten(1), std.flatten(1)], 2)  # (N, C, 2)
        z = (style * self.cfc).sum(2)  # (N, C)
        gate = sigmoid_gate(self.bn(z.reshape(mean.shape)), self.init)
        return unbatched(gate, x, len(self.dims))

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        return x * self.gate(x).to(x.dtype)
