"""The report's tables for people: heads with unit and convention, and no empty columns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from attn_surgery.reporting.rows import Row, SiteCost

NOISE = "~"
"""Marks a difference that is smaller than its own noise."""

_Cell = Callable[[Row, Row | None], str]


@dataclass(frozen=True)
class _Column:
    """One column: its head, and its text for a row and its host (None for a host itself)."""

    head: str
    cell: _Cell
    align: str = "right"


def count_table(rows: Sequence[Row], style: str = "simple") -> str:
    """Return the table of what was counted.

    Args:
        rows: Every host's row before those of its variants.
        style: One of tabulate's.

    Example:
        >>> rows = [Row("net", None, 0, 10**6, 10**9), Row("net", "se", 1, 2 * 10**6, None)]
        >>> print(count_table(rows))
        model    attention      sites    params (M)       added    added %    MACs (G)
        -------  -----------  -------  ------------  ----------  ---------  ----------
        net      -                  -         1.000                             1.0000
        net      se                 1         2.000  +1,000,000    +100.00           -
    """
    return _table(rows, [*_NAMES, *_COUNTS], style)


def time_table(rows: Sequence[Row], style: str = "simple") -> str:
    """Return the table of what was measured; "" if nothing was."""
    if all(row.latency_ms is None and row.train_latency_ms is None for row in rows):
        return ""
    return _table(rows, [*_NAMES, *_timed("", "latency"), *_timed("train_", "train step")], style)


def _table(rows: Sequence[Row], columns: Sequence[_Column], style: str) -> str:
    pairs = list(_pairs(rows))
    drawn = [(column, [column.cell(*pair) for pair in pairs]) for column in columns]
    kept = [(column, cells) for column, cells in drawn if set(cells) - {"", "-"}]
    return _draw(
        [column.head for column, _ in kept],
        list(zip(*(cells for _, cells in kept), strict=True)),
        [column.align for column, _ in kept],
        style,
    )


def sites_table(costs: Sequence[SiteCost], style: str = "simple") -> str:
    """Return the breakdown by block."""
    heads = [
        *("model", "attention", "block", "after"),
        *("params added", "MACs added (M)", "elementwise added (M op)", "moved added (MB)"),
    ]
    cells = [
        (
            cost.model,
            cost.attention,
            _block(cost.block),
            ", ".join(cost.after),
            f"{cost.params:+,}",
            f"{cost.macs / 1e6:+.4f}",
            f"{cost.elementwise_ops / 1e6:+.4f}",
            f"{cost.bytes_moved / 1e6:+.4f}",
        )
        for cost in costs
    ]
    return _draw(heads, cells, ["left"] * 4 + ["right"] * 4, style)


def variants(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that are no host's."""
    return [row for row in rows if row.attention is not None]


def _block(path: str | None) -> str:
    return "(elsewhere)" if path is None else path or "(the host)"


def _draw(
    heads: Sequence[str], cells: Sequence[Sequence[str]], align: Sequence[str], style: str
) -> str:
    if style == "pipe":
        cells = [[cell.replace("|", r"\|") for cell in line] for line in cells]
    return tabulate(cells, headers=heads, tablefmt=style, disable_numparse=True, colalign=align)


def _pairs(rows: Iterable[Row]) -> Iterator[tuple[Row, Row | None]]:
    host: Row | None = None
    for row in rows:
        host = row if row.attention is None else host
        yield row, None if row is host else host


# Cells


def _number(name: str, unit: float, digits: int) -> _Cell:
    def cell(row: Row, host: Row | None) -> str:
        value = getattr(row, name)
        return "-" if value is None else f"{value / unit:.{digits}f}"

    return cell


def _added(name: str) -> _Cell:
    def cell(row: Row, host: Row | None) -> str:
        added = _difference(name, row, host)
        return "" if added is None else f"{added:+,}"

    return cell


def _percent(name: str) -> _Cell:
    def cell(row: Row, host: Row | None) -> str:
        added = _difference(name, row, host)
        base = None if host is None else getattr(host, name)
        return f"{100 * added / base:+.2f}" if added is not None and base else ""

    return cell


def _difference(name: str, row: Row, host: Row | None) -> int | None:
    value, base = getattr(row, name), None if host is None else getattr(host, name)
    return None if value is None or base is None else value - base


def _range(prefix: str) -> _Cell:
    def cell(row: Row, host: Row | None) -> str:
        low, high = getattr(row, f"{prefix}latency_q1_ms"), getattr(row, f"{prefix}latency_q3_ms")
        return "" if low is None else f"{low:.2f} to {high:.2f}"

    return cell


def _slower(prefix: str) -> _Cell:
    def cell(row: Row, host: Row | None) -> str:
        added = getattr(row, f"{prefix}latency_added_ms")
        if host is None or added is None:
            return ""
        return NOISE if row.within_noise(train=bool(prefix)) else f"{added:+.2f}"

    return cell


def _ratio(prefix: str) -> _Cell:
    def cell(row: Row, host: Row | None) -> str:
        ratio = getattr(row, f"{prefix}latency_ratio")
        if host is None or ratio is None:
            return ""
        low = getattr(row, f"{prefix}latency_ratio_low")
        high = getattr(row, f"{prefix}latency_ratio_high")
        shown = NOISE if row.within_noise(train=bool(prefix)) else f"{ratio:.3f}"
        return f"{shown} ({low:.3f} to {high:.3f})"

    return cell


def _timed(prefix: str, what: str) -> list[_Column]:
    return [
        _Column(f"{what} (median ms)", _number(f"{prefix}latency_ms", 1, 2)),
        _Column("quartiles (ms)", _range(prefix)),
        _Column("added (ms)", _slower(prefix)),
        _Column("ratio to host (95 %)", _ratio(prefix)),
        _Column("inputs/s", _number(f"{prefix}throughput", 1, 1)),
        _Column("peak memory (MB)", _number(f"{prefix}peak_bytes", 1e6, 1)),
    ]


_NAMES = [
    _Column("model", lambda row, host: row.model, "left"),
    _Column("attention", lambda row, host: row.attention or "-", "left"),
]

_COUNTS = [
    _Column("sites", lambda row, host: "-" if row.attention is None else str(row.sites)),
    _Column("params (M)", _number("params", 1e6, 3)),
    _Column("added", _added("params")),
    _Column("added %", _percent("params")),
    _Column("MACs (G)", _number("macs", 1e9, 4)),
    _Column("added %", _percent("macs")),
    _Column("elementwise (M op)", _number("elementwise_ops", 1e6, 2)),
    _Column("added %", _percent("elementwise_ops")),
    _Column("moved (MB)", _number("bytes_moved", 1e6, 1)),
    _Column("added %", _percent("bytes_moved")),
    _Column("saved (MB)", _number("saved_bytes", 1e6, 1)),
    _Column("added %", _percent("saved_bytes")),
]
