"""Where attention can go in the blocks on one way that was followed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import fx, nn

from attn_surgery.dataflow import MAPS, Flow, Kind, Shape
from attn_surgery.finding.aliasing import CHANGED, changes_before_use
from attn_surgery.finding.existing_attention import (
    Held,
    block_of,
    encloses,
    held_in,
    held_outside,
    holder_path,
    whole_call,
)
from attn_surgery.finding.gates import behind, is_attention
from attn_surgery.finding.positions import OUTPUT, target
from attn_surgery.finding.residual_blocks import Residual, block_around, residuals
from attn_surgery.finding.spots import ELSEWHERE, Spot, path_below, place, place_output
from attn_surgery.tracing import Call, index, owner


@dataclass(frozen=True)
class Finding:
    """One place for attention in a block."""

    block: nn.Module
    path: str
    spot: Spot
    shape: Shape
    existing: str | None
    width: int | None
    """The number of channels that the block returns."""
    refusal: str = ""
    """Why no attention can go there; "" where it can."""
    is_channels_last: bool = False
    position: str = "standard"
    replaces: bool = False
    """Whether the attention goes where another one is."""
    slot: str | None = None
    """The path, inside the block, of the module that is the other one and nothing else."""
    otherwise: frozenset[str] = frozenset()
    """The modules in the block that do something else with the value on another way through it."""
    is_untaken: bool = False
    """Whether it is on a way that the values lead which nobody gave so far."""
    doubles: tuple[Finding, ...] = ()
    """The same place as others have it which run the block by another method than its forward."""

    @property
    def source(self) -> nn.Module | None:
        """The innermost module that returns the value, if the block holds it."""
        path = self.spot.source
        return None if path is None or path == ELSEWHERE else self.block.get_submodule(path)


def findings_on(
    flow: Flow, paths: dict[nn.Module, str], position: str, *, replacing: bool
) -> list[Finding]:
    """Return the places for attention on one way, in forward order.

    They are those of the residual additions, or, where ``replacing`` and there is attention
    already, in a residual block or not, the places of that.
    """
    if position == OUTPUT:
        return list(_outputs(flow, paths))
    found = residuals(flow)
    found = [_judged_among(flow, residual, found) for residual in found]
    findings: list[tuple[int, Finding]] = []
    replaced: list[tuple[Held, Call]] = []
    for residual in found:
        held = [] if residual.refusal else held_in(flow, residual, found)
        if replacing and held:
            block = block_around(residual.end, residual.addition)
            replaced += [(each, block) for each in held]
        else:
            finding = _place_for_one_more(flow, residual, held, position, paths)
            findings.append((index(residual.addition), finding))
    if replacing:
        replaced += [(each, block_of(flow, each)) for each in held_outside(flow, found)]
        findings += _replacements(flow, replaced, paths)
    return [finding for _, finding in sorted(findings, key=lambda each: each[0])]


def places_on(flow: Flow, finding: Finding) -> list[Finding]:
    """Return the places for attention in the block of a finding, on one way through that block."""
    paths = {module: path for path, module in flow.trace.root.module.named_modules()}
    found = findings_on(flow, paths, finding.position, replacing=False)
    return [each for each in found if each.block is finding.block and not each.refusal]


def _outputs(flow: Flow, paths: dict[nn.Module, str]) -> Iterator[Finding]:
    """Yield the place after each module that returns a map."""
    returned = {call.module: (call.node, call) for call in flow.trace.calls}
    for node in flow.inputs:
        module = flow.trace.called_module(node)
        if module is not None:
            returned[module] = (node, owner(node))
    for module, (value, call) in sorted(returned.items(), key=lambda each: paths[each[0]]):
        if value is None or value not in flow.inputs or flow.shape(value).layout != MAPS:
            continue
        spot = place_output(flow, value, call, module)
        is_again = flow.call_counts[module] > 1
        refusal = "it is called more than once" if is_again else _shape_refusal(flow.shape(value))
        if not refusal and changes_before_use(flow, value):
            refusal = CHANGED
        shape = flow.shape(value)
        yield Finding(module, paths[module], spot, shape, None, shape.channels, refusal)


def _place_for_one_more(
    flow: Flow,
    residual: Residual,
    held: list[Held],
    position: str,
    paths: dict[nn.Module, str],
) -> Finding:
    goal = target(flow, residual, position)
    call, spot = place(flow, goal.value, goal.into, goal.block)
    spot = replace(spot, is_read_late=goal.is_read_late)
    return Finding(
        call.module,
        paths[call.module],
        spot,
        goal.shape,
        holder_path(flow, held[0], call, paths) if held else None,
        residual.shape.channels,
        goal.refusal,
        is_channels_last=goal.is_channels_last,
        position=position,
    )


def _replacements(
    flow: Flow, held: list[tuple[Held, Call]], paths: dict[nn.Module, str]
) -> Iterator[tuple[int, Finding]]:
    """Yield the places of the attentions, each once however many gates it has."""
    done: set[nn.Module] = set()
    for each, block in sorted(held, key=lambda each: index(each[0].result)):
        if any(call.module in done for call in owner(each.result).lineage()):
            continue
        whole = whole_call(flow, each, block)
        if whole is not None:
            done.add(whole[0].module)
            finding = _swap(flow, each, block, whole, paths)
        else:
            finding = _place_instead(flow, each, paths)
        yield index(each.result), finding


def _swap(
    flow: Flow,
    held: Held,
    block: Call,
    whole: tuple[Call, fx.Node],
    paths: dict[nn.Module, str],
) -> Finding:
    """Return the place of an attention that is a module of its own."""
    called, taken = whole
    return Finding(
        block.module,
        paths[block.module],
        place(flow, taken, (), block)[1],
        flow.shape(taken),
        holder_path(flow, held, block, paths),
        _width(flow, block),
        _shape_refusal(flow.shape(taken)) or _return_refusal(flow, called, taken),
        slot=path_below(block.module, called.module),
    )


def _return_refusal(flow: Flow, called: Call, taken: fx.Node) -> str:
    """Refuse an attention that changes its map in place, and is read by that."""
    assert called.node is not None
    end = index(called.node)
    late = [user for user in taken.users if index(user) > end and user is not called.node]
    if flow.becomes(taken, called.node) and called.node is not taken and late:
        return "its attention changes the map in place, and what it returns is not what is used"
    return ""


def _place_instead(flow: Flow, held: Held, paths: dict[nn.Module, str]) -> Finding:
    """Return the place of an attention that a forward spells out among other things."""
    call = owner(held.result)
    spot = place(flow, held.factor, (held.result,), call)[1]
    reshaped = behind(flow, held.factor, {Kind.IDENTITY}) is not held.source
    return Finding(
        call.module,
        paths[call.module],
        replace(spot, in_place=flow.is_in_place(held.result)),
        flow.shape(held.source),
        holder_path(flow, held, call, paths),
        _width(flow, call),
        _shape_refusal(flow.shape(held.source))
        or ("its attention scales something else than the map" if reshaped else ""),
        replaces=True,
    )


def _width(flow: Flow, call: Call) -> int | None:
    is_value = call.node is not None and call.node in flow.inputs
    return flow.shape(call.node).channels if is_value and call.node else None


def _shape_refusal(shape: Shape) -> str:
    return "" if shape.is_map else "the shape of what its attention receives is unknown"


def _judged_among(flow: Flow, residual: Residual, found: list[Residual]) -> Residual:
    """Refuse the addition of an attention module that stands in the branch of a block."""
    if residual.refusal or not is_attention(flow, residual):
        return residual
    if any(encloses(flow, other, residual) for other in found if not other.refusal):
        return replace(residual, refusal="the addition is inside an attention module")
    return residual
