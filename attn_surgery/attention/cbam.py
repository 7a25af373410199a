"""The convolutional block attention module, and each of its halves."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # pyright: ignore[reportPrivateImportUsage]

from attn_surgery.attention.construction import (
    BATCH_NORM,
    CONV,
    INITS,
    ChannelGate,
    Described,
    Pooled,
    Scaled,
    batched,
    choice,
    convolved,
    described,
    flag,
    has_passes,
    in_parts,
    is_bound,
    is_taken_whole,
    is_untouched,
    maximum_over_channels,
    pool_each,
    pooled,
    register,
    sigmoid_gate,
    unbatched,
    whole,
)

CHANNEL_ORDERS = ("max_mean", "mean_max")
ORDERS = ("channel_first", "spatial_first", "parallel")
_SMALL = 1 << 16
"""Elements of a batch, below which backward in torch's own steps takes less than in passes."""


@register("cam", paper="Woo et al. 2018, arXiv:1807.06521, eq. 2", dims=(1, 2, 3))
class ChannelAttention(ChannelGate):
    """CBAM's channel attention (Woo et al. 2018, arXiv:1807.06521, section 3, eq. 2).

    ``out = M_c(x) * x`` with ``M_c(x) = sigmoid(MLP(avgpool(x)) + MLP(maxpool(x)))`` and one MLP,
    ``W1 relu(W0 .)``, for both pools. W0 is ``fc1`` and W1 ``fc2``, 1x1 convolutions as in timm's
    ``ChannelAttn``.

    What differs from the paper: eq. 2 has no biases, while the official code and parameter counts
    do, and so does this module unless ``bias=False``. With ``init="identity"`` the gate is
    ``2 sigmoid(...)`` and ``fc2`` starts at zero. With ``init="paper"`` both layers start as
    PyTorch starts them.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        reduction: The paper's r: the hidden layer has C / r channels, rounded down, 1 at least.
        hidden_channels: The hidden width itself, instead of ``reduction`` and ``divisor``.
        divisor: Round the hidden width to a multiple of this.
        bias: Whether ``fc1`` and ``fc2`` have biases.
        pools: Which pools to sum: one or more of ``avg``, ``max``, ``lp``, ``lse``.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> import torch
        >>> cam, x = ChannelAttention(64, pools=("avg", "max", "lse")), torch.randn(2, 64, 7, 7)
        >>> cam.gate(x).shape, torch.equal(cam(x), x)
        (torch.Size([2, 64, 1, 1]), True)
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        divisor: int = 1,
        bias: bool = True,
        pools: Sequence[str] = ("avg", "max"),
        spatial_dims: int = 2,
        init: str = "identity",
    ):
        super().__init__(
            channels,
            reduction,
            hidden_channels=hidden_channels,
            divisor=divisor,
            bias=bias,
            pools=pools,
            spatial_dims=spatial_dims,
            init=init,
        )


@register("sam", paper="Woo et al. 2018, arXiv:1807.06521, eq. 3", dims=(1, 2, 3))
class SpatialAttention(nn.Module):
    """CBAM's spatial attention (Woo et al. 2018, arXiv:1807.06521, section 3, eq. 3).

    ``out = M_s(x) * x`` with ``M_s(x) = sigmoid(f([mean; max]))``: mean and maximum over the
    channels, concatenated, and one k x k convolution f to a single map. The children have the
    names of timm's ``SpatialAttn``, ``conv.conv`` and ``conv.bn``.

    What differs from the paper: eq. 3 has neither norm nor bias and puts the mean first; the
    official code, which gave the published numbers, puts the maximum first and a batch norm
    (momentum 0.01) after a convolution without bias. ``norm=False, channel_order="mean_max"`` is
    the other published convention, a convolution with bias. With ``init="identity"`` the gate is
    ``2 sigmoid(...)``. The batch norm's weight starts at zero for both inits, as in the official
    code: that norm alone learns in the first step. Without the norm, the convolution starts at zero
    for ``identity``, and as PyTorch starts it for ``paper``.

    A batch norm refuses to train on a single value: on a batch of one with a 1 x 1 map, use
    ``norm=False``.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C; unused, as the module does not depend on it.
        kernel_size: k, odd.
        norm: Batch norm after a convolution without bias (True), or a convolution with bias.
        channel_order: ``max_mean`` or ``mean_max``: which map is the convolution's first channel.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> import torch
        >>> sam, x = SpatialAttention(64), torch.randn(2, 64, 7, 7)
        >>> sam.gate(x).shape, torch.equal(sam(x), x)
        (torch.Size([2, 1, 7, 7]), True)
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        *,
        norm: bool = True,
        channel_order: str = "max_mean",
        spatial_dims: int = 2,
        init: str = "identity",
    ):
        super().__init__()
        whole("channels", channels)
        whole("kernel_size", kernel_size, odd=True)
        conv = CONV[choice("spatial_dims", spatial_dims, tuple(CONV))]
        self.channel_order: str = choice("channel_order", channel_order, CHANNEL_ORDERS)
        self.init: str = choice("init", init, INITS)
        bias = not flag("norm", norm)
        layers = OrderedDict(conv=conv(2, 1, kernel_size, padding=kernel_size // 2, bias=bias))
        if norm:
            layers["bn"] = BATCH_NORM[spatial_dims](1, eps=1e-5, momentum=0.01)
            nn.init.zeros_(layers["bn"].weight)
        elif init == "identity":
            nn.init.zeros_(layers["conv"].weight)
            nn.init.zeros_(layers["conv"].bias)
        self.conv = nn.Sequential(layers)

    def gate(self, x: Tensor) -> Tensor:
        """Compute the factors for ``x``: ``(N, C, *spatial)`` -> ``(N, 1, *spatial)``."""
        # counted here, as modules that were pickled by earlier versions do not know it
        spatial_dims = len(self.conv[0].kernel_size)  # type: ignore[arg-type]
        batch = batched(x, spatial_dims)
        told = self.describe(batch, batch.amax(1, keepdim=True))
        return unbatched(self.gate_of(told), x, spatial_dims)

    def describe(self, batch: Tensor, maximum: Tensor) -> Tensor:
        """Join maximum and mean over channels as the convolution has them, ``(N, 2, *spatial)``."""
        return described(batch, maximum, mean_first=self.channel_order == "mean_max")

    def gate_of(self, told: Tensor) -> Tensor:
        """Compute the factors from what the channels were described by.

        ``(N, 2, *spatial)``, maximum and mean in the order of the convolution's channels, ->
        ``(N, 1, *spatial)``.
        """
        return sigmoid_gate(self.conv(told), self.init)

    def forward(self, x: Tensor) -> Tensor:
        """Scale every position: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        return x * self.gate(x)

    def extra_repr(self) -> str:
        """Name what the children do not show."""
        return f"channel_order={self.channel_order}, init={self.init}"


_GATE, _GATE_OF = SpatialAttention.gate, SpatialAttention.gate_of
_DESCRIBE = SpatialAttention.describe


@register("cbam", paper="Woo et al. 2018, arXiv:1807.06521", dims=(1, 2, 3))
class CBAM(nn.Module):
    """Convolutional block attention (Woo et al. 2018, arXiv:1807.06521, section 3, eq. 1 to 3).

    ``x' = M_c(x) * x`` (``ChannelAttention``, eq. 2), then ``out = M_s(x') * x'``
    (``SpatialAttention``, eq. 3). The defaults are those of the official code: biased MLP, batch
    norm in the spatial half, maximum before mean. The other published convention, the equations to
    the letter but for the convolution's bias, is ``bias=False, spatial_norm=False,
    channel_order="mean_max"``. The children have the names of timm's ``CbamModule``, so that
    weights load from and into it.

    What differs from the paper: ``order="parallel"`` computes both maps from x and multiplies by
    both, ``M_c(x) * M_s(x) * x``; the paper measures a parallel arrangement without an equation for
    it. For the two inits and biases, see the halves.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        reduction: The paper's r: the MLP's hidden layer has C / r channels, rounded down, 1 at
            least.
        hidden_channels: The hidden width itself, instead of ``reduction`` and ``divisor``.
        divisor: Round the hidden width to a multiple of this.
        bias: Whether the MLP has biases.
        pools: The pools of the channel half: one or more of ``avg``, ``max``, ``lp``, ``lse``.
        kernel_size: The spatial half's k, odd.
        spatial_norm: Batch norm after the spatial half's convolution, instead of a bias in it.
        channel_order: ``max_mean`` or ``mean_max``, in the spatial half.
        order: ``channel_first`` (the paper's best), ``spatial_first`` or ``parallel``.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` (the output is x, bit for bit, until the first step) or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> import torch
        >>> cbam, x = CBAM(64), torch.randn(2, 64, 7, 7)
        >>> sum(p.numel() for p in cbam.parameters()), torch.equal(cbam(x), x)
        (680, True)
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        divisor: int = 1,
        bias: bool = True,
        pools: Sequence[str] = ("avg", "max"),
        kernel_size: int = 7,
        spatial_norm: bool = True,
        channel_order: str = "max_mean",
        order: str = "channel_first",
        spatial_dims: int = 2,
        init: str = "identity",
    ):
        super().__init__()
        self.order: str = choice("order", order, ORDERS)
        self.channel = ChannelAttention(
            channels,
            reduction,
            hidden_channels=hidden_channels,
            divisor=divisor,
            bias=bias,
            pools=pools,
            spatial_dims=spatial_dims,
            init=init,
        )
        self.spatial = SpatialAttention(
            channels,
            kernel_size,
            norm=flag("spatial_norm", spatial_norm),
            channel_order=channel_order,
            spatial_dims=spatial_dims,
            init=init,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale channels and positions: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        if not is_scripting():  # noqa: SIM102 - TorchScript compiles what is in one condition
            if self._may_rearrange(x):
                return self._rearranged(x)
        if self.order == "channel_first":
            return self.spatial(self.channel(x))
        if self.order == "spatial_first":
            return self.channel(self.spatial(x))
        return x * self.channel.gate(x) * self.spatial.gate(x)

    def _may_rearrange(self, x: Tensor) -> bool:
        channel, spatial = self.channel, self.spatial
        return (
            self.order == "channel_first"
            and isinstance(channel, ChannelAttention)
            and channel.may_rearrange(x)
            and has_passes(x, channel.pools)
            and is_untouched(channel, ChannelAttention)
            and is_untouched(spatial, SpatialAttention)
            and is_bound(spatial.gate, _GATE)
            and is_bound(spatial.gate_of, _GATE_OF)
            and is_bound(spatial.describe, _DESCRIBE)
        )

    def _rearranged(self, x: Tensor) -> Tensor:
        channel, spatial = self.channel, self.spatial
        mean_first = spatial.channel_order == "mean_max"
        if not torch.is_grad_enabled():
            by = channel.gate_of_ordinary(pooled(x, channel.pools, channel.dims))
            return _in_place(x, by, spatial, mean_first=mean_first)
        if x.numel() < _SMALL:
            scaled = x * channel.gate_of_ordinary(pool_each(x, channel.pools, channel.dims))
            told = described(scaled, scaled.amax(1, keepdim=True), mean_first=mean_first)
            return scaled * _position_gate(told, spatial)
        x, *pools = Pooled.apply(x, channel.pools, channel.dims)
        by = channel.gate_of_ordinary(pools)
        x, told = Described.apply(x, by, mean_first)
        return Scaled.apply(x, by, _position_gate(told, spatial))

    def extra_repr(self) -> str:
        """Name what the children do not show."""
        return f"order={self.order}"


def _in_place(x: Tensor, channel: Tensor, spatial: SpatialAttention, *, mean_first: bool) -> Tensor:
    """Scale a map by its channels' factors, and the scaled map where it lies."""
    if is_taken_whole(x):
        scaled = x * channel
        told = described(scaled, maximum_over_channels(scaled), mean_first=mean_first)
        return scaled.mul_(_position_gate(told, spatial))
    result, told = torch.empty_like(x), []
    for of, by, scaled in in_parts(x, channel, result):
        torch.mul(of, by, out=scaled)
        told.append(described(scaled, maximum_over_channels(scaled), mean_first=mean_first))
    for scaled, at in in_parts(result, _position_gate(torch.cat(told), spatial)):
        scaled.mul_(at)
    return result


def _position_gate(told: Tensor, spatial: SpatialAttention) -> Tensor:
    return sigmoid_gate(convolved(told, spatial.conv), spatial.init)
