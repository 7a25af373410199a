"""What SE and CBAM share: pooling over space, the gate, the gated MLP."""

from typing import Any

import torch
from timm.layers.helpers import make_divisible
from torch import Tensor, nn
from torch.jit import is_scripting  # pyright: ignore[reportPrivateImportUsage]

from attn_surgery.attention.construction.batch_dims import batched, unbatched
from attn_surgery.attention.construction.options import choice, flag, whole
from attn_surgery.attention.construction.ordinary import is_bound, is_ordinary
from attn_surgery.attention.construction.passes import (
    NO_POOL,
    POOLS,
    Pooled,
    Scaled,
    has_passes,
    pool_each,
)
from attn_surgery.attention.construction.pointwise import POINTWISE, mlp_of_pools
from attn_surgery.errors import SurgeryError

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INITS = ("identity", "paper")
_SMALL = 1 << 17
"""Elements of a map, below which a step costs what a pass over the map does."""


def sigmoid_gate(logits: Tensor, init: str) -> Tensor:
    """Turn logits into the factor that scales the map: the papers' sigmoid, or twice it.

    The factor of an identity start lies in (0, 2) and is exactly 1 for zero logits, in every
    dtype, as ``sigmoid(0)`` is exactly 0.5.

    Example:
        >>> sigmoid_gate(torch.zeros(1), "identity"), sigmoid_gate(torch.zeros(1), "paper")
        (tensor([1.]), tensor([0.5000]))
    """
    gate = torch.sigmoid(logits)
    return gate + gate if init == "identity" else gate  # a sum is faster than a number's product


