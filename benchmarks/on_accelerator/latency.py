"""The report's times, beside an independent timer of a few lines.

The timer makes its own models and its own events. It holds the device up while it queues a call, as
the report's device clock does, and captures its own graphs. Where there is triton, ``do_bench``
stands beside it, which counts the gaps between launches and begins with a cold cache.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import attn_surgery
from attn_surgery.host import load_model
from attn_surgery.reporting import Row
from benchmarks.on_accelerator.part import Part, captured, main

MODELS = ["torchvision/resnet50", "timm/convnext_tiny", "timm/efficientnet_b0"]
ATTENTIONS = ["se", "cbam"]
WAYS = {"eager": ["wall", "device"], "graph": ["graph"], "compiled": ["wall", "device"]}
NEAR = 0.05

Call = Callable[[], object]


def run(part: Part) -> None:
    """Time every model at every batch size: eager and as graphs first, compiled at last."""
    models = ["torchvision/resnet18"] if part.tiny else MODELS
    batches = [1, 2] if part.tiny else [64, 1]
    is_cuda = part.device.type == "cuda"
    for name in models:
        for batch in batches:
            if part.has_time(f"{name}, batch {batch}", 1 if part.tiny else 12):
                _rows(part, name, batch, ["eager", *(["graph"] if is_cuda else [])])
    for name in models:
        for batch in batches if not part.tiny else []:
            if part.has_time(f"{name}, batch {batch}, compiled", 60):
                _rows(part, name, batch, ["compiled"])


def _rows(part: Part, name: str, batch: int, ways: list[str]) -> None:
    host = load_model(name, device=None).to(part.device).eval()
    size = (3, 64, 64) if part.tiny else (3, 224, 224)
    compiled = "compiled" in ways
    report = attn_surgery.report(
        host,
        ATTENTIONS,
        name=name,
        input_size=size,
        device=part.device,
        batch_size=batch,
        compile=compiled,
        graph="graph" in ways,
        seconds=0.2 if part.tiny else 3.0,
    )
    part.add(model=name, batch=batch, ok=True, table=str(report))
    for row in report.rows:
        model = host if row.attention is None else _operated(host, row.attention)
        own = _own_times(model, (batch, *size), part, ways)
        for way in ways:
            for clock in WAYS[way]:
                _add(part, row, batch, way, clock, own.get(way, {}))


def _operated(host: nn.Module, attention: str) -> nn.Module:
    return attn_surgery.apply(attn_surgery.remove(host), attention)


def _add(part: Part, row: Row, batch: int, way: str, clock: str, own: dict[str, float]) -> None:
    times = row.by(clock)
    if times is None or times.latency_ms is None:
        is_due = clock == "wall" or part.device.type == "cuda"
        part.add(model=row.title, batch=batch, way=way, clock=clock, ok=not is_due, said=row.error)
        return
    told: dict[str, Any] = {"report_ms": times.latency_ms, "p90_ms": times.latency_p90_ms}
    if row.attention is not None and times.latency_added_ms is not None:
        told["added_us_per_image"] = 1e3 * times.latency_added_ms / batch
        told["ratio_to_host"] = times.latency_ratio
    ok = True
    if clock != "wall" and "own_ms" in own:
        told |= own
        told["report_to_own"] = times.latency_ms / own["own_ms"]
        ok = abs(told["report_to_own"] - 1) <= NEAR
    part.add(model=row.title, batch=batch, way=way, clock=clock, ok=ok, **told)


# The independent timer


def _own_times(
    model: nn.Module, shape: tuple[int, ...], part: Part, ways: list[str]
) -> dict[str, dict[str, float]]:
    if part.device.type != "cuda":
        return {}
    x = torch.randn(shape, device=part.device)
    times: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for way in ways:
            run = torch.compile(model) if way == "compiled" else model
            call: Call = lambda run=run: run(x)  # noqa: E731
            if way == "graph":
                call = captured(call)[0].replay
            times[way] = {"own_ms": _between_events(call)}
            if way == "eager" and (bench := _do_bench()) is not None:
                times[way]["do_bench_ms"] = bench(call, warmup=50, rep=200, return_mode="median")
    return times


def _between_events(call: Call, rounds: int = 20) -> float:
    for _ in range(10):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    queued_s = time.perf_counter() - begin  # how long the device has to be held up, at least
    times: list[float] = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(int((2 * queued_s + 1e-3) * 2e9))
        call()
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _do_bench() -> Any:
    try:
        return importlib.import_module("triton.testing").do_bench
    except ImportError:
        return None


if __name__ == "__main__":
    main(run)
