"""Squeeze-and-excitation."""

from attn_surgery.attention.construction import NO_POOL, POOLS, ChannelGate, choice, register


@register("se", paper="Hu et al. 2018, arXiv:1709.01507", dims=(1, 2, 3))
class SE(ChannelGate):
    """Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507, section 3).

    Squeeze, eq. 2: ``z = mean of x over space``. Excitation, eq. 3:
    ``s = sigmoid(W2 relu(W1 z))``. Scale, eq. 4: ``out = s * x``. W1 is ``fc1`` and W2 ``fc2``,
    1x1 convolutions whose weights load from and into timm's ``SEModule`` and torchvision's
    ``SqueezeExcitation`` by name.

    What differs from the paper: eq. 3 has no biases, while the published code and parameter counts
    do, and so does this module unless ``bias=False``. With ``init="identity"`` the gate is
    ``s = 2 sigmoid(...)`` and ``fc2`` starts at zero: the output is x, bit for bit, until the first
    step. (With ``bias=False`` and a single hidden unit, that unit can start dead, and then nothing
    is learned.) With ``init="paper"`` both layers start as PyTorch starts them.

    Shapes: ``(N, C, *spatial)`` -> ``(N, C, *spatial)``.

    Args:
        channels: C.
        reduction: The paper's r: the hidden layer has C / r channels, rounded down, 1 at least.
        hidden_channels: The hidden width itself, instead of ``reduction`` and ``divisor``.
        divisor: Round the hidden width to a multiple of this, as timm's ``SEModule`` does (with 8).
        bias: Whether ``fc1`` and ``fc2`` have biases.
        pool: The squeeze: ``avg`` (the paper's choice), ``max``, ``lp`` or ``lse``; ``none`` for
            the paper's control NoSqueeze, in which each position has a gate of its own, by the
            same parameters.
        spatial_dims: 1, 2 or 3.
        init: ``identity`` or ``paper``.

    Raises:
        SurgeryError: If an option has an impossible value.

    Example:
        >>> import torch
        >>> se, x = SE(64), torch.randn(2, 64, 7, 7)
        >>> se.fc1.out_channels, torch.equal(se(x), x)
        (4, True)
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        hidden_channels: int | None = None,
        divisor: int = 1,
        bias: bool = True,
        pool: str = "avg",
        spatial_dims: int = 2,
        init: str = "identity",
    ):
        super().__init__(
            channels,
            reduction,
            hidden_channels=hidden_channels,
            divisor=divisor,
            bias=bias,
            pools=[choice("pool", pool, (*POOLS, NO_POOL))],
            spatial_dims=spatial_dims,
            init=init,
        )
