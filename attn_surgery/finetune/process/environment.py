"""Where and with what something was measured."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from typing import Any

import torch

from attn_surgery.reporting import command, device_name

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "attn-surgery")


def environment(accelerator: Any) -> dict[str, Any]:
    """Return versions, device, threads, processes, date and command, as plain data."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": device_name(accelerator.device),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "date": time.strftime("%Y-%m-%d"),
        "command": command(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
