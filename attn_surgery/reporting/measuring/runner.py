"""One model made ready to be timed: in its conditions, warmed up, its memory read."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from attn_surgery.errors import is_out_of_memory, one_line
from attn_surgery.host import Input, floating_dtype
from attn_surgery.reporting.measuring.clocks import Call, Clock
from attn_surgery.reporting.measuring.conditions import Conditions
from attn_surgery.reporting.measuring.graphs import Replayed, rotated
from attn_surgery.surgery import compile_attention, inserted

WARM_UP_CALLS = 3
WARM_UP_SHARE = 0.1
LONGEST_WARM_UP_S = 0.5
SHORTEST_MS = 5.0
HALF_SCALE = 2**-8


@dataclass
class Timed:
    """Calls of a model, and the clock that times them."""

    call: Call
    clock: Clock
    repetitions: int = 1

    def milliseconds(self) -> float:
        """Time one call, as the mean of the repetitions."""
        return self.clock.warm(self.call, self.repetitions)

    def warm_up(self, seconds: float) -> None:
        """Call until it has settled, and find out how many repetitions it needs."""
        self.call()  # what is compiled or chosen at the first call is none of its time
        start = time.perf_counter()
        times: list[float] = []
        while len(times) < WARM_UP_CALLS or time.perf_counter() - start < seconds:
            times.append(self.clock.warm(self.call, 1))
        fastest_ms = min(times)
        self.repetitions = max(1, math.ceil(SHORTEST_MS / max(fastest_ms, 1e-3)))


@dataclass
class Runner:
    """A model that is ready to be timed.

    Attributes:
        timed: Clock's name to the calls that it times.
        peak_bytes: Most memory that the device held for it; None where it does not count it.
        notes: What has to be said of its times.
    """

    timed: dict[str, Timed]
    peak_bytes: int | None = None
    notes: list[str] = field(default_factory=list)

    def milliseconds(self) -> dict[str, float]:
        """Time one call by each clock."""
        return {name: each.milliseconds() for name, each in self.timed.items()}


def ready(
    build: Callable[[], nn.Module],
    given: Input,
    conditions: Conditions,
    clocks: Mapping[str, Clock],
    *,
    train: bool,
) -> Runner | str:
    """Make a model ready, or say why it cannot be.

    Args:
        build: Makes a copy of the model on the device.
        given: The input.
        conditions: Where and how.
        clocks: By name; "graph" times a captured graph of the model, the others its calls.
        train: A training step instead of a forward pass.
    """
    return _or_why(lambda: _ready(build, given, conditions, clocks, train), given, conditions)


def ready_call(
    build: Callable[[], Call], given: Input, conditions: Conditions, clocks: Mapping[str, Clock]
) -> Runner | str:
    """Make a call ready that is no model's, or say why it cannot be; see `ready`."""
    return _or_why(
        lambda: _warmed_up(dict.fromkeys(clocks, build()), clocks, conditions), given, conditions
    )


def _or_why(make: Callable[[], Runner], given: Input, conditions: Conditions) -> Runner | str:
    try:
        return make()
    except Exception as error:
        reason = why(error, given, conditions)
    # the frames that the error kept are gone by now, and what was in them can be given back
    release(conditions.device)
    return reason


def why(error: Exception, given: Input, conditions: Conditions) -> str:
    """Say why a model could not be measured."""
    asked = f"batch {conditions.batch_size} of {given} on {conditions.device}"
    if is_out_of_memory(error):
        return f"not measured: out of memory at {asked}; try a smaller batch"
    return f"not measured, it failed for {asked}: {one_line(error)}"


def release(device: torch.device) -> None:
    """Give back what only a cycle of references holds, as a failure leaves it."""
    gc.collect()
    if device.type != "cpu":
        with contextlib.suppress(RuntimeError, AttributeError):  # not every device has a cache
            torch.accelerator.empty_cache()


def _ready(
    build: Callable[[], nn.Module],
    given: Input,
    conditions: Conditions,
    clocks: Mapping[str, Clock],
    train: bool,
) -> Runner:
    held = _allocated(conditions.device)
    model = conditions.converted(build()).train(train)
    make = partial(made_input, given, conditions, floating_dtype(model))
    run = _training_step(model, conditions) if train else _forward(model, conditions)
    call, notes = partial(run, make()), []
    calls = {
        name: call if name != "graph" else _captured(run, make, conditions, notes)
        for name in clocks
    }
    runner = _warmed_up(calls, clocks, conditions)
    runner.notes += notes
    runner.peak_bytes = _peak(call, held, conditions.device)
    return runner


