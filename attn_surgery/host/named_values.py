"""What the names stand for that a forward uses: builtins, globals, what is around its function."""

from __future__ import annotations

import builtins
import functools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import _symbolic_trace

from attn_surgery.host.bytecode import Code, read
from attn_surgery.host.callables import (
    PURE_BUILTINS,
    PURE_HOMES,
    functions_in,
    has_state,
    is_at_home,
    is_opaque,
    scope_of,
)
from attn_surgery.host.implicit_calls import kept_by, methods_of
from attn_surgery.host.plain_values import is_plain
from attn_surgery.host.torch_state import torch_state

_UNSEEN = frozenset(
    "checkpoint checkpoint_sequential is_tensor isinstance is_ is_not attrgetter methodcaller "
    "is_grad_enabled is_inference_mode_enabled is_autocast_enabled is_autocast_cpu_enabled "
    "get_autocast_dtype get_autocast_cpu_dtype get_autocast_gpu_dtype is_autocast_available "
    "get_float32_matmul_precision get_deterministic_debug_mode is_warn_always_enabled "
    "is_anomaly_enabled are_deterministic_algorithms_enabled is_deterministic get_default_dtype "
    "get_default_device is_compiling is_dynamo_compiling is_exporting is_in_onnx_export "
    "is_tracing get_rng_state initial_seed get_num_threads is_available".split()
)


def resolve_names(
    function: types.FunctionType, code: Code, obstacles: list[str]
) -> Iterator[types.FunctionType]:
    """Judge the globals and closure variables of a function; yield the functions among them.

    Args:
        function: The function.
        code: What its bytecode does.
        obstacles: What cannot be followed is added.
    """
    scope = scope_of(function)
    for name in sorted(code.names):
        if name not in scope:
            if hasattr(builtins, name):
                obstacles += _builtin_obstacles(name)
            continue
        value = scope[name]
        obstacles += _unseen(value, name, code)
        obstacle = _value_obstacle(name, value) or _settings_obstacle(name, value, code)
        if obstacle:
            obstacles.append(obstacle)
        elif not is_at_home(value) and not _is_kept_whole(function, name):
            yield from functions_in(value)
            if name != "__class__":
                yield from _run_of(value, code)


def _unseen(value: Any, name: str, code: Code) -> list[str]:
    """Return what is asked for by a name that torch, or Python, answers by what it is doing."""
    if isinstance(value, types.ModuleType) and (asked := code.attributes & _UNSEEN):
        return [f"calls {each}, which a trace does not show" for each in sorted(asked)]
    paths = sorted(path[1:] for path in code.paths if path[0] == name)
    states = filter(None, (torch_state(value, path) for path in paths))
    return [f"asks for {state}, which a trace does not show" for state in states]


def _run_of(value: Any, code: Code) -> list[types.FunctionType]:
    """Return what code may run of a class that it names, or of the class of an object."""
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        return []
    return methods_of(value if isinstance(value, type) else type(value), code.attributes)


def _is_kept_whole(function: types.FunctionType, name: str) -> bool:
    """Tell whether ``torch.fx.wrap`` was told to keep the global as one step of a trace."""
    kept = getattr(_symbolic_trace, "_wrapped_fns_to_patch", {})
    return (id(function.__globals__), name) in kept


def _builtin_obstacles(name: str) -> list[str]:
    value = getattr(builtins, name)
    is_error = isinstance(value, type) and issubclass(value, BaseException)
    return [] if name in PURE_BUILTINS or is_error else [f"calls {name}()"]


def _value_obstacle(name: str, value: Any) -> str:
    """Return why a global or closure variable cannot be followed, or ""."""
    if isinstance(value, types.ModuleType):
        return "" if value.__name__.partition(".")[0] in PURE_HOMES else f"uses the module {name}"
    if getattr(value, "__name__", None) in _UNSEEN:
        return f"calls {value.__name__}, which a trace does not show"
    if callable(value) and is_opaque(value):
        return f"calls {name}, which is not written in Python"
    if isinstance(value, (nn.Module, type)) or (callable(value) and not has_state(value)):
        return ""
    return f"reads the global {name}"


def _settings_obstacle(name: str, value: Any, code: Code) -> str:
    """Return which plain value may be read off a global class or function of the host's, or ""."""
    if (
        name == "__class__"
        or is_at_home(value)
        or not isinstance(value, (type, types.FunctionType))
    ):
        return ""
    kept, asked = kept_by(value), code.attributes
    if isinstance(value, type):
        asked = asked.union(*(read(each.__code__).attributes for each in methods_of(value, asked)))
    seen = [each for each, kind in kept.items() if each in asked and is_plain(kind)]
    return f"reads {name}.{seen[0]}" if seen else ""
