"""Clocks: how long some calls take, by the host's clock or by the device's own.

The host's clock counts whatever happens between two moments at which the device has nothing to do:
on an accelerator also the gaps in which it waits for the next kernel to be launched. Events on the
device count its own time alone, if the calls stand in its queue before it begins: so it is given
something else to do first, for long enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

Call = Callable[[], object]
FLUSHED_BYTES = 256 * 2**20
"""More than any device's last cache holds, and as much as triton's ``do_bench`` writes."""
MAX_HELD = 256
"""How often a device is given that much to write, at most, before what is timed."""


class Clock(Protocol):
    """Times calls in milliseconds, with what they read in the cache (warm) or not (cold)."""

    def warm(self, call: Call, repetitions: int) -> float:
        """Return the time of one call, as the mean of so many."""
        ...

    def cold(self, call: Call) -> float:
        """Return the time of one call after the cache was filled with something else."""
        ...


class WallClock:
    """The host's clock; the device is waited for at both ends.

    Args:
        device: Where the calls do their work.

    Example:
        >>> WallClock(torch.device("cpu")).warm(lambda: time.sleep(0.01), 3) >= 10
        True
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._flushed: torch.Tensor | None = None

    def warm(self, call: Call, repetitions: int) -> float:
        """Return the time of one call, as the mean of so many."""
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(repetitions):
            call()
        synchronize(self.device)
        return (time.perf_counter() - start) * 1e3 / repetitions

    def cold(self, call: Call) -> float:
        """Return the time of one call after the cache was filled with something else."""
        if self._flushed is None:
            self._flushed = _memory_to_flush(self.device)
        self._flushed.add_(1)
        return self.warm(call, 1)


class DeviceClock:
    """Events on the device around the calls, which stand in its queue before it begins.

    Args:
        device: Where the calls do their work; a device with events that tell the time.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._memory = _memory_to_flush(device)
        self._held = 1
        self._with_gaps: set[Call] = set()

    def has_gaps(self, call: Call) -> bool:
        """Tell whether the device had to wait for calls to be queued, so that gaps count.

        So it is where a call waits for what the device computes.
        """
        return call in self._with_gaps

    def warm(self, call: Call, repetitions: int) -> float:
        """Return the time of one call, as the mean of so many."""
        return self._milliseconds(call, repetitions, before=call) / repetitions

    def cold(self, call: Call) -> float:
        """Return the time of one call after the cache was filled with something else."""
        return self._milliseconds(call, 1)

    def _milliseconds(self, call: Call, repetitions: int, before: Call | None = None) -> float:
        """Time the calls, with the device held up for longer until it comes to them too late."""
        held = 1 if call in self._with_gaps else self._held
        while True:
            milliseconds, was_late = self._once(call, repetitions, before, held)
            if was_late or call in self._with_gaps:
                return milliseconds
            if held >= MAX_HELD:
                self._with_gaps.add(call)
                return milliseconds
            held = self._held = 2 * held

    def _once(
        self, call: Call, repetitions: int, before: Call | None, held: int
    ) -> tuple[float, bool]:
        start, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        synchronize(self._device)
        for _ in range(held):
            self._memory.add_(1)
        if before is not None:
            before()
        start.record()
        for _ in range(repetitions):
            call()
        was_late = not start.query()
        end.record()
        end.synchronize()
        return start.elapsed_time(end), was_late


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_clock(device: torch.device) -> DeviceClock | None:
    """Return a clock on the device itself, or None where it has no events that tell the time.

    Example:
        >>> device_clock(torch.device("cpu")) is None
        True
    """
    if device.type == "cpu":
        return None
    clock = DeviceClock(device)
    try:
        clock.cold(lambda: None)
    except (RuntimeError, NotImplementedError, AttributeError):
        return None
    return clock


def _memory_to_flush(device: torch.device) -> torch.Tensor:
    return torch.zeros(FLUSHED_BYTES // 4, dtype=torch.int32, device=device)
