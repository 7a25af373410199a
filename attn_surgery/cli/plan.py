"""``attn-surgery plan``."""

from __future__ import annotations

import argparse
import json

from attn_surgery.cli.surgery_options import asked
from attn_surgery.host import load_model
from attn_surgery.planning import parse_attention
from attn_surgery.surgery import plan


def run(arguments: argparse.Namespace) -> int:
    """Show the plan that the words ask for."""
    model = load_model(arguments.model)
    planned = plan(model, parse_attention(arguments.attention), **asked(arguments))
    if arguments.output is not None:
        planned.save(arguments.output)
    print(json.dumps(planned.to_dict(), indent=2) if arguments.json else planned)
    return 0
