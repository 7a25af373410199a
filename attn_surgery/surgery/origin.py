"""Where an attention came from, kept with it, so that its surgery can be done again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from attn_surgery.planning import Assignment, Plan, Site

_ORIGIN = "_came_from"


@dataclass(frozen=True)
class Origin:
    """The surgery in which an attention was inserted.

    Attributes:
        step: The how manieth surgery on the host it was, from 0.
        site: Where.
        assignment: What.
        position: As for `attn_surgery.apply`.
        existing: As for `attn_surgery.apply`.
        init: As for `attn_surgery.apply`.
    """

    step: int
    site: Site
    assignment: Assignment
    position: str
    existing: str
    init: str


def origin_of(attention: nn.Module) -> Origin | None:
    """Return the origin of an attention, or None where it has none."""
    return vars(attention).get(_ORIGIN)


def remember(attention: nn.Module, origin: Origin) -> None:
    """Let ``attention`` keep its origin; copies and pickles of it keep it too."""
    vars(attention)[_ORIGIN] = origin


def next_step(attentions: Iterable[nn.Module]) -> int:
    """Return the number of the next surgery on a host with these attentions."""
    origins = (origin_of(attention) for attention in attentions)
    return 1 + max((origin.step for origin in origins if origin is not None), default=-1)


def surgeries(attentions: Iterable[nn.Module]) -> list[tuple[Plan, str]]:
    """Return the plan and the init of each surgery that inserted these, first to last."""
    origins = [origin for each in attentions if (origin := origin_of(each)) is not None]
    found = []
    for step in sorted({origin.step for origin in origins}):
        done = [origin for origin in origins if origin.step == step]
        plan = Plan(
            sites=tuple(origin.site for origin in done),
            assignments=tuple(origin.assignment for origin in done),
            position=done[0].position,
            existing=done[0].existing,
        )
        found.append((plan, done[0].init))
    return found