def _warmed_up(
    calls: Mapping[str, Call | None], clocks: Mapping[str, Clock], conditions: Conditions
) -> Runner:
    runner = Runner({name: Timed(call, clocks[name]) for name, call in calls.items() if call})
    for each in runner.timed.values():
        each.warm_up(min(conditions.seconds * WARM_UP_SHARE, LONGEST_WARM_UP_S))
    return runner


def made_input(given: Input, conditions: Conditions, dtype: torch.dtype | None) -> Any:
    """Make the arguments and the keywords of one measured call."""
    return tree_map(
        conditions.laid_out, given.build(conditions.batch_size, conditions.device, dtype)
    )


def _forward(model: nn.Module, conditions: Conditions) -> Callable[[Any], object]:
    run = torch.compile(model) if conditions.compile is True else model
    if conditions.compile == "attention" and inserted(model):
        compile_attention(model)

    def forward(made: Any) -> object:
        args, kwargs = made
        with conditions.autocasting():
            return run(*args, **kwargs)

    return forward


def _training_step(model: nn.Module, conditions: Conditions) -> Callable[[Any], object]:
    forward = _forward(model, conditions)
    # A rate of 0 does all the work of a step and keeps the numbers finite.
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    scaled = conditions.autocast is torch.float16
    scaler = torch.amp.GradScaler(conditions.device.type, enabled=scaled)
    # no scaler takes gradients of half precision: the loss is small enough for them instead
    factor = HALF_SCALE if floating_dtype(model) is torch.float16 else 1.0

    def step(made: Any) -> None:
        loss = factor * _loss(forward(made))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _loss(outputs: object) -> torch.Tensor:
    """Return the sum of the means of all outputs that have a gradient; losses are their own."""
    return _total(
        each.float().mean()
        for each in tree_leaves(getattr(outputs, "to_tuple", lambda: outputs)())
        if isinstance(each, torch.Tensor) and each.is_floating_point() and each.requires_grad
    )


def _total(losses: Iterable[torch.Tensor]) -> torch.Tensor:
    total: Any = sum(losses)
    if not isinstance(total, torch.Tensor):
        raise TypeError("no output has a gradient, there is nothing to train")
    return total


def _captured(
    run: Callable[[Any], object], make: Callable[[], Any], conditions: Conditions, notes: list[str]
) -> Call | None:
    """Capture a graph; where there can be none, leave a note of the reason."""
    try:
        return Replayed(run, rotated(make, conditions.device))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        notes.append(f"no graph could be captured: {one_line(error)}")
        return None


# Memory, by the device's own counter


def warm_libraries(conditions: Conditions) -> None:
    """Let matrix products and convolutions take the memory that they keep, forward and backward.

    It comes from torch's allocator at the first product of each thread, and would be counted as
    the first model's. What the device cannot do is told when the host is run.
    """
    device = conditions.device
    if device.type == "cpu":
        return
    with contextlib.suppress(Exception), torch.enable_grad(), conditions.autocasting():
        net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 8))
        x = torch.zeros(8, 8, 3, 3, device=device, dtype=conditions.dtype)
        net.to(device, conditions.dtype)(x).float().sum().backward()


def _counter(name: str, device: torch.device) -> int | None:
    """Ask a function of ``torch.accelerator`` for bytes; None where the device counts none."""
    try:
        return getattr(torch.accelerator, name)(device) or 0
    except (
        RuntimeError,
        AttributeError,
        AssertionError,
        ValueError,
    ):  # not every device has every counter
        return None


def _allocated(device: torch.device) -> int | None:
    return None if device.type == "cpu" else _counter("memory_allocated", device)


def _peak(call: Call, held: int | None, device: torch.device) -> int | None:
    """Return the most memory in one call beyond what was held before the model was made."""
    if held is None or _counter("reset_peak_memory_stats", device) is None:
        return None
    call()
    torch.accelerator.synchronize(device)
    peak = _counter("max_memory_allocated", device)
    # a model holds something: a peak that does not exceed what was held was not counted
    return peak - held if peak is not None and peak > held else None
