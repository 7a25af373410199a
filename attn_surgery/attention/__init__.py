"""The attention modules: ``(N, C, *spatial)`` to the same shape, by registered name."""

from .cbam import CBAM, ChannelAttention, SpatialAttention
from .registry import available, build, check_options, get_builder, register
from .se import SE

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
