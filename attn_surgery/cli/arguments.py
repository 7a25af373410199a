"""The words of the command line that several commands share."""

import argparse
import ast
import functools
import inspect
import operator
from typing import Any

from attn_surgery.errors import SurgeryError
from attn_surgery.planning import Choice, Where, every, last_of_stage, matching, min_channels, stage
from attn_surgery.reporting import report

MODEL_HELP = "resnet50, timm/NAME, torchvision/NAME or package.module:callable"
ATTENTION_HELP = "a name, 'layer4.*=cbam,*=se' for a mixture, or the file of a plan, as plan.json"

_NO_OPTIONS = set(inspect.signature(report).parameters) - {"options"}


def add_surgery_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say what goes where, and ``--json``."""
    command.add_argument(
        "--where", nargs="+", action="extend", metavar="PATTERN", help="blocks, as 'layer4.*'"
    )
    command.add_argument(
        "--stage", nargs="+", type=int, metavar="N", help="blocks of these stages, from 1"
    )
    command.add_argument(
        "--last-of-stage", action="store_true", help="the last block of each stage"
    )
    command.add_argument("--every", type=int, metavar="N", help="every N-th block")
    command.add_argument(
        "--min-channels", type=int, metavar="C", help="where there are at least so many channels"
    )
    command.add_argument(
        "--position",
        default="standard",
        help="standard (default, the end of the branch), pre, post, identity, mid or output",
    )
    command.add_argument(
        "--existing",
        default="skip",
        help="where there is attention: skip (default), stack or replace",
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


def asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords that plan and report share.

    Raises:
        SurgeryError: ``--set`` names something that is no option of an attention.
    """
    options = dict(arguments.set)
    if taken := sorted(_NO_OPTIONS & options.keys()):
        raise SurgeryError(f"--set {taken[0]}=...: {taken[0]!r} is no option of an attention")
    own = {name: getattr(arguments, name) for name in ("position", "existing")}
    return {"where": _where(arguments), **own, **options}


def _where(arguments: argparse.Namespace) -> Where:
    """Return the choice of sites for which all that was asked holds."""
    choices: list[Choice] = []
    if arguments.stage:
        choices.append(stage(*arguments.stage))
    if arguments.last_of_stage:
        choices.append(last_of_stage())
    if arguments.every is not None:
        choices.append(every(arguments.every))
    if arguments.min_channels is not None:
        choices.append(min_channels(arguments.min_channels))
    if not choices:
        return arguments.where  # patterns alone are checked one by one
    if arguments.where:
        choices.insert(0, matching(*arguments.where))
    return functools.reduce(operator.and_, choices)


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
