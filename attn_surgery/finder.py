"""Every residual addition of a model, and the place in a block where its branch ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from attn_surgery.fidelity import spells_addition
from attn_surgery.flow import Flow
from attn_surgery.operations import Kind, function_name
from attn_surgery.preserve import likeness
from attn_surgery.proxies import is_primitive
from attn_surgery.residual import Residual, attention_call, gated_products, is_mixing, residuals
from attn_surgery.traces import Call, Trace, called_path, index, owner
from attn_surgery.tracing import trace


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
    source: str | None = None
    """The path of the innermost module that returns the value."""
    is_only_call: bool = False
    """Whether that module is called once for each call of the block."""


@dataclass(frozen=True)
class Finding:
    """One residual addition, placed in its block."""

    block: nn.Module
    path: str
    spot: Spot
    residual: Residual
    existing: str | None


@dataclass
class Survey:
    """What was found in a model, and what could not be looked at."""

    findings: list[Finding] = field(default_factory=list)
    followed: set[str] = field(default_factory=set)
    """Paths of the modules whose forward was followed."""
    untraced: dict[str, str] = field(default_factory=dict)
    """Path of each module whose forward could not be followed -> why."""


ELSEWHERE = "?"
"""Stands for the path of a module that a block uses but does not hold."""

_SHAPING = {Kind.UPSAMPLE, Kind.VIEW, Kind.ACTIVATION, Kind.IDENTITY, Kind.MUL, Kind.ADD}


def survey(model: nn.Module) -> Survey:
    """Find the residual additions of ``model``, in forward order.

    The largest modules that can be followed as a whole are; what cannot be, or was not reached,
    is looked at on its own.
    """
    result = Survey()
    seen: set[nn.Module] = set()
    paths = {module: path for path, module in reversed(list(model.named_modules()))}
    found: dict[tuple[nn.Module, Spot], Finding] = {}
    failures: dict[object, str] = {}
    fruitless: set[object] = set()
    for module, path in reversed(paths.items()):
        if module in seen or not _can_be_traced(module):
            continue
        alike = likeness(module)
        if alike in failures:
            result.untraced[path] = failures[alike]
            continue
        traces, failure = trace(module, inline=True)
        if failure and not traces:
            result.untraced[path] = failures[alike] = failure
        for each in (*traces, *_other_paths(traces, fruitless)):
            seen.update(call.module for call in each.calls)
            for finding in _findings(each, paths):
                key = (finding.block, finding.spot)
                if key not in found or found[key].residual.refusal:
                    found[key] = finding
    result.findings = list(found.values())
    result.followed = {paths[module] for module in seen}
    return result


def _can_be_traced(module: nn.Module) -> bool:
    own = type(module).forward is not nn.Module.forward or "forward" in vars(module)
    return own and not is_primitive(module) and not isinstance(module, torch.jit.ScriptModule)


def _other_paths(traces: list[Trace], fruitless: set[object]) -> Iterator[Trace]:
    """Trace on its own, along every way, each adding module that branched on a traced value."""
    for module in dict.fromkeys(module for each in traces for module in each.branched):
        alike = likeness(module)
        if alike in fruitless or not spells_addition(module):
            continue
        others = trace(module, inline=True, every_path=True)[0]
        if not any(residuals(Flow(each)) for each in others):
            fruitless.add(alike)
        yield from others


def _findings(traced: Trace, paths: dict[nn.Module, str]) -> Iterator[Finding]:
    flow = Flow(traced)
    found = residuals(flow)
    for residual in found:
        call, spot = _place(flow, residual.end, owner(residual.addition))
        others = [other for other in found if other is not residual and not other.refusal]
        if any(_encloses(flow, other, residual) for other in others) and _mixes(flow, residual):
            residual = replace(residual, refusal="the addition is inside an attention module")
        existing = None
        if not residual.refusal:
            inner = [other for other in others if _encloses(flow, residual, other)]
            existing = _existing(flow, residual, call, inner, paths)
        yield Finding(call.module, paths[call.module], spot, residual, existing)


def _mixes(flow: Flow, residual: Residual) -> bool:
    return any(is_mixing(flow, step) for step in flow.between(residual.fork, residual.branch))


def _place(flow: Flow, end: fx.Node, adder: Call) -> tuple[Call, Spot]:
    """Return the block's call, the innermost around addition and ``end``, and the spot in it."""
    block = next(call for call in adder.lineage() if index(end) >= call.start)
    returning = [
        call
        for call in _below(owner(end), block)
        if call.node is not None and _passes(flow, call.node, end)
    ]
    source = flow.trace.called_module(end) or (returning[0].module if returning else None)
    if source is None:
        block = owner(end)
        return block, Spot(function_name(end), False, True, _earlier_steps(flow, end))
    if returning:
        called, caller = returning[-1].module, returning[-1].parent
        earlier = _earlier_calls(flow, returning[-1])
    else:
        called, caller, earlier = source, owner(end), _earlier_steps(flow, end)
    calls = len(_calls_of(flow, source))
    return block, Spot(
        name=_path_below(block, called),
        is_child=True,
        is_direct=caller is block,
        occurrence=earlier,
        source=_path_below(block, source),
        is_only_call=calls == len(_calls_of(flow, block.module)),
    )