class ChannelGate(nn.Module):
    """A gate per channel: an MLP on the pooled map, which SE and CBAM's channel attention share.

    The MLP's layers are 1x1 convolutions called ``fc1`` and ``fc2``, as in timm and torchvision,
    so that their weights load by name. Several pools go through the same MLP and their outputs
    are summed, before one sigmoid.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        reduction: C divided by the hidden width, rounded down, to 1 at least.
        hidden_channels: The hidden width itself, instead of ``reduction`` and ``divisor``.
        divisor: Round C / reduction to a multiple of this, with timm's ``make_divisible``.
        bias: Whether ``fc1`` and ``fc2`` have biases.
        pools: Which pools to sum, of ``avg``, ``max``, ``lp``, ``lse``; or ``none`` alone, which
            gates each position for itself.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.
    """

    def __init__(
        self,
        channels: int,
        reduction: int,
        *,
        hidden_channels: int | None,
        divisor: int,
        bias: bool,
        pools: Any,
        spatial_dims: int,
        init: str,
    ):
        super().__init__()
        whole("channels", channels)
        convolutions = CONV if pools == [NO_POOL] else POINTWISE
        conv = convolutions[choice("spatial_dims", spatial_dims, tuple(CONV))]
        hidden = hidden_width(channels, reduction, hidden_channels, divisor)
        self.init: str = choice("init", init, INITS)
        self.pools: list[str] = [NO_POOL] if pools == [NO_POOL] else pool_list(pools)
        self.dims: list[int] = list(range(-spatial_dims, 0))
        self.fc1 = conv(channels, hidden, 1, bias=flag("bias", bias))
        self.act = nn.ReLU()
        self.fc2 = conv(hidden, channels, 1, bias=bias)
        if init == "identity":
            self._start_at_identity()

    def _start_at_identity(self) -> None:
        nn.init.zeros_(self.fc2.weight)
        if self.fc2.bias is not None:
            nn.init.zeros_(self.fc2.bias)
            return
        # Without a bias, fc2 learns only through hidden units that are alive. Rows in pairs of
        # opposite sign keep half of them alive whatever the map holds (a single unit has no pair).
        half = self.fc1.out_channels // 2
        with torch.no_grad():
            self.fc1.weight[half : 2 * half] = -self.fc1.weight[:half]

    def mlp(self, pooled: Tensor) -> Tensor:
        """Map pooled features ``(N, C, 1, ..., K)``, of K pools, to logits of the same shape."""
        return self.fc2(self.act(self.fc1(pooled)))

    def gate(self, x: Tensor) -> Tensor:
        """Compute the factors for ``x``: ``(N, C, *spatial)`` -> ``(N, C, 1, ...)``."""
        return self.gate_of(pool_each(x, self.pools, self.dims))

    def gate_of(self, pools: list[Tensor]) -> Tensor:
        """Compute the factors from what a map was pooled to, ``(N, C, 1, ...)`` in each way."""
        return sigmoid_gate(self._logits_of(pools), self.init)

    def _logits_of(self, pools: list[Tensor]) -> Tensor:
        x, spatial_dims = pools[0], len(self.dims)
        if not is_scripting():  # noqa: SIM102 - TorchScript compiles what is in one condition
            if is_bound(self.mlp, _MLP):
                logits = mlp_of_pools(pools, self.fc1, self.act, self.fc2)
                if logits is not None:
                    return logits
        each_batched = [batched(each, spatial_dims) for each in pools]
        if len(pools) == 1:
            return unbatched(self.mlp(each_batched[0]), x, spatial_dims)
        # Quantizers follow a layer that is called once, and additions better than a sum.
        several = self.mlp(torch.cat(each_batched, -1))
        logits = several.narrow(-1, 0, 1)
        for i in range(1, len(pools)):
            logits = logits + several.narrow(-1, i, 1)
        return unbatched(logits, x, spatial_dims)

    def may_rearrange(self, x: Tensor) -> bool:
        """Tell whether the steps on a map may be rearranged, and nobody would know."""
        return (
            is_ordinary(x)
            and x.dim() == len(self.dims) + 2
            and x.numel() > 0
            and is_bound(self.gate, _GATE)
            and is_bound(self.gate_of, _GATE_OF)
            and is_bound(self.mlp, _MLP)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        if not is_scripting():  # noqa: SIM102 - TorchScript compiles what is in one condition
            if self.may_rearrange(x):
                return self._rearranged(x)
        return x * self.gate(x)

    def _rearranged(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.numel() >= _SMALL and has_passes(x, self.pools):
            x, *pools = Pooled.apply(x, self.pools, self.dims)
            return Scaled.apply(x, self.gate_of_ordinary(pools), None)
        return x * self.gate_of_ordinary(pool_each(x, self.pools, self.dims))

    def gate_of_ordinary(self, pools: list[Tensor]) -> Tensor:
        """Compute what `gate_of` does, from pools of a map whose steps may be rearranged."""
        logits = mlp_of_pools(pools, self.fc1, self.act, self.fc2, ordinary=True)
        return self.gate_of(pools) if logits is None else sigmoid_gate(logits, self.init)

    def extra_repr(self) -> str:
        """Name what the children do not show."""
        return f"pools={'+'.join(self.pools)}, init={self.init}"


_GATE, _GATE_OF, _MLP = ChannelGate.gate, ChannelGate.gate_of, ChannelGate.mlp


def hidden_width(channels: int, reduction: int, hidden_channels: int | None, divisor: int) -> int:
    """Work out the width of an MLP's hidden layer, 1 at least.

    Raises:
        SurgeryError: If one of the numbers is not a positive ``int``.

    Example:
        >>> [hidden_width(channels, 16, None, divisor=1) for channels in (8, 64, 2048)]
        [1, 4, 128]
        >>> hidden_width(64, 16, None, divisor=8)
        8
    """
    whole("reduction", reduction)
    whole("divisor", divisor)
    if hidden_channels is not None:
        return whole("hidden_channels", hidden_channels)
    if divisor == 1:
        # The papers' own rounding is down; make_divisible rounds to the nearest.
        return max(1, channels // reduction)
    # The reciprocal first, as timm does: the product can round differently from the quotient.
    return make_divisible(channels * (1 / reduction), divisor, round_limit=0.0)


def pool_list(pools: Any) -> list[str]:
    """Check a choice of pools.

    Raises:
        SurgeryError: If it is not a non-empty list or tuple of known pools.
    """
    if not isinstance(pools, list | tuple) or not pools:
        accepted = ", ".join(repr(kind) for kind in POOLS)
        raise SurgeryError(f"pools={pools!r}: must be a list or tuple of one or more of {accepted}")
    return [choice("pools", kind, POOLS) for kind in pools]
