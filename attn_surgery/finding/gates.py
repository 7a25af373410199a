"""Gates: what multiplies a map within a branch, and looks at more than one position for it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from attn_surgery.dataflow import Flow, Kind
from attn_surgery.finding.convolutions import is_mixing, is_spatial
from attn_surgery.finding.residual_blocks import Residual

_GATES = {Kind.CONV, Kind.FILTER, Kind.LINEAR, Kind.ACTIVATION, Kind.SIGMOID, Kind.SOFTMAX}
_LOOKS_AROUND = {Kind.POOL, Kind.REDUCE, Kind.CONV, Kind.FILTER, Kind.MIX, Kind.REARRANGE}


def gated_products(
    flow: Flow, residual: Residual
) -> Iterator[tuple[fx.Node, fx.Node, fx.Node, fx.Node]]:
    """Yield (map, product, gate, factor) for each map of F that is multiplied by a gate.

    The factor is the map as the product takes it, reshaped perhaps.

    What does not come from the fork, as a mask that is handed on, is no map of F. The gate looks
    around, by pooling or a convolution: ``x * sigmoid(x)`` is an activation. It is
    computed from the map, or pooled and squashed from what the map is computed from.
    """
    for step in flow.between(residual.fork, residual.branch):
        factors = flow.inputs[step]
        if flow.kind(step) is not Kind.MUL or len(factors) != 2:
            continue
        for factor, gate in (factors, reversed(factors)):
            source = behind(flow, factor, {Kind.VIEW, Kind.IDENTITY})
            is_map = flow.depends(source, residual.fork)
            if is_map and source is not gate and _gates(flow, residual.fork, source, gate):
                yield source, step, gate, factor
                break


def behind(flow: Flow, node: fx.Node, kinds: set[Kind]) -> fx.Node:
    """Walk back from ``node`` over steps of these kinds."""
    while flow.kind(node) in kinds and len(flow.inputs[node]) == 1:
        (node,) = flow.inputs[node]
    return node


def _gates(flow: Flow, fork: fx.Node, source: fx.Node, gate: fx.Node) -> bool:
    """Tell a gate from an activation (looks nowhere else) and from a norm (only statistics)."""
    if _is_divisor(flow, gate):
        return False
    if flow.depends(gate, source):
        return looks_around(flow, source, gate)
    squashed = behind(flow, gate, {Kind.VIEW, Kind.IDENTITY, Kind.UPSAMPLE})
    return flow.kind(squashed) is Kind.SIGMOID and any(
        flow.kind(step) in (Kind.POOL, Kind.REDUCE) and not flow.depends(source, step)
        for step in flow.between(fork, squashed)
    )


def _is_divisor(flow: Flow, gate: fx.Node) -> bool:
    """Tell whether the factor is one over a sum, or a root of it, as a divisive norm's is.

    Generalised divisive normalisation, Balle et al. 2016, arXiv:1511.06281, eq. 1.
    """
    node, is_power = gate, False
    while len(flow.inputs[node]) == 1:
        kind = flow.kind(node)
        is_power |= kind is Kind.MATH or (kind is Kind.DIV and node.args[0] not in flow.inputs)
        if kind not in _PASSED_BY_POWERS:
            break
        (node,) = flow.inputs[node]
    return is_power and flow.kind(node) not in (Kind.SIGMOID, Kind.SOFTMAX)


_PASSED_BY_POWERS = {Kind.MATH, Kind.DIV, Kind.VIEW, Kind.IDENTITY, Kind.UPSAMPLE}


def looks_around(flow: Flow, source: fx.Node, gate: fx.Node) -> bool:
    """Tell whether ``gate`` is computed from ``source`` by learned weights and other positions."""
    kinds = {flow.kind(step) for step in flow.between(source, gate)}
    return not kinds.isdisjoint(_LOOKS_AROUND) and not kinds.isdisjoint(_GATES)


def is_attention(flow: Flow, residual: Residual) -> bool:
    """Tell whether the branch mixes positions, and not all by convolving them."""
    fork, branch = residual.fork, residual.branch
    mixes = any(is_mixing(flow, step) for step in flow.between(fork, branch))
    return mixes and flow.leads_past(fork, branch, lambda step: is_spatial(flow, step))
