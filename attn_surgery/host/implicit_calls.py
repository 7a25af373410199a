"""What Python runs unnamed: operators, truth tests, attributes that a method makes."""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from attn_surgery.host.bytecode import read
from attn_surgery.host.callables import functions_in, is_at_home

_ELSEWHERE = frozenset(
    "__repr__ __str__ __format__ __dir__ __sizeof__ __del__ __copy__ __deepcopy__ __reduce__ "
    "__reduce_ex__ __getstate__ __setstate__ __getnewargs__ __getnewargs_ex__ __init_subclass__ "
    "__class_getitem__ __set_name__ __prepare__ __setattr__ __delattr__".split()
)
"""The methods that no forward goes by."""
_MAKING = frozenset("__new__ __init__ __call__".split())
"""What a module's class has done by the time its forward runs, and that forward itself."""


def implicit_methods(cls: type) -> list[str]:
    """Return the methods of the host's own that code may run without calling them by name.

    Args:
        cls: Of a module, or of what a forward makes, whose own making counts then.

    Example:
        >>> class Table:
        ...     def __getitem__(self, key):
        ...         return 1.0
        >>> "__getitem__" in implicit_methods(Table)
        True
    """
    left_out = _ELSEWHERE | _MAKING if issubclass(cls, nn.Module) else _ELSEWHERE
    names = dict.fromkeys(name for each in _of_host(cls) for name in vars(each))
    return [
        name
        for name in names
        if name.startswith("__") and name.endswith("__") and name not in left_out
    ]


def kept_by(value: Any) -> dict[str, Any]:
    """Return the attributes of a class or a function, those of a class's bases included."""
    homes = reversed(_of_host(value)) if isinstance(value, type) else (value,)
    kept: dict[str, Any] = {}
    for home in homes:
        kept |= {} if is_at_home(home) else vars(home)
    return kept


def methods_of(cls: type, asked: frozenset[str]) -> list[types.FunctionType]:
    """Return the methods of a class that code runs, and those that they call in turn.

    Args:
        cls: A class of the host's; what its operators do counts where it is no module's.
        asked: The names that the code reads.
    """
    found: dict[str, list[types.FunctionType]] = {}
    kept, names = kept_by(cls), set(asked)
    if not issubclass(cls, nn.Module):
        names.update(implicit_methods(cls))
    while new := [name for name in kept if name in names and name not in found]:
        for name in new:
            value = kept[name]
            own = [] if isinstance(value, nn.Module) else list(functions_in(value))
            found[name] = [each for each in own if not _is_generated(each, cls)]
            for function in found[name]:
                names |= read(function.__code__).attributes
    return [function for functions in found.values() for function in functions]


def _of_host(cls: type) -> list[type]:
    return [each for each in cls.__mro__ if each.__module__ != "builtins" and not is_at_home(each)]


def _is_generated(function: types.FunctionType, cls: type) -> bool:
    """Tell whether Python's own library put the function there, as it does in an enumeration."""
    home = function.__globals__.get("__name__")
    return home not in {each.__module__ for each in _of_host(cls)}
