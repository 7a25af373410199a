"""The words of the command line, readable without torch: so help and mistakes answer at once."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attn_surgery.finetune.recipe import shipped
from attn_surgery.version import __version__

PROGRAM = "attn-surgery"
INTERRUPTED = 130
"""The exit status after Ctrl-C."""
MODEL_HELP = "resnet50, timm/NAME, torchvision/NAME or package.module:callable"
ATTENTION_HELP = "a name, 'layer4.*=cbam,*=se' for a mixture, or the file of a plan, as plan.json"
FORMATS = ("table", "markdown", "latex", "csv", "json")
"""Those of a report."""
COLUMNS = (
    *("ratio", "latency", "params", "macs", "sites", "added", "copies", "saved", "throughput"),
    *("memory", "moved", "quartiles", "elementwise", "percentiles"),
)
"""Those of a report's tables."""
COSTS = ("params", "macs", "elementwise", "moved")
"""Those of a drawing."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the words after the program's name; ``command`` among them names the module that runs.

    Raises:
        SystemExit: From argparse: 2 for words it cannot read, 0 after ``--help`` and ``--version``.
    """
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Put attention into a network that is already trained."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="word", metavar="COMMAND", required=True)
    _add_plan(commands)
    _add_report(commands)
    _add_list(commands)
    _add_finetune(commands)
    _add_suggest(commands)
    _add_show(commands)
    _add_evaluate(commands)
    _add_explain(commands)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:  # the command's own usage helps, the program's does not
        commands.choices[arguments.word].error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def _add_plan(commands: Any) -> None:
    command = commands.add_parser("plan", help="show where the attention would go")
    command.set_defaults(command="plan")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "--attention", default="cbam", metavar="NAME", help=f"{ATTENTION_HELP}; default: cbam"
    )
    command.add_argument("--output", metavar="FILE.json", help="save the plan, too")
    command.add_argument("--all", action="store_true", help="show alike blocks one by one")
    command.add_argument(
        "--draw", type=Path, metavar="FILE.svg", help="draw the plan, too: .svg, .html or .png"
    )
    command.add_argument(
        "--cost", choices=COSTS, help="what the drawing's bars tell; default: params"
    )
    _add_input(command)
    _add_surgery_options(command)


def _add_report(commands: Any) -> None:
    command = commands.add_parser("report", help="show what attention would cost")
    command.set_defaults(command="report")
    command.add_argument("models", nargs="+", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "--attention",
        nargs="+",
        default=["se", "cbam"],
        metavar="NAME",
        help=f"{ATTENTION_HELP}; default: se cbam",
    )
    _add_input(command)
    command.add_argument("--pretrained", action="store_true", help="download the default weights")
    command.add_argument("--checkpoint", metavar="FILE", help="state dict that has to fit")
    _add_surgery_options(command)
    command.add_argument("--init", default="identity", help="identity (default) or paper")
    command.add_argument("--per-site", action="store_true", help="break the costs down by block")
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
    group.add_argument(
        "--compile",
        nargs="?",
        choices=("model", "attention"),
        const="model",
        help="measure through torch.compile: the whole model (default), or the attention alone",
    )
    group.add_argument("--graph", action="store_true", help="measure as a captured CUDA graph, too")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="a measurement's time (default: 5)"
    )
    group.add_argument(
        "--progress", action="store_true", default=None, help="show a bar, terminal or not"
    )


def _add_output(group: Any) -> None:
    group.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    group.add_argument(
        "--wide", action="store_true", help="show all columns, not only those that fit"
    )
    group.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"show these: {' '.join(COLUMNS)}",
    )
    group.add_argument("--output", type=Path, metavar="FILE", help="write there, do not print")
    group.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw added latency against parameters"
    )


