"""Source text that becomes a function, where inspect, TorchScript and tracebacks find its text."""

from __future__ import annotations

import functools
import hashlib
import linecache
import types
from typing import Any

GENERATED = "<attn_surgery "
"""How the file names of generated functions begin."""


def compiled(source: str, known: dict[str, Any], name: str) -> Any:
    """Compile ``source`` and return the function that it calls ``name``.

    Args:
        source: The text.
        known: The globals.
        name: The function.
    """
    filename = noted(source)
    # until 2.14, torch.compile looks globals up in the module that a __name__ among them names
    scope = dict(known)
    exec(_code(source, filename), scope)
    function = scope[name]
    function.__module__ = __name__
    return function


def noted(source: str) -> str:
    """Let `linecache` know a text, and return the name of the file that it stands in there."""
    filename = f"{GENERATED}{hashlib.sha1(source.encode()).hexdigest()[:16]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return filename


@functools.lru_cache(maxsize=1024)
def _code(source: str, filename: str) -> Any:
    return compile(source, filename, "exec")


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
