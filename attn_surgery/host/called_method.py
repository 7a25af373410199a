"""What calling a module runs, and which arguments a caller may pass.

It is ``forward``, but for classes with a ``__call__`` of their own, which is that of no hooks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from attn_surgery.host.bytecode import signature

MAX_WAYS = 8
"""How many choices of arguments are tried."""


def entry_name(cls: type[nn.Module]) -> str:
    """Return the name of the method that calling a module of this class runs."""
    if cls.__call__ is nn.Module.__call__:
        return "forward"
    home = getattr(cls.__call__, "__module__", None) or ""
    return "forward" if home.partition(".")[0] == "torch" else "__call__"


def entry(module: nn.Module) -> Callable[..., Any]:
    """Return the method that calling the module runs, hooks apart."""
    return getattr(module, entry_name(type(module)))


def has_entry(module: nn.Module) -> bool:
    """Tell whether the module can be called at all."""
    if entry_name(type(module)) != "forward" or "forward" in vars(module):
        return True
    return type(module).forward is not nn.Module.forward


def parameters_of(module: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of the module's entry."""
    return list(signature(entry(module)).parameters.values())


def ways(module: nn.Module) -> Iterator[frozenset[str]]:
    """Yield the names of the arguments that somebody may pass, the likeliest choice first.

    It is not known which of the optional ones is the picture: after those that are required, or
    the first where none is, each that defaults to None is tried along with them.
    """
    named = [each for each in parameters_of(module) if each.kind is not each.VAR_KEYWORD]
    required = frozenset(each.name for each in named if _is_required(each, len(named)))
    optional = [each.name for each in named if each.default is not each.empty]
    yield required or frozenset(optional[:1])
    absent = [each.name for each in named if each.default is None]
    if not required:
        absent = [name for name in absent if name != optional[0]]
    for name in absent[: MAX_WAYS - 1]:
        yield required | {name}


def is_only_optional(module: nn.Module) -> bool:
    """Tell whether a caller need not pass any argument."""
    named = [each for each in parameters_of(module) if each.kind is not each.VAR_KEYWORD]
    return not any(_is_required(each, len(named)) for each in named)


def _is_required(parameter: inspect.Parameter, count: int) -> bool:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return count == 1
    return parameter.default is parameter.empty
