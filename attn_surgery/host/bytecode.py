"""What a function declares and does, as far as a trace of it would not show."""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from attn_surgery.errors import is_exhausted
from attn_surgery.host.compiling import GENERATED

Place = tuple[types.CodeType, int]
"""An instruction: the code that it is of, and its offset there."""

Path = tuple[str, ...]
"""The names of attributes that are read one after another."""

_SILENT = ("EXTENDED_ARG", "CACHE", "NOP", "NOT_TAKEN", "PUSH_NULL", "PRECALL")
_ITERATES = ("GET_ITER", "CALL_FUNCTION_EX", "LIST_EXTEND", "UNPACK_SEQUENCE")
_ITERATING = ("len", "enumerate", "zip", "reversed", "list", "tuple", "map", "reduce", "sum")
MATCHES = "asks by a match statement what one of its values is"
"""An obstacle: what a pattern fits is told in C, to which a traced value is nothing."""

_MATCHES = ("MATCH_SEQUENCE", "MATCH_MAPPING", "MATCH_CLASS", "MATCH_KEYS")
_OUTSIDE = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")
_WRITES = ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL")
_CONTEXT_STEPS = ("WITH", "SETUP_FINALLY", "PUSH_EXC_INFO")


@dataclass(frozen=True)
class Code:
    """What one function's bytecode does, its nested functions' included."""

    attributes: frozenset[str]
    names: frozenset[str]
    iterated: frozenset[str]
    """The attributes that are looped over, counted or unpacked."""
    obstacles: tuple[str, ...]
    paths: frozenset[Path]
    """The names that are not its own, each with the attributes that are read off it."""


@functools.lru_cache(maxsize=4096)
def read(code: types.CodeType) -> Code:
    """Read the bytecode of a function, its nested functions' included."""
    attributes: set[str] = set()
    names: set[str] = set()
    obstacles: list[str] = []
    iterated: set[str] = set()
    paths = set(_paths(steps_of(code)))
    steps = list(dis.get_instructions(code))
    for i, step in enumerate(steps):
        kind = step.opname
        if "ATTR" in kind or kind == "LOAD_METHOD":
            attributes.add(str(step.argval))
        if kind in _WRITES and not _is_making(code, steps[i - 1]):
            obstacles.append(f"writes {step.argval!r}")
        if kind in _MATCHES:
            obstacles.append(MATCHES)
        if kind == "IMPORT_NAME":
            obstacles.append(f"imports {step.argval} while it runs")
        if _is_iterated(steps, i):
            iterated.add(str(step.argval))
        if kind in _OUTSIDE:
            names.add(str(step.argval))
        if any(word in kind for word in _CONTEXT_STEPS):
            obstacles.append("enters a context or catches an error")
    if "getattr" in code.co_names:
        attributes |= {const for const in code.co_consts if isinstance(const, str)}
    for nested in code.co_consts:
        if isinstance(nested, types.CodeType):
            inner = read(nested)
            iterated |= inner.iterated
            paths |= inner.paths
            attributes |= inner.attributes
            names |= inner.names
            obstacles += inner.obstacles
    return Code(
        attributes=frozenset(attributes),
        names=frozenset(names),
        iterated=frozenset(iterated),
        obstacles=tuple(dict.fromkeys(obstacles)),
        paths=frozenset(paths),
    )


