"""Values that a trace may keep: numbers, words and the like, which nobody changes in place."""

from __future__ import annotations

import enum
from typing import Any

import torch

_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
    torch.memory_format,
    enum.Enum,
)


def is_plain(value: Any) -> bool:
    """Tell whether a value is a number, a word or the like, or a tuple of such."""
    if isinstance(value, tuple):
        return all(is_plain(each) for each in value)
    if isinstance(value, slice):
        return all(is_plain(each) for each in (value.start, value.stop, value.step))
    return value is Ellipsis or isinstance(value, _PLAIN)
