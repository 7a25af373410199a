"""How many rounds a benchmark takes, and how long what is done in them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable


def at_least_two(text: str) -> int:
    """Read a number of rounds off the command line: quartiles take two.

    Example:
        >>> at_least_two("15")
        15
    """
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 2 or more: quartiles are told")
    return int(text)


def seconds(call: Callable[[], object]) -> float:
    """Return what a call takes of the wall clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
