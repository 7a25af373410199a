"""What a forward pass or a training step takes: measured, never derived.

Host and variants run in turn within one run, in many short rounds, the order another one in each
round. Models are copies, made and warmed up before the first round; the device is waited for before
and after each timing. Fast models are called several times within one timing, so that it lasts long
enough for the clock; all of them as often, as the first call after another model's is slower.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from tqdm import tqdm

from attn_surgery.errors import one_line
from attn_surgery.host import Input, floating_dtype
from attn_surgery.reporting.measuring.conditions import Conditions
from attn_surgery.reporting.measuring.progress import progress_bar
from attn_surgery.reporting.measuring.statistics import Timing, summarise

MIN_ROUNDS = 10
MAX_ROUNDS = 2000
WARM_UP_CALLS = 3
SHORTEST_MS = 5.0


@dataclass(frozen=True)
class Measurement:
    """One run.

    Attributes:
        timings: One for each model, in the order given: its timing, or why there is none.
        interrupted: Whether Ctrl-C ended it early.
    """

    timings: tuple[Timing | str, ...]
    interrupted: bool = False


def measure(
    builders: Sequence[Callable[[], nn.Module]],
    given: Input,
    conditions: Conditions,
    *,
    train: bool = False,
    progress: bool | None = None,
    title: str = "",
) -> Measurement:
    """Time models in turn; the first is the host.

    Args:
        builders: Each makes a copy of a model on the device, which is changed while measuring.
        given: The input.
        conditions: Where and how.
        train: Time a training step (forward in training mode, mean of the outputs as the loss,
            backward, SGD) instead of a forward pass.
        progress: Show a progress bar on stderr; None is "if it is a terminal".
        title: What the bar says.

    Example:
        >>> build = lambda: nn.Conv2d(3, 8, 3)
        >>> conditions = Conditions(torch.device("cpu"), seconds=0)
        >>> host, variant = measure([build, build], Input(((3, 8, 8),)), conditions).timings
        >>> len(host.samples_ms), host.ratio
        (10, 1.0)
    """
    runners: list[_Runner | str] = []
    rounds: list[dict[int, float]] = []
    interrupted = False
    try:
        with conditions.prepared(), torch.set_grad_enabled(train):
            for build in builders:
                runners.append(_prepared(build, given, conditions, train))
                if isinstance(runners[0], str):  # no host, no comparison
                    break
            timed = {i: each for i, each in enumerate(runners) if isinstance(each, _Runner)}
            _repeat_alike(timed.values())
            _run(timed, conditions, rounds, progress_bar(conditions.seconds, progress, title))
    except KeyboardInterrupt:
        interrupted = True
    missing = "not measured: interrupted" if interrupted else "not measured: the host failed"
    padded = [*runners, *[missing] * (len(builders) - len(runners))]
    return Measurement(tuple(_summed(i, one, rounds) for i, one in enumerate(padded)), interrupted)


def _repeat_alike(runners: Collection["_Runner"]) -> None:
    """Let all repeat as often: the first call after another model's is slower than the others."""
    most = max((each.repetitions for each in runners), default=1)
    for each in runners:
        each.repetitions = most


def _run(
    timed: Mapping[int, "_Runner"],
    conditions: Conditions,
    rounds: list[dict[int, float]],
    bar: tqdm,
) -> None:
    """Time all in turn until the time is over; only whole rounds are kept."""
    start = time.perf_counter()
    with bar:
        while timed and not _is_over(len(rounds), start, conditions.seconds):
            rounds.append({i: timed[i].milliseconds() for i in _order(list(timed), len(rounds))})
            bar.update(min(time.perf_counter() - start, conditions.seconds) - bar.n)


def _is_over(rounds: int, start: float, seconds: float) -> bool:
    late = time.perf_counter() - start >= seconds
    return rounds >= MAX_ROUNDS or (rounds >= MIN_ROUNDS and late)


