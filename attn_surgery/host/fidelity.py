"""What a trace of a ``forward`` would freeze, so that a rewritten one behaves as the host's did.

A trace follows one way and keeps what it saw. Truth tests on traced values, writes and tensors made
on the way are noticed while tracing; this module reads the bytecode of everything that ``forward``
runs for the rest: tests that a trace cannot see, contexts, global state, and the attributes whose
values end up in the graph.
"""

from __future__ import annotations

import builtins
import enum
import functools
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import _symbolic_trace

from attn_surgery.host.bytecode import Code, read, words_in
from attn_surgery.host.callables import PURE_HOMES, functions_in, has_state, is_at_home, scope_of
from attn_surgery.host.called_method import entry

_PURE_BUILTINS = frozenset(
    "abs all any bool dict enumerate filter float frozenset int len list map max min pow range "
    "reversed round set slice sorted str sum super tuple zip Ellipsis getattr".split()
)
_UNSEEN = frozenset(
    "checkpoint checkpoint_sequential is_tensor isinstance "
    "is_grad_enabled is_inference_mode_enabled is_autocast_enabled is_autocast_cpu_enabled "
    "get_autocast_dtype get_autocast_cpu_dtype get_autocast_gpu_dtype is_autocast_available "
    "get_float32_matmul_precision get_deterministic_debug_mode is_warn_always_enabled "
    "is_anomaly_enabled are_deterministic_algorithms_enabled is_deterministic get_default_dtype "
    "get_default_device is_compiling is_dynamo_compiling is_exporting is_in_onnx_export "
    "is_tracing get_rng_state initial_seed get_num_threads is_available".split()
)
_REACHING = frozenset(
    "_modules children named_children modules named_modules get_submodule".split()
)
_REACHING_BELOW = frozenset("modules named_modules".split())
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


@dataclass
class Fidelity:
    """What stands between a block's forward and a faithful trace of it."""

    obstacles: list[str] = field(default_factory=list)
    """Why a trace would not behave as the forward does for every value."""
    watched: set[str] = field(default_factory=set)
    """The block's attributes that a trace reads: when one is set, it has to be traced anew."""
    reaches_children: bool = False
    """Whether forward gets at its children other than by their names."""
    reaches_below: bool = False
    """Whether it gets at its children's children, too."""
    reads_mode: bool = False
    """Whether forward looks at ``self.training``."""


def inspect_forward(block: nn.Module) -> Fidelity:
    """Read everything that ``block.forward`` runs outside its children and torch.

    Args:
        block: The module whose own forward is to be rewritten.

    Returns:
        The obstacles to a faithful rewrite (none: it can be rewritten) and what to watch.
    """
    found = Fidelity()
    _check_signature(block, found)
    seen: set[types.CodeType] = set()
    pending = list(functions_in(entry(block)))
    while pending:
        function = pending.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        code = read(function.__code__)
        found.obstacles += code.obstacles
        found.reads_mode |= "training" in code.attributes
        by_dict = "__dict__" in code.attributes or "vars" in code.names
        found.reaches_children |= by_dict or not _REACHING.isdisjoint(code.attributes)
        found.reaches_below |= not _REACHING_BELOW.isdisjoint(code.attributes)
        pending += _resolve_names(function, code, found)
        pending += _resolve_attributes(block, code, found)
        if any(name in code.iterated for name in _containers(block)):
            found.obstacles.append("loops over its children")
    return found


def asks_for(module: nn.Module, name: str) -> bool:
    """Tell whether a method of the module's own reads an attribute of that name, if it is there."""
    return any(
        name in words_in(function.__code__)
        for cls in type(module).__mro__
        if not is_at_home(cls)
        for value in vars(cls).values()
        for function in functions_in(value)
    )


def runs_its_children(block: nn.Module) -> bool:
    """Tell whether the forward may reach all children, whatever they are called."""
    return inspect_forward(block).reaches_children


def runs_all_below(block: nn.Module) -> bool:
    """Tell whether the forward may reach all modules below it, its children's children too."""
    return inspect_forward(block).reaches_below


def watched_attributes(block: nn.Module) -> frozenset[str]:
    """Return the attributes of ``block`` that its forward may read."""
    return frozenset(inspect_forward(block).watched)


def _check_signature(block: nn.Module, found: Fidelity) -> None:
    for parameter in inspect.signature(entry(block)).parameters.values():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            found.obstacles.append(f"the argument {parameter} is not plainly positional")
        default = parameter.default
        if default is not parameter.empty and not _is_plain(default):
            found.obstacles.append(f"the default of {parameter.name!r} cannot be written down")


