"""Clocks, against a device whose every kernel is known: launches take time, and so do kernels."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from attn_surgery.host.inputs import Input
from attn_surgery.reporting.measuring.clocks import DeviceClock, WallClock
from attn_surgery.reporting.measuring.conditions import Conditions
from attn_surgery.reporting.measuring.latency import GAPS, measure

clocks_module = importlib.import_module("attn_surgery.reporting.measuring.clocks")
LAUNCH_MS, FLUSH_MS = 0.005, 0.12
DEPTH = 1024
"""How many kernels wait in the queue at most."""
DEVICE = torch.device("meta")
"""It computes nothing, so that only what is simulated takes time."""


class Device:
    """A queue that the host fills while the device works it off; times are in milliseconds."""

    def __init__(self) -> None:
        self.host = 0.0
        self.free = 0.0
        self.queued: list[float] = []
        self.cached = False
        """Whether the last kernel read what the next one reads."""

    def launch(self, milliseconds: float) -> None:
        self.host += LAUNCH_MS
        self.queued = [end for end in self.queued if end > self.host]
        if len(self.queued) >= DEPTH:  # the host waits for a place in the queue
            self.host = self.queued[-DEPTH]
        self.queued.append(max(self.free, self.host) + milliseconds)
        self.free = max(self.free, self.host) + milliseconds

    def wait(self, *_: object) -> None:
        self.host = max(self.host, self.free)

    def seconds(self) -> float:
        return self.host / 1e3

    def flush(self, _: int) -> None:
        self.launch(FLUSH_MS)
        self.cached = False

    def read(self, warm_ms: float, cold_ms: float) -> None:
        """Run a kernel that is faster if its input is in the cache."""
        self.launch(warm_ms if self.cached else cold_ms)
        self.cached = True

    def event(self, *_: object, **__: object) -> Any:
        return Event(self)


class Event:
    def __init__(self, device: Device):
        self.device = device
        self.at = 0.0

    def record(self) -> None:
        self.at = max(self.device.free, self.device.host)

    def query(self) -> bool:
        return self.device.host >= self.at

    def synchronize(self) -> None:
        self.device.host = max(self.device.host, self.at)

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    simulated = Device()
    flushed = types.SimpleNamespace(add_=simulated.flush)
    monkeypatch.setattr(torch, "Event", simulated.event)
    monkeypatch.setattr(torch.accelerator, "synchronize", simulated.wait)
    monkeypatch.setattr(clocks_module, "_memory_to_flush", lambda device: flushed)
    monkeypatch.setattr(clocks_module.time, "perf_counter", simulated.seconds)
    return simulated


def network(device: Device, kernels: int, milliseconds: float) -> Callable[[], None]:
    def call() -> None:
        for _ in range(kernels):
            device.launch(milliseconds)

    return call


@pytest.mark.parametrize("kernels", [1, 100, 700])
def test_gaps_between_launches_are_none_of_the_devices_time(device: Device, kernels: int) -> None:
    """Its kernels are shorter than their launches: the host's clock sees these alone."""
    call = network(device, kernels, 0.002)
    assert DeviceClock(DEVICE).warm(call, 3) == pytest.approx(kernels * 0.002)
    assert WallClock(DEVICE).warm(call, 3) == pytest.approx(kernels * LAUNCH_MS, rel=0.5)


def test_where_kernels_are_long_both_clocks_agree(device: Device) -> None:
    call = network(device, 20, 1.0)
    assert DeviceClock(DEVICE).warm(call, 3) == pytest.approx(20)
    assert WallClock(DEVICE).warm(call, 3) == pytest.approx(20, rel=0.01)


def test_more_than_the_queue_holds_is_timed_and_told(device: Device) -> None:
    """The device never waits for launches, as the host is a whole queue ahead of it."""
    clock = DeviceClock(DEVICE)
    call = network(device, 3000, 0.006)
    assert clock.warm(call, 1) == pytest.approx(3000 * 0.006, rel=0.01)
    assert clock.may_have_gaps(call)


def test_a_call_that_waits_for_its_device_has_gaps(device: Device) -> None:
    def call() -> None:
        device.launch(1.0)
        device.wait()
        device.launch(1.0)

    clock = DeviceClock(DEVICE)
    assert clock.warm(call, 3) >= 2
    assert clock.may_have_gaps(call)
    assert not clock.may_have_gaps(network(device, 3, 1.0))


@pytest.mark.parametrize("clock", [WallClock, DeviceClock])
def test_warm_and_cold(device: Device, clock: Any) -> None:
    def call() -> None:
        device.read(warm_ms=1.0, cold_ms=2.0)

    made = clock(DEVICE)
    assert made.cold(call) == pytest.approx(2, rel=0.01)
    made.warm(call, 1)
    assert made.warm(call, 4) == pytest.approx(1, rel=0.01)


class Kernels(nn.Module):
    """A model of so many kernels, which may wait for the device in between."""

    def __init__(self, device: Device, kernels: int, *, waits: bool = False):
        super().__init__()
        self.device, self.kernels, self.waits = device, kernels, waits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.kernels):
            self.device.launch(0.004)
        if self.waits:
            self.device.wait()
            self.device.launch(0.004)
        return x


def test_both_clocks_tell_in_one_run(device: Device) -> None:
    builders = [
        lambda: Kernels(device, 100),
        lambda: Kernels(device, 110),
        lambda: Kernels(device, 100, waits=True),
    ]
    run = measure(builders, Input(((3, 8, 8),)), Conditions(DEVICE, seconds=0))
    _, more, waiting = run.timings
    assert not isinstance(more, str)
    assert list(more) == ["wall", "device"]
    assert more["device"].median_ms == pytest.approx(0.44)
    assert more["device"].ratio == pytest.approx(1.1)
    assert more["wall"].median_ms > more["device"].median_ms
    assert not isinstance(waiting, str)
    assert run.notes == ((), (), (GAPS,))
