"""The attention modules: ``(N, C, *spatial)`` to the same shape, by registered name."""

from attn_surgery.attention.adapter import Adapter
from attn_surgery.attention.bam import BAM
from attn_surgery.attention.cbam import CBAM, ChannelAttention, SpatialAttention
from attn_surgery.attention.construction import (
    INITS,
    TIMM,
    Entry,
    available,
    build,
    check_options,
    entry,
    get_builder,
    register,
)
from attn_surgery.attention.gct import GCT
from attn_surgery.attention.scale import Scale
from attn_surgery.attention.scse import SCSE
from attn_surgery.attention.se import SE
from attn_surgery.attention.sge import SGE
from attn_surgery.attention.simam import SimAM
from attn_surgery.attention.srm import SRM
from attn_surgery.attention.triplet import TripletAttention

__all__ = [
    "BAM",
    "CBAM",
    "GCT",
    "INITS",
    "SCSE",
    "SE",
    "SGE",
    "SRM",
    "TIMM",
    "Adapter",
    "ChannelAttention",
    "Entry",
    "Scale",
    "SimAM",
    "SpatialAttention",
    "TripletAttention",
    "available",
    "build",
    "check_options",
    "entry",
    "get_builder",
    "register",
]
