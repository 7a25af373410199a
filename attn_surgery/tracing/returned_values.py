"""Which functions of the host's return a traced value, and from where they were called."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx
from torch.fx.proxy import Attribute

from attn_surgery.host import Place, is_machinery, put_back_afterwards

RETURNED = "returned"


@contextmanager
def returns_noted() -> Iterator[None]:
    """Let every node know the functions that return it as it is."""
    before = sys.getprofile()

    def note(frame: types.FrameType, event: str, value: object) -> None:
        caller = frame.f_back
        if event != "return" or not isinstance(value, fx.Proxy) or caller is None:
            return
        if is_machinery(frame) or is_machinery(caller):
            return
        # an attribute becomes a step when it is used, and must not be one before
        if not isinstance(value, Attribute) or value._node is not None:
            place = caller.f_code, caller.f_lasti
            value.node.meta.setdefault(RETURNED, set()).add((place, frame.f_code))

    with put_back_afterwards(lambda: sys.setprofile(before)):
        sys.setprofile(note)
        yield


def is_returned(node: fx.Node, place: Place, function: types.CodeType) -> bool:
    """Tell whether the function that is called at the place returns the value of the node."""
    return (place, function) in node.meta.get(RETURNED, ())