def _order(models: list[int], round_: int) -> list[int]:
    """Rotate by one each round, and reverse each other turn, so that neighbours change, too."""
    turn, shift = divmod(round_, len(models))
    rotated = models[shift:] + models[:shift]
    return rotated[::-1] if turn % 2 else rotated


def _summed(
    index: int, runner: "_Runner | str", rounds: Sequence[Mapping[int, float]]
) -> Timing | str:
    if isinstance(runner, str):
        return runner
    if not rounds:
        return "not measured: interrupted"
    samples, host = [each[index] for each in rounds], [each[0] for each in rounds]
    return summarise(samples, host, runner.peak_bytes)


# One model


@dataclass
class _Runner:
    """A model that is ready to be timed."""

    call: Callable[[], object]
    conditions: Conditions
    peak_bytes: int | None = None
    repetitions: int = field(default=1)

    def milliseconds(self) -> float:
        """Time one call, as the mean of the repetitions."""
        self.conditions.synchronize()
        start = time.perf_counter()
        for _ in range(self.repetitions):
            self.call()
        self.conditions.synchronize()
        return (time.perf_counter() - start) * 1e3 / self.repetitions

    def warm_up(self) -> None:
        """Call it until it has settled, and find out how many repetitions it needs."""
        fastest_ms = min(self.milliseconds() for _ in range(WARM_UP_CALLS))
        self.repetitions = max(1, math.ceil(SHORTEST_MS / max(fastest_ms, 1e-3)))


def _prepared(
    build: Callable[[], nn.Module], given: Input, conditions: Conditions, train: bool
) -> "_Runner | str":
    """Make a model ready, or say why it cannot be."""
    try:
        held = _allocated(conditions.device)
        call = _call(build(), given, conditions, train)
        runner = _Runner(call, conditions)
        runner.warm_up()
        runner.peak_bytes = _peak(runner, held)
        return runner
    except Exception as error:
        return _why(error, given, conditions)


def _why(error: Exception, given: Input, conditions: Conditions) -> str:
    asked = f"batch {conditions.batch_size} of {given} on {conditions.device}"
    if _is_out_of_memory(error):
        return f"not measured: out of memory at {asked}; try a smaller batch"
    return f"not measured, it failed for {asked}: {one_line(error)}"


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU allocator has no error class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _call(
    model: nn.Module, given: Input, conditions: Conditions, train: bool
) -> Callable[[], object]:
    model = conditions.converted(model).train(train)
    made = given.build(conditions.batch_size, conditions.device, floating_dtype(model))
    args, kwargs = tree_map(conditions.laid_out, made)
    parameters = [each for each in model.parameters() if each.requires_grad]
    run = torch.compile(model) if conditions.compile else model

    def forward() -> object:
        with conditions.autocasting():
            return run(*args, **kwargs)

    if not train:
        return forward
    # A rate of 0 does all the work of a step and keeps the numbers finite.
    optimizer = torch.optim.SGD(parameters, lr=0.0)

    def step() -> None:
        with conditions.autocasting():
            loss = _loss(run(*args, **kwargs))
        loss.backward()
        optimizer.step()
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


# Memory, by the device's own counter


def _counter(name: str, device: torch.device) -> int | None:
    """Ask a function of ``torch.accelerator`` for bytes; None where the device counts none."""
    try:
        return getattr(torch.accelerator, name)(device) or 0
    except (RuntimeError, AttributeError, AssertionError):  # not every device has every counter
        return None


def _allocated(device: torch.device) -> int | None:
    return None if device.type == "cpu" else _counter("memory_allocated", device)


def _peak(runner: _Runner, held: int | None) -> int | None:
    """Return the most memory in one call beyond what was held before the model was made."""
    device = runner.conditions.device
    if held is None or _counter("reset_peak_memory_stats", device) is None:
        return None
    runner.milliseconds()
    peak = _counter("max_memory_allocated", device)
    # a model holds something: a peak that does not exceed what was held was not counted
    return peak - held if peak is not None and peak > held else None
