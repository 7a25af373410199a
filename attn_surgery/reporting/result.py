"""The report: rows of costs, and what has to be said about them."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attn_surgery.errors import check_choice
from attn_surgery.reporting.rows import Row, Samples, SiteCost
from attn_surgery.reporting.tables import (
    CLOCKS,
    EVERYTHING,
    GROUPS,
    NOISE,
    Shown,
    count_table,
    sites_table,
    time_table,
    variants,
)

WIDTH = 100
"""Characters that a report is wide at most, unless it is asked to be wider."""


@dataclass(frozen=True)
class Report:
    """Rows of one or more hosts, each host's own row before its variants.

    Attributes:
        rows: The rows.
        input_sizes: Model name to the shape ``(C, *spatial)`` of one input, a list of shapes, or
            the name of what made the input.
        per_site: The breakdown by block, if asked for.
        provenance: The conditions of the measurement; empty if nothing was measured.
        samples: The raw times.
        notes: What a reader of the counts has to know.
        interrupted: Whether Ctrl-C ended the measurement early.
    """

    rows: tuple[Row, ...]
    input_sizes: Mapping[str, Any] = field(default_factory=dict)
    per_site: tuple[SiteCost, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Samples, ...] = ()
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @classmethod
    def merge(cls, reports: Iterable["Report"]) -> "Report":
        """Return one report with the rows of all."""
        reports = tuple(reports)
        return cls(
            tuple(row for part in reports for row in part.rows),
            {name: size for part in reports for name, size in part.input_sizes.items()},
            tuple(cost for part in reports for cost in part.per_site),
            next((part.provenance for part in reports if part.provenance), {}),
            tuple(sample for part in reports for sample in part.samples),
            tuple(dict.fromkeys(note for part in reports for note in part.notes)),
            any(part.interrupted for part in reports),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and numbers, ready for ``json.dumps``."""
        return {
            "rows": [_without_empty_times(dataclasses.asdict(row)) for row in self.rows],
            "input_sizes": dict(self.input_sizes),
            "per_site": [dataclasses.asdict(cost) for cost in self.per_site],
            "provenance": dict(self.provenance),
            "samples": [dataclasses.asdict(each) for each in self.samples],
            "notes": list(self.notes),
            "interrupted": self.interrupted,
        }

    def __str__(self) -> str:
        return self.text()

    def text(self, columns: Sequence[str] = (), width: int | None = WIDTH) -> str:
        """Return the tables, with all that has to be said about them.

        Args:
            columns: Groups of columns to show; by default those that decide, as many as fit.
            width: How many characters a table may be wide; None shows all columns. (The breakdown
                by block has all of its own.)

        Raises:
            SurgeryError: There is no such group.

        Example:
            >>> print(Report((Row("net", None, 0, 1_000_000, 2_000_000_000),)).text(["macs"]))
            model      MACs (G)
            -------  ----------
            net          2.0000
        """
        check_columns(columns)
        drawn = list(self._drawn("simple", Shown(tuple(columns), width)))
        left_out = [group for _, groups in drawn for group in groups]
        told = [_LEFT_OUT.format(width, ", ".join(dict.fromkeys(left_out)))] if left_out else []
        is_told = "copies" in (columns or GROUPS) and "copies" not in left_out
        remarks = "\n".join([*told, *(e for e in self.remarks() if is_told or e != _COPIES)])
        return "\n\n".join(filter(None, [*(table for table, _ in drawn), remarks]))

    def tables(self, style: str) -> list[str]:
        """Return the tables alone, whole, in one of tabulate's styles."""
        return [table for table, _ in self._drawn(style, EVERYTHING) if table]

    def _drawn(self, style: str, shown: Shown) -> Iterator[tuple[str, list[str]]]:
        """Yield what was counted, what was measured, and the sites, each with what did not fit."""
        yield count_table(self.rows, style, shown)
        for clock in CLOCKS:
            yield time_table(self.rows, clock, style, shown)
        if self.per_site:
            yield sites_table(self.per_site, style), []

    def remarks(self) -> list[str]:
        """Return what has to be said below the tables, a line each."""
        errors = [f"{row.title}: {row.error}" for row in self.rows if row.error]
        interrupted = ["interrupted: measured so far"] if self.interrupted else []
        return [*self._counted(), *self.notes, *self._measured(), *interrupted, *errors]

    def _counted(self) -> list[str]:
        """Say what was counted: one line, or one for each model where the inputs differ."""
        texts = {name: f"one input of {_input(size)}" for name, size in self.input_sizes.items()}
        suffix = (
            "in evaluation mode; 1 MAC = 1 multiply-add of a convolution or a matrix product = "
            "2 FLOPs; elementwise, moved: all other operators; saved: kept for the backward pass"
        )
        if len(set(texts.values())) == 1:
            return [f"counted: {text} {suffix}" for text in set(texts.values())]
        return [f"counted for {name}: {text} {suffix}" for name, text in texts.items()]

    def _measured(self) -> list[str]:
        told = "; ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in self.provenance.items()
            if value not in {None, False}
        )
        timed = [each for row in variants(self.rows) for each in row.measured]
        noisy = any(each.within_noise for each in timed)
        copied = any(each.latency_added_copies is not None for each in timed)
        clocks = {each.clock for row in self.rows for each in row.times}
        lines = {
            f"measured: {told}": bool(told),
            f"{NOISE}: within noise, the 95 % interval of the paired ratio covers 1": noisy,
            _COPIES: copied,
            _CLOCKS: bool(clocks),
            _GRAPH: "graph" in clocks,
            _SITES: any(cost.warm_ms is not None for cost in self.per_site),
        }
        return [line for line, is_said in lines.items() if is_said]


def check_columns(columns: Sequence[str]) -> None:
    """Refuse a group of columns that there is not.

    Raises:
        SurgeryError: There is one.
    """
    for each in columns:
        check_choice("columns", each, GROUPS)


def _without_empty_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "times" or value}


_LEFT_OUT = "left out to fit {} characters: {}; --wide, or text(width=None), shows all"
_COPIES = (
    "added (copies): the time added, as so many times what it takes to read and to write once each "
    "map that the attentions take (in a training step: to go over it five times)"
)
_CLOCKS = (
    "wall clock: the host's, the device waited for at both ends, so that the gaps between launches "
    "count; device: between events on it, everything queued before it begins"
)
_GRAPH = "graph: the device's time of a captured CUDA graph, its inputs taken in turn"
_SITES = (
    "warm, cold: one pass of the block's attentions alone, their inputs in the cache or flushed "
    "from it"
)


def _input(size: Any) -> str:
    if isinstance(size, str):
        return size
    shapes = size if size and not isinstance(size[0], int) else [size]
    return ",".join("x".join(map(str, shape)) for shape in shapes)
