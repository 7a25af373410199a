"""The command line."""

from attn_surgery.cli.program import main

__all__ = ["main"]
