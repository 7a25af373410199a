"""What a forward pass or a training step takes: measured, never derived.

Host and variants run in turn within one run, in many short rounds, the order another one in each
round. Models are copies, made and warmed up before the first round. Fast models are called several
times within one timing, so that it lasts long enough for the clock; all of them as often, as the
first call after another model's is slower. What is timed beside them is called as often as it
needs. On an accelerator each model is timed by several clocks in every round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from attn_surgery.host import Input
from attn_surgery.reporting.measuring.clocks import (
    Call,
    Clock,
    DeviceClock,
    WallClock,
    device_clock,
)
from attn_surgery.reporting.measuring.conditions import Conditions
from attn_surgery.reporting.measuring.other_work import Watched, watched
from attn_surgery.reporting.measuring.progress import progress_bar
from attn_surgery.reporting.measuring.runner import (
    Runner,
    ready,
    ready_call,
    release,
    warm_libraries,
    why,
)
from attn_surgery.reporting.measuring.statistics import Timing, summarise

MIN_ROUNDS = 10
MAX_ROUNDS = 2000
GAPS = "not all of it fits into the device's queue at once: the device's time may count gaps"

Timings = Mapping[str, Timing]
"""Clock's name to the timing: "wall"; on an accelerator "device", and "graph" if asked for."""


@dataclass(frozen=True)
class Measurement:
    """One run.

    Attributes:
        timings: One for each model, in the order given: its timings, or why there are none.
        beside: The same of what was timed beside them.
        interrupted: Whether Ctrl-C ended it early.
        notes: What has to be said of each model's times.
        doubts: Why the times may not be the models'.
        machine: How the machine was at both ends, fit for JSON.
    """

    timings: tuple[Timings | str, ...]
    interrupted: bool = False
    notes: tuple[tuple[str, ...], ...] = ()
    doubts: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[Timings | str, ...] = ()


def measure(
    builders: Sequence[Callable[[], nn.Module]],
    given: Input,
    conditions: Conditions,
    *,
    beside: Sequence[Callable[[], Call]] = (),
    train: bool = False,
    progress: bool | None = None,
    title: str = "",
) -> Measurement:
    """Time models in turn; the first is the host.

    Args:
        builders: Each makes a copy of a model on the device, which is changed while measuring.
        given: The input.
        conditions: Where and how.
        beside: Each makes a call that is timed in the same rounds, by the same clocks.
        train: Time a training step (forward in training mode, mean of the outputs as the loss,
            backward, SGD) instead of a forward pass.
        progress: Show a progress bar on stderr; None is "if it is a terminal".
        title: What the bar says.

    Example:
        >>> build = lambda: nn.Conv2d(3, 8, 3)
        >>> conditions = Conditions(torch.device("cpu"), seconds=0)
        >>> host, variant = measure([build, build], Input(((3, 8, 8),)), conditions).timings
        >>> list(host), len(host["wall"].samples_ms), host["wall"].ratio
        (['wall'], 10, 1.0)
    """
    run = _Run(given, conditions)
    with conditions.prepared(), torch.set_grad_enabled(train), run.interruptible():
        warm_libraries(conditions)
        run.prepare(builders, beside, train=train)
        with watched(conditions.device, conditions.cpu_threads) as run.machine:
            run.time_in_turn(progress_bar(conditions.seconds, progress, title))
    return run.measurement(len(builders), len(beside))


