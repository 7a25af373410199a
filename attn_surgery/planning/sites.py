"""The plan: every place in a host where attention can go, and why others were skipped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tabulate import tabulate

from attn_surgery.attention import available
from attn_surgery.errors import SurgeryError

T = TypeVar("T")


@dataclass(frozen=True)
class Site:
    """A place for attention, in a residual block or, if asked for, at another module's output.

    Attributes:
        block: Dotted path of the block in the host; "" where the host itself is the block.
        block_type: The name of the block's class.
        after: What the attention receives, as the block's own forward sees it: the path of a
            child, or the name of the function or argument where no child produces it.
        channels: C of the maps ``(N, C, *spatial)`` there.
        spatial_dims: How many spatial dims they have: 1, 2 or 3.
        existing: The path, inside the block, of an attention that the branch already holds, or
            None.
        method: How the attention gets there; "" where it cannot:

            - ``rewrite``: the block's forward is generated anew with the attention in it. (Should
              what that forward reads be changed later so that it cannot be generated again, hooks
              pass the output of the child through the attention instead.)
            - ``attach``: the block's forward stays as it is; the output of a child or of the block
              itself, or the input of a child, passes through the attention.
            - ``wrap``: the host's own method, compiled from its own source, passes what one of its
              expressions evaluates to through the attention.
            - ``swap``: the attention takes the place, and the name, of the one that is a child.
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

    def precedes(self, other: Site) -> bool:
        """Tell whether the other's block is the next: the index in its path is one more.

        Example:
            >>> first, *others = (
            ...     Site(path, "Bottleneck", "bn3", 1024, 2, None, "rewrite")
            ...     for path in ("layer3.4", "layer3.5", "layer3.6", "layer4.5")
            ... )
            >>> [first.precedes(each) for each in others]
            [True, False, False]
        """
        own, others = _INDEX.fullmatch(self.block), _INDEX.fullmatch(other.block)
        if own is None or others is None or own.group(1, 3) != others.group(1, 3):
            return False
        return int(others[2]) == int(own[2]) + 1


_INDEX = re.compile(r"(.*?)(\d+)((?:\.[^.]*[^.\d])*)", re.DOTALL)
"""Of a path, the number at the end of the last name that ends in one, and what is around it."""


@dataclass(frozen=True)
class Assignment:
    """The attention that a site is to get.

    Attributes:
        attention: Its name, or, for a callable, what that is called.
        options: Its options.
    """

    attention: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.attention}({options})" if options else self.attention


