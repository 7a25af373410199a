"""Whether the plan of a whole holds what the plans of its parts hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

import attn_surgery
from attn_surgery import Plan, SurgeryError
from attn_surgery.host.restore import likeness
from attn_surgery.planning.sites import Site
from attn_surgery.tracing.proxies import is_primitive

SMALL = 60
"""Modules of a part that is planned in a moment."""


@dataclass(frozen=True)
class Difference:
    """What the plan of a part says, and that of the whole does not.

    Attributes:
        part: Path and class of the part.
        site: The site in the part's plan, its block as the whole calls it.
        seen: What the plan of the whole has for the block: its sites and skipped entries.
    """

    part: str
    site: Site
    seen: tuple[Site, ...]

    @property
    def kind(self) -> str:
        """Tell a block that is lost from one whose site is elsewhere, or is another."""
        if not self.seen:
            return "lost"
        return "elsewhere" if all(each.after != self.site.after for each in self.seen) else "other"

    def __str__(self) -> str:
        seen = "; ".join(f"{each.after} {each.channels} {each.reason}" for each in self.seen)
        where = f"{self.site.block or '.'} ({self.site.block_type}) after {self.site.after}"
        return f"{self.kind}: {where} {self.site.channels} in the plan of {self.part}, here: {seen}"


def parts(whole: nn.Module, *, every: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """Yield the first module of each class below the whole that may hold a block.

    Of torch's own containers, which differ in what they hold alone, it is the first of each kind.

    Args:
        whole: The model.
        every: Otherwise the children of the whole and the small ones below alone.
    """
    seen: set[object] = set()
    for path, module in whole.named_modules():
        if not path or is_primitive(module) or not _convolves(module):
            continue
        is_torchs = type(module).__module__.startswith("torch.")
        alike = likeness(module) if is_torchs else type(module)
        if alike not in seen and (every or "." not in path or _is_small(module)):
            seen.add(alike)
            yield path, module


def _is_small(module: nn.Module) -> bool:
    return sum(1 for _ in module.modules()) <= SMALL


def _convolves(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward and any(
        parameter.dim() > 2 for parameter in module.parameters()
    )


def differences(whole: nn.Module, *, every: bool = True) -> list[Difference]:
    """Return the sites of the parts that the plan of the whole neither holds nor skips."""
    known = _by_block(whole, attn_surgery.plan(whole, "se", existing="stack"))
    found: list[Difference] = []
    for path, part in parts(whole, every=every):
        try:
            plan = attn_surgery.plan(part, "se", existing="stack")
        except SurgeryError:
            continue  # not fit to be a host
        for site in plan.sites:
            seen = known.get(part.get_submodule(site.block), ())
            if not any(_agree(each, site) for each in seen):
                named = replace(site, block=f"{path}.{site.block}".rstrip("."))
                found.append(Difference(f"{path} ({type(part).__name__})", named, seen))
    return found


def _by_block(whole: nn.Module, plan: Plan) -> dict[nn.Module, tuple[Site, ...]]:
    known: dict[nn.Module, tuple[Site, ...]] = {}
    for site in (*plan.sites, *plan.skipped):
        block = whole.get_submodule(site.block)
        known[block] = (*known.get(block, ()), site)
    return known


def _agree(here: Site, there: Site) -> bool:
    shapes = (here.channels, here.spatial_dims) == (there.channels, there.spatial_dims)
    return here.after == there.after and (shapes or bool(here.reason))
