"""From a plan to the blocks of a picture: in forward order, folded where they are alike."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attn_surgery.planning import Plan, Site, runs


@dataclass(frozen=True)
class Block:
    """A block of the host, or a run of such that are alike.

    Attributes:
        paths: Of the block, or of all in the run.
        sites: Those of the block, or of the first in the run.
        attention: What each of them gets; "" where it is skipped.
        cost: What is added in one block; None where that is not known.
    """

    paths: tuple[str, ...]
    sites: tuple[Site, ...]
    attention: tuple[str, ...]
    cost: int | None = None

    @property
    def is_cut(self) -> bool:
        """Whether attention goes in."""
        return any(self.attention)

    @property
    def types(self) -> str:
        """The names of its classes."""
        return ", ".join(dict.fromkeys(site.block_type for site in self.sites))

    @property
    def each(self) -> str:
        """What follows a cost."""
        return " each" if len(self.paths) > 1 else ""

    @property
    def afters(self) -> list[str]:
        """What its attentions receive, or would."""
        return list(dict.fromkeys(site.after for site in self._shown if site.after))

    @property
    def channels(self) -> list[int]:
        """How many channels that has."""
        return list(dict.fromkeys(site.channels for site in self._shown if site.channels))

    @property
    def reasons(self) -> list[str]:
        """Why sites of it are skipped."""
        return list(dict.fromkeys(site.reason for site in self.sites if site.reason))

    @property
    def held(self) -> list[str]:
        """Paths, inside it, of attention that is there already, and stays."""
        return list(dict.fromkeys(s.existing for s in self.sites if s.existing and not _swaps(s)))

    @property
    def added(self) -> list[str]:
        """What goes in, and for what."""
        pairs = zip(self.sites, self.attention, strict=True)
        texts = [f"{given} for {s.existing}" if _swaps(s) else given for s, given in pairs if given]
        return list(dict.fromkeys(texts))

    @property
    def title(self) -> str:
        """Its path, or the first and the last of the run."""
        ends = dict.fromkeys((self.paths[0], self.paths[-1]))
        return " to ".join(path or "(the host)" for path in ends)

    @property
    def stage(self) -> str:
        """The path up to the last name that ends in a number, or else up to the last one."""
        return ".".join(_parted(self.paths[0])[0])

    @property
    def _shown(self) -> list[Site]:
        """Those of the sites that are told of first."""
        cut = [site for site, given in zip(self.sites, self.attention, strict=True) if given]
        return cut or list(self.sites)

    def is_like(self, other: Block) -> bool:
        """Tell whether nothing but the path differs."""
        return _pathless(self) == _pathless(other)


def short_name(path: str) -> str:
    """Return the end of a path, from the last name of its stage that is no number.

    Example:
        >>> short_name("backbone.body.layer3.4"), short_name("features.1.0"), short_name("stem")
        ('layer3.4', 'features.1.0', 'stem')
    """
    stage, rest = _parted(path)
    kept = [i for i, name in enumerate(stage) if not name.isdecimal()]
    return ".".join([*stage[kept[-1] if kept else 0 :], *rest]) or "(the host)"


def blocks_of(
    plan: Plan,
    costs: Mapping[str, int] | None = None,
    *,
    order: Sequence[str] = (),
    fold: bool = False,
) -> list[Block]:
    """Return the blocks of a plan.

    Args:
        plan: The plan.
        costs: Path of a block to what its attentions cost.
        order: The paths of all modules of the host, in the order in which it holds them: it says
            where a skipped block stands between those that are cut.
        fold: Return one for each run of blocks that are alike.
    """
    given = {id(s): str(a) for s, a in zip(plan.sites, plan.assignments, strict=True)}
    sites: dict[str, list[Site]] = {}
    for site in (*plan.sites, *plan.skipped):
        sites.setdefault(site.block, []).append(site)
    blocks = [
        Block(
            (path,),
            tuple(sites[path]),
            tuple(given.get(id(site), "") for site in sites[path]),
            None if costs is None else costs.get(path),
        )
        for path in _in_order(plan, order)
    ]
    return _folded(blocks) if fold else blocks


def _folded(blocks: Sequence[Block]) -> list[Block]:
    def is_next(one: Block, other: Block) -> bool:
        return one.is_like(other) and one.sites[0].precedes(other.sites[0])

    return [
        replace(run[0], paths=tuple(path for block in run for path in block.paths))
        for run in runs(blocks, is_next)
    ]


def _pathless(block: Block) -> Block:
    return replace(block, paths=(), sites=tuple(replace(each, block="") for each in block.sites))


def _swaps(site: Site) -> bool:
    return site.method == "swap" and not site.reason


# Order


def _in_order(plan: Plan, order: Sequence[str]) -> list[str]:
    """Return the paths of all blocks: those cut and those skipped are each in forward order.

    A skipped block goes among those with which it shares the longest beginning of its path, by the
    order of the host, or else by the numbers and names in the path.
    """
    ordered = list(dict.fromkeys(site.block for site in plan.sites))
    others = [path for path in dict.fromkeys(s.block for s in plan.skipped) if path not in ordered]
    ranks = {path: rank for rank, path in enumerate(order)}
    key = ranks.__getitem__ if ranks.keys() >= {*ordered, *others} else _by_numbers
    for path in others:
        ordered.insert(_place(path, ordered, key), path)
    return ordered


def _by_numbers(path: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path))


def _place(path: str, ordered: Sequence[str], key: Callable[[str], Any]) -> int:
    """Return before which of those in order a path goes."""
    shared = [_shared(path.split("."), each.split(".")) for each in ordered]
    near = [i for i, length in enumerate(shared) if length == max(shared)]
    later = [i for i in near if key(ordered[i]) > key(path)]
    return later[0] if later else near[-1] + 1 if near else 0


def _shared(names: Sequence[str], others: Sequence[str]) -> int:
    """Return how many names two paths have in common at their beginning."""
    pairs = zip(names, others, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _parted(path: str) -> tuple[list[str], list[str]]:
    """Return the names in a path before the last one that ends in a number, and from there on.

    Example:
        >>> _parted("layers.1.layers.0.conv"), _parted("backbone.fpn")
        ((['layers', '1', 'layers'], ['0', 'conv']), (['backbone'], ['fpn']))
    """
    names = path.split(".")
    numbered = [i for i, name in enumerate(names) if name[-1:].isdecimal()]
    at = numbered[-1] if numbered else len(names) - 1
    return names[:at], names[at:]
