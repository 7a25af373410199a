"""What calling a value runs, whose it is, and what it goes by."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

PURE_HOMES = frozenset(
    "torch math operator _operator functools _functools itertools typing collections einops".split()
)
"""The packages whose functions a trace shows."""
PURE_BUILTINS = frozenset(
    "abs all any bool dict enumerate filter float frozenset int len list map max min pow range "
    "reversed round set slice sorted str sum super tuple zip Ellipsis getattr".split()
)


def is_at_home(value: Any) -> bool:
    """Tell whether ``value`` belongs to torch or to the pure part of the standard library."""
    home = getattr(value, "__module__", None)
    if home is None:  # torch.add and its like are methods of a class that has a module
        home = getattr(getattr(value, "__self__", None), "__module__", None)
    return (home or "").partition(".")[0] in PURE_HOMES


def functions_in(value: Any) -> Iterator[types.FunctionType]:
    """Yield the Python functions that calling ``value`` runs."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, property) and value.fget is not None:
        yield from functions_in(value.fget)
    elif isinstance(value, functools.cached_property):
        yield from functions_in(value.func)
    elif isinstance(value, (staticmethod, classmethod)):
        yield from functions_in(value.__func__)
    elif not isinstance(value, (type, nn.Module)):
        called = getattr(type(value), "__call__", None)  # noqa: B004
        if isinstance(called, types.FunctionType):
            yield called


def has_state(value: Any) -> bool:
    """Tell whether calling an object, or a method of one, goes by what the object holds."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, types.MethodType):
        value = value.__self__
    elif not isinstance(getattr(type(value), "__call__", None), types.FunctionType):  # noqa: B004
        return False
    if isinstance(value, (nn.Module, type)) or is_at_home(type(value)):
        return False
    return bool(getattr(value, "__dict__", None)) or hasattr(type(value), "__slots__")


def is_opaque(value: Any) -> bool:
    """Tell whether calling a value runs what is written in C and not known to go by nothing else.

    Such as ``random.random``, the ``get`` of a dictionary, or ``datetime``; not ``torch.relu``.
    """
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, type):
        return any(_is_written_in_c(cls) for cls in value.__mro__)
    if isinstance(value, nn.Module) or any(functions_in(value)):
        return False
    owner = getattr(value, "__self__", None)
    if not isinstance(owner, (type, types.ModuleType, types.NoneType)):
        return True
    if getattr(value, "__module__", None) == "builtins":
        return getattr(value, "__name__", None) not in PURE_BUILTINS
    return not is_at_home(value)


def _is_written_in_c(cls: type) -> bool:
    if is_at_home(cls) or cls.__module__ == "builtins":
        return False
    return any(isinstance(each, _IN_C) for each in vars(cls).values())


_IN_C = (types.MethodDescriptorType, types.WrapperDescriptorType)


def scope_of(function: types.FunctionType) -> dict[str, Any]:
    """Return what the names that are not a function's own stand for."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closure = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    return {**function.__globals__, **closure}


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
