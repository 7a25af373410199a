"""How long some modules of a model take alone, on what they are given in it: warm and cold."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from attn_surgery.host import Input
from attn_surgery.reporting.measuring.clocks import Call, Clock, WallClock, device_clock
from attn_surgery.reporting.measuring.conditions import Conditions
from attn_surgery.reporting.measuring.maps import Map, maps_taken

MIN_SAMPLES = 5
SHORTEST_MS = 1.0


@dataclass(frozen=True)
class PartTimes:
    """The times of one module, over all its calls in one pass of the model.

    Attributes:
        warm_ms: With what it reads in the device's cache.
        cold_ms: After the cache was filled with something else.
    """

    warm_ms: float
    cold_ms: float


def measure_parts(
    build: Callable[[], nn.Module],
    parts: Callable[[nn.Module], Mapping[str, nn.Module]],
    given: Input,
    conditions: Conditions,
) -> dict[str, PartTimes]:
    """Time modules that take and return one map, by the device's clock if it has one.

    Modules that are alike and given alike are timed once.

    Args:
        build: Makes a copy of the model on the device, which is changed while measuring.
        parts: Returns the modules of a model, by name.
        given: The input of the model.
        conditions: Where and how; the time is for all modules together.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> conditions = Conditions(torch.device("cpu"), seconds=0)
        >>> given, parts = Input(((3, 8, 8),)), lambda net: {"1": net[1]}
        >>> times = measure_parts(lambda: net, parts, given, conditions)
        >>> list(times), times["1"].warm_ms > 0
        (['1'], True)
    """
    with conditions.prepared(), torch.no_grad():
        model = conditions.converted(build()).eval()
        modules = parts(model)
        taken = maps_taken(model, modules, given, conditions)
        kinds = {name: _kind(module, taken[name]) for name, module in modules.items()}
        alike = {kind: name for name, kind in kinds.items()}
        seconds = conditions.seconds / max(len(alike), 1)
        clock = device_clock(conditions.device) or WallClock(conditions.device)
        times = {
            kind: _times(_calls(modules[name], taken[name], conditions), clock, seconds)
            for kind, name in alike.items()
        }
    return {name: times[kind] for name, kind in kinds.items()}


def _kind(module: nn.Module, taken: list[Map]) -> object:
    """Return what decides how long a module takes."""
    held = [tuple(each.shape) for each in module.state_dict().values()]
    return type(module), str(module), tuple(held), tuple(taken)


def _calls(module: nn.Module, taken: list[Map], conditions: Conditions) -> list[Call]:
    device = conditions.device
    run = torch.compile(module) if conditions.compile else module

    def calling(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Call:
        x = torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_()

        def call() -> object:
            with conditions.autocasting():
                return run(x)

        return call

    return [calling(*each) for each in taken]


def _times(calls: list[Call], clock: Clock, seconds: float) -> PartTimes:
    each = [_both(call, clock, seconds / len(calls)) for call in calls]
    return PartTimes(sum(warm for warm, _ in each), sum(cold for _, cold in each))


def _both(call: Call, clock: Clock, seconds: float) -> tuple[float, float]:
    call()
    repetitions = max(1, round(SHORTEST_MS / max(clock.warm(call, 1), 1e-3)))
    warm: list[float] = []
    cold: list[float] = []
    start = time.perf_counter()
    while len(warm) < MIN_SAMPLES or time.perf_counter() - start < seconds:
        warm.append(clock.warm(call, repetitions))
        cold.append(clock.cold(call))
    return statistics.median(warm), statistics.median(cold)