def _resolve_names(
    function: types.FunctionType, code: Code, found: Fidelity
) -> Iterator[types.FunctionType]:
    """Judge the globals and closure variables of a function; yield the functions among them."""
    scope = scope_of(function)
    for name in sorted(code.names):
        if name not in scope:
            if hasattr(builtins, name):
                found.obstacles += _builtin_obstacles(name)
            continue
        value = scope[name]
        if isinstance(value, types.ModuleType):
            asked = sorted(code.attributes & _UNSEEN)
            found.obstacles += [f"calls {query}, which a trace does not show" for query in asked]
        obstacle = _value_obstacle(name, value) or _settings_obstacle(name, value, code)
        if obstacle:
            found.obstacles.append(obstacle)
        elif not is_at_home(value) and not _is_kept_whole(function, name):
            yield from functions_in(value)
            if isinstance(value, type) and name != "__class__":
                yield from _methods_of(value, code.attributes)


def _is_kept_whole(function: types.FunctionType, name: str) -> bool:
    """Tell whether ``torch.fx.wrap`` was told to keep the global as one step of a trace."""
    kept = getattr(_symbolic_trace, "_wrapped_fns_to_patch", {})
    return (id(function.__globals__), name) in kept


def _builtin_obstacles(name: str) -> list[str]:
    value = getattr(builtins, name)
    is_error = isinstance(value, type) and issubclass(value, BaseException)
    return [] if name in _PURE_BUILTINS or is_error else [f"calls {name}()"]


def _value_obstacle(name: str, value: Any) -> str:
    """Return why a global or closure variable cannot be followed, or ""."""
    if isinstance(value, types.ModuleType):
        return "" if value.__name__.partition(".")[0] in PURE_HOMES else f"uses the module {name}"
    if getattr(value, "__name__", None) in _UNSEEN:
        return f"calls {value.__name__}, which a trace does not show"
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
    kept, asked = _kept_by(value), code.attributes
    if isinstance(value, type):
        asked = asked.union(*(read(each.__code__).attributes for each in _methods_of(value, asked)))
    seen = [each for each, kind in kept.items() if each in asked and _is_plain(kind)]
    return f"reads {name}.{seen[0]}" if seen else ""


def _kept_by(value: Any) -> dict[str, Any]:
    """Return the attributes of a class or a function, those of a class's bases included."""
    homes = value.__mro__ if isinstance(value, type) else (value,)
    kept: dict[str, Any] = {}
    for home in reversed(homes):
        kept |= {} if is_at_home(home) else vars(home)
    return kept


def _methods_of(cls: type, asked: frozenset[str]) -> list[types.FunctionType]:
    """Return the methods of a class that are among the names asked for, or that those call."""
    found: dict[str, types.FunctionType] = {}
    kept, names = _kept_by(cls), set(asked)
    while new := [name for name in kept if name in names and name not in found]:
        for name in new:
            names.discard(name)
            for function in () if isinstance(kept[name], nn.Module) else functions_in(kept[name]):
                found[name] = function
                names |= read(function.__code__).attributes
    return list(found.values())


def _resolve_attributes(
    block: nn.Module, code: Code, found: Fidelity
) -> Iterator[types.FunctionType]:
    """Judge the attributes that a function may read off the block; yield the methods among them."""
    found.watched |= code.attributes - {"training"}
    if "__dict__" in code.attributes:
        found.obstacles.append("reads __dict__")
    own = vars(block)
    children = [
        each
        for name, each in block._modules.items()
        if each is not None and name in code.attributes
    ]
    for name in sorted(code.attributes - {"training"}):
        yield from _methods(block, name)
        if name in own and name not in _REACHING:
            yield from _judge_attribute(f"self.{name}", own[name], found)
            continue
        if name == "forward" or any(name in held for held in _held(block)):
            continue
        for child in children:
            yield from _methods(child, name)


def _containers(block: nn.Module) -> Iterator[str]:
    """Yield the names of the children that are lists of modules, which may grow and shrink."""
    for name, child in block._modules.items():
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield name


def _held(block: nn.Module) -> tuple[dict[str, Any], ...]:
    return block._modules, block._parameters, block._buffers


def _judge_attribute(name: str, value: Any, found: Fidelity) -> Iterator[types.FunctionType]:
    if _is_plain(value) or isinstance(value, (Tensor, nn.Module)):
        return
    functions = list(functions_in(value)) if callable(value) else []
    while isinstance(value, functools.partial):
        value = value.func
    is_known = functions or (callable(value) and is_at_home(value))
    if not is_known or has_state(value):
        found.obstacles.append(f"reads {name}, a {type(value).__name__}")
    yield from (each for each in functions if not is_at_home(each))


def _methods(module: nn.Module, name: str) -> Iterator[types.FunctionType]:
    """Yield what the host's own classes define under ``name``, overridden definitions included."""
    if name == "forward" and "forward" in vars(module):
        return
    for cls in type(module).__mro__:
        if name in vars(cls) and not is_at_home(cls):
            yield from functions_in(vars(cls)[name])


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(each) for each in value)
    if isinstance(value, slice):
        return all(_is_plain(each) for each in (value.start, value.stop, value.step))
    return value is Ellipsis or isinstance(value, _PLAIN)


def describe(obstacles: list[str]) -> str:
    """Join the obstacles into one phrase, each once."""
    return "; ".join(dict.fromkeys(obstacles))
