"""The plan: every place in a host where attention can go, and why others were skipped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate


@dataclass(frozen=True)
class Site:
    """A place in one residual block, at the end of its branch.

    Attributes:
        block: Dotted path of the block in the host; "" where the host itself is the block.
        block_type: The name of the block's class.
        after: What the attention receives, as the block's own forward sees it: the path of a
            child, or the name of the function where no child produces it.
        channels: C of the maps ``(N, C, *spatial)`` there.
        spatial_dims: How many spatial dims they have: 1, 2 or 3.
        existing: The path, inside the block, of an attention that the branch already holds, or
            None.
        method: ``rewrite`` (the block's forward is generated anew with the attention in it) or
            ``attach`` (the output of a child passes through the attention).
        reason: Why the site is skipped; "" where it is to be cut.
    """

    block: str
    block_type: str
    after: str
    channels: int | None
    spatial_dims: int | None
    existing: str | None
    method: str
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """Every site of a host in forward order.

    Attributes:
        sites: The sites to be cut.
        skipped: The rest, each with its ``reason``.

    Example:
        >>> import torchvision, attn_surgery
        >>> plan = attn_surgery.plan(torchvision.models.resnet18(), "se")
        >>> len(plan.sites), plan.sites[0].block, plan.sites[0].after, plan.sites[0].channels
        (8, 'layer1.0', 'bn2', 64)
    """

    sites: tuple[Site, ...]
    skipped: tuple[Site, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, fit for JSON."""
        return {
            "sites": [asdict(site) for site in self.sites],
            "skipped": [asdict(site) for site in self.skipped],
        }

    def __str__(self) -> str:
        parts = [f"{len(self.sites)} site{'s' * (len(self.sites) != 1)} to cut"]
        if self.sites:
            parts.append(
                _table(self.sites, ["block", "type", "after", "channels", "dims", "method"])
            )
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped")
            parts.append(_table(self.skipped, ["block", "type", "after", "existing", "reason"]))
        return "\n\n".join(parts)


_COLUMNS = {"type": "block_type", "dims": "spatial_dims"}


def _table(sites: tuple[Site, ...], columns: list[str]) -> str:
    rows = [[_cell(site, column) for column in columns] for site in sites]
    return tabulate(rows, headers=columns, disable_numparse=True)


def _cell(site: Site, column: str) -> str:
    value = getattr(site, _COLUMNS.get(column, column))
    if column == "block":
        return value or "(the host)"
    return "" if value is None else str(value)
