"""Concurrent spatial and channel squeeze-and-excitation."""

import torch
from torch import Tensor, nn

from attn_surgery.attention.construction import CONV, choice, register, sigmoid_gate
from attn_surgery.attention.se import SE

COMBINATIONS = ("add", "max")


@register("scse", paper="Roy et al. 2018, arXiv:1803.02579", dims=(1, 2, 3))
class SCSE(nn.Module):
    """Concurrent squeeze-and-excitation (Roy et al. 2018, arXiv:1803.02579, section 2).

    cSE: ``x_c = sigmoid(W1 relu(W2 z)) * x`` with z the mean of x over space (``SE``, with
    r = 2). sSE: ``x_s = sigmoid(W_sq x) * x`` with W_sq a 1x1 convolution to a single map.
    scSE: ``out = x_c + x_s``.

    What differs from the paper: its equations have no biases, while the official code does, and so
    does this module unless ``bias=False``. That code takes the larger of the two elements instead
    of their sum, ``max(x_c, x_s)``, which the journal version (arXiv:1808.08127) compares with
    others: ``combine="max"``. With ``init="identity"`` the gates are ``2 sigmoid(...)``, their last
    layers start at zero, and the sum is halved.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        reduction: The hidden layer of cSE has C / reduction channels, rounded down, 1 at least.
        combine: ``add`` (the paper) or ``max`` (the official code).
        bias: Whether the three layers have biases.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> scse, x = SCSE(64), torch.randn(2, 64, 7, 7)
        >>> sum(p.numel() for p in scse.parameters()), scse(x).shape == x.shape
        (4257, True)
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 2,
        *,
        combine: str = "add",
        bias: bool = True,
        spatial_dims: int = 2,
        init: str = "identity",
    ):
        super().__init__()
        self.combine: str = choice("combine", combine, COMBINATIONS)
        self.cse = SE(channels, reduction, bias=bias, spatial_dims=spatial_dims, init=init)
        self.sse = CONV[spatial_dims](channels, 1, 1, bias=bias)
        if init == "identity":
            for parameter in self.sse.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Scale by channel and by position: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        channel = self.cse.gate(x)  # (N, C, 1, ...)
        spatial = sigmoid_gate(self.sse(x), self.cse.init)  # (N, 1, *spatial)
        if self.combine == "add" and self.cse.init == "identity":
            return x * ((channel + spatial) / 2)
        if self.combine == "add":
            return x * (channel + spatial)
        # The larger element, not the larger gate: for a negative one the gates change places.
        return torch.maximum(x * channel, x * spatial)

    def extra_repr(self) -> str:
        """Name what the children do not show."""
        return f"combine={self.combine}"
