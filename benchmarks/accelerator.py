"""One command that proves the half of this package that needs an accelerator, within some minutes.

    python benchmarks/accelerator.py --seconds 240

runs the tests that are marked for accelerators, tries surgery in ten hosts and every format, puts
the report's times beside an independent timer, runs recipes in mixed precision and interrupts them,
and runs the benchmark of the attentions. Each part is a process of its own with a time limit. After
each, one JSON and one Markdown file hold all that was done; their name is the device's. The exit
status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from tabulate import tabulate

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from attn_surgery.reporting import accelerator, device_name  # noqa: E402

PARTS = {"latency": 0.4, "surgery": 0.2, "tests": 0.2, "recipes": 0.15, "attention": 0.05}
"""The parts in their order, and the share of the time that each has if those before leave none."""
GRACE_S = 5.0


@dataclass
class Benchmark:
    """A run of all parts.

    Attributes:
        device: Where.
        seconds: For all together.
        output: The folder of the two files.
        tiny: Only as much as shows that everything runs.
    """

    device: torch.device
    seconds: float
    output: Path
    tiny: bool

    def run(self) -> bool:
        """Run the parts one after the other, and tell whether every check held."""
        self.output.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        results: dict[str, Any] = {}
        left_shares = 1.0
        for name, share in PARTS.items():
            left_s = self.seconds - (time.monotonic() - start)
            results[name] = self._part(name, left_s * share / left_shares)
            left_shares -= share
            self._write(results)
            print(f"{name}: {_summary(results[name])}", flush=True)
        return all(
            row.get("ok", True) for each in results.values() for row in each["rows"]
        ) and all(each["error"] == "" for each in results.values())

    def _part(self, name: str, seconds: float) -> dict[str, Any]:
        rows = self.output / f"{name}.rows.json"
        words = ["--device", str(self.device), "--seconds", f"{seconds:.1f}", "--output", str(rows)]
        command = [sys.executable, "-m", f"benchmarks.on_accelerator.{name}", *words]
        start = time.monotonic()
        error = ""
        try:
            done = subprocess.run(
                [*command, "--tiny"] if self.tiny else command,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=max(seconds + GRACE_S, 1),
                check=False,
            )
            error = done.stderr[-2000:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            pass
        result = json.loads(rows.read_text()) if rows.exists() else {"ended": False, "rows": []}
        rows.unlink(missing_ok=True)
        return {"missed": [], **result, "seconds": time.monotonic() - start, "error": error}

    def _write(self, results: dict[str, Any]) -> None:
        name = device_name(self.device)
        told = {
            "device": name,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "date": time.strftime("%Y-%m-%d"),
            "seconds": self.seconds,
        }
        path = self.output / "".join(each if each.isalnum() else "_" for each in name.lower())
        path.with_suffix(".json").write_text(
            json.dumps({**told, "parts": results}, indent=1) + "\n"
        )
        path.with_suffix(".md").write_text(_markdown(told, results))


def _summary(part: dict[str, Any]) -> str:
    failed = [row for row in part["rows"] if not row.get("ok", True)]
    said = f"{len(part['rows'])} rows, {len(failed)} failed, {part['seconds']:.0f} s"
    if not part["ended"]:
        said += ", not ended"
    if part["missed"]:
        said += f", {len(part['missed'])} missed"
    return f"{said}{': ' if part['error'] else ''}{part['error'][-300:]}"


def _markdown(told: dict[str, Any], results: dict[str, Any]) -> str:
    """Write what was done for people: each part's tables, what failed, what was not reached."""
    lines = [f"# {told['device']}", "", ", ".join(f"{k} {v}" for k, v in told.items()), ""]
    for name, part in results.items():
        lines += [f"## {name}", "", _summary(part), ""]
        for heads in dict.fromkeys(tuple(row) for row in part["rows"] if "table" not in row):
            rows = [row for row in part["rows"] if tuple(row) == heads]
            lines += [tabulate([_cells(row) for row in rows], "keys", "pipe", floatfmt=".4g"), ""]
        for row in part["rows"]:
            if "table" in row:
                lines += ["```", row["table"].rstrip(), "```", ""]
        if part["missed"]:
            lines += ["Not reached in time:", "", *(f"- {each}" for each in part["missed"]), ""]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    return {name: " ".join(str(v).split()) if isinstance(v, str) else v for name, v in row.items()}


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Prove what needs an accelerator.")
    parser.add_argument("--device", help="default: the accelerator that there is")
    parser.add_argument("--seconds", type=float, default=240.0, help="for all (default: 240)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--tiny", action="store_true", help="show that everything runs")
    words = parser.parse_args()
    device = torch.device(words.device) if words.device else accelerator()
    if device is None:
        parser.error("there is no accelerator; --device cpu runs the same on the CPU")
    sys.exit(0 if Benchmark(device, words.seconds, words.output, words.tiny).run() else 1)


if __name__ == "__main__":
    main()
