"""What expressions in the source of a block are worth, on each way through it."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

from attn_surgery.host import put_back_afterwards
from attn_surgery.rewriting.wrapped_source import Expression, Wrapping, wrapped

Values = dict[Expression, list[str]]
"""Per expression, the names of the nodes of which it was the value, one for each time that it was
evaluated; nothing for what is no traced tensor (a list, a module, a number)."""


@contextmanager
def values_read(
    block: nn.Module, methods: Mapping[str, types.FunctionType], expressions: set[Expression]
) -> Iterator[dict[fx.Graph, Values]]:
    """Have the traces of a block note what some expressions of its methods are worth.

    A rule about the source says what an expression should be worth; this is what it is, whoever
    is called there and whatever that makes of its arguments.

    Args:
        block: To be traced within.
        methods: Its methods, as the host has them.
        expressions: Of these methods.

    Yields:
        What is read, by the graph of the trace.

    Raises:
        UnfaithfulError: The source of a method is not there.
    """
    read: dict[fx.Graph, Values] = {}
    instead: dict[str, Any] = {}
    readers: dict[str, list[Wrapping]] = {}
    for number, each in enumerate(sorted(expressions, key=lambda each: each.range)):
        reader = f"_attn_surgery_reader_{number}"
        instead[reader] = _reader(read, each)
        readers.setdefault(each.method, []).append(Wrapping(reader, each, is_only_read=True))
    for name, several in readers.items():
        instead[name] = types.MethodType(wrapped(methods[name], several), block)
    own = vars(block)
    before = {name: own[name] for name in instead if name in own}

    def put_back() -> None:
        for name in instead:
            own.pop(name, None)
        own.update(before)

    with put_back_afterwards(put_back):
        own.update(instead)
        yield read


def _reader(read: dict[fx.Graph, Values], expression: Expression) -> Callable[[Any], Any]:
    def note(value: Any) -> Any:
        if isinstance(value, fx.Proxy):
            values = read.setdefault(value.node.graph, {})
            values.setdefault(expression, []).append(value.node.name)
        return value

    return note