@functools.lru_cache(maxsize=4096)
def words_in(code: types.CodeType) -> frozenset[str]:
    """Return the attributes that a function reads, and the names among its constants."""
    words = {str(step.argval) for step in dis.get_instructions(code) if _is_read(step)}
    words |= {const for const in code.co_consts if isinstance(const, str) and const.isidentifier()}
    nested = (words_in(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return frozenset(words).union(*nested)


@functools.lru_cache(maxsize=4096)
def paths_off(code: types.CodeType, own: str) -> frozenset[Path]:
    """Return what a function, or one inside it, reads off one of its variables."""
    steps = steps_of(code)
    found = {
        _read_off(steps, place)
        for place, step in enumerate(steps)
        if loads(step, "FAST", "DEREF") == own
    }
    nested = (each for each in code.co_consts if isinstance(each, types.CodeType))
    return frozenset(found).union(*(paths_off(each, own) for each in nested))


def _paths(steps: list[dis.Instruction]) -> Iterator[Path]:
    for place, step in enumerate(steps):
        if step.opname in _OUTSIDE:
            yield str(step.argval), *_read_off(steps, place)


def _read_off(steps: list[dis.Instruction], place: int) -> Path:
    """Return the attributes that are read off what an instruction loads."""
    following = itertools.takewhile(_is_read, steps[place + 1 :])
    return tuple(str(each.argval) for each in following)


def _is_making(code: types.CodeType, written: dis.Instruction) -> bool:
    """Tell whether it is a new object that is written on, by what makes it."""
    return code.co_name == "__init__" and loads(written, "FAST") in code.co_varnames[:1]


def _is_read(step: dis.Instruction) -> bool:
    return step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")


def _is_iterated(steps: list[dis.Instruction], place: int) -> bool:
    if "ATTR" not in steps[place].opname:
        return False
    following = steps[place + 1 : place + 5]
    before = steps[max(0, place - 5) : place]
    return (
        any(step.opname in _ITERATES for step in following[:1])
        or any(step.argval in _ITERATING for step in before)
        or _takes_from_the_end(following)
    )


def _takes_from_the_end(steps: list[dis.Instruction]) -> bool:
    """Tell whether what was loaded is sliced, or indexed from its end."""
    if not steps or steps[0].opname != "LOAD_CONST":
        return False
    index = steps[0].argval
    is_sliced = isinstance(index, slice) or any("SLICE" in step.opname for step in steps)
    return is_sliced or (isinstance(index, int) and index < 0)


def steps_of(code: types.CodeType) -> list[dis.Instruction]:
    """Return the instructions of a function that do something."""
    return [step for step in dis.get_instructions(code) if step.opname not in _SILENT]


def loads(step: dis.Instruction, *kinds: str) -> str | None:
    """Return the name of the variable that an instruction loads last, if it is of these kinds."""
    if not any(f"LOAD_{kind}" in step.opname for kind in kinds):
        return None
    return str(step.argval[-1] if isinstance(step.argval, tuple) else step.argval)


def adds(function: types.FunctionType) -> bool:
    """Tell whether the function, or one inside it, spells an addition anywhere."""
    return _adds(function.__code__)


@functools.lru_cache(maxsize=4096)
def _adds(code: types.CodeType) -> bool:
    return any(_is_addition(step) for step in dis.get_instructions(code)) or any(
        _adds(nested) for nested in code.co_consts if isinstance(nested, types.CodeType)
    )


def _is_addition(step: dis.Instruction) -> bool:
    if step.opname == "BINARY_OP":
        return step.argrepr in ("+", "+=")
    return step.opname in ("BINARY_ADD", "INPLACE_ADD") or step.argval in _ADDING


_ADDING = frozenset("add add_ iadd __add__ __iadd__ __radd__".split())


@functools.lru_cache(maxsize=4096)
def gives_a_value(code: types.CodeType) -> bool:
    """Tell whether a function returns anything but None, anywhere."""
    return any(
        step.opname == "RETURN_VALUE" and (before.opname, before.argval) != ("LOAD_CONST", None)
        for before, step in itertools.pairwise(steps_of(code))
    )


def is_asserted(frame: types.FrameType) -> bool:
    """Tell whether the truth asked for in ``frame`` is that of an ``assert``."""
    steps = steps_from(frame.f_code, frame.f_lasti)
    return any("ASSERTION_ERROR" in f"{step.opname} {step.argrepr}".upper() for step in steps)


@functools.lru_cache(maxsize=4096)
def steps_from(code: types.CodeType, offset: int) -> list[dis.Instruction]:
    """Return the instruction at ``offset`` and the two that follow."""
    return [step for step in dis.get_instructions(code) if step.offset >= offset][:3]


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of ``function``, annotations evaluated where they can be."""
    try:
        return inspect.signature(function, eval_str=True)
    except Exception as error:  # whatever names and expressions the annotations hold
        if is_exhausted(error):
            raise
        return inspect.signature(function)


def place_in_code(outermost: types.CodeType) -> tuple[Place, ...]:
    """Return where in the host's code a traced operation is called.

    The place is the same in both modes, however many other operations one of them has.

    Args:
        outermost: The code of the function whose callees are looked at.
    """
    frame, places = sys._getframe(1), []
    while frame is not None and frame.f_code is not outermost:
        if not is_machinery(frame):
            places.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(places)


def is_machinery(frame: types.FrameType) -> bool:
    """Tell whether the frame is torch's or ours, a generated forward's included."""
    home = frame.f_globals.get("__name__", "")
    return home.startswith(_TRACING) or frame.f_code.co_filename.startswith(GENERATED)


_TRACING = ("torch.fx", "torch._", "torch.nn.modules.module", "attn_surgery.")
