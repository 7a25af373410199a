"""A function under another name."""

from __future__ import annotations

import types
from typing import Any


def renamed(function: Any, name: str) -> Any:
    """Copy a function under another name: TorchScript goes by the name that it bears.

    Example:
        >>> renamed(lambda: 1, "one").__name__
        'one'
    """
    if not isinstance(function, types.FunctionType):
        return function
    twin = types.FunctionType(
        function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    twin.__annotations__ = function.__annotations__
    twin.__module__ = function.__module__
    return twin
