"""The command line: ``attn-surgery plan | report | list | finetune | evaluate``.

Exit status: 0 done, 1 a row of the report could not be completed, 2 what was asked for cannot be
done (one line on stderr says why), 130 interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from attn_surgery.cli.arguments import ATTENTION_HELP, MODEL_HELP, add_surgery_options, asked
from attn_surgery.cli.finetune import add_commands as add_finetuning
from attn_surgery.cli.report import INTERRUPTED, add_report
from attn_surgery.errors import SurgeryError
from attn_surgery.host import load_model
from attn_surgery.planning import parse_attention
from attn_surgery.reporting import catalogue, listing_table
from attn_surgery.surgery import plan

PROGRAM = "attn-surgery"


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
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


# Commands


def _plan(arguments: argparse.Namespace) -> int:
    model = load_model(arguments.model)
    planned = plan(model, parse_attention(arguments.attention), **asked(arguments))
    if arguments.output is not None:
        planned.save(arguments.output)
    print(json.dumps(planned.to_dict(), indent=2) if arguments.json else planned)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    listings = catalogue()
    if arguments.json:
        print(json.dumps([asdict(each) for each in listings], indent=2))
    else:
        print(listing_table(listings))
    return 0


# Words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Put attention into a network that is already trained."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_plan(commands)
    add_report(commands)
    _add_list(commands)
    add_finetuning(commands)
    return parser


def _add_plan(commands: Any) -> None:
    command = commands.add_parser("plan", help="show where the attention would go")
    command.set_defaults(run=_plan)
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument(
        "--attention", default="cbam", metavar="NAME", help=f"{ATTENTION_HELP}; default: cbam"
    )
    command.add_argument("--output", metavar="FILE.json", help="save the plan, too")
    add_surgery_options(command)


def _add_list(commands: Any) -> None:
    command = commands.add_parser(
        "list", help="show the attentions there are, what they cost and what is wrong with them"
    )
    command.set_defaults(run=_list)
    command.add_argument("--json", action="store_true", help="print JSON")
