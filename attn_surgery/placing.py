"""Where a value of a trace is held: in which module's own forward, and under which name there."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import fx, nn

from attn_surgery.flow import Flow
from attn_surgery.operations import Kind, function_name
from attn_surgery.traces import Call, called_path, index, owner

ELSEWHERE = "?"
"""Stands for the path of a module that a block uses but does not hold."""

_SHAPING = {
    Kind.UPSAMPLE,
    Kind.VIEW,
    Kind.ACTIVATION,
    Kind.SIGMOID,
    Kind.IDENTITY,
    Kind.MUL,
    Kind.ADD,
}


@dataclass(frozen=True)
class Spot:
    """A value within one module's own forward, named as that forward sees it."""

    name: str
    """The path of the child that returns it, else the name of the function that does."""
    is_child: bool
    is_direct: bool
    """Whether the module's own forward holds the value, and not a child's of its."""
    occurrence: int
    """How many earlier values of the same name the forward holds."""
    in_place: bool = False
    """Whether making the value changed another, whose later uses mean this one."""
    source: str | None = None
    """The path of the innermost module that returns the value."""
    is_only_call: bool = False
    """Whether that module is called once for each call of the block."""
    is_used: bool = True
    """Whether what it returns is used, and not just what it changed in place."""


def place(flow: Flow, end: fx.Node, adder: Call) -> tuple[Call, Spot]:
    """Return the block's call, the innermost around addition and ``end``, and the spot in it."""
    block = next(call for call in adder.lineage() if index(end) >= call.start)
    returning = [
        call
        for call in calls_below(owner(end), block)
        if call.node is not None and _passes(flow, call.node, end)
    ]
    in_place = flow.is_in_place(end)
    if in_place and returning:  # what is changed within the child is no matter of the block's
        in_place = index(flow.inputs[end][0]) < returning[-1].start
    source = flow.trace.called_module(end) or (returning[0].module if returning else None)
    if source is None:
        # what a child did to its argument without returning it cannot be cut there
        is_reachable = not in_place or index(flow.inputs[end][0]) >= owner(end).start
        steps = _earlier_steps(flow, end)
        return owner(end), Spot(function_name(end), False, is_reachable, steps, in_place)
    if returning:
        called, caller = returning[-1].module, returning[-1].parent
        earlier = _earlier_calls(flow, returning[-1])
    else:
        called, caller, earlier = source, owner(end), _earlier_steps(flow, end)
    return block, Spot(
        name=path_below(block.module, called),
        is_child=True,
        is_direct=caller is block,
        occurrence=earlier,
        in_place=in_place,
        source=path_below(block.module, source),
        is_only_call=flow.call_counts[source] == flow.call_counts[block.module],
        is_used=bool(end.users) or not in_place,
    )


def calls_below(inner: Call, outer: Call) -> list[Call]:
    """Return ``inner`` and the calls around it that lie within ``outer``, innermost first."""
    return list(itertools.takewhile(lambda call: call is not outer, inner.lineage()))


def path_below(block: nn.Module, module: nn.Module) -> str:
    """Return the path of ``module`` in ``block``, or ``ELSEWHERE``."""
    return next((path for path, each in block.named_modules() if each is module), ELSEWHERE)


def _passes(flow: Flow, node: fx.Node, end: fx.Node) -> bool:
    """Tell whether ``node`` is ``end``, handed on by nothing but ``nn.Identity``."""
    while node is not end and flow.kind(node) is Kind.IDENTITY and flow.trace.called_module(node):
        (node,) = flow.inputs[node]
    return flow.becomes(node, end)


def _earlier_steps(flow: Flow, end: fx.Node) -> int:
    earlier = itertools.takewhile(lambda node: node is not end, flow.steps_in[owner(end)])
    return sum(_same_step(node, end) for node in earlier)


def _earlier_calls(flow: Flow, call: Call) -> int:
    assert call.parent is not None
    return sum(
        each.module is call.module and each.start < call.start
        for each in flow.calls_in[call.parent]
    )


def _same_step(node: fx.Node, other: fx.Node) -> bool:
    """Tell whether two nodes call the same child, or functions of the same name."""
    if called_path(node) or called_path(other):
        return called_path(node) == called_path(other)
    calls = node.op.startswith("call_") and other.op.startswith("call_")
    return calls and function_name(node) == function_name(other)


def attention_holder(
    flow: Flow, product: fx.Node, source: fx.Node, gate: fx.Node, block: Call
) -> nn.Module | None:
    """Return the module that is the attention which makes ``product = source * gate``.

    It is the outermost one, below the block, that receives ``source``; where the block itself
    makes the product, the child that computes the gate; None where functions do both.
    """
    found = owner(product)
    for call in found.lineage():
        if found is block or call is block or index(source) >= call.start:
            break
        found = call
    return _gate_module(flow, gate, block) if found is block else found.module


def _gate_module(flow: Flow, gate: fx.Node, block: Call) -> nn.Module | None:
    while owner(gate) is block and flow.kind(gate) in _SHAPING and len(flow.inputs[gate]) == 1:
        (gate,) = flow.inputs[gate]
    inside = calls_below(owner(gate), block)
    return inside[-1].module if inside else flow.trace.called_module(gate)
