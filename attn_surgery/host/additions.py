"""Which modules add, and which match, as far as their code tells that does not run."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from attn_surgery.host.bytecode import MATCHES, adds, read
from attn_surgery.host.callables import functions_in, is_at_home, scope_of
from attn_surgery.host.called_method import entry


def spells_addition(module: nn.Module) -> bool:
    """Tell whether a module's own forward adds anywhere, on any way through it."""
    return any(map(_adds, functions_in(entry(module))))


def may_add(module: nn.Module) -> bool:
    """Tell whether a module's own forward adds, or what that calls, where nothing below it adds.

    Of a module that holds others which add, what it calls is no block of its own.
    """
    if spells_addition(module):
        return True
    _, *below = module.modules()
    theirs = (each for each in below if not is_at_home(type(each)))
    return not any(map(spells_addition, theirs)) and any(map(_adds, functions_called(module)))


def _adds(function: types.FunctionType) -> bool:
    return adds(function) or _adds_by_script(function)


def matches_patterns(module: nn.Module) -> bool:
    """Tell whether a module's own forward, or what that calls, matches patterns with its values."""
    if is_at_home(type(module)):
        return False
    return any(MATCHES in read(each.__code__).obstacles for each in functions_called(module))


def functions_called(
    module: nn.Module, start: types.FunctionType | None = None
) -> Iterator[types.FunctionType]:
    """Yield a module's forward, and the methods and functions that it may call in turn.

    Args:
        module: The module.
        start: A method of its, to begin with instead of the forward.
    """
    pending = list(functions_in(entry(module) if start is None else start))
    seen: set[types.FunctionType] = set()
    while pending:
        function = pending.pop()
        if function not in seen and not (seen and is_at_home(function)):
            seen.add(function)
            yield function
            pending += (each for value in _named(module, function) for each in functions_in(value))


def _named(module: nn.Module, function: types.FunctionType) -> Iterator[Any]:
    """Yield what a function's names stand for: the module's own, and those around the function."""
    code, scope = read(function.__code__), scope_of(function)
    yield from (scope[name] for name in code.names if name in scope)
    places = (vars(module), *map(vars, type(module).__mro__))
    for name in code.attributes:
        yield from (place[name] for place in places if name in place)


def _adds_by_script(function: types.FunctionType) -> bool:
    """Tell whether it calls a function that TorchScript compiled, and that adds."""
    scope = scope_of(function)
    named = (scope.get(name) for name in read(function.__code__).names)
    scripted = (each for each in named if isinstance(each, torch.jit.ScriptFunction))
    return any("aten::add" in str(each.inlined_graph) for each in scripted)
