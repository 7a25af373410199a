"""``attn-surgery report``."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from attn_surgery.cli.parser import INTERRUPTED
from attn_surgery.cli.surgery_options import asked
from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host import Input, check_folder, load_model, parse_input
from attn_surgery.planning import parse_attention
from attn_surgery.reporting import (
    WIDTH,
    Report,
    Row,
    accelerator,
    check_columns,
    check_plot,
    checked_device,
    plot,
    render,
    report,
    waiting,
)

_CONDITIONS = ("batch_size", "dtype", "autocast", "channels_last", "graph", "threads", "seconds")


def run(arguments: argparse.Namespace) -> int:
    """Show the report that the words ask for."""
    check_columns(arguments.columns or ())
    keywords = _keywords(arguments)
    _check_files(arguments)
    parts: list[Report] = []
    stopped = False
    try:
        for name in arguments.models:
            parts.append(_one(name, arguments, keywords))
            if parts[-1].interrupted:
                break
    except KeyboardInterrupt:
        stopped = True
        if not parts:
            raise
    result = Report.merge(parts)
    stopped |= result.interrupted
    if not stopped:
        _refuse_if_hopeless(result, measured=not arguments.no_latency)
    _write(result, arguments)
    if stopped:
        return INTERRUPTED
    return 1 if any(row.error for row in result.rows) else 0


def _keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `report`, checked where they are the same for every model."""
    given: Input | None = None if arguments.input is None else parse_input(arguments.input)
    measured = not arguments.no_latency or arguments.train
    device = None
    if measured:
        device = checked_device(arguments.device or accelerator() or "cpu")
    return {
        **asked(arguments),
        **{name: getattr(arguments, name) for name in _CONDITIONS},
        "compile": {None: False, "model": True}.get(arguments.compile, arguments.compile),
        "input_size": given,
        "init": arguments.init,
        "per_site": arguments.per_site,
        "latency": not arguments.no_latency,
        "train": arguments.train,
        "device": device,
        "progress": arguments.progress,
    }


def _one(name: str, arguments: argparse.Namespace, keywords: dict[str, Any]) -> Report:
    try:
        with waiting(f"{name}: loading", arguments.progress):
            model = load_model(
                name,
                pretrained=arguments.pretrained,
                checkpoint=arguments.checkpoint,
                device=None if keywords["device"] else "meta",
            )
        attentions = [parse_attention(each) for each in arguments.attention]
        return report(model, attentions, name=name, **keywords)
    except SurgeryError as error:
        return Report((Row(name, None, 0, None, None, error=str(error)),))


def _refuse_if_hopeless(result: Report, *, measured: bool) -> None:
    """Raise where nothing of what was asked for could be done for any model."""
    hosts = [row for row in result.rows if row.attention is None]
    done = [row for row in hosts if not row.error or (measured and row.latency_ms is not None)]
    if not done:
        raise SurgeryError("; ".join(dict.fromkeys(_reason(row, hosts) for row in hosts)))


def _reason(row: Row, hosts: Sequence[Row]) -> str:
    return f"{row.model}: {row.error}" if len(hosts) > 1 else str(row.error)


def _width(arguments: argparse.Namespace) -> int | None:
    """Return how wide a table may be: as the terminal is, where that is narrow."""
    if arguments.wide:
        return None
    if arguments.output is not None or not sys.stdout.isatty():
        return WIDTH
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


# Files


def _check_files(arguments: argparse.Namespace) -> None:
    """Refuse, before anything is measured, what could not be written afterwards."""
    for path in (arguments.output, arguments.plot):
        if path is not None:
            check_folder(path)
    if arguments.plot is not None:
        if arguments.no_latency:
            raise SurgeryError("--plot draws measured latency: leave --no-latency out")
        check_plot(arguments.plot)


def _write(result: Report, arguments: argparse.Namespace) -> None:
    form = "json" if arguments.json else arguments.format
    text = render(result, form, arguments.columns or (), _width(arguments))
    if arguments.output is None:
        sys.stdout.write(f"{text}\n")
    else:
        try:
            arguments.output.write_text(f"{text}\n")
        except OSError as error:
            raise SurgeryError(f"cannot write {arguments.output}: {one_line(error)}") from error
    if arguments.plot is not None:
        plot(result, arguments.plot)