def _add_list(commands: Any) -> None:
    command = commands.add_parser(
        "list", help="show the attentions there are, what they cost and what is wrong with them"
    )
    command.set_defaults(command="catalogue")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_finetune(commands: Any) -> None:
    command = commands.add_parser(
        "finetune", help="train a host with attention, beside controls, by a recipe"
    )
    command.set_defaults(command="finetune")
    _add_recipe(command)
    command.add_argument("--seeds", type=int, metavar="N", help="how many seeds")
    command.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="train the recipe's controls, too",
    )
    command.add_argument("--output", metavar="FOLDER", help="where everything is written")
    command.add_argument("--check", action="store_true", help="check the recipe, and end")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_suggest(commands: Any) -> None:
    command = commands.add_parser(
        "suggest", help="show which sites of a recipe's host are worth an attention"
    )
    command.set_defaults(command="suggest")
    _add_recipe(command)
    command.add_argument(
        "--attention", metavar="NAME", help=f"{ATTENTION_HELP}; default: those of the recipe"
    )
    command.add_argument(
        "--budget",
        nargs="+",
        action="extend",
        default=[],
        type=parse_setting,
        metavar="THING=MOST",
        help="what the sites may cost: sites=4, params=20000, bytes=..., macs=..., latency=1.05",
    )
    command.add_argument(
        "--batches", type=int, default=20, metavar="N", help="how many to look at; default: 20"
    )
    command.add_argument("--output", metavar="FILE.json", help="save the plan, too")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_show(commands: Any) -> None:
    command = commands.add_parser(
        "show", help="show over images what inserted attention does, beside the host"
    )
    command.set_defaults(command="show")
    command.add_argument("model", metavar="MODEL", help=f"the host: {MODEL_HELP}")
    command.add_argument(
        "--weights", required=True, metavar="FILE", help="the attention, as attn_surgery.save wrote"
    )
    command.add_argument(
        "--images",
        required=True,
        nargs="+",
        type=Path,
        metavar="FILE",
        help="files, or folders, whose subfolders are labels",
    )
    command.add_argument("--pretrained", action="store_true", help="download the host's weights")
    command.add_argument("--checkpoint", metavar="FILE", help="the host's state dict, has to fit")
    command.add_argument(
        "--output",
        nargs="+",
        type=Path,
        default=[Path("sheet.png"), Path("page.html"), Path("arrays.npz")],
        metavar="FILE",
        help="what is written, by the ending; default: sheet.png page.html arrays.npz",
    )
    command.add_argument(
        "--classes", metavar="FILE", help="the classes' names, one a line; or imagenet"
    )
    command.add_argument(
        "--target", metavar="CLASS", help="what maps explain; default: the host's best, for both"
    )
    command.add_argument("--layer", metavar="PATH", help="whose maps; default: the last with space")
    command.add_argument(
        "--method", default="GradCAM", help="GradCAM (default), GradCAMPlusPlus, ..., or none"
    )
    command.add_argument("--device", help="default: the accelerator if there is one, else cpu")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_recipe(command: argparse.ArgumentParser) -> None:
    """Add the recipe, and ``--set``."""
    command.add_argument(
        "recipe",
        nargs="?",
        default="digits",
        help=f"a TOML file, or one that ships: {', '.join(shipped())}; default: digits",
    )
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change the recipe, as data.batch_size=32 or stages.0.lr=0.1",
    )


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="measure again what finetune saved")
    command.set_defaults(command="evaluate")
    command.add_argument("folder", type=Path, help="the output folder of a recipe")
    command.add_argument("--weights", choices=("last", "best"), default="last")
    command.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as in finetune"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_explain(commands: Any) -> None:
    command = commands.add_parser(
        "explain", help="show what a refusal means and what to do about it"
    )
    command.set_defaults(command="explain")
    command.add_argument(
        "refusal",
        nargs="*",
        metavar="REFUSAL",
        help="the word in brackets of an error, or a message or a plan's reason in quotes; "
        "default: list the words",
    )


def _add_input(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input",
        metavar="3x224x224",
        help="shape of one input, channels first; several with commas; or package.module:callable "
        "for a function that makes the input",
    )


def _add_surgery_options(command: argparse.ArgumentParser) -> None:
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
