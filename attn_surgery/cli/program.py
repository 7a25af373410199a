"""The command line: ``attn-surgery plan | report | list | finetune | suggest | show | evaluate``.

Exit status: 0 done, 1 a row of the report could not be completed, 2 what was asked for cannot be
done (one line on stderr says why), 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from attn_surgery.cli.parser import INTERRUPTED, PROGRAM, parse
from attn_surgery.cli.refusals import anchor_of
from attn_surgery.errors import SurgeryError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: The words after the program's name; ``sys.argv[1:]`` by default.

    Raises:
        SystemExit: From argparse: 2 for words it cannot read, 0 after ``--help``.
    """
    arguments = parse(argv)
    try:
        # torch and its kin are imported here, once it is clear that there is something to do
        command = importlib.import_module(f"attn_surgery.cli.{arguments.command}")
        status = command.run(arguments)
        sys.stdout.flush()
    except SurgeryError as error:
        print(f"{PROGRAM}: {_told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _told(error: SurgeryError) -> str:
    """Return an error as one line, with the word that ``attn-surgery explain`` knows it by."""
    message = " ".join(str(error).split())
    anchor = anchor_of(message)
    return f"error[{anchor}]: {message}" if anchor else f"error: {message}"
