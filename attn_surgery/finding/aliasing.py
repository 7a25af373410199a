"""Values that share memory with others: what changes them in place before they are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import getitem

from torch import fx

from attn_surgery.dataflow import Flow, Kind
from attn_surgery.tracing import index

_ALIASES = {Kind.IDENTITY, Kind.VIEW, Kind.SPLIT, Kind.SLICE, Kind.DROPOUT}
"""What may return the memory that it was given."""


CHANGED = "its value is changed in place before it is used"


def is_changed_by(flow: Flow, value: fx.Node, takers: Iterable[fx.Node]) -> bool:
    """Tell whether the takers change the value's memory, and others read it afterwards."""
    own, others, takers = {value}, {value}, list(takers)
    changes: list[int] = []
    for node in flow.inputs:
        given = node.args[0] if node.args else None
        if index(node) <= index(value) or not isinstance(given, fx.Node):
            continue
        if node in takers or given in own - {value}:
            if given in own and flow.is_in_place(node):
                changes.append(index(node))
            if given in own and (flow.is_in_place(node) or flow.kind(node) in _ALIASES):
                own.add(node)
        elif given in others and flow.kind(node) in _ALIASES:
            others.add(node)
    # by what the code names, not by what it means: after x.relu_(), x itself is named again
    readers = (user for node in others for user in node.users if user not in takers)
    return bool(changes) and any(index(user) > min(changes) for user in readers)


def changes_before_use(flow: Flow, value: fx.Node) -> list[fx.Node]:
    """Return the steps that change what the value is an alias of, before the last use of it.

    A change of the value itself is none: what is used later is the changed value then, and no
    longer this one.
    """
    around = list(_aliased(flow, value))
    if not around:
        return []
    last = max((index(each) for each in _readers(flow, value)), default=0)
    return [
        node
        for node in flow.inputs
        if index(value) < index(node) < last
        and flow.is_in_place(node)
        and not flow.becomes(value, node)
        and any(flow.becomes(each, node) for each in around)
        and not _are_apart(node, [value, *around])
    ]


def _aliased(flow: Flow, value: fx.Node) -> Iterator[fx.Node]:
    """Yield what the value may share its memory with: what it was made of, and so on."""
    while flow.kind(value) in _ALIASES and value.args and isinstance(value.args[0], fx.Node):
        value = value.args[0]
        yield value


def _readers(flow: Flow, value: fx.Node) -> Iterator[fx.Node]:
    pending = [value]
    while pending:
        for user in pending.pop().users:
            yield user
            if flow.kind(user) in _ALIASES:
                pending.append(user)


def _are_apart(change: fx.Node, parts: list[fx.Node]) -> bool:
    """Tell whether what is changed is another part of a split tensor than the value."""
    changed = change.args[0]
    if not isinstance(changed, fx.Node) or changed.target is not getitem:
        return False
    whole, number = changed.args
    own = [each.args[1] for each in parts if each.target is getitem and each.args[0] is whole]
    is_split = all(isinstance(each, int) for each in (number, *own))
    return is_split and bool(own) and number not in own
