"""What else the machine does while something is measured, and whether the times can be believed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from attn_surgery.reporting.measuring.device_state import DeviceState, device_state

SHORTEST_S = 0.5
"""Processor times are told in hundredths of a second: what took less is not judged."""
TOLERATED_CORES = 0.2
WAITING = 0.7
MOVED = 0.05


@dataclass(frozen=True)
class _Moment:
    wall_s: float
    own_s: float
    busy_s: float
    load: float
    device: DeviceState | None


@dataclass
class Watched:
    """What was seen at both ends of a measurement.

    Attributes:
        device: Where was measured.
        threads: The CPU threads that the measured code runs.
    """

    device: torch.device
    threads: int
    _ends: list[_Moment] = field(default_factory=list)

    def look(self) -> None:
        """Note how things stand."""
        with contextlib.suppress(psutil.Error, OSError, NotImplementedError):
            self._ends.append(_moment(self.device))

    def told(self) -> dict[str, Any]:
        """Return what belongs to the provenance of a measurement, fit for JSON."""
        if len(self._ends) < 2:
            return {}
        before, after = self._ends[0], self._ends[-1]
        told: dict[str, Any] = {"load": f"{before.load:.1f} to {after.load:.1f}"}
        if before.device and after.device:
            told |= before.device.to(after.device)
        return told

    def doubts(self) -> list[str]:
        """Return why the times may not be the model's, a line each."""
        if len(self._ends) < 2:
            return []
        before, after = self._ends[0], self._ends[-1]
        doubts: list[str] = []
        wall = after.wall_s - before.wall_s
        if wall >= SHORTEST_S:
            own = (after.own_s - before.own_s) / wall
            others = max(0.0, (after.busy_s - before.busy_s) / wall - own)
            doubts += self._of_processor(own, others, f"{before.load:.1f} to {after.load:.1f}")
        if before.device and after.device:
            doubts += before.device.doubts(after.device, MOVED)
        return doubts

    def _of_processor(self, own: float, others: float, load: str) -> list[str]:
        cores = len(_cores())
        if cores - others < self.threads - TOLERATED_CORES and others > TOLERATED_CORES:
            threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
            cure = "measure when they are done"
            if self.threads > 1:
                cure += ", or with --threads 1 (threads=1), so that no thread waits for another"
            return [
                f"busy machine: other processes used {others:.1f} of {cores} cores (load {load}) "
                f"beside the {threads} measured: the times are not the model's; {cure}"
            ]
        if self.device.type == "cpu" and own < WAITING:
            return [
                f"waiting: the processor worked for {100 * own:.0f} % of the time measured (load "
                f"{load}): the times are not only the model's, unless it waits by itself"
            ]
        return []


@contextlib.contextmanager
def watched(device: torch.device, threads: int) -> Iterator[Watched]:
    """Look at the machine before and after what is measured.

    Args:
        device: Where is measured.
        threads: The CPU threads that the measured code runs.

    Example:
        >>> with watched(torch.device("cpu"), 1) as machine:
        ...     _ = sum(range(1000))
        >>> machine.doubts(), list(machine.told())
        ([], ['load'])
    """
    machine = Watched(device, threads)
    machine.look()
    try:
        yield machine
    finally:
        machine.look()


def _moment(device: torch.device) -> _Moment:
    own = psutil.Process().cpu_times()
    return _Moment(
        time.perf_counter(),
        own.user + own.system,
        sum(map(_busy, _cores())),
        psutil.getloadavg()[0],
        device_state(device),
    )


def _cores() -> list[Any]:
    """Return the times of the cores on which this process may run."""
    cores = psutil.cpu_times(percpu=True)
    asked = getattr(psutil.Process(), "cpu_affinity", None)  # macOS has none
    allowed = asked() if asked else range(len(cores))
    return [times for number, times in enumerate(cores) if number in allowed]


def _busy(times: Any) -> float:
    """Return how long a core did something; what a guest takes is in the user's time."""
    at_rest = sum(getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
    return sum(times) - at_rest
