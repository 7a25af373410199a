"""What importing the package adds to torch, torchvision and timm.

    python benchmarks/imports.py --rounds 11

Fresh interpreters in turn: with what everybody imports, and with all public names of the package
besides. Processor time, as a busy machine changes it least.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rounds import at_least_two

HOSTS = "import timm, torch, torchvision"
OURS = (
    f"{HOSTS}; import attn_surgery; [getattr(attn_surgery, each) for each in attn_surgery.__all__]"
)


def seconds(code: str) -> float:
    """Return the processor time of an interpreter that runs some code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=root)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description="Measure what an import takes.")
    parser.add_argument("--rounds", type=at_least_two, default=11)
    rounds = parser.parse_args().rounds
    seconds(OURS)  # bytecode is written, files are in the cache
    hosts, added = [], []
    for number in range(rounds):
        order = [HOSTS, OURS] if number % 2 else [OURS, HOSTS]
        times = {code: seconds(code) for code in order}
        hosts.append(times[HOSTS])
        added.append(times[OURS] - times[HOSTS])
    low, _, high = statistics.quantiles(added, n=4)
    print(
        f"torch, torchvision and timm {statistics.median(hosts):.2f} s; attn_surgery adds "
        f"{statistics.median(added):.2f} s (quartiles {low:.2f} to {high:.2f}, {rounds} rounds)\n"
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main()
