"""How an attention is built, checked and registered.

The pieces that several share (gates, options, batches of any size), the identity start for those
that have none, the registry, and what timm brings.
"""

from attn_surgery.attention.construction.batch_dims import batched, is_empty, std_mean, unbatched
from attn_surgery.attention.construction.building import build
from attn_surgery.attention.construction.few_channels import convolved
from attn_surgery.attention.construction.from_timm import TIMM
from attn_surgery.attention.construction.gate import (
    BATCH_NORM,
    CONV,
    INITS,
    ChannelGate,
    hidden_width,
    sigmoid_gate,
)
from attn_surgery.attention.construction.maxima import maximum_over_channels
from attn_surgery.attention.construction.options import choice, flag, positive, whole
from attn_surgery.attention.construction.ordinary import is_bound, is_untouched
from attn_surgery.attention.construction.passes import (
    NO_POOL,
    POOLS,
    Described,
    Pooled,
    Scaled,
    described,
    has_passes,
    in_parts,
    is_taken_whole,
    pool_each,
    pooled,
)
from attn_surgery.attention.construction.registry import (
    Entry,
    available,
    check_options,
    entry,
    get_builder,
    register,
)

__all__ = [
    "BATCH_NORM",
    "CONV",
    "INITS",
    "NO_POOL",
    "POOLS",
    "TIMM",
    "ChannelGate",
    "Described",
    "Entry",
    "Pooled",
    "Scaled",
    "available",
    "batched",
    "build",
    "check_options",
    "choice",
    "convolved",
    "described",
    "entry",
    "flag",
    "get_builder",
    "has_passes",
    "hidden_width",
    "in_parts",
    "is_bound",
    "is_empty",
    "is_taken_whole",
    "is_untouched",
    "maximum_over_channels",
    "pool_each",
    "pooled",
    "positive",
    "register",
    "sigmoid_gate",
    "std_mean",
    "unbatched",
    "whole",
]
