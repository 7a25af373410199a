"""The loop: every stage of every run, in one or several processes, from wherever it was left.

What happens in step k is a function of the recipe, the seed, k, and the weights before it: batches
and chance are derived from (seed, stage, epoch), see `attn_surgery.finetune.data`. So a checkpoint
between two steps, with weights, optimizer and average, is all that continuing takes. Where a
control trains for as many seconds as attention did, how many steps it takes is the clock's as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.data import train_batches
from attn_surgery.finetune.experiment.budget import Budget, Stopwatch
from attn_surgery.finetune.experiment.run import Run
from attn_surgery.finetune.process import Interrupted, Progress, derived, seed_all
from attn_surgery.finetune.training import Training, take_down

EPOCH = ("stage", "epoch", "measuring_s")
"""What is told of an epoch beside what was measured."""


def train(run: Run) -> Progress:
    """Train a run to its end, from its checkpoint if it has one.

    Raises:
        SurgeryError: The loss is no number, an image or a file cannot be read or written.
        Interrupted: A signal asked to stop; the run is saved.
    """
    progress, states = run.resume()
    while progress.stage < len(run.stages):
        training = run.set_up(progress.stage, states)
        states = None
        try:
            train_stage(run, training, progress)
        finally:
            take_down(training, run.context.accelerator)
        progress.stage, progress.epoch = progress.stage + 1, 0
        run.finish_stage(training, progress)
    return progress


def train_stage(run: Run, training: Training, progress: Progress) -> None:
    """Train what is left of a stage's budget, epoch by epoch."""
    budget = run.budget(progress.stage)
    progress.enter_stage()
    while progress.update or not budget.is_spent(progress):  # an epoch that began is measured
        if not budget.is_spent(progress):
            train_epoch(run, training, progress, budget)
        end_epoch(run, training, progress)


def train_epoch(run: Run, training: Training, progress: Progress, budget: Budget) -> None:
    """Take the steps of an epoch that are left, as long as the budget lasts."""
    accelerator, watch = run.context.accelerator, Stopwatch()
    losses: list[Tensor] = []
    loss = math.nan
    seed = derived(run.seed, run.stage_name(progress.stage), progress.epoch)
    training.model.train()
    steps = steps_of(run, training, seed, progress.update)
    for update, batches in enumerate(steps, progress.update):
        seed_all(derived(seed, update, accelerator.process_index))
        with run.context.training_norms():
            losses.append(training.step(batches, accelerator))
        progress.update = update + 1
        progress.taken[progress.stage] += 1
        if marked := run.is_mark(training, progress):
            loss, losses = checked(losses, accelerator, budget.position(progress)), []
            run.count_time(progress, watch)
        training.stepped(budget.position(progress))
        run.show(training)
        if marked:
            run.log(training, progress, loss)
            if run.is_due():
                require_finite(training)
                run.save(training, progress)
                watch.lap()
        if run.wants_stop(training, progress):
            run.count_time(progress, watch)
            stop(run, training, progress, losses)
        if budget.is_spent(progress):
            return


def steps_of(run: Run, training: Training, seed: int, first: int) -> Iterator[list[Any]]:
    """Return the batches of each step of an epoch, from the first that is left."""
    each = training.stage.accumulate
    labelled = train_batches(run.batches_of, run.context.loading, seed, first * each)
    batches: Iterator[Any] = map(run.context.on_device, labelled)
    if training.stage.distill_weight:
        batches = run.with_unlabelled(batches, seed, first * each)
    for _ in range(first, training.updates):
        yield list(islice(batches, each))


def checked(losses: list[Tensor], accelerator: Any, done: int) -> float:
    """Return the mean of some losses over all processes.

    Raises:
        SurgeryError: It is no number; nothing was saved since the last time it was one.
    """
    if not losses:
        return math.nan
    mean = float(accelerator.reduce(torch.stack(losses).mean(), "mean"))
    if not math.isfinite(mean):
        raise SurgeryError(
            f"the loss is {mean} by step {done}: lower lr, clip_grad = 1, or a warm-up helps; "
            "what was saved before is whole"
        )
    return mean


def require_finite(training: Training) -> None:
    """Refuse to measure or save weights that are no numbers.

    Raises:
        SurgeryError: They are none.
    """
    if not torch.nn.utils.get_total_norm(training.bare.parameters()).isfinite():
        raise SurgeryError(
            "the weights are no numbers any more: lower lr, clip_grad = 1, or a warm-up helps; "
            "what was saved before is whole"
        )


def stop(run: Run, training: Training, progress: Progress, losses: list[Tensor]) -> None:
    """Save and end.

    Raises:
        Interrupted: Always.
    """
    checked(losses, run.context.accelerator, progress.update)
    require_finite(training)
    run.save(training, progress)
    raise Interrupted(run.context.wish.signal or 15)


def end_epoch(run: Run, training: Training, progress: Progress) -> None:
    """Measure, if it is time to, and save."""
    require_finite(training)
    is_last = run.budget(progress.stage).is_spent(progress)
    if is_last or (progress.epoch + 1) % run.context.recipe.val_interval == 0:
        measure_epoch(run, training, progress)
    progress.epoch, progress.update = progress.epoch + 1, 0
    run.save(training, progress)


def measure_epoch(run: Run, training: Training, progress: Progress) -> None:
    """Measure what an epoch came to, and keep what is best."""
    start = time.perf_counter()
    metrics = run.context.measure(training.result)
    progress.history.append(
        {
            "stage": run.stage_name(progress.stage),
            "epoch": progress.epoch + 1,
            **metrics,
            "measuring_s": time.perf_counter() - start,
        }
    )
    if progress.best is None or metrics[run.context.task.score] > progress.best:
        progress.best, progress.best_at = metrics[run.context.task.score], len(progress.history)
        run.keep("best", training.result)
    run.ended_epoch(progress)
