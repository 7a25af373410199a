"""``attn-surgery finetune`` and ``attn-surgery evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment import Lab, rehearse, remeasure
from attn_surgery.finetune.process import Interrupted
from attn_surgery.finetune.recipe import Recipe, read_recipe, shipped
from attn_surgery.finetune.running import run_recipe


def add_commands(commands: Any) -> None:
    """Add both commands to a parser's commands."""
    _add_finetune(commands)
    _add_evaluate(commands)


def _add_finetune(commands: Any) -> None:
    command = commands.add_parser(
        "finetune", help="train a host with attention, beside a control without, by a recipe"
    )
    command.set_defaults(run=_finetune)
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
    command.add_argument("--seeds", type=int, metavar="N", help="how many seeds")
    command.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="train the same without surgery, too",
    )
    command.add_argument("--output", metavar="FOLDER", help="where everything is written")
    command.add_argument("--check", action="store_true", help="check the recipe, and end")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="measure again what finetune saved")
    command.set_defaults(run=_evaluate)
    command.add_argument("folder", type=Path, help="the output folder of a recipe")
    command.add_argument("--weights", choices=("last", "best"), default="last")
    command.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as in finetune"
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the words ask for."""
    recipe = read_recipe(arguments.recipe, arguments.set)
    asked = {name: getattr(arguments, name) for name in ("seeds", "control", "output")}
    return dataclasses.replace(
        recipe, **{name: value for name, value in asked.items() if value is not None}
    )


def _finetune(arguments: argparse.Namespace) -> int:
    recipe = recipe_of(arguments)
    if arguments.check:
        rehearse(Lab.of(recipe))
        print(f"{arguments.recipe}: nothing is wrong with it")
        return 0
    try:
        outcome = run_recipe(recipe)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except Interrupted as interrupted:
        print(f"{interrupted}: saved; the same command continues", file=sys.stderr)
        return 128 + interrupted.signal
    if outcome is not None:
        print(json.dumps(outcome.to_dict(), indent=2) if arguments.json else outcome)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    found = remeasure(arguments.folder, arguments.weights, arguments.set)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(each) for each in found], indent=2))
    else:
        print("\n".join(map(str, found)))
    if differing := [each for each in found if not each.same]:
        raise SurgeryError(
            f"{len(differing)} of {len(found)} results differ from what was recorded, "
            f"{differing[0].run} first"
        )
    return 0
