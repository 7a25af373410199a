"""How long a pass takes, measured: host and variants in turn within one run."""

from attn_surgery.reporting.measuring.conditions import (
    Conditions,
    accelerator,
    checked_device,
    checked_dtype,
    command,
    device_name,
)
from attn_surgery.reporting.measuring.copies import copies_of_maps
from attn_surgery.reporting.measuring.latency import Measurement, Timings, measure
from attn_surgery.reporting.measuring.parts import PartTimes, measure_parts
from attn_surgery.reporting.measuring.progress import waiting
from attn_surgery.reporting.measuring.statistics import Timing, added_in_units

__all__ = [
    "Conditions",
    "Measurement",
    "PartTimes",
    "Timing",
    "Timings",
    "accelerator",
    "added_in_units",
    "checked_device",
    "checked_dtype",
    "command",
    "copies_of_maps",
    "device_name",
    "measure",
    "measure_parts",
    "waiting",
]
