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
MAX_HELD_MS = 64.0
CYCLES_PER_MS = 2_000_000
SHORTEST_FLUSH_MS = 0.1


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
    """Events on the device around a call, which stands in its queue before it begins.

    Args:
        device: Where the calls do their work; a device with events that tell the time.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._memory = _memory_to_flush(device)
        self._held_ms = 1.0
        self._too_long: set[Call] = set()
        self._with_gaps: set[Call] = set()

    def may_have_gaps(self, call: Call) -> bool:
        """Tell whether not all of a call could be queued before the device began with it.

        So it is where a call waits for what the device computes, or is more than the queue holds.
        """
        return call in self._with_gaps

    def warm(self, call: Call, repetitions: int) -> float:
        """Return the time of one call, as the mean of so many.

        What is too long for the queue with a call before it goes without: so much work has little
        of what it reads in the cache at any time.
        """
        return sum(self._warm(call) for _ in range(repetitions)) / repetitions

    def _warm(self, call: Call) -> float:
        if call not in self._too_long:
            milliseconds = self._ahead(call, before=call)
            if milliseconds is not None:
                return milliseconds
            self._too_long.add(call)
        return self.cold(call)

    def cold(self, call: Call) -> float:
        """Return the time of one call after the cache was filled with something else."""
        if call not in self._with_gaps:
            milliseconds = self._ahead(call)
            if milliseconds is not None:
                return milliseconds
            self._with_gaps.add(call)
        return self._once(call, None, held_ms=1.0)[0]

    def _ahead(self, call: Call, before: Call | None = None) -> float | None:
        """Time a call, the device held up until it is queued; None where it never is in time."""
        while True:
            milliseconds, was_queued = self._once(call, before, self._held_ms)
            if was_queued:
                return milliseconds
            if self._held_ms >= MAX_HELD_MS:
                self._held_ms = 1.0
                return None
            self._held_ms *= 2

    def _once(self, call: Call, before: Call | None, held_ms: float) -> tuple[float, bool]:
        start, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        synchronize(self._device)
        self._hold(held_ms)
        if before is not None:
            before()
        start.record()
        call()
        was_queued = not start.query()
        end.record()
        end.synchronize()
        return start.elapsed_time(end), was_queued

    def _hold(self, milliseconds: float) -> None:
        """Fill the cache with something else, and keep the device busy for about so long."""
        self._memory.add_(1)
        if self._device.type == "cuda":  # one launch for any time: the queue stays free
            torch.cuda._sleep(int(milliseconds * CYCLES_PER_MS))
        else:
            for _ in range(int(milliseconds / SHORTEST_FLUSH_MS)):
                self._memory.add_(1)


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
    try:
        clock = DeviceClock(device)
        clock.cold(lambda: None)
    except (RuntimeError, AttributeError):  # or no memory is left for it
        return None
    return clock


def _memory_to_flush(device: torch.device) -> torch.Tensor:
    return torch.zeros(FLUSHED_BYTES // 4, dtype=torch.int32, device=device)
