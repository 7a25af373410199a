"""The attention modules: ``(N, C, *spatial)`` to the same shape, by registered name."""

from attn_surgery.attention.building import build
from attn_surgery.attention.cbam import CBAM, ChannelAttention, SpatialAttention
from attn_surgery.attention.registry import (
    Entry,
    available,
    check_options,
    entry,
    get_builder,
    register,
)
from attn_surgery.attention.se import SE

__all__ = [
    "CBAM",
    "SE",
    "ChannelAttention",
    "Entry",
    "SpatialAttention",
    "available",
    "build",
    "check_options",
    "entry",
    "get_builder",
    "register",
]
