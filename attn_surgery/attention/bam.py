"""The bottleneck attention module."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from attn_surgery.attention.construction import (
    BATCH_NORM,
    CONV,
    INITS,
    batched,
    choice,
    hidden_width,
    register,
    unbatched,
    whole,
)

COMBINATIONS = ("sum", "product")


@register("bam", paper="Park et al. 2018, arXiv:1807.06514", dims=(1, 2, 3))
class BAM(nn.Module):
    """Bottleneck attention (Park et al. 2018, arXiv:1807.06514, section 3, eq. 1 to 4).

    ``out = x + x * M(x)`` (eq. 1) with ``M(x) = sigmoid(M_c(x) + M_s(x))`` (eq. 2), both maps
    broadcast to the shape of x. M_c, one number per channel, is a two-layer MLP on the mean over
    space; M_s, one number per position, is a 1x1 convolution to the reduced width, two dilated 3x3
    convolutions and a 1x1 convolution to a single map. The children have the names of the official
    code, so that its weights load by name.

    What differs from the paper: eq. 3 and 4 end in a batch norm, while the official code (whose
    parameter counts these are) has batch norm and ReLU after every layer but the last. That code
    also multiplies the two maps, ``sigmoid(M_c(x) * M_s(x))``: ``combine="product"``. The paper
    puts BAM between stages: at a residual block it acts on the branch alone.

    With ``init="identity"`` the gate is ``2 sigmoid(...)`` instead of ``1 + sigmoid(...)``, and the
    last layers start at zero (of ``combine="product"``, the spatial one).

    Its batch norms refuse to train on a batch of one.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        reduction: The paper's r: both branches are C / r wide, rounded down, 1 at least.
        dilation: The paper's d, of the 3x3 convolutions.
        combine: ``sum`` (the paper's equation) or ``product`` (the official code).
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> bam, x = BAM(256), torch.randn(2, 256, 7, 7)
        >>> sum(p.numel() for p in bam.parameters()), torch.equal(bam(x), x)
        (17361, True)
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        dilation: int = 4,
        combine: str = "sum",
        spatial_dims: int = 2,
        init: str = "identity",
    ):
        super().__init__()
        whole("channels", channels)
        whole("dilation", dilation)
        choice("spatial_dims", spatial_dims, tuple(CONV))
        hidden = hidden_width(channels, reduction, None, divisor=1)
        self.combine: str = choice("combine", combine, COMBINATIONS)
        self.init: str = choice("init", init, INITS)
        self.dims = list(range(2, 2 + spatial_dims))
        self.channel_att = nn.Sequential(OrderedDict(gate_c=_channel_branch(channels, hidden)))
        self.spatial_att = nn.Sequential(
            OrderedDict(gate_s=_spatial_branch(channels, hidden, dilation, spatial_dims))
        )

        if init == "identity":
            self._start_at_identity()

    def _start_at_identity(self) -> None:
        last = [self.spatial_att.get_submodule("gate_s.gate_s_conv_final")]
        if self.combine == "sum":  # of a product of two zeros, neither would learn
            last.append(self.channel_att.get_submodule("gate_c.gate_c_fc_final"))
        for parameter in (each for layer in last for each in layer.parameters()):
            nn.init.zeros_(parameter)

    def logits(self, x: Tensor) -> Tensor:
        """Compute the two maps as one: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        batch = batched(x, len(self.dims))
        channel = self.channel_att(batch.mean(self.dims))  # (N, C)
        for _ in self.dims:
            channel = channel.unsqueeze(-1)
        spatial = self.spatial_att(batch)  # (N, 1, *spatial)
        both = channel + spatial if self.combine == "sum" else channel * spatial
        return unbatched(both, x, len(self.dims))

    def gate(self, x: Tensor) -> Tensor:
        """Compute the factors for ``x``: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        if self.init == "identity":
            return 2 * torch.sigmoid(self.logits(x))
        return 1 + torch.sigmoid(self.logits(x))

    def forward(self, x: Tensor) -> Tensor:
        """Scale every element: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``."""
        return x * self.gate(x)

    def extra_repr(self) -> str:
        """Name what the children do not show."""
        return f"combine={self.combine}, init={self.init}"


def _channel_branch(channels: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            gate_c_fc_0=nn.Linear(channels, hidden),
            gate_c_bn_1=nn.BatchNorm1d(hidden),
            gate_c_relu_1=nn.ReLU(),
            gate_c_fc_final=nn.Linear(hidden, channels),
        )
    )


def _spatial_branch(channels: int, hidden: int, dilation: int, spatial_dims: int) -> nn.Module:
    conv, norm = CONV[spatial_dims], BATCH_NORM[spatial_dims]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        gate_s_conv_reduce0=conv(channels, hidden, 1),
        gate_s_bn_reduce0=norm(hidden),
        gate_s_relu_reduce0=nn.ReLU(),
    )
    for index in range(2):
        layers[f"gate_s_conv_di_{index}"] = conv(
            hidden, hidden, 3, padding=dilation, dilation=dilation
        )
        layers[f"gate_s_bn_di_{index}"] = norm(hidden)
        layers[f"gate_s_relu_di_{index}"] = nn.ReLU()
    layers["gate_s_conv_final"] = conv(hidden, 1, 1)
    return nn.Sequential(layers)
