"""The report's tables for people: heads with unit and convention, and no empty columns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tabulate import tabulate

from attn_surgery.reporting.rows import WALL, Row, SiteCost, Times

NOISE = "~"
"""Marks a difference that is smaller than its own noise."""
CLOCKS = {WALL: "wall clock", "device": "device", "graph": "graph"}
"""The clocks of a report, as its heads call them."""

_Cell = Callable[[Row, Row | None], str]


@dataclass(frozen=True)
class _Column:
    """One column: its head, and its text for a row and its host (None for a host itself).

    Columns of one group are shown, or left out, together.
    """

    head: str
    cell: _Cell
    group: str = ""
    align: str = "right"
    measured: str = ""
    """What it was measured of, which its head says where no column of latencies before it does."""


@dataclass(frozen=True)
class Shown:
    """Which columns are shown.

    Attributes:
        groups: Those of these groups, from `GROUPS`; by default all.
        width: How wide a table may be, in characters: groups are left out, the last of `GROUPS`
            first, until it fits. By default it may be as wide as it is.
    """

    groups: tuple[str, ...] = ()
    width: int | None = None


EVERYTHING = Shown()
GROUPS = (
    *("ratio", "latency", "params", "macs", "sites", "added", "copies", "saved", "throughput"),
    *("memory", "moved", "quartiles", "elementwise", "percentiles"),
)
"""The groups of columns, those that decide first."""


def count_table(
    rows: Sequence[Row], style: str = "simple", shown: Shown = EVERYTHING
) -> tuple[str, list[str]]:
    """Return the table of what was counted, and the groups that did not fit into it.

    Args:
        rows: Every host's row before those of its variants.
        style: One of tabulate's.
        shown: Which columns.

    Example:
        >>> rows = [Row("net", None, 0, 10**6, 10**9), Row("net", "se", 1, 2 * 10**6, None)]
        >>> table, left_out = count_table(rows)
        >>> print(table)
        model    attention      sites    params (M)       added    added %    MACs (G)
        -------  -----------  -------  ------------  ----------  ---------  ----------
        net      -                  -         1.000                             1.0000
        net      se                 1         2.000  +1,000,000    +100.00           -
    """
    return _table(rows, _COUNTS, style, shown)


def time_table(
    rows: Sequence[Row], clock: str = WALL, style: str = "simple", shown: Shown = EVERYTHING
) -> tuple[str, list[str]]:
    """Return the table of what one clock said, and what did not fit; "" if it was not asked."""
    if all(row.by(clock) is None and row.by(clock, train=True) is None for row in rows):
        return "", []
    columns = [column for train in (False, True) for column in _timed(clock, train=train)]
    return _table(rows, columns, style, shown)


def _table(
    rows: Sequence[Row], columns: Sequence[_Column], style: str, shown: Shown
) -> tuple[str, list[str]]:
    pairs = list(_pairs(rows))
    asked = [each for each in columns if not shown.groups or each.group in shown.groups]
    drawn = [(column, [column.cell(*pair) for pair in pairs]) for column in (*_NAMES, *asked)]
    kept = [(column, cells) for column, cells in drawn if set(cells) - {"", "-"}]
    if all(not column.group for column, _ in kept):
        return "", []
    left_out: list[str] = []
    while True:
        groups = {column.group for column, _ in kept} - {""}
        table = _draw(
            [_head(column, is_told="latency" in groups) for column, _ in kept],
            list(zip(*(cells for _, cells in kept), strict=True)),
            [column.align for column, _ in kept],
            style,
        )
        if shown.width is None or shown.groups or len(groups) < 2 or _width(table) <= shown.width:
            return table, left_out
        left_out.append(max(groups, key=GROUPS.index))
        kept = [each for each in kept if each[0].group != left_out[-1]]


def _head(column: _Column, *, is_told: bool) -> str:
    return column.head if is_told or not column.measured else f"{column.measured}: {column.head}"


def _width(table: str) -> int:
    return max(map(len, table.splitlines()))


def sites_table(costs: Sequence[SiteCost], style: str = "simple") -> str:
    """Return the breakdown by block."""
    is_timed = any(cost.warm_ms is not None for cost in costs)
    heads = [
        *("model", "attention", "block", "after"),
        *("params added", "MACs added (M)", "elementwise added (M op)", "moved added (MB)"),
        *("warm (ms)", "cold (ms)")[: 2 * is_timed],
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
            *(_milliseconds(cost.warm_ms), _milliseconds(cost.cold_ms))[: 2 * is_timed],
        )
        for cost in costs
    ]
    return _draw(heads, cells, ["left"] * 4 + ["right"] * (len(heads) - 4), style)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


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


def _timed(clock: str, *, train: bool) -> list[_Column]:
    """Return the columns of what one clock says of a forward pass or a training step."""

    def of(text: Callable[[Times], str], *, hosts: bool = True) -> _Cell:
        def cell(row: Row, host: Row | None) -> str:
            times = row.by(clock, train=train)
            return "" if times is None or (host is None and not hosts) else text(times)

        return cell

    memory = "train_peak_bytes" if train else "peak_bytes"
    columns = [
        _Column(
            f"{CLOCKS[clock]} {'train step' if train else 'latency'} (median ms)",
            of(lambda times: _joined(times.latency_ms)),
            "latency",
        ),
        _Column(
            "quartiles (ms)",
            of(lambda times: _joined(times.latency_q1_ms, times.latency_q3_ms, by=" to ")),
            "quartiles",
        ),
        _Column(
            "p90, p99 (ms)",
            of(lambda times: _joined(times.latency_p90_ms, times.latency_p99_ms)),
            "percentiles",
        ),
        _Column("added (ms)", of(_slower, hosts=False), "added"),
        _Column("added (copies)", of(_copies, hosts=False), "copies"),
        _Column("ratio to host (95 %)", of(_ratio, hosts=False), "ratio"),
        _Column("inputs/s", of(lambda times: _joined(times.throughput, digits=1)), "throughput"),
        *([_Column("peak memory (MB)", _number(memory, 1e6, 1), "memory")] * (clock == WALL)),
    ]
    measured = " ".join([CLOCKS[clock]] * (clock != WALL) + ["train step"] * train)
    return [replace(column, measured=measured) for column in columns]


def _joined(*values: float | None, by: str = ", ", digits: int = 2) -> str:
    return by.join(f"{each:.{digits}f}" for each in values if each is not None)


def _slower(times: Times) -> str:
    added = times.latency_added_ms
    return NOISE if times.within_noise else "" if added is None else f"{added:+.2f}"


def _copies(times: Times) -> str:
    copies = times.latency_added_copies
    return NOISE if times.within_noise else "" if copies is None else f"{copies:.1f}"


def _ratio(times: Times) -> str:
    ratio, low, high = times.latency_ratio, times.latency_ratio_low, times.latency_ratio_high
    if ratio is None or low is None or high is None:
        return ""
    return f"{NOISE if times.within_noise else f'{ratio:.3f}'} ({low:.3f} to {high:.3f})"


_NAMES = [
    _Column("model", lambda row, host: row.model, align="left"),
    _Column("attention", lambda row, host: row.attention or "-", align="left"),
]

_COUNTS = [
    _Column("sites", lambda row, host: "-" if row.attention is None else str(row.sites), "sites"),
    _Column("params (M)", _number("params", 1e6, 3), "params"),
    _Column("added", _added("params"), "params"),
    _Column("added %", _percent("params"), "params"),
    _Column("MACs (G)", _number("macs", 1e9, 4), "macs"),
    _Column("added %", _percent("macs"), "macs"),
    _Column("elementwise (M op)", _number("elementwise_ops", 1e6, 2), "elementwise"),
    _Column("added %", _percent("elementwise_ops"), "elementwise"),
    _Column("moved (MB)", _number("bytes_moved", 1e6, 1), "moved"),
    _Column("added %", _percent("bytes_moved"), "moved"),
    _Column("saved (MB)", _number("saved_bytes", 1e6, 1), "saved"),
    _Column("added %", _percent("saved_bytes"), "saved"),
]