def _below(inner: Call, outer: Call) -> list[Call]:
    """Return ``inner`` and the calls around it that lie within ``outer``, innermost first."""
    return list(itertools.takewhile(lambda call: call is not outer, inner.lineage()))


def _passes(flow: Flow, node: fx.Node, end: fx.Node) -> bool:
    """Tell whether ``node`` is ``end``, handed on by nothing but ``nn.Identity``."""
    while node is not end and flow.kind(node) is Kind.IDENTITY and flow.trace.called_module(node):
        (node,) = flow.inputs[node]
    return node is end


def _path_below(block: Call, module: nn.Module) -> str:
    return next((path for path, each in block.module.named_modules() if each is module), ELSEWHERE)


def _earlier_steps(flow: Flow, end: fx.Node) -> int:
    earlier = (node for node in flow.nodes if index(node) < index(end))
    return sum(owner(node) is owner(end) and same_step(node, end) for node in earlier)


def _earlier_calls(flow: Flow, call: Call) -> int:
    same = (each for each in flow.trace.calls if each.module is call.module)
    return sum(each.parent is call.parent and each.start < call.start for each in same)


def _calls_of(flow: Flow, module: nn.Module) -> list[object]:
    followed = [call for call in flow.trace.calls if call.module is module]
    return [*followed, *(node for node in flow.nodes if flow.trace.called_module(node) is module)]


def same_step(node: fx.Node, other: fx.Node) -> bool:
    """Tell whether two nodes call the same child, or functions of the same name."""
    if called_path(node) or called_path(other):
        return called_path(node) == called_path(other)
    calls = node.op.startswith("call_") and other.op.startswith("call_")
    return calls and function_name(node) == function_name(other)


def _encloses(flow: Flow, outer: Residual, inner: Residual) -> bool:
    return (
        inner.addition is not outer.addition
        and flow.depends(outer.branch, inner.addition)
        and flow.depends(inner.fork, outer.fork)
    )


def _existing(
    flow: Flow,
    residual: Residual,
    block: Call,
    inner: list[Residual],
    paths: dict[nn.Module, str],
) -> str | None:
    """Return the path of an attention that F already holds.

    It is the path inside the block, or, where F begins outside of it, the path in the host.
    """
    for product, source, gate in gated_products(flow, residual):
        if any(
            flow.depends(other.branch, product) and flow.depends(product, other.fork)
            for other in inner
        ):
            continue
        call = attention_call(product, source, block)
        holder = _gate_module(flow, gate, block) if call is block else call.module
        if holder is None:
            return function_name(gate)
        path = _path_below(block, holder)
        return paths[holder] if path == ELSEWHERE else path
    return None


def _gate_module(flow: Flow, gate: fx.Node, block: Call) -> nn.Module | None:
    """Return the child of the block that computes the gate, or None where its functions do."""
    while owner(gate) is block and flow.kind(gate) in _SHAPING and len(flow.inputs[gate]) == 1:
        (gate,) = flow.inputs[gate]
    inside = _below(owner(gate), block)
    return inside[-1].module if inside else flow.trace.called_module(gate)
