"""Where an attention came from, kept with it, so that its surgery can be done again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from attn_surgery.errors import SurgeryError
from attn_surgery.planning import Assignment, Plan, Site
from attn_surgery.rewriting import alteration_of

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


def check_none_is_lost(path: str, module: nn.Module) -> None:
    """Refuse a module of torch's own that took the place of one that ran attention.

    So it is after ``SyncBatchNorm.convert_sync_batchnorm``, which makes a new norm, gives it the
    children of the old one, and runs none of them.

    Raises:
        SurgeryError: It is so.
    """
    if not _runs_no_children(module) or alteration_of(module) is not None:
        return
    for name, child in module.named_children():
        if origin_of(child) is not None:
            raise SurgeryError(
                f"{path}.{name}: this attention does not run any more, as {path!r} was replaced "
                f"by a new {type(module).__name__}; convert the host first, then operate, then "
                "convert each of attn_surgery.inserted(model).values()"
            )


def _runs_no_children(module: nn.Module) -> bool:
    home = type(module).__module__
    return home.startswith("torch.nn.modules.") and not home.endswith((".module", ".container"))


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
