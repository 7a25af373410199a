"""Attention that a host holds already, told by its structure.

It is the product of a map and a gate that looks around, by pooling or a convolution (or, in the
branch of a block, the sum of a map and what mixes its positions), whatever its classes are called.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from attn_surgery.dataflow import Flow, Kind, function_name
from attn_surgery.finding.gates import behind, gated_products, is_attention, looks_around
from attn_surgery.finding.residual_blocks import Residual
from attn_surgery.finding.spots import ELSEWHERE, calls_below, path_below
from attn_surgery.tracing import Call, index, owner

_SHAPING = {
    Kind.UPSAMPLE,
    Kind.VIEW,
    Kind.ACTIVATION,
    Kind.SIGMOID,
    Kind.IDENTITY,
    Kind.MUL,
    Kind.ADD,
}
_HEAVY = {
    Kind.CONV,
    Kind.LINEAR,
    Kind.FILTER,
    Kind.NORM,
    Kind.POOL,
    Kind.REDUCE,
    Kind.UPSAMPLE,
    Kind.OPAQUE,
    Kind.OTHER,
}


@dataclass(frozen=True)
class Held:
    """One attention within a block."""

    source: fx.Node
    """The map that it receives."""
    result: fx.Node
    """The map that it returns."""
    gate: fx.Node
    """What the map is multiplied by, or what is added to it."""
    factor: fx.Node
    """The map as the product takes it, reshaped perhaps."""


def held_in(flow: Flow, residual: Residual, found: list[Residual]) -> list[Held]:
    """Return the attentions in F of ``residual`` that no block within F holds."""
    inner = [other for other in _during(residual, found) if encloses(flow, residual, other)]
    blocks = [other for other in inner if not other.refusal]
    held = [Held(*each) for each in _attentions(flow, residual, inner)]
    return [each for each in held if not any(_spans(flow, other, each.result) for other in blocks)]


def held_outside(flow: Flow, found: list[Residual]) -> Iterator[Held]:
    """Yield the attentions that pool, squash and multiply outside of every residual block."""
    blocks = [residual for residual in found if not residual.refusal]
    for step, factors in flow.inputs.items():
        if flow.kind(step) is not Kind.MUL or len(factors) != 2:
            continue
        if any(_spans(flow, residual, step) for residual in blocks):
            continue
        for source, gate in (factors, reversed(factors)):
            if (
                source is not gate
                and flow.depends(gate, source)
                and looks_around(flow, source, gate)
            ):
                kinds = {flow.kind(each) for each in flow.between(source, gate)}
                if kinds & {Kind.POOL, Kind.REDUCE} and Kind.SIGMOID in kinds:
                    yield Held(source, step, gate, source)
                    break


def encloses(flow: Flow, outer: Residual, inner: Residual) -> bool:
    """Tell whether ``inner`` lies in the branch of ``outer``."""
    return (
        inner.addition is not outer.addition
        and flow.depends(outer.branch, inner.addition)
        and flow.depends(inner.fork, outer.fork)
    )


def _during(residual: Residual, found: list[Residual]) -> list[Residual]:
    """Return the additions made between the fork and the end of the branch."""
    first = bisect_right(found, index(residual.fork), key=lambda other: index(other.addition))
    last = bisect_right(found, index(residual.branch), key=lambda other: index(other.addition))
    return found[first:last]


def _attentions(
    flow: Flow, residual: Residual, inner: list[Residual]
) -> Iterator[tuple[fx.Node, fx.Node, fx.Node, fx.Node]]:
    """Yield (map, result, gate or summand, factor) of what attends by product, then by addition."""
    yield from gated_products(flow, residual)
    for other in inner:
        if other.refusal and is_attention(flow, other):
            yield other.fork, other.addition, other.branch, other.fork


def _spans(flow: Flow, residual: Residual, node: fx.Node) -> bool:
    return flow.depends(residual.branch, node) and flow.depends(node, residual.fork)


def holder_path(flow: Flow, held: Held, block: Call, paths: dict[nn.Module, str]) -> str:
    """Return what a plan calls the attention.

    It is the path inside the block of the module that is it, or, where the block begins within the
    branch, the path in the host; the name of the gate's function where functions do it all.
    """
    holder = _holder(flow, held, block)
    if holder is None:
        return function_name(held.gate)
    path = path_below(block.module, holder)
    return paths[holder] if path == ELSEWHERE else path


def _holder(flow: Flow, held: Held, block: Call) -> nn.Module | None:
    """Return the module that is the attention.

    It is the outermost one, below the block, that receives the map; where the block itself makes
    the product, the child that computes the gate; None where functions do both.
    """
    found = owner(held.result)
    for call in found.lineage():
        if found is block or call is block or index(held.source) >= call.start:
            break
        found = call
    return _gate_module(flow, held.gate, block) if found is block else found.module


def _gate_module(flow: Flow, gate: fx.Node, block: Call) -> nn.Module | None:
    while owner(gate) is block and flow.kind(gate) in _SHAPING and len(flow.inputs[gate]) == 1:
        (gate,) = flow.inputs[gate]
    inside = calls_below(owner(gate), block)
    return inside[-1].module if inside else flow.trace.called_module(gate)


def whole_call(flow: Flow, held: Held, block: Call) -> tuple[Call, fx.Node] | None:
    """Return the call, below the block, of a module that is the attention, and the map it takes.

    The module takes the map alone, and returns a map that no convolution, norm or pooling passed.
    """
    found = None
    for call in calls_below(owner(held.result), block):
        given = _given(flow, call)
        if len(given) != 1 or call.node is None:
            continue
        (taken,) = given
        same = behind(flow, taken, {Kind.VIEW, Kind.IDENTITY}) is held.source
        if (same or _scales(flow, taken, held.source)) and _scales(flow, taken, call.node):
            found = call, taken
    return found


def _given(flow: Flow, call: Call) -> set[fx.Node]:
    """Return the values from outside that are used within the call."""
    inside = (node for node in flow.inputs if call in owner(node).lineage())
    return {each for node in inside for each in flow.inputs[node] if index(each) < call.start}


def _scales(flow: Flow, source: fx.Node, result: fx.Node) -> bool:
    return flow.depends(result, source) and flow.leads_past(
        source, result, lambda step: flow.kind(step) in _HEAVY
    )


def block_of(flow: Flow, held: Held) -> Call:
    """Return the call that holds an attention outside of residual blocks, and makes its map."""
    call = next(call for call in owner(held.result).lineage() if index(held.source) >= call.start)
    while (around := call.parent) is not None and not isinstance(around.module, nn.Sequential):
        if around.node is not call.node or around.parent is None:
            break
        call = around
    return call
