"""Eager mode without its own ways: what attention computes where somebody looks at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.overrides import BaseTorchFunctionMode

Result = TypeVar("Result")


def plainly(call: Callable[..., Result], *args: object) -> Result:
    """Call something step by step: a mode sees all that it does."""
    with BaseTorchFunctionMode():
        return call(*args)
