"""How long a pass takes, measured: host and variants in turn within one run."""

from attn_surgery.reporting.measuring.conditions import (
    Conditions,
    accelerator,
    checked_device,
    checked_dtype,
    device_name,
)
from attn_surgery.reporting.measuring.latency import measure
from attn_surgery.reporting.measuring.statistics import Timing

__all__ = [
    "Conditions",
    "Timing",
    "accelerator",
    "checked_device",
    "checked_dtype",
    "device_name",
    "measure",
]
