"""``attn-surgery plan``."""

from __future__ import annotations

import argparse
import json

from torch import nn

from attn_surgery.cli.parser import PROGRAM
from attn_surgery.cli.refusals import anchor_of
from attn_surgery.cli.surgery_options import asked
from attn_surgery.errors import SurgeryError
from attn_surgery.host import Input, load_model, parse_input
from attn_surgery.planning import Plan, parse_attention
from attn_surgery.reporting import check_drawing, draw_plan, waiting
from attn_surgery.surgery import plan


def run(arguments: argparse.Namespace) -> int:
    """Show the plan that the words ask for."""
    given = _checked_input(arguments)
    with waiting(f"{arguments.model}: loading"):
        model = load_model(arguments.model)
    with waiting(f"{arguments.model}: planning"):
        planned = plan(model, parse_attention(arguments.attention), **asked(arguments))
    if arguments.output is not None:
        planned.save(arguments.output)
    if arguments.draw is not None:
        with waiting(f"{arguments.model}: counting and drawing"):
            _draw(planned, model, given, arguments)
    if arguments.json:
        print(json.dumps(planned.to_dict(), indent=2))
    else:
        print(planned.text(fold=not arguments.all))
        _name_reasons(planned)
        if files := [each for each in (arguments.output, arguments.draw) if each is not None]:
            print(f"written: {', '.join(map(str, files))}")
    return 0


def _name_reasons(planned: Plan) -> None:
    """Name the words by which ``attn-surgery explain`` knows why sites are skipped."""
    anchors = dict.fromkeys(anchor_of(site.reason) for site in planned.skipped)
    if named := [each for each in anchors if each not in ("", "not-selected")]:
        print(f"what the reasons mean: {PROGRAM} explain {' or '.join(named)}")


def _checked_input(arguments: argparse.Namespace) -> Input | None:
    """Return the input; refuse, before anything is done, what could not be drawn afterwards."""
    if arguments.draw is not None:
        check_drawing(arguments.draw)
    elif arguments.input is not None or arguments.cost is not None:
        word = "--input" if arguments.cost is None else "--cost"
        raise SurgeryError(f"{word} is for a drawing: name its file with --draw")
    return None if arguments.input is None else parse_input(arguments.input)


def _draw(
    planned: Plan, model: nn.Module, given: Input | None, arguments: argparse.Namespace
) -> None:
    draw_plan(
        planned,
        arguments.draw,
        host=model,
        input_size=given,
        name=arguments.model,
        cost=arguments.cost or "params",
        fold=False if arguments.all else None,
    )
