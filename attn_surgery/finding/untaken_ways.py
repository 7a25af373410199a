"""The ways through a block that other plain values would lead, to children that nobody called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from attn_surgery.dataflow import Flow, followed_otherwise
from attn_surgery.finding.places import Finding, places_on
from attn_surgery.finding.positions import OUTPUT
from attn_surgery.finding.spots import path_below
from attn_surgery.host import likeness


def places_on_untaken_ways(
    finding: Finding, flows: list[Flow], fruitless: set[object]
) -> Iterator[tuple[Flow, list[Finding]]]:
    """Yield the ways through the block of a finding on which its branch ends at idle children.

    Such are the norms of other domains, where an argument or an attribute chooses. On a way where
    the child that the finding is about is called, too, the branch has its attention.

    Args:
        finding: A place in a block.
        flows: The ways that are known.
        fruitless: What tells blocks that have no such ways; more is added.
    """
    block = finding.block
    if finding.source is None or not _is_for_one_more(finding):
        return
    idle = _idle(block, flows)
    if not idle:
        return
    alike = likeness(block), finding.spot, frozenset(path_below(block, each) for each in idle)
    if alike in fruitless:
        return
    served = [finding.source]
    for flow in followed_otherwise(block):
        if any(each in flow.known_calls for each in served):
            continue
        found = [each for each in places_on(flow, finding) if each.source in idle]
        served += [each.source for each in found if each.source is not None]
        if found:
            yield flow, [replace(each, path=finding.path, is_untaken=True) for each in found]
    if len(served) == 1:
        fruitless.add(alike)


def _is_for_one_more(finding: Finding) -> bool:
    """Tell whether attention goes to the end of a branch, and not in the place of another."""
    is_swap = finding.replaces or finding.slot is not None
    return not finding.refusal and not is_swap and finding.position != OUTPUT


def _idle(block: nn.Module, flows: list[Flow]) -> set[nn.Module]:
    """Return the modules with parameters below a block that no known way through it calls."""
    through = [each for each in flows if block in each.known_calls]
    idle: set[nn.Module] = set()
    pending = list(block.children())
    while pending:
        each = pending.pop()
        if not any(each in flow.known_calls for flow in through):
            pending += each.children()
            if next(each.parameters(), None) is not None:
                idle.add(each)
    return idle
