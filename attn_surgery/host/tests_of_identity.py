"""What a function's bytecode asks ``is`` of: the module that it belongs to, or perhaps a value.

A trace answers such a test once. The answer is right for ever where both sides are read off the
module itself (and are watched there), constants, or globals, which are judged elsewhere.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from dataclasses import dataclass

from torch import nn

from attn_surgery.host.bytecode import Path, loads, steps_of
from attn_surgery.host.plain_values import is_plain

_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
_CONSTANT = ("LOAD_CONST", "LOAD_SMALL_INT")


@dataclass(frozen=True)
class IdentityTests:
    """The tests of identity in one function, its nested functions' included."""

    of_values: bool = False
    """Whether there is one of what may be a traced value."""
    of_paths: frozenset[Path] = frozenset()
    """The attributes of the function's own module of which the others are."""


def tests_values(code: types.CodeType, owner: nn.Module | None) -> bool:
    """Tell whether a function asks ``is`` of what may be a traced value.

    Args:
        code: The code of the function.
        owner: The module whose method it is; None where it is nobody's.
    """
    own = code.co_varnames[0] if owner is not None and code.co_argcount else None
    tests = tests_of_identity(code, own)
    return tests.of_values or not all(_is_settled(owner, path) for path in tests.of_paths)


def _is_settled(value: object, path: Path) -> bool:
    """Tell whether what is read along a path is held by modules, and computed by no code."""
    for name in path:
        if not isinstance(value, nn.Module):
            return False
        places = (vars(value), value._modules, value._parameters, value._buffers)
        held = next((place for place in places if name in place), None)
        kept = inspect.getattr_static(type(value), name, _MISSING)
        if held is None and not is_plain(kept):
            return False
        value = kept if held is None else held[name]
    return True


_MISSING = object()


@functools.lru_cache(maxsize=4096)
def tests_of_identity(code: types.CodeType, own: str | None) -> IdentityTests:
    """Read the tests of identity in a function.

    Args:
        code: The code of the function.
        own: Its variable that holds the module which it is a method of; None where it is of none.
    """
    steps = steps_of(code)
    if own is not None and any(_stores(step, own) for step in steps):
        own = None
    of_values, of_paths = False, set[Path]()
    for place, step in enumerate(steps):
        for operand in _operands(steps, place, own):
            of_values |= operand is None
            of_paths |= {operand} if operand else set()
        if step.argval == "__class__" and "LOAD_ATTR" in step.opname:
            of_values |= _operand_before(steps, place + 1, own)[1] != ("__class__",)
        of_values |= step.argval in ("__eq__", "__ne__")  # what they are of, None has them, too
    for nested in code.co_consts:
        if isinstance(nested, types.CodeType):
            inner = tests_of_identity(nested, own if own in nested.co_freevars else None)
            of_values |= inner.of_values
            of_paths |= inner.of_paths
    return IdentityTests(of_values, frozenset(of_paths - {("__class__",)}))


def _stores(step: dis.Instruction, name: str) -> bool:
    """Tell whether a variable is set or deleted."""
    if not step.opname.startswith(("STORE_FAST", "STORE_DEREF", "DELETE_FAST", "DELETE_DEREF")):
        return False
    stored = step.argval
    if isinstance(stored, tuple):  # two at once, or one that is stored and one that is loaded
        stored = stored[:1] if "LOAD" in step.opname else stored
        return name in stored
    return bool(stored == name)


def _operands(steps: list[dis.Instruction], place: int, own: str | None) -> list[Path | None]:
    """Return what an instruction tests the identity of: () for what never changes, None for values.

    Where it tests nothing, that is nothing.
    """
    step = steps[place]
    if step.opname.endswith(("_NONE", "_NOT_NONE")):
        count = 1
    elif step.opname == "IS_OP":
        count = 2
    else:
        return []
    found: list[Path | None] = []
    end = place
    for _ in range(count):
        if steps[end].is_jump_target:  # several ways lead here, each with an operand of its own
            return [None]
        start, path = _operand_before(steps, end, own)
        if step.opname == "IS_OP" and own is not None and _loads(steps, end - 1, own):
            return []  # no traced value is the module itself
        if path is None:
            return [None]
        found.append(path)
        end = start
    return found


def _loads(steps: list[dis.Instruction], place: int, own: str) -> bool:
    return loads(steps[place], "FAST", "DEREF") == own


def _operand_before(
    steps: list[dis.Instruction], end: int, own: str | None
) -> tuple[int, Path | None]:
    """Return where the operand begins that ends before ``end``, and what it is."""
    names: list[str] = []
    for place in range(end - 1, -1, -1):
        step = steps[place]
        if step.opname == "LOAD_ATTR":
            names.insert(0, str(step.argval))
        elif own is not None and loads(step, "FAST", "DEREF") == own:
            return place, tuple(names)
        elif step.opname in _GLOBAL or (step.opname in _CONSTANT and not names):
            return place, ()
        else:
            break
        if step.is_jump_target:
            break
    return 0, None
