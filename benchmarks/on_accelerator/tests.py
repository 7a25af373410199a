"""The tests that are marked for accelerators."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.on_accelerator.part import Part, main


def run(part: Part) -> None:
    """Run them, and keep a row for each."""
    if part.device.type == "cpu":
        part.add(test="those marked for accelerators", ok=True, said="skipped: this is a CPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        words = ["-m", "pytest", "-m", "accelerator", "-q", "-p", "no:cacheprovider", "tests"]
        limit = part.deadline - time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, *words, f"--junitxml={results}", "--maxfail=20"],
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            part.missed.append(f"the tests did not end within {limit:.0f} s")
            return
        if not results.exists():
            part.add(test="all", ok=False, said=(done.stdout + done.stderr)[-2000:])
            return
        for case in ElementTree.parse(results).iter("testcase"):
            _add(part, case)


def _add(part: Part, case: ElementTree.Element) -> None:
    name = f"{case.get('classname')}::{case.get('name')}"
    failed = [each for kind in ("failure", "error") for each in case.iter(kind)]
    skipped = next(iter(case.iter("skipped")), None)
    said = failed[0].get("message", "")[:500] if failed else ""
    if skipped is not None:
        said = f"skipped: {skipped.get('message', '')[:200]}"
    part.add(test=name, ok=not failed, seconds=float(case.get("time", 0)), said=said)


if __name__ == "__main__":
    main(run)
