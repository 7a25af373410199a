"""The attentions alone, by ``benchmarks/attention.py``, where that is there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.on_accelerator.part import Part, main

PROGRAM = Path(__file__).parents[1] / "attention.py"


def run(part: Part) -> None:
    """Run it, and keep what it prints."""
    if not PROGRAM.exists():
        part.missed.append(f"there is no {PROGRAM.name} yet")
        return
    left = part.deadline - time.monotonic()
    words = ["--device", str(part.device), "--seconds", f"{left - 2:.0f}"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *words], capture_output=True, text=True, check=False
    )
    part.add(ok=done.returncode == 0, table=done.stdout, said=done.stderr[-1000:])


if __name__ == "__main__":
    main(run)
