"""The attention modules: ``(N, C, *spatial)`` to the same shape, by registered name."""

from attn_surgery.attention.cbam import CBAM, ChannelAttention, SpatialAttention
from attn_surgery.attention.registry import available, build, check_options, get_builder, register
from attn_surgery.attention.se import SE

__all__ = [
    "CBAM",
    "SE",
    "ChannelAttention",
    "SpatialAttention",
    "available",
    "build",
    "check_options",
    "get_builder",
    "register",
]
