"""``attn-surgery list``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from attn_surgery.reporting import catalogue, listing_table, waiting


def run(arguments: argparse.Namespace) -> int:
    """Show the attentions that there are."""
    with waiting("trying each attention"):
        listings = catalogue()
    if arguments.json:
        print(json.dumps([asdict(each) for each in listings], indent=2))
    else:
        print(listing_table(listings))
    return 0
