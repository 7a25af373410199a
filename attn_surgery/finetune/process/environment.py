"""Where and with what something was measured."""

from __future__ import annotations

import platform
import time
from typing import Any

import torch

from attn_surgery.reporting import command, device_name
from attn_surgery.version import installed

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "attn-surgery")


def environment(accelerator: Any) -> dict[str, Any]:
    """Return versions, device, threads, processes, date and command, as plain data."""
    return {
        "python": platform.python_version(),
        **{name: installed(name) for name in PACKAGES},
        "device": device_name(accelerator.device),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "date": time.strftime("%Y-%m-%d"),
        "command": command(),
    }
