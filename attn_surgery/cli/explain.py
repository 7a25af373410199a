"""``attn-surgery explain``."""

from __future__ import annotations

import argparse

from attn_surgery.cli.refusals import Refusal, anchor_of, refusals
from attn_surgery.errors import SurgeryError, nearest


def run(arguments: argparse.Namespace) -> int:
    """Show what a refusal means and what to do about it; without words, all that there are."""
    if not arguments.refusal:
        print("\n".join(refusals()))
    else:
        print(_asked(" ".join(arguments.refusal)))
    return 0


def _asked(words: str) -> Refusal:
    known = refusals()
    found = known.get(words) or known.get(anchor_of(words))
    if found is None:
        raise SurgeryError(
            f"nothing is known of {words!r}{nearest(words, known)}; give a word in brackets of an "
            "error, or a whole message in quotes; 'attn-surgery explain' lists the words"
        )
    return found
