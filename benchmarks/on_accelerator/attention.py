"""The attentions alone, by ``benchmarks/attention.py``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.on_accelerator.part import Part, main

PROGRAM = Path(__file__).parents[1] / "attention.py"


def run(part: Part) -> None:
    """Run it, and keep what it prints."""
    left = part.deadline - time.monotonic()
    words = ["--device", str(part.device), "--seconds", f"{left / 2:.0f}", "--case-seconds", "0.3"]
    if part.tiny:
        words += ["--quick", "--attention", "se", "--batch", "1", "--dtype", "float32"]
    command = [sys.executable, str(PROGRAM), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
    except subprocess.TimeoutExpired:
        part.missed.append(PROGRAM.name)
        return
    part.add(ok=done.returncode == 0, table=done.stdout, said=done.stderr[-1000:])


if __name__ == "__main__":
    main(run)
