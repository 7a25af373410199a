"""From words to the keywords of `attn_surgery.plan` and `attn_surgery.report`."""

from __future__ import annotations

import argparse
import functools
import inspect
import operator
from typing import Any

from attn_surgery.choosing import Choice, every, last_of_stage, matching, min_channels, stage
from attn_surgery.errors import SurgeryError
from attn_surgery.planning import Where
from attn_surgery.reporting import report

_NO_OPTIONS = set(inspect.signature(report).parameters) - {"options"}


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
