"""The command line: words are read first, torch is imported once there is something to do."""

from attn_surgery.cli.program import main

__all__ = ["main"]
