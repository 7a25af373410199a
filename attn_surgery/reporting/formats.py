"""A report as text in the format that somebody asks for.

============  ======================================================================
format        text
============  ======================================================================
``table``     aligned, for a terminal
``markdown``  as GitHub shows it
``latex``     ``booktabs``; the remarks are comments
``csv``       one line a row, raw numbers in base units, field names as the head
``json``      everything, the raw times too
============  ======================================================================
"""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

from attn_surgery.errors import check_choice
from attn_surgery.reporting.result import WIDTH, Report
from attn_surgery.reporting.rows import Row

FORMATS = ("table", "markdown", "latex", "csv", "json")


def render(
    report: Report,
    form: str = "table",
    columns: Sequence[str] = (),
    width: int | None = WIDTH,
) -> str:
    """Write a report in one of `FORMATS`; columns and width are those of a ``table``.

    Raises:
        SurgeryError: There is no such format.

    Example:
        >>> report = Report((Row("net", None, 0, 9, 18),))
        >>> print(render(report, "csv").partition(",elementwise")[0])
        model,attention,sites,params,macs
    """
    check_choice("format", form, FORMATS)
    if form == "csv":
        return _csv(report)
    if form == "json":
        return json.dumps(report.to_dict(), indent=2, allow_nan=False)
    if form == "latex":
        return _latex(report)
    if form == "markdown":
        return _markdown(report)
    return report.text(columns, width)


def _csv(report: Report) -> str:
    lines = [_flat(row) for row in report.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)))
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\r\n")


def _flat(row: Row) -> dict[str, Any]:
    """Return a row without what it consists of: the times of a clock go by the clock's name."""
    flat = {each.name: getattr(row, each.name) for each in dataclasses.fields(row)}
    for times in flat.pop("times"):
        prefix = f"{times.clock}_train_" if times.train else f"{times.clock}_"
        flat |= {f"{prefix}{name}": value for name, value in times.values().items()}
    return flat


def _markdown(report: Report) -> str:
    remarks = "\n".join(f"- {remark}" for remark in report.remarks())
    return "\n\n".join([*report.tables("pipe"), remarks]).rstrip()


def _latex(report: Report) -> str:
    remarks = "\n".join(f"% {remark}" for remark in report.remarks())
    return "\n\n".join([*report.tables("latex_booktabs"), remarks]).rstrip()
