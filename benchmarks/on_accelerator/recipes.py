"""Recipes in mixed precision, each once as it is and once interrupted and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.on_accelerator.part import Part, main

SHORT = ["seeds=1", "control=false", 'surgery.attention=["cbam"]', "report_seconds=0.5"]
FEW = ["pretraining.0.epochs=2", "stages.0.epochs=2"]
FEWEST = ["pretraining.0.epochs=1", "stages.0.epochs=1", "data.limit=256", "data.val_limit=64"]


def run(part: Part) -> None:
    """Run a short recipe in each precision, then ``digits`` as it ships."""
    with tempfile.TemporaryDirectory() as folder:
        for amp in ["bf16"] if part.tiny else ["bf16", "fp16"]:
            if part.has_time(f"amp={amp}", 5):
                settings = [*SHORT, f"amp={amp}", *(FEWEST if part.tiny else FEW)]
                _whole(part, Path(folder) / amp, f"short, amp={amp}", settings)
                if part.has_time(f"amp={amp}, interrupted", 5):
                    _interrupted(part, Path(folder), amp, settings)
        if not part.tiny and part.has_time("digits", 20):
            _whole(part, Path(folder) / "digits", "digits", [])


def _command(part: Part, output: Path, settings: list[str]) -> list[str]:
    on_cpu = ["device=cpu"] if part.device.type == "cpu" else []
    words = [f"output={output}", *on_cpu, *settings]
    return [sys.executable, "-m", "attn_surgery", "finetune", "digits", "--set", *words]


def _whole(part: Part, output: Path, name: str, settings: list[str]) -> None:
    _finish(part, output, name, _command(part, output, settings))


def _interrupted(part: Part, folder: Path, amp: str, settings: list[str]) -> None:
    """Stop a run as soon as it has saved something, and go on with it."""
    name, output = f"short, amp={amp}, interrupted", folder / f"{amp}_interrupted"
    command = _command(part, output, settings)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(output.glob("**/checkpoint.pt")):
        if time.monotonic() > part.deadline:
            process.kill()
        time.sleep(0.02)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    process.communicate()
    _finish(part, output, name, command, like=folder / amp)


def _finish(
    part: Part, output: Path, name: str, command: list[str], like: Path | None = None
) -> None:
    """Run to the end, and keep the row; the weights may be those of another run."""
    start = time.monotonic()
    done = _ended(part, command)
    if done is None:
        part.missed.append(name)
        return
    result = _result(output)
    ok = done.returncode == 0 and result is not None
    part.add(
        recipe=name,
        ok=ok,
        seconds=time.monotonic() - start,
        accuracy=result,
        **({} if like is None else {"same_weights": _weights(output) == _weights(like)}),
        said="" if ok else done.stderr[-1000:],
    )


def _ended(part: Part, command: list[str]) -> subprocess.CompletedProcess[str] | None:
    left = part.deadline - time.monotonic()
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
    except (subprocess.TimeoutExpired, ValueError):
        return None


def _result(output: Path) -> dict[str, Any] | None:
    """Return the accuracy of each variant at the end, in per cent."""
    path = output / "result.json"
    if not path.exists():
        return None
    lines = json.loads(path.read_text())["lines"]
    return {line["variant"]: 100 * line["mean"] for line in lines}


def _weights(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.glob("**/last.safetensors"))
    }


if __name__ == "__main__":
    main(run)
