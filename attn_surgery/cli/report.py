"""``attn-surgery report``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attn_surgery.cli.arguments import ATTENTION_HELP, MODEL_HELP, add_surgery_options, asked
from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host import Input, load_model, parse_input
from attn_surgery.planning import parse_attention
from attn_surgery.reporting import (
    FORMATS,
    Report,
    Row,
    accelerator,
    check_plot,
    checked_device,
    plot,
    render,
    report,
)

INTERRUPTED = 130

_CONDITIONS = ("batch_size", "dtype", "autocast", "channels_last", "compile", "threads", "seconds")


def add_report(commands: Any) -> None:
    """Add the command to a parser's commands."""
    command = commands.add_parser("report", help="show what attention would cost")
    command.set_defaults(run=_run)
    command.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "--attention",
        nargs="+",
        default=["se", "cbam"],
        metavar="NAME",
        help=f"{ATTENTION_HELP}; default: se cbam",
    )
    command.add_argument(
        "--input",
        metavar="3x224x224",
        help="shape of one input, channels first; several with commas; or package.module:callable "
        "for a function that makes the input",
    )
    command.add_argument("--pretrained", action="store_true", help="download the default weights")
    command.add_argument("--checkpoint", metavar="FILE", help="state dict that has to fit")
    add_surgery_options(command)
    command.add_argument("--init", default="identity", help="identity (default) or paper")
    command.add_argument("--per-site", action="store_true", help="break the counts down by block")
    _add_measuring(command.add_argument_group("measuring"))
    _add_output(command.add_argument_group("output"))


def _add_measuring(group: Any) -> None:
    group.add_argument("--no-latency", action="store_true", help="count only, which is fast")
    group.add_argument("--train", action="store_true", help="measure a training step, too")
    group.add_argument("--device", help="default: the accelerator if there is one, else cpu")
    group.add_argument("--batch-size", type=int, default=1, metavar="N", help="default: 1")
    group.add_argument("--dtype", help="convert to float16, bfloat16, ...")
    group.add_argument("--autocast", metavar="DTYPE", help="measure under autocast")
    group.add_argument("--channels-last", action="store_true", help="measure channels last")
    group.add_argument("--compile", action="store_true", help="measure through torch.compile")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="a measurement's time (default: 5)"
    )
    group.add_argument(
        "--progress", action="store_true", default=None, help="show a bar, terminal or not"
    )


def _add_output(group: Any) -> None:
    group.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    group.add_argument("--output", type=Path, metavar="FILE", help="write there, do not print")
    group.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw added latency against parameters"
    )


def _run(arguments: argparse.Namespace) -> int:
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


# Files


def _check_files(arguments: argparse.Namespace) -> None:
    """Refuse, before anything is measured, what could not be written afterwards."""
    for path in (arguments.output, arguments.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise SurgeryError(f"cannot write {path}: there is no folder {path.parent}")
    if arguments.plot is not None:
        if arguments.no_latency:
            raise SurgeryError("--plot draws measured latency: leave --no-latency out")
        check_plot(arguments.plot)


def _write(result: Report, arguments: argparse.Namespace) -> None:
    text = render(result, "json" if arguments.json else arguments.format)
    if arguments.output is None:
        sys.stdout.write(f"{text}\n")
    else:
        try:
            arguments.output.write_text(f"{text}\n")
        except OSError as error:
            raise SurgeryError(f"cannot write {arguments.output}: {one_line(error)}") from error
    if arguments.plot is not None:
        plot(result, arguments.plot)