@dataclass(frozen=True)
class Plan:
    """The sites of a host: those to be cut, in forward order, and those that are skipped.

    Attributes:
        sites: The sites to be cut.
        skipped: The rest, each with its ``reason``, and modules that add and convolve but whose
            forward could not be followed. (At the position ``output`` every module is a site, and
            those that were not asked for are left out.)
        assignments: The attention for each of ``sites``.
        position: Where in the blocks the attention goes, as `attn_surgery.apply` takes it.
        existing: What is done about attention that is there, as `attn_surgery.apply` takes it.

    A plan can be kept as a file and carried out on another instance of the host, by giving it to
    `attn_surgery.apply` in place of an attention.

    Example:
        >>> import torchvision, attn_surgery
        >>> plan = attn_surgery.plan(torchvision.models.resnet18(), "se")
        >>> len(plan.sites), plan.sites[0].block, plan.sites[0].after, plan.sites[0].channels
        (8, 'layer1.0', 'bn2', 64)
    """

    sites: tuple[Site, ...]
    skipped: tuple[Site, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    position: str = "standard"
    existing: str = "skip"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data, fit for JSON."""
        return {
            "position": self.position,
            "existing": self.existing,
            "sites": [asdict(site) for site in self.sites],
            "assignments": [asdict(each) for each in self.assignments],
            "skipped": [asdict(site) for site in self.skipped],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan of which ``data`` is the `to_dict`.

        Raises:
            SurgeryError: It is none.

        Example:
            >>> site = Site("layer1.0", "BasicBlock", "bn2", 64, 2, None, "rewrite")
            >>> plan = Plan((site,), (), (Assignment("se", {"bias": False}),))
            >>> Plan.from_dict(plan.to_dict()) == plan
            True
        """
        try:
            plan = cls(
                sites=tuple(Site(**each) for each in data["sites"]),
                skipped=tuple(Site(**each) for each in data["skipped"]),
                assignments=tuple(Assignment(**each) for each in data["assignments"]),
                position=data["position"],
                existing=data["existing"],
            )
        except (KeyError, TypeError) as error:
            raise SurgeryError(f"this is no plan: {type(error).__name__}: {error}") from error
        for each in plan.assignments:
            if not isinstance(each.options, Mapping) or not isinstance(each.attention, str):
                raise SurgeryError(f"this is no plan: {each!r} is no attention with options")
        if len(plan.sites) != len(plan.assignments):
            raise SurgeryError(
                f"this is no plan: {len(plan.assignments)} assignments for {len(plan.sites)} sites"
            )
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Raises:
            SurgeryError: An attention or an option in it is no data, as a callable is none, or the
                file cannot be written.
        """
        self.check_is_data()
        try:
            Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise SurgeryError(f"cannot write {path}: {error}") from error

    def check_is_data(self) -> None:
        """Check that the plan can be written and read again.

        Raises:
            SurgeryError: An attention or an option in it is no data, as a callable is none.
        """
        for site, assigned in zip(self.sites, self.assignments, strict=True):
            if assigned.attention not in available():
                raise SurgeryError(
                    f"attention {assigned.attention!r} for {site.block!r} is not registered, and "
                    "a plan goes by names; register it with attn_surgery.register, or import the "
                    "module that does"
                )
            try:
                json.dumps(dict(assigned.options))
            except TypeError as error:
                raise SurgeryError(
                    f"an option of {assigned.attention!r} for {site.block!r} cannot be written: "
                    f"{error}"
                ) from error

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote.

        Raises:
            SurgeryError: The file cannot be read or holds no plan.
        """
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise SurgeryError(f"cannot read a plan from {path}: {error}") from error
        return cls.from_dict(data)

    def __str__(self) -> str:
        return self.text()

    def text(self, *, fold: bool = True) -> str:
        """Return the plan as tables.

        Args:
            fold: Show blocks that follow each other and are alike as one row.

        Example:
            >>> import torchvision, attn_surgery
            >>> plan = attn_surgery.plan(torchvision.models.resnet34(), "se")
            >>> print(plan.text())
            16 sites to cut, each with se
            <BLANKLINE>
            block                 type        after    channels    dims    method
            --------------------  ----------  -------  ----------  ------  --------
            layer1.0 to layer1.2  BasicBlock  bn2      64          2       rewrite
            layer2.0 to layer2.3  BasicBlock  bn2      128         2       rewrite
            layer3.0 to layer3.5  BasicBlock  bn2      256         2       rewrite
            layer4.0 to layer4.2  BasicBlock  bn2      512         2       rewrite
        """
        parts = [f"{len(self.sites)} site{'s' * (len(self.sites) != 1)} to cut"]
        labels = [str(each) for each in self.assignments]
        is_mixed = len(set(labels)) > 1
        if labels and not is_mixed:
            parts[0] += f", {'each ' * (len(self.sites) != 1)}with {labels[0]}"
        if not self.sites and not self.skipped:
            parts[0] += ": no residual block was found"
        if self.sites:
            columns = ["block", "type", "after", "channels", "dims", "method"]
            if any(site.existing for site in self.sites):
                columns.append("existing")
            parts.append(
                _table(self.sites, columns, fold, {"attention": labels} if is_mixed else {})
            )
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped")
            columns = ["block", "type", "after", "existing", "reason"]
            parts.append(_table(self.skipped, columns, fold))
        return "\n\n".join(parts)


_COLUMNS = {"type": "block_type", "dims": "spatial_dims"}


def _table(
    sites: Sequence[Site],
    columns: Sequence[str],
    fold: bool,
    more: Mapping[str, list[str]] | None = None,
) -> str:
    """Draw a row for each site, its block first, or one for each run of rows that are alike."""
    table = {column: [_cell(site, column) for site in sites] for column in columns}
    table |= more or {}
    pairs = zip(sites, zip(*table.values(), strict=True), strict=True)

    def is_next(one: tuple[Site, tuple[str, ...]], other: tuple[Site, tuple[str, ...]]) -> bool:
        return fold and one[0].precedes(other[0]) and one[1][1:] == other[1][1:]

    rows = []
    for run in runs(pairs, is_next):
        blocks = dict.fromkeys((run[0][1][0], run[-1][1][0]))
        rows.append([" to ".join(blocks), *run[0][1][1:]])
    return tabulate(rows, headers=list(table), disable_numparse=True)


def runs(items: Iterable[T], is_next: Callable[[T, T], bool]) -> list[list[T]]:
    """Return runs of items, each of which is the next to the one before.

    Example:
        >>> runs([1, 2, 3, 7, 8], lambda one, other: other == one + 1)
        [[1, 2, 3], [7, 8]]
    """
    found: list[list[T]] = []
    for each in items:
        if found and is_next(found[-1][-1], each):
            found[-1].append(each)
        else:
            found.append([each])
    return found


def _cell(site: Site, column: str) -> str:
    value = getattr(site, _COLUMNS.get(column, column))
    if column == "block":
        return value or "(the host)"
    return "" if value is None else str(value)
