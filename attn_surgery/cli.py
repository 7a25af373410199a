"""The command line: ``attn-surgery plan | report | list``.

Exit status: 0 done, 1 a row of the report could not be completed, 2 what was asked for cannot be
done (one line on stderr says why), 130 interrupted.
"""

import argparse
import ast
import inspect
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from attn_surgery.attention import available, get_builder
from attn_surgery.errors import SurgeryError
from attn_surgery.models import load_model
from attn_surgery.reporting import Report, report
from attn_surgery.surgery import plan

PROGRAM = "attn-surgery"

_NO_OPTIONS = {"model", "attention", "where", "position", "existing", "input_size", "name"}
_MODEL_HELP = "resnet50, timm/NAME, torchvision/NAME or package.module:callable"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: The words after the program's name; ``sys.argv[1:]`` by default.

    Raises:
        SystemExit: From argparse: 2 for words it cannot read, 0 after ``--help``.
    """
    arguments = _parser().parse_args(argv)
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
    except SurgeryError as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


# Commands


def _plan(arguments: argparse.Namespace) -> int:
    model = load_model(arguments.model)
    _print(plan(model, arguments.attention, **_asked(arguments)), as_json=arguments.json)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    weights = {"pretrained": arguments.pretrained, "checkpoint": arguments.checkpoint}
    options = {"input_size": arguments.input, **_asked(arguments)}
    result = Report.merge(
        report(load_model(name, **weights), arguments.attention, name=name, **options)
        for name in arguments.models
    )
    _print(result, as_json=arguments.json)
    return 1 if any(row.error for row in result.rows) else 0


def _list(arguments: argparse.Namespace) -> int:
    first_lines = {name: _first_line(get_builder(name).__doc__) for name in available()}
    if arguments.json:
        print(json.dumps(first_lines, indent=2))
        return 0
    width = max(map(len, first_lines), default=0)
    for name, line in first_lines.items():
        print(f"{name:{width}}  {line}".rstrip())
    return 0


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords that plan and report share."""
    options = dict(arguments.set)
    if taken := sorted(_NO_OPTIONS & options.keys()):
        raise SurgeryError(f"--set {taken[0]}=...: {taken[0]!r} is no option of an attention")
    own = {name: getattr(arguments, name) for name in ("where", "position", "existing")}
    return own | options


def _print(result: Any, *, as_json: bool) -> None:
    print(json.dumps(result.to_dict(), indent=2) if as_json else result)


def _first_line(docstring: str | None) -> str:
    return inspect.cleandoc(docstring or "").partition("\n")[0]


# Words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Put attention into a network that is already trained."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_plan(commands)
    _add_report(commands)
    _add_list(commands)
    return parser


def _add_plan(commands: Any) -> None:
    command = commands.add_parser("plan", help="show where the attention would go")
    command.set_defaults(run=_plan)
    command.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    command.add_argument("--attention", default="cbam", metavar="NAME", help="default: cbam")
    _add_surgery_options(command)


def _add_report(commands: Any) -> None:
    command = commands.add_parser("report", help="show what attention would cost")
    command.set_defaults(run=_report)
    command.add_argument("models", nargs="+", metavar="MODEL", help=_MODEL_HELP)
    command.add_argument(
        "--attention", nargs="+", default=["se", "cbam"], metavar="NAME", help="default: se cbam"
    )
    command.add_argument(
        "--input", type=parse_size, metavar="3x224x224", help="shape of one input, channels first"
    )
    command.add_argument("--pretrained", action="store_true", help="download the default weights")
    command.add_argument("--checkpoint", metavar="FILE", help="state dict that has to fit")
    _add_surgery_options(command)


def _add_list(commands: Any) -> None:
    command = commands.add_parser("list", help="show the attentions there are")
    command.set_defaults(run=_list)
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_surgery_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--where", nargs="+", action="extend", metavar="PATTERN", help="blocks, as 'layer4.*'"
    )
    command.add_argument(
        "--position",
        default="standard",
        help="where in the branch (default: standard, its end)",
    )
    command.add_argument(
        "--existing", default="skip", help="where there is attention: skip (default) or stack"
    )
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        type=parse_setting,
        metavar="KEY=VALUE",
        help="an option of the attention, as reduction=8",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def parse_size(text: str) -> tuple[int, ...]:
    """Read a shape.

    Example:
        >>> parse_size("3x224x224")
        (3, 224, 224)
    """
    try:
        return tuple(int(side) for side in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 3x224x224") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``key=value``; a value that is no Python literal is a string.

    Example:
        >>> parse_setting("reduction=8"), parse_setting("order=spatial")
        (('reduction', 8), ('order', 'spatial'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is no option such as reduction=8")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
