"""What every part is: rows, written as soon as they are there, until the time is over."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

CLEANUP_S = 3.0


@dataclass
class Part:
    """One part of the benchmark while it runs.

    Attributes:
        device: Where.
        output: The JSON file that holds what was done so far.
        deadline: When to stop, by ``time.monotonic``.
        tiny: Only as much as shows that everything runs.
    """

    device: torch.device
    output: Path
    deadline: float
    tiny: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def has_time(self, what: str, seconds: float = 1.0) -> bool:
        """Tell whether there is time for something, and note it as missed where there is none."""
        if time.monotonic() + seconds < self.deadline:
            return True
        self.missed.append(what)
        return False

    def add(self, **row: Any) -> None:
        """Keep a row; one with ``ok=False`` fails the benchmark."""
        self.rows.append(row)
        self.write()

    def write(self, *, ended: bool = False) -> None:
        """Write down what was done so far."""
        told = {"ended": ended, "missed": self.missed, "rows": self.rows}
        whole = self.output.with_suffix(".part")
        whole.write_text(json.dumps(told, indent=1))
        whole.replace(self.output)


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Capture a call as a CUDA graph, and return what it writes to, too."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph, output


def main(run: Callable[[Part], None]) -> None:
    """Run a part as its command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    deadline = time.monotonic() + words.seconds - CLEANUP_S
    part = Part(words.device, words.output, deadline, words.tiny)
    part.write()
    run(part)
    part.write(ended=True)
