"""The ways through a block that other plain values would lead, to children that nobody called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from attn_surgery.dataflow import Flow, followed_otherwise
from attn_surgery.finding.places import Finding, places_on
from attn_surgery.finding.positions import OUTPUT


def places_on_untaken_ways(
    finding: Finding, called: set[nn.Module | None]
) -> Iterator[tuple[Flow, list[Finding]]]:
    """Yield the ways through the block of a finding on which its branch ends at idle children.

    Such are the norms of other domains, where an argument or an attribute chooses. On a way where
    the child that the finding is about is called, too, the branch has its attention.

    Args:
        finding: A place in a block.
        called: The modules that are called on the ways that are known.
    """
    if finding.source is None or not _is_for_one_more(finding):
        return
    served, idle = [finding.source], _idle(finding.block, called)
    for flow in followed_otherwise(finding.block) if idle else ():
        if any(each in flow.known_calls for each in served):
            continue
        found = [each for each in places_on(flow, finding) if each.source in idle]
        served += [each.source for each in found if each.source is not None]
        if found:
            yield flow, [replace(each, path=finding.path) for each in found]


def _is_for_one_more(finding: Finding) -> bool:
    """Tell whether attention goes to the end of a branch, and not in the place of another."""
    is_swap = finding.replaces or finding.slot is not None
    return not finding.refusal and not is_swap and finding.position != OUTPUT


def _idle(block: nn.Module, called: set[nn.Module | None]) -> set[nn.Module]:
    """Return the modules with parameters below a block that nothing calls on the known ways."""
    idle: set[nn.Module] = set()
    pending = list(block.children())
    while pending:
        each = pending.pop()
        if each not in called:
            pending += each.children()
            if next(each.parameters(), None) is not None:
                idle.add(each)
    return idle
