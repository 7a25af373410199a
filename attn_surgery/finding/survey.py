"""Every residual addition of a model, and the place in a block where its branch ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from torch import nn

from attn_surgery.dataflow import Flow, followed, followed_every_way
from attn_surgery.finding.places import Finding, findings_on
from attn_surgery.finding.positions import OUTPUT
from attn_surgery.finding.refusals import UNKNOWN_LAYOUT, UNKNOWN_NUMBERS
from attn_surgery.finding.residual_blocks import residuals
from attn_surgery.finding.spots import ELSEWHERE, Spot
from attn_surgery.finding.untaken_ways import places_on_untaken_ways
from attn_surgery.host import MATCHES, likeness, may_add

_Places: TypeAlias = dict[tuple[nn.Module, Spot], Finding]
_KnownWays: TypeAlias = list[tuple[Flow, set[nn.Module]]]


@dataclass
class Survey:
    """What was found in a model, and what could not be looked at."""

    findings: list[Finding] = field(default_factory=list)
    followed: set[str] = field(default_factory=set)
    """Paths of the modules whose forward was followed."""
    untraced: dict[str, str] = field(default_factory=dict)
    """Path of each module whose forward could not be followed -> why."""


def survey(model: nn.Module, position: str = "standard", *, replacing: bool = False) -> Survey:
    """Find the places for attention in ``model``, in forward order.

    They are those of its residual additions, or, where ``replacing`` and there is attention
    already, in a residual block or not, the places of that.
    """
    result = Survey()
    paths = {module: path for path, module in reversed(list(model.named_modules()))}
    found: _Places = {}
    ways: list[tuple[Flow, list[Finding]]] = []
    fruitless: set[object] = set()
    for each in followed(reversed(paths.items())):
        result.followed |= {paths[module] for module in each.modules}
        if not each.flows:
            result.untraced[each.path] = each.failure
        flows = (*each.flows, *_other_ways(each.flows, fruitless))
        new = [(flow, findings_on(flow, paths, position, replacing=replacing)) for flow in flows]
        ways += new
        for finding in itertools.chain.from_iterable(findings for _, findings in new):
            key = (finding.block, finding.spot)
            if key not in found or found[key].refusal:
                found[key] = finding
    found = _without_doubles(_with_untaken(found, ways), ways)
    result.untraced |= _missed(ways, found.values(), paths)
    known = [
        (flow, {module for each in new if not each.refusal for module in _beside(each).values()})
        for flow, new in ways
    ]
    result.findings = [_with_others(each, known) for each in found.values()]
    return result


def _with_others(finding: Finding, ways: _KnownWays) -> Finding:
    """Return the place, and its doubles, with what is otherwise on other ways."""
    doubles = tuple(_with_others(each, ways) for each in finding.doubles)
    return replace(finding, otherwise=frozenset(_otherwise(finding, ways)), doubles=doubles)


def _with_untaken(found: _Places, ways: list[tuple[Flow, list[Finding]]]) -> _Places:
    """Return the places, and after them those on ways that other plain values would lead."""
    flows = [flow for flow, _ in ways]
    every: _Places = {}
    fruitless: set[object] = set()
    for key, finding in found.items():
        every.setdefault(key, finding)
        for flow, new in places_on_untaken_ways(finding, flows, fruitless):
            ways.append((flow, new))
            for each in new:
                every.setdefault((each.block, each.spot), each)
    return every


def _without_doubles(found: _Places, ways: list[tuple[Flow, list[Finding]]]) -> _Places:
    """Put a block's own place where a module around it has the same, made without its forward.

    Such is what ``self.block.step(x)`` has made in a model's forward, where the forward of that
    block has it made, too.
    """
    own: dict[tuple[nn.Module | None, nn.Module], Finding] = {
        (each.source, each.block): each for each in found.values() if each.source is not None
    }
    around: dict[tuple[nn.Module, Spot], list[Finding]] = {}
    inner: dict[tuple[nn.Module, Spot], Finding] = {}
    for flow, new in ways:
        for each in new:
            if each.refusal or each.position == OUTPUT:
                continue
            below = (module for module in each.block.modules() if module not in flow.known_calls)
            block = next((module for module in below if (each.source, module) in own), None)
            if block is not None and block is not each.block:
                place = inner[each.block, each.spot] = own[each.source, block]
                around.setdefault((block, place.spot), []).append(each)
    result: _Places = {}
    for key, each in found.items():
        place = inner.get(key, each)
        doubles = around.get((place.block, place.spot), ())
        result.setdefault((place.block, place.spot), replace(place, doubles=tuple(doubles)))
    return result


def _missed(
    ways: list[tuple[Flow, list[Finding]]],
    found: Iterable[Finding],
    paths: dict[nn.Module, str],
) -> dict[str, str]:
    """Return the modules without a place whose other ways are not known, and why."""
    blocks = {each.block for each in found}
    matched = dict.fromkeys(module for flow, _ in ways for module in flow.trace.matched)
    return {paths[module]: f"it {MATCHES}" for module in matched if module not in blocks}


def _beside(finding: Finding) -> dict[str, nn.Module]:
    """Return the modules that make the value and take it, by their paths inside the block."""
    paths = (finding.spot.source, finding.spot.taker)
    return {path: finding.block.get_submodule(path) for path in paths if path and path != ELSEWHERE}


def _otherwise(finding: Finding, ways: _KnownWays) -> Iterator[str]:
    """Yield the modules by which the value is made or taken, but not on all ways they are called.

    Where a forward looks a value up, or matches it, which other ways there are is not known.
    """
    below = set(finding.block.modules()) - {finding.block}
    # a child that was followed alone shows nothing of who calls it
    ways = [(flow, beside) for flow, beside in ways if flow.trace.root.module not in below]
    for path, module in _beside(finding).items():
        callers = _around(module, finding.block)
        for flow, beside in ways:
            is_called = module in flow.known_calls and module not in beside
            if is_called or any(map(flow.trace.is_one_of_many, callers)):
                yield path


def _around(module: nn.Module, block: nn.Module) -> list[nn.Module]:
    """Return the block, and what in it holds the module, which may call others in its place."""
    return [each for each in block.modules() if each is not module and module in each.modules()]


def _other_ways(flows: list[Flow], fruitless: set[object]) -> Iterator[Flow]:
    """Follow on its own, along every way, each adding module that forks on a traced value."""
    for module in dict.fromkeys(module for each in flows for module in each.trace.forked):
        alike = likeness(module)
        if alike in fruitless or not may_add(module):
            continue
        others = followed_every_way(module)
        if any(_holds_block(each) for each in others):
            yield from others
        else:
            fruitless.add(alike)


def _holds_block(flow: Flow) -> bool:
    """Tell whether there is a residual block on a way, or what may be one."""
    return any(
        residual.refusal in ("", UNKNOWN_LAYOUT, UNKNOWN_NUMBERS) for residual in residuals(flow)
    )
