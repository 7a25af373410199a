"""Added latency against added parameters, as a picture."""

from pathlib import Path
from typing import Any

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.reporting.result import Report
from attn_surgery.reporting.rows import Row

Point = tuple[str, float, float, float, float]
"""Title, added parameters, added ms, and the ends of the error bar below and above it."""


def plot(report: Report, path: str | Path) -> None:
    """Draw one point for each attention, with the 95 % interval of its ratio, to an image file.

    Args:
        report: Measured.
        path: The file; its ending says the format.

    Raises:
        SurgeryError: Matplotlib is not installed, nothing was measured, or the file cannot be
            written.
    """
    points = _points(report)
    if not points:
        raise SurgeryError("nothing to plot: no attention's latency was measured")
    figure = _figure()
    axes = figure.add_subplot(
        xlabel="added parameters (M)",
        ylabel="added latency (ms, median of paired differences)",
        title=_title(report),
    )
    for title, params, added, below, above in points:
        axes.errorbar(params / 1e6, added, yerr=[[below], [above]], fmt="o", capsize=3)
        axes.annotate(title, (params / 1e6, added), xytext=(6, 4), textcoords="offset points")
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.margins(x=0.25, y=0.15)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SurgeryError(f"cannot write {path}: {one_line(error)}") from error


def check_plot(path: str | Path) -> None:
    """Refuse a picture that could not be drawn, before the measurement.

    Raises:
        SurgeryError: Matplotlib is not installed, or knows no format with that ending.
    """
    known = _figure().canvas.get_supported_filetypes()
    ending = Path(path).suffix.removeprefix(".")
    if ending not in known:
        raise SurgeryError(f"cannot draw to {path}: end it in one of {', '.join(sorted(known))}")


def _figure() -> Any:
    try:
        # A figure of its own, without pyplot: no display is needed, and no global state changed.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SurgeryError("a plot needs matplotlib: pip install 'attn-surgery[plot]'") from error
    return Figure(figsize=(7, 4.5), layout="constrained")


def _points(report: Report) -> list[Point]:
    hosts = {row.model: row for row in report.rows if row.attention is None}
    several = len(hosts) > 1
    points = []
    for row in report.rows:
        point = _point(row, hosts.get(row.model), several)
        if point is not None:
            points.append(point)
    return points


def _point(row: Row, host: Row | None, several: bool) -> Point | None:
    if row.attention is None or host is None or host.latency_ms is None or host.params is None:
        return None
    low, ratio, high = row.latency_ratio_low, row.latency_ratio, row.latency_ratio_high
    if row.params is None or row.latency_added_ms is None or not (low and ratio and high):
        return None
    title = row.title if several else row.attention
    scale = host.latency_ms
    below, above = scale * (ratio - low), scale * (high - ratio)
    return title, row.params - host.params, row.latency_added_ms, below, above


def _title(report: Report) -> str:
    models = ", ".join(dict.fromkeys(row.model for row in report.rows))
    told = report.provenance
    return f"{models}: batch {told.get('batch_size', '?')}, {told.get('device', '?')}"
