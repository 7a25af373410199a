"""Which additions of a trace close a residual block, and where its branch ends.

An addition ``F(x) + S(x)`` is recognised by data flow alone: both operands come from the same
tensor x, S is the identity or a projection, F is a nonlinear function with convolutions, and the
sum is one of maps ``(N, C, *spatial)`` (He et al. 2015, arXiv:1512.03385, section 3.2).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import fx

from attn_surgery.dataflow import (
    LAST,
    MAPS,
    UNKNOWN,
    Flow,
    Kind,
    Shape,
    function_name,
)
from attn_surgery.finding.additions import Addition, additions
from attn_surgery.finding.refusals import refusal_of
from attn_surgery.finding.shortcuts import Shortcut, find_fork
from attn_surgery.tracing import Call, index, owner

TRANSFORMS = {Kind.CONV, Kind.LINEAR, Kind.MIX, Kind.OPAQUE}


@dataclass(frozen=True)
class Residual:
    """An addition whose operands come from one tensor, one of them by a projection."""

    addition: fx.Node
    fork: fx.Node
    shortcut: fx.Node
    branch: fx.Node
    """The operand F, as the addition receives it."""
    end: fx.Node
    """The end of F proper, before drop path, dropout, layer scale and constant factors."""
    is_channels_last: bool
    """Whether F ends in ``(N, *spatial, C)``, to be scaled and then permuted."""
    shape: Shape
    refusal: str
    """Why this is no residual block after all; "" where it is one."""
    taker: fx.Node
    """What takes the operands: the addition, or the stack that it sums up."""


def residuals(flow: Flow) -> list[Residual]:
    """Return the additions of the trace that are, or look like, the end of a residual block."""
    found = (_recognise(flow, addition) for addition in additions(flow))
    return [residual for residual in found if residual is not None]


def _recognise(flow: Flow, addition: Addition) -> Residual | None:
    found = _best_reading(flow, addition)
    if found is None:
        one_of_several = _best_reading(flow, addition, owner(addition.node))
        return one_of_several if one_of_several and not one_of_several.refusal else None
    if not addition.refusal:
        return found
    # whatever else may be wrong with it, it is no sum
    return None if found.refusal else replace(found, refusal=addition.refusal)


def _best_reading(flow: Flow, addition: Addition, adder: Call | None = None) -> Residual | None:
    a, b = addition.operands
    readings = [_read(flow, addition, a, b, adder), _read(flow, addition, b, a, adder)]
    known = [reading for reading in readings if reading is not None]
    return min(known, key=lambda reading: bool(reading.refusal), default=None)


def _read(
    flow: Flow, added: Addition, shortcut: fx.Node, branch: fx.Node, adder: Call | None
) -> Residual | None:
    """Read the addition with the first operand as S and the second as F.

    Where ``adder`` is given, other branches may have been added to S in that call.
    """
    addition, found = added.node, find_fork(flow, shortcut, branch, adder)
    if found is None:
        return None
    steps = list(flow.between(found.fork, branch))
    if not any(flow.kind(step) in TRANSFORMS for step in steps):
        return None
    end = branch_end(flow, branch, owner(addition))
    if _is_condition(flow, addition, found, branch, end):
        return None
    shape = _shape_at(flow, end, (branch, shortcut, addition, found.fork))
    refusal = refusal_of(flow, found, branch, end, shape)
    last = _end_before_permutation(flow, end, owner(addition))
    return Residual(
        addition,
        found.fork,
        shortcut,
        branch,
        last or end,
        last is not None,
        shape,
        refusal,
        added.taker,
    )


def _is_condition(
    flow: Flow, addition: fx.Node, shortcut: Shortcut, branch: fx.Node, end: fx.Node
) -> bool:
    """Tell whether S is what conditions the block, and no other way from the block's input.

    Such are the vectors (time, class, style) and maps (noise, spectrograms) that every block of a
    network adds: F depends on them only because earlier blocks added them, too.
    """
    if not flow.shapes[branch].is_spread and _spreads(flow, shortcut, branch):
        return True
    if not flow.needs_more(branch, shortcut.fork):
        return False
    block = block_around(end, addition)
    entry = next((step for step in shortcut.steps if index(step) < block.start), None)
    entering = {
        each
        for step in flow.between(shortcut.fork, branch)
        if index(step) >= block.start
        for each in flow.inputs[step]
        if index(each) < block.start
    }
    return entry is not None and entry not in entering


def _spreads(flow: Flow, shortcut: Shortcut, branch: fx.Node) -> bool:
    """Tell whether S is one value per channel, broadcast over space by the addition or before."""
    if any(flow.shapes[step].is_spread for step in shortcut.steps):
        return True
    kinds = [flow.kind(step) for step in shortcut.steps[:-1]]
    is_vector = Kind.LINEAR in kinds and Kind.VIEW not in kinds[: kinds.index(Kind.LINEAR)]
    return is_vector and flow.shapes[branch].layout == MAPS


def branch_end(flow: Flow, branch: fx.Node, adder: Call) -> fx.Node:
    """Walk back from F's operand over what only scales or drops, to where F itself ends."""
    return _handed_out(flow, _unscaled_way(flow, branch, adder), adder)


def _handed_out(flow: Flow, passed: list[fx.Node], adder: Call) -> fx.Node:
    """Return the last of the passed steps, or, where a child computes it, what the child returns.

    That is so where the child but casts or copies it: a norm in float32 that returns its input's
    dtype is a norm, and its inside is no matter of the block's.
    """
    end = passed[-1]
    if flow.trace.called_module(end) is not None:
        return end
    unchanged = set(
        itertools.takewhile(lambda each: flow.kind(each) is Kind.IDENTITY, passed[-2::-1])
    )
    calls = itertools.takewhile(lambda call: call not in adder.lineage(), owner(end).lineage())
    returned = [call.node for call in calls if call.node in unchanged]
    return returned[-1] if returned else end


