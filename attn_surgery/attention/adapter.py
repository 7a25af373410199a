"""Residual adapters: a small linear map of the features, added to them."""

from torch import Tensor, nn

from attn_surgery.attention.construction import (
    CONV,
    INITS,
    choice,
    hidden_width,
    register,
    whole,
)

KINDS = ("bottleneck", "channel")


@register(
    "adapter",
    paper="Rebuffi et al. 2018, arXiv:1803.10082; Li et al. 2022, arXiv:2107.00358",
    dims=(1, 2, 3),
)
class Adapter(nn.Module):
    """Residual adapter in series (after Rebuffi et al. 2018, arXiv:1803.10082).

    ``out = x - A(x)``, A linear and the same for every input. ``bottleneck``:
    ``A(x) = W2 W1 x + b``, 1x1 convolutions C -> C / r -> C (``down``, ``up``): the paper's 1x1
    adapter of a low rank. ``channel``: one k x k filter for each channel, and a bias, after the
    per-channel adapters of Li et al. 2022 (arXiv:2107.00358), which are those of k = 1.

    What differs from the papers: they add A(x), to which the sign of the last weights is the only
    difference; they have one C x C matrix instead of two of a low rank, no biases, and Rebuffi et
    al. a batch norm. It is subtracted because the last layer, its bias too, starts at zero
    (``init="identity"``): A(x) is 0.0 then, and x - 0.0 is x, bit for bit, where -0.0 + 0.0 is not.
    With ``init="paper"`` the layers start as PyTorch starts them.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        kind: ``bottleneck`` or ``channel``.
        reduction: r: the bottleneck has C / r channels, rounded down, 1 at least.
        kernel_size: k of the filters of ``channel``, odd.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> import torch
        >>> adapter, x = Adapter(64), torch.randn(2, 64, 7, 7)
        >>> adapter.down.out_channels, torch.equal(adapter(x), x)
        (4, True)
        >>> sum(p.numel() for p in Adapter(64, kind="channel").parameters())
        640
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        kind: str = "bottleneck",
        kernel_size: int = 3,
        spatial_dims: int = 2,
        init: str = "identity",
    ):
        super().__init__()
        whole("channels", channels)
        whole("kernel_size", kernel_size, odd=True)
        conv = CONV[choice("spatial_dims", spatial_dims, tuple(CONV))]
        hidden = hidden_width(channels, reduction, None, 1)
        if choice("kind", kind, KINDS) == "bottleneck":
            self.down = conv(channels, hidden, 1, bias=False)
            self.up = conv(hidden, channels, 1)
        else:
            same = kernel_size // 2
            self.down = nn.Identity()
            self.up = conv(channels, channels, kernel_size, padding=same, groups=channels)
        if choice("init", init, INITS) == "identity":
            for parameter in self.up.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the linear map: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        # The bias, added last, makes a 0.0 of a -0.0: the sign of a sum of zeros is not defined.
        return x - self.up(self.down(x)).to(x.dtype)
