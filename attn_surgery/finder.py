"""Every residual addition of a model, and the place in a block where its branch ends."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import fx, nn

from attn_surgery.fidelity import spells_addition
from attn_surgery.flow import Flow, Form
from attn_surgery.operations import function_name
from attn_surgery.placing import ELSEWHERE, Spot, attention_holder, path_below, place
from attn_surgery.positions import target
from attn_surgery.preserve import likeness
from attn_surgery.proxies import is_primitive
from attn_surgery.residual import Residual, gated_products, is_mixing, is_spatial, residuals
from attn_surgery.traces import Call, Trace, index
from attn_surgery.tracing import trace


@dataclass(frozen=True)
class Finding:
    """One residual addition, and where in its block the attention goes."""

    block: nn.Module
    path: str
    spot: Spot
    form: Form
    is_channels_last: bool
    existing: str | None
    refusal: str
    """Why no attention can go there; "" where it can."""


@dataclass
class Survey:
    """What was found in a model, and what could not be looked at."""

    findings: list[Finding] = field(default_factory=list)
    followed: set[str] = field(default_factory=set)
    """Paths of the modules whose forward was followed."""
    untraced: dict[str, str] = field(default_factory=dict)
    """Path of each module whose forward could not be followed -> why."""


def survey(model: nn.Module, position: str = "standard") -> Survey:
    """Find the residual additions of ``model``, in forward order, and their place for attention.

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
            for finding in _findings(each, paths, position):
                key = (finding.block, finding.spot)
                if key not in found or found[key].refusal:
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
        if any(_holds_block(each) for each in others):
            yield from others
        else:
            fruitless.add(alike)


def _holds_block(traced: Trace) -> bool:
    return any(not residual.refusal for residual in residuals(Flow(traced)))


def _findings(traced: Trace, paths: dict[nn.Module, str], position: str) -> Iterator[Finding]:
    flow = Flow(traced)
    found = residuals(flow)
    found = [_judged_among(flow, residual, found) for residual in found]
    for residual in found:
        goal = target(flow, residual, position)
        call, spot = place(flow, goal.value, goal.into, goal.block)
        existing = None if residual.refusal else _existing(flow, residual, found, call, paths)
        yield Finding(
            block=call.module,
            path=paths[call.module],
            spot=spot,
            form=goal.form,
            is_channels_last=goal.is_channels_last,
            existing=existing,
            refusal=goal.refusal,
        )


def _judged_among(flow: Flow, residual: Residual, found: list[Residual]) -> Residual:
    """Refuse the addition of an attention module that stands in the branch of a block."""
    if residual.refusal or not _is_attention(flow, residual):
        return residual
    if any(_encloses(flow, other, residual) for other in found if not other.refusal):
        return replace(residual, refusal="the addition is inside an attention module")
    return residual


def _is_attention(flow: Flow, residual: Residual) -> bool:
    """Tell whether the branch mixes positions, and not all by convolving them."""
    fork, branch = residual.fork, residual.branch
    mixes = any(is_mixing(flow, step) for step in flow.between(fork, branch))
    return mixes and flow.leads_past(fork, branch, lambda step: is_spatial(flow, step))


def _during(residual: Residual, found: list[Residual]) -> list[Residual]:
    """Return the additions made between the fork and the end of the branch."""
    first = bisect_right(found, index(residual.fork), key=lambda other: index(other.addition))
    last = bisect_right(found, index(residual.branch), key=lambda other: index(other.addition))
    return found[first:last]


def _encloses(flow: Flow, outer: Residual, inner: Residual) -> bool:
    return (
        inner.addition is not outer.addition
        and flow.depends(outer.branch, inner.addition)
        and flow.depends(inner.fork, outer.fork)
    )


def _existing(
    flow: Flow,
    residual: Residual,
    found: list[Residual],
    call: Call,
    paths: dict[nn.Module, str],
) -> str | None:
    """Return the path of an attention that F already holds, and no block within F.

    It is the path inside the block, or, where F begins outside of it, the path in the host.
    """
    inner = [other for other in _during(residual, found) if _encloses(flow, residual, other)]
    blocks = [other for other in inner if not other.refusal]
    for result, source, gate in _attentions(flow, residual, inner):
        if any(_spans(flow, other, result) for other in blocks):
            continue
        holder = attention_holder(flow, result, source, gate, call)
        if holder is None:
            return function_name(gate)
        path = path_below(call.module, holder)
        return paths[holder] if path == ELSEWHERE else path
    return None


def _attentions(
    flow: Flow, residual: Residual, inner: list[Residual]
) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
    """Yield (result, map, gate or summand) of what attends by product, then by addition."""
    yield from gated_products(flow, residual)
    for other in inner:
        if other.refusal and _is_attention(flow, other):
            yield other.addition, other.fork, other.branch


def _spans(flow: Flow, residual: Residual, node: fx.Node) -> bool:
    return flow.depends(residual.branch, node) and flow.depends(node, residual.fork)