def _end_before_permutation(flow: Flow, end: fx.Node, adder: Call) -> fx.Node | None:
    """Return where F ends if it is scaled with channels last and then permuted, else None."""
    if flow.kind(end) is not Kind.VIEW or flow.shapes[end].layout != MAPS:
        return None
    (permuted,) = flow.inputs[end]
    if flow.shapes[permuted].layout != LAST:
        return None
    *passed, last = _unscaled_way(flow, permuted, adder)
    is_scaled = any(flow.kind(each) is not Kind.IDENTITY for each in passed)
    return last if is_scaled else None


def block_around(end: fx.Node, addition: fx.Node) -> Call:
    """Return the innermost call in which both the branch's end and the addition are made."""
    return next(call for call in owner(addition).lineage() if index(end) >= call.start)


def _unscaled_way(flow: Flow, node: fx.Node, adder: Call) -> list[fx.Node]:
    """Return the node and, one after the other, what it passes on dropped or scaled."""
    passed = [node]
    while (before := _unscaled(flow, passed[-1], adder)) is not None:
        passed.append(before)
    return passed


def _unscaled(flow: Flow, node: fx.Node, adder: Call) -> fx.Node | None:
    """Return what ``node`` passes on dropped or scaled by a constant; None where it does more.

    A bias next to the factor, before it or after, makes a norm or an affine layer of it, which
    belongs to F, unless both stand bare beside the addition (Zhang et al. 2019, Fixup,
    arXiv:1901.09321).
    """
    inputs = flow.inputs[node]
    if len(inputs) != 1:
        return None
    kind = flow.kind(node)
    if kind in (Kind.DROPOUT, Kind.IDENTITY):
        return inputs[0]
    if kind in (Kind.MUL, Kind.DIV) and not _normalises(flow, node):
        return None if _is_shifted(flow, inputs[0], node, adder) else inputs[0]
    if kind is Kind.ADD and 0 in node.args:  # sum() starts there
        return inputs[0]
    is_bare_bias = kind is Kind.ADD and owner(node) is owner(inputs[0]) in adder.lineage()
    if is_bare_bias and flow.kind(inputs[0]) is Kind.MUL and not _normalises(flow, inputs[0]):
        return _unscaled(flow, inputs[0], adder)
    return None


def _is_shifted(flow: Flow, node: fx.Node, product: fx.Node, adder: Call) -> bool:
    """Tell whether a child of the adding module shifts, by a tensor of its own, what it scales."""
    call = owner(product)
    if owner(node) is not call or call in adder.lineage():
        return False
    is_shift = flow.kind(node) in (Kind.ADD, Kind.SUB) and len(flow.inputs[node]) == 1
    return is_shift and any(each not in flow.inputs for each in node.all_input_nodes)


def _normalises(flow: Flow, product: fx.Node) -> bool:
    """Tell whether the factor is one over a standard deviation, or a weight behind it."""
    weights = [each for each in product.all_input_nodes if each not in flow.inputs]
    if all(flow.is_number(each) for each in weights):
        return False
    scaled = _behind(product, lambda each: each not in weights and _scales(flow, each))
    roots = [each for each in scaled if _is_root(each)]
    norm = scaled.union(*(_behind(root, lambda each: each not in scaled) for root in roots))
    # in a flat graph, where a norm is no call, its weight is held where its other tensors are
    theirs, own = _holders(norm.difference(weights)), _holders(_walked_back(weights))
    return bool(roots) and not (own and theirs and own.isdisjoint(theirs))


def _behind(node: fx.Node, goes_on: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Return what was made before ``node`` in its own call, back to where ``goes_on`` is false."""
    call = owner(node)
    return _walked_back(node.all_input_nodes, lambda each: owner(each) is call and goes_on(each))


def _walked_back(
    nodes: Iterable[fx.Node], goes_on: Callable[[fx.Node], bool] = lambda _: True
) -> set[fx.Node]:
    """Return the nodes and what was made before them, back to where ``goes_on`` is false."""
    pending, found = list(nodes), set[fx.Node]()
    while pending:
        each = pending.pop()
        if each not in found and each.op != "placeholder":
            found.add(each)
            if goes_on(each):
                pending += each.all_input_nodes
    return found


def _scales(flow: Flow, node: fx.Node) -> bool:
    return flow.kind(node) in _SCALING and not _is_root(node)


_SCALING = {
    Kind.MUL,
    Kind.DIV,
    Kind.ADD,
    Kind.SUB,
    Kind.MATH,
    Kind.VIEW,
    Kind.IDENTITY,
    Kind.UPSAMPLE,
}


def _is_root(node: fx.Node) -> bool:
    return node.op.startswith("call_") and function_name(node) in ("rsqrt", "sqrt")


def _holders(nodes: Iterable[fx.Node]) -> set[str]:
    """Return the paths of the modules that hold the tensors which are read."""
    return {str(each.target).rpartition(".")[0] for each in nodes if each.op == "get_attr"}


def _shape_at(flow: Flow, end: fx.Node, others: tuple[fx.Node, ...]) -> Shape:
    """Return the shape of the branch's end, completed from the other tensors of the sum."""
    shape = flow.shape(end)
    if shape.stacked is not None:
        return UNKNOWN
    for other in others:
        more = flow.shape(other)
        # a single channel would be broadcast
        same = more.channels if other is not others[-1] and more.channels != 1 else None
        shape = Shape(
            shape.layout or more.layout,
            shape.channels or same,
            shape.spatial_dims or more.spatial_dims,
        )
    return shape
