"""Gated channel transformation."""

from typing import Any

import torch
from torch import Tensor, nn

from attn_surgery.attention.construction import (
    CONV,
    batched,
    choice,
    positive,
    register,
    unbatched,
    whole,
)


@register("gct", paper="Yang et al. 2020, arXiv:1909.11519", dims=(1, 2, 3))
class GCT(nn.Module):
    """Gated channel transformation (Yang et al. 2020, arXiv:1909.11519, section 3, eq. 2 to 5).

    Embedding: ``s = alpha * |x|``, the norm of every channel over space. Normalization over the
    channels: ``s' = sqrt(C) s / |s|``. Gating: ``out = x * (1 + tanh(gamma s' + beta))``. With the
    paper's start, alpha = 1 and gamma = beta = 0, it is the identity, bit for bit. The parameters
    have the names of the official code, so that its weights load by name.

    What differs from the paper: nothing. (Epsilon is within both roots, as there; the official code
    adds it to the mean of the squares of s, instead of to their sum, and offers L1 norms too.)

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        epsilon: What keeps the division finite.
        spatial_dims: 1, 2 or 3.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> gct, x = GCT(64), torch.randn(2, 64, 7, 7)
        >>> gct.gate(x).shape, torch.equal(gct(x), x)
        (torch.Size([2, 64, 1, 1]), True)
    """

    def __init__(
        self,
        channels: int,
        epsilon: float = 1e-5,
        *,
        spatial_dims: int = 2,
    ):
        super().__init__()
        whole("channels", channels)
        choice("spatial_dims", spatial_dims, tuple(CONV))
        shape = (1, channels, *[1] * spatial_dims)
        self.epsilon: float = positive("epsilon", epsilon)
        self.dims = list(range(2, 2 + spatial_dims))
        self.longest = channels**0.5
        self.alpha = nn.Parameter(torch.ones(shape))
        self.gamma = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a pickled state, of earlier versions, too."""
        super().__setstate__(state)
        self.longest = self.alpha.shape[1] ** 0.5

    def gate(self, x: Tensor) -> Tensor:
        """Compute the factors for ``x``: ``(N, C, *spatial)`` -> ``(N, C, 1, ...)``."""
        batch = batched(x, len(self.dims))
        s = self.alpha * self._root(torch.linalg.vector_norm(batch, 2.0, self.dims, keepdim=True))
        size = self._root(torch.linalg.vector_norm(s, 2.0, [1], keepdim=True))
        normed = s * self.longest / size
        gate = 1 + torch.tanh(self.gamma * normed + self.beta)
        return unbatched(gate, x, len(self.dims))

    def _root(self, norm: Tensor) -> Tensor:
        """Compute sqrt(norm^2 + epsilon) without the square, which overflows in half precision."""
        root = torch.full_like(norm, self.epsilon**0.5)
        return torch.linalg.vector_norm(torch.stack([norm, root]), 2.0, [0])

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        return x * self.gate(x).to(x.dtype)

    def extra_repr(self) -> str:
        """Name what there are no children for."""
        return f"{self.alpha.shape[1]}, epsilon={self.epsilon}"
