"""What a trace of a ``forward`` would freeze, so that a rewritten one behaves as the host's did.

A trace follows one way and keeps what it saw. Truth tests on traced values, writes and tensors made
on the way are noticed while tracing; this module reads the bytecode of everything that ``forward``
runs for the rest: tests that a trace cannot see, contexts, global state, and the attributes whose
values end up in the graph.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attn_surgery.host.bytecode import Code, read, words_in
from attn_surgery.host.callables import functions_in, has_state, is_at_home, is_opaque
from attn_surgery.host.called_method import entry
from attn_surgery.host.computed_names import computes_names
from attn_surgery.host.implicit_calls import implicit_methods, kept_by, methods_of
from attn_surgery.host.named_values import resolve_names
from attn_surgery.host.plain_values import is_plain
from attn_surgery.host.tests_of_identity import tests_values

_Run = tuple[types.FunctionType, nn.Module | None]
"""A function that is run, and the module whose method it is."""

_METHODS = (
    types.FunctionType,
    property,
    functools.cached_property,
    staticmethod,
    classmethod,
)
_REACHING = frozenset(
    "_modules children named_children modules named_modules get_submodule".split()
)
_HOLDING = frozenset(
    "parameters named_parameters buffers named_buffers _parameters _buffers state_dict".split()
)
_REACHING_BELOW = frozenset("modules named_modules".split())


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
    seen: set[tuple[types.CodeType, nn.Module | None]] = set()
    pending = list(_runs(entry(block), block))
    pending += (run for name in implicit_methods(type(block)) for run in _methods(block, name))
    while pending:
        function, owner = pending.pop()
        if (function.__code__, owner) in seen:
            continue
        seen.add((function.__code__, owner))
        code = read(function.__code__)
        found.obstacles += code.obstacles
        if tests_values(function.__code__, owner):
            found.obstacles.append("tests what one of its values is")
        found.reads_mode |= "training" in code.attributes
        by_dict = "__dict__" in code.attributes or "vars" in code.names
        reaches_children = by_dict or not _REACHING.isdisjoint(code.attributes)
        found.reaches_children |= reaches_children
        if computes_names(function.__code__) and not reaches_children:  # these names are watched
            found.obstacles.append("reads attributes by computed names")
        found.reaches_below |= not _REACHING_BELOW.isdisjoint(code.attributes)
        named = resolve_names(function, code, found.obstacles)
        pending += ((each, block if _is_method(each, block) else None) for each in named)
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
        if default is not parameter.empty and not is_plain(default):
            found.obstacles.append(f"the default of {parameter.name!r} cannot be written down")


def _resolve_attributes(block: nn.Module, code: Code, found: Fidelity) -> Iterator[_Run]:
    """Judge the attributes that a function may read off the block; yield the methods among them."""
    found.watched |= code.attributes - {"training"}
    if "__dict__" in code.attributes:
        found.obstacles.append("reads __dict__")
    if not _HOLDING.isdisjoint(code.attributes):
        found.obstacles.append("reaches its parameters other than by their names")
    own = vars(block)
    children = [
        each
        for name, each in block._modules.items()
        if each is not None and name in code.attributes
    ]
    for child in children:
        yield from (run for name in implicit_methods(type(child)) for run in _methods(child, name))
    for name in sorted(code.attributes - {"training"}):
        yield from _methods(block, name)
        if name in own and name not in _REACHING:
            yield from _judge_attribute(block, name, own[name], code, found)
            continue
        yield from _judge_class_value(block, name, code, found)
        if name == "forward" or any(name in held for held in _held(block)):
            continue
        for child in children:
            yield from _methods(child, name)
            yield from _judge_class_value(child, name, code, found)


def _containers(block: nn.Module) -> Iterator[str]:
    """Yield the names of the children that are lists of modules, which may grow and shrink."""
    for name, child in block._modules.items():
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            yield name


def _held(block: nn.Module) -> tuple[dict[str, Any], ...]:
    return block._modules, block._parameters, block._buffers


def _judge_class_value(module: nn.Module, name: str, code: Code, found: Fidelity) -> Iterator[_Run]:
    """Judge what a class of the host's holds for all its modules, methods apart."""
    value = kept_by(type(module)).get(name)
    if isinstance(value, (*_METHODS, type)) or name.startswith("__"):
        return
    if hasattr(type(value), "__get__"):
        found.obstacles.append(f"reads self.{name}, a {type(value).__name__}")
    yield from _judge_attribute(module, name, value, code, found)


def _judge_attribute(
    module: nn.Module, name: str, value: Any, code: Code, found: Fidelity
) -> Iterator[_Run]:
    if is_plain(value) or isinstance(value, (Tensor, nn.Module)):
        return
    runs = list(_runs(value, module)) if callable(value) else []
    while isinstance(value, functools.partial):
        value = value.func
    is_known = runs or (callable(value) and is_at_home(value))
    if not is_known or has_state(value) or is_opaque(value):
        found.obstacles.append(f"reads self.{name}, a {type(value).__name__}")
    elif not isinstance(value, (types.FunctionType, types.MethodType)):
        runs += ((each, None) for each in methods_of(type(value), code.attributes))
    yield from (each for each in runs if not is_at_home(each[0]))


def _runs(value: Any, block: nn.Module) -> Iterator[_Run]:
    """Yield what calling a value runs, which may be a method of the block's."""
    given = value.args if isinstance(value, functools.partial) else ()
    bound = given[0] if given else getattr(value, "__self__", None)
    owner = block if bound is block else None
    yield from ((function, owner) for function in functions_in(value))


def _is_method(function: types.FunctionType, block: nn.Module) -> bool:
    """Tell whether a function is a method of the block's that another one replaces or wraps."""
    for cls in type(block).__mro__:
        held = vars(cls).get(function.__name__)
        while held is not None:
            if held is function:
                return True
            held = getattr(held, "__wrapped__", None)
    return False


def _methods(module: nn.Module, name: str) -> Iterator[_Run]:
    """Yield what the host's own classes define under ``name``, overridden definitions included."""
    if name == "forward" and "forward" in vars(module):
        return
    for cls in type(module).__mro__:
        if name in vars(cls) and not is_at_home(cls):
            value = vars(cls)[name]
            owner = None if isinstance(value, (staticmethod, classmethod)) else module
            yield from ((function, owner) for function in functions_in(value))


def describe(obstacles: list[str]) -> str:
    """Join the obstacles into one phrase, each once."""
    return "; ".join(dict.fromkeys(obstacles))
