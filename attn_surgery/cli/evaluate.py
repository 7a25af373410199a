"""``attn-surgery evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import json

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment import remeasure


def run(arguments: argparse.Namespace) -> int:
    """Measure again what a recipe's folder holds."""
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