class _Run:
    """The models of one run, and the times taken so far."""

    def __init__(self, given: Input, conditions: Conditions):
        self.given = given
        self.conditions = conditions
        self.models: list[Runner | str] = []
        self.rounds: list[dict[int, dict[str, float]]] = []
        self.interrupted = False
        self.machine: Watched | None = None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C end the run, and keep what was measured."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True

    def prepare(
        self,
        builders: Sequence[Callable[[], nn.Module]],
        beside: Sequence[Callable[[], Call]],
        *,
        train: bool,
    ) -> None:
        """Make all ready; without a host there is no comparison, and no need of the others."""
        clocks = _clocks(self.conditions, train=train)
        for build in builders:
            self.models.append(ready(build, self.given, self.conditions, clocks, train=train))
            if isinstance(self.models[0], str):
                return
        _repeat_alike(self.running.values())
        for make in beside:
            self.models.append(ready_call(make, self.given, self.conditions, clocks))

    @property
    def running(self) -> dict[int, Runner]:
        """Those that have not failed."""
        return {i: each for i, each in enumerate(self.models) if isinstance(each, Runner)}

    def time_in_turn(self, bar: tqdm) -> None:
        """Time all until the time is over; only whole rounds are kept."""
        start = time.perf_counter()
        with bar:
            while self.running and not self._is_over(start):
                self._time_once()
                bar.update(min(time.perf_counter() - start, self.conditions.seconds) - bar.n)

    def _is_over(self, start: float) -> bool:
        rounds, late = len(self.rounds), time.perf_counter() - start >= self.conditions.seconds
        return rounds >= MAX_ROUNDS or (rounds >= MIN_ROUNDS and late)

    def _time_once(self) -> None:
        failed = self._round()
        if failed is not None:
            self._drop(*failed)
            release(self.conditions.device)

    def _round(self) -> tuple[int, str] | None:
        """Time all once; one that fails ends the round, and is returned with the reason."""
        running = self.running
        times: dict[int, dict[str, float]] = {}
        for i in _order(list(running), len(self.rounds)):
            try:
                times[i] = running[i].milliseconds()
            except Exception as error:
                return i, why(error, self.given, self.conditions)
        self.rounds.append(times)
        return None

    def _drop(self, number: int, reason: str) -> None:
        self.models[number] = reason
        if number == 0:
            self.models[1:] = [self._ended(each) for each in self.models[1:]]

    def _ended(self, model: Runner | str) -> str:
        return model if isinstance(model, str) else "not measured: the host failed"

    def measurement(self, models: int, beside: int) -> Measurement:
        """Sum up the times of so many models, some of which may not have been made."""
        missing = "interrupted" if self.interrupted else "the host failed"
        absent = models + beside - len(self.models)
        padded = [*self.models, *[f"not measured: {missing}"] * absent]
        summed = tuple(self._summed(i, each) for i, each in enumerate(padded))
        return Measurement(
            summed[:models],
            self.interrupted,
            tuple(_notes(each) for each in padded[:models]),
            tuple(self.machine.doubts()) if self.machine else (),
            self.machine.told() if self.machine else {},
            summed[models:],
        )

    def _summed(self, number: int, model: Runner | str) -> Timings | str:
        if isinstance(model, str):
            return model
        if not self.rounds:
            return "not measured: interrupted"
        return {
            name: summarise(
                [each[number][name] for each in self.rounds],
                [each[0][name] for each in self.rounds],
                model.peak_bytes,
            )
            for name in model.timed
            if name in self.rounds[0][0]
        }


def _clocks(conditions: Conditions, *, train: bool) -> dict[str, Clock]:
    clocks: dict[str, Clock] = {"wall": WallClock(conditions.device)}
    own = device_clock(conditions.device)
    if own is not None:
        clocks["device"] = own
    if own is not None and conditions.graph and not train:
        clocks["graph"] = own
    return clocks


def _repeat_alike(runners: Iterable[Runner]) -> None:
    """Let all repeat as often: the first call after another model's is slower than the others."""
    timed = [(name, each) for runner in runners for name, each in runner.timed.items()]
    most: dict[str, int] = {}
    for name, each in timed:
        most[name] = max(most.get(name, 1), each.repetitions)
    for name, each in timed:
        each.repetitions = most[name]


def _order(models: list[int], round_: int) -> list[int]:
    """Rotate by one each round, and reverse each other turn, so that neighbours change, too."""
    turn, shift = divmod(round_, len(models))
    rotated = models[shift:] + models[:shift]
    return rotated[::-1] if turn % 2 else rotated


def _notes(model: Runner | str) -> tuple[str, ...]:
    if isinstance(model, str):
        return ()
    timed = model.timed.values()
    waits = any(
        isinstance(each.clock, DeviceClock) and each.clock.may_have_gaps(each.call)
        for each in timed
    )
    return (*model.notes, *([GAPS] if waits else []))
