"""What a forward asks torch of its own state: whether gradients are on, which flags are set.

Torch's functions of tensors are steps of a trace, and its constructors and helpers go by what they
are given. Whatever else is called or read there may answer otherwise tomorrow.
"""

from __future__ import annotations

import types
from typing import Any

import torch

from attn_surgery.host.bytecode import Path

_PURE = frozenset(
    "torch.functional torch.nn torch._VF torch._C._nn torch._C._linalg torch._C._fft "
    "torch._C._special torch._C._sparse torch._C._nested torch.fft torch.linalg torch.special "
    "torch.sparse torch.nested torch.func torch._ops torch.ops torch.autograd.function "
    "torch.types torch.overrides torch.signal torch.ao.nn torch.utils._pytree".split()
)
"""The modules whose functions go by nothing but what they are given, those below them included."""
_PURE_NAMES = frozenset(
    "_assert _check sym_int sym_float sym_max sym_min sym_not sym_sqrt sym_sum sym_ite typename "
    "is_scripting annotate unused ignore export script_if_tracing isinstance is_storage "
    "has_torch_function has_torch_function_unary has_torch_function_variadic "
    "handle_torch_function".split()
)
"""Functions of other modules that do, too, or that a trace has no part in."""


def torch_state(value: Any, names: Path) -> str:
    """Return what of torch's own state code asks for, or "".

    Args:
        value: What a global name of the code stands for.
        names: The attributes that are read off it, one after another.

    Example:
        >>> torch_state(torch, ("backends", "cudnn", "benchmark"))
        'torch.backends.cudnn.benchmark'
        >>> torch_state(torch, ("nn", "functional", "relu"))
        ''
    """
    asked, home = "", None
    for name in names:
        if not isinstance(value, types.ModuleType):
            break
        asked, home = f"{value.__name__}.{name}", value
        value = vars(value).get(name, _COMPUTED)
    if isinstance(value, types.ModuleType) and home is None:
        return ""  # nothing of it is asked for
    if not _is_torchs(home if home is not None else value) or _is_pure(value, home):
        return ""
    return asked or f"{value.__module__}.{getattr(value, '__name__', type(value).__name__)}"


_COMPUTED = object()
"""What a module makes where it is asked for, such as a flag of a backend."""


def _is_torchs(value: Any) -> bool:
    name = value.__name__ if isinstance(value, types.ModuleType) else _home(value)
    return name.partition(".")[0] == "torch"


def _home(value: Any) -> str:
    return getattr(value, "__module__", None) or ""


def _is_pure(value: Any, home: types.ModuleType | None) -> bool:
    if isinstance(value, types.ModuleType):
        return value is torch or _is_below(value.__name__)
    if isinstance(value, (type, torch.nn.Module, torch.dtype, torch.layout, torch.memory_format)):
        return True
    if not callable(value):
        is_constant = home is torch and value is not _COMPUTED
        return is_constant or (home is not None and _is_below(home.__name__))
    if getattr(value, "__name__", None) in _PURE_NAMES or _is_below(_home(value)):
        return True
    if isinstance(value, types.BuiltinFunctionType):  # not a module's: an operator
        return not isinstance(value.__self__, types.ModuleType)
    return False


def _is_below(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in _PURE for end in range(2, len(parts) + 1))
