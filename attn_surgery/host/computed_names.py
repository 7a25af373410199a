"""Attributes that a function reads by a name that does not stand in its code."""

from __future__ import annotations

import dis
import functools
import types

from attn_surgery.host.bytecode import loads, steps_of

_READING = ("__getattribute__", "__getattr__")
_CALLS = ("CALL", "CALL_FUNCTION")


@functools.lru_cache(maxsize=4096)
def computes_names(code: types.CodeType) -> bool:
    """Tell whether a function, or one inside it, reads attributes by names that it computes.

    ``getattr(x.y, "z")`` and ``getattr(x.y, "z", other)`` do not; any other use of ``getattr``
    may, and so may a call of what ``getattr`` calls.
    """
    steps = steps_of(code)
    return (
        any(_is_open(steps, place) for place in range(len(steps)))
        or not {*code.co_names}.isdisjoint(_READING)
        or any(computes_names(each) for each in code.co_consts if isinstance(each, types.CodeType))
    )


def _is_open(steps: list[dis.Instruction], place: int) -> bool:
    """Tell whether ``getattr`` is loaded, but not called with a name that stands there."""
    if steps[place].opname not in ("LOAD_GLOBAL", "LOAD_NAME") or steps[place].argval != "getattr":
        return False
    place = _after_chain(steps, place + 1)
    name = steps[place]
    if name.opname != "LOAD_CONST" or not isinstance(name.argval, str):
        return True
    call = steps[place + 1]
    if call.opname in _CALLS and call.arg == 2:
        return False
    is_constant = steps[place + 1].opname.startswith("LOAD_CONST")
    call = steps[place + 2 if is_constant else _after_chain(steps, place + 1)]
    return call.opname not in _CALLS or call.arg != 3


def _after_chain(steps: list[dis.Instruction], place: int) -> int:
    """Return where ``x``, or ``x.y.z``, ends that begins at a place, or that place."""
    if loads(steps[place], "FAST", "DEREF", "GLOBAL", "NAME") is None:
        return place
    place += 1
    while steps[place].opname == "LOAD_ATTR":
        place += 1
    return place
