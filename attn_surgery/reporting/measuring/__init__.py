"""How long a pass takes, measured: host and variants in turn within one run."""

from attn_surgery.reporting.measuring.conditions import (
    Conditions,
    accelerator,
    checked_device,
    checked_dtype,
    command,
    device_name,
)
from attn_surgery.reporting.measuring.latency import Measurement, measure
from attn_surgery.reporting.measuring.parts import PartTimes, measure_parts
from attn_surgery.reporting.measuring.statistics import Timing

__all__ = [
    "Conditions",
    "Measurement",
    "PartTimes",
    "Timing",
    "accelerator",
    "checked_device",
    "checked_dtype",
    "command",
    "device_name",
    "measure",
    "measure_parts",
]
