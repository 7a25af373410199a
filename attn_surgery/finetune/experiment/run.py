"""One run: a variant, a seed, a folder, and what the loop needs of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attn_surgery.finetune.data import Views, train_batches
from attn_surgery.finetune.experiment.budget import Budget, Stopwatch
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.digests import of_variant
from attn_surgery.finetune.experiment.progress import Display
from attn_surgery.finetune.experiment.spared import spare_prefix
from attn_surgery.finetune.process import (
    Progress,
    derived,
    environment,
    load_checkpoint,
    read_by_first,
    save_checkpoint,
    write_json,
    write_weights,
)
from attn_surgery.finetune.recipe import HOST, Recipe, Stage
from attn_surgery.finetune.training import Training, set_up

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.json"


def folder_of(recipe: Recipe, variant: str, seed: int) -> Path:
    """Return where a run is kept."""
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in variant)
    if name != variant:
        name += "-" + hashlib.blake2b(variant.encode(), digest_size=4).hexdigest()
    return Path(recipe.output) / f"seed{seed}" / name


@dataclass
class Run:
    """A variant and a seed.

    Attributes:
        context: What it shares with the other runs.
        variant: An attention, a control, or ``host`` for the pretraining.
        seed: The seed.
        model: What trains.
        teacher: The untouched host where a stage distills, else None.
        display: What is seen of it.
        saved_at: When the last checkpoint was written.
        began: When the run did, without pauses.
        seconds: For each stage, how long it trains; none where the recipe's steps count.
        features: What is learned from instead of the images, where some of the model is not run.
    """

    context: Context
    variant: str
    seed: int
    model: nn.Module
    teacher: nn.Module | None = None
    display: Display | None = None
    saved_at: float = 0.0
    began: float = 0.0
    seconds: tuple[float, ...] = ()
    features: Views | None = None

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return folder_of(self.context.recipe, self.variant, self.seed)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is done, in order."""
        return tuple(stage for _, stage in self.context.recipe.stages_of(self.variant))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the weights."""
        told = self.context.recipe.identity(self.variant, self.seed)
        return {
            **told,
            "contents": of_variant(self.context.contents, self.context.recipe, self.variant),
        }

    def stage_name(self, number: int) -> str:
        """Name a stage, as seeds and logs do."""
        return self.context.recipe.stages_of(self.variant)[number][0]

    @property
    def split(self) -> Any:
        """What is learned from."""
        splits = self.context.splits
        return splits.pretraining if self.variant == HOST else splits.train

    @property
    def batches_of(self) -> Any:
        """What batches are drawn from: the images, or their features."""
        return self.split if self.features is None else self.features

    def updates(self, stage: Stage) -> int:
        """Return how many steps an epoch has."""
        return len(self.split) // self.context.loading.batch_size // stage.accumulate

    def budget(self, number: int) -> Budget:
        """Return what a stage may take."""
        stage = self.stages[number]
        seconds = self.seconds[number] if self.seconds else None
        return Budget(self.updates(stage), stage.epochs, seconds)

    @property
    def steps(self) -> int:
        """The steps that the recipe gives all stages together."""
        return sum(self.budget(number).steps for number in range(len(self.stages)))

    # Beginning and going on

    def resume(self) -> tuple[Progress, dict[str, Any] | None]:
        """Return where the run is, and the states it had there."""
        path = self.folder / CHECKPOINT
        found = read_by_first(
            self.context.accelerator, lambda: load_checkpoint(path, self.identity)
        )
        progress, states = found if found is not None else (Progress(), None)
        if states is not None:
            self.model.load_state_dict(states["model"])
        elif self.context.scaler is not None:
            self.context.accelerator.scaler.load_state_dict(self.context.scaler)
        if self.context.accelerator.is_main_process:
            title, total = f"{self.variant}, seed {self.seed}", None if self.seconds else self.steps
            self.display = Display(title, total, self._done(progress), self.folder / "logs")
        self.saved_at = self.began = time.monotonic()
        self.began -= progress.seconds
        return progress, states

    def _done(self, progress: Progress) -> int:
        """Return how many steps were taken."""
        if self.seconds:
            return sum(progress.taken)
        before = sum(self.budget(number).steps for number in range(progress.stage))
        if progress.stage >= len(self.stages):
            return before
        return before + self.budget(progress.stage).position(progress)

    def set_up(self, number: int, states: dict[str, Any] | None) -> Training:
        """Prepare a stage, with the states of a checkpoint if it was left in it."""
        stage = self.stages[number]
        training = set_up(
            self.model,
            stage,
            self.context.task,
            self.teacher if stage.distill_weight else None,
            self.context.accelerator,
            classes=self.context.splits.classes,
            updates=self.updates(stage),
            norm_batch=self.context.norm_batch,
        )
        if states is not None:
            training.optimizer.load_state_dict(states["optimizer"])
            if training.ema is not None:
                training.ema.module.load_state_dict(states["ema"])
            if states["scaler"] is not None and self.context.accelerator.scaler is not None:
                self.context.accelerator.scaler.load_state_dict(states["scaler"])
        self.features = None
        if self.context.recipe.data.prefix and isinstance(self.split, Views):
            training.prefix, self.features = spare_prefix(self.context, self.model, self.split)
            if self.display is not None and training.prefix is not None:
                self.display.line(f"{self.variant}, seed {self.seed}: {training.prefix}")
        return training

    # Batches

    def with_unlabelled(
        self, batches: Iterator[Any], seed: int, skip: int
    ) -> Iterator[tuple[Any, Any]]:
        """Pair each batch with images without labels, where there are some."""
        others = self._unlabelled(seed, skip)
        for batch in batches:
            yield batch, next(others, None)

    def _unlabelled(self, seed: int, skip: int) -> Iterator[Any]:
        split = self.context.splits.unlabelled
        if split is None:
            return
        whole, turn = len(split) // self.context.loading.batch_size, skip
        while whole:
            own = derived(seed, "unlabelled", turn // whole)
            for images, _ in train_batches(split, self.context.loading, own, turn % whole):
                turn += 1
                yield images.to(self.context.accelerator.device)

    # Showing and keeping

    def show(self, training: Training) -> None:
        """Count a step in the bar."""
        if self.display is not None:
            self.display.step(self.context.loading.batch_size * training.stage.accumulate)

    def log(self, training: Training, progress: Progress, loss: float) -> None:
        """Write down the loss."""
        step = self._done(progress)
        rate = training.optimizer.param_groups[0]["lr"]
        progress.steps.append([step, loss, rate])
        if self.display is not None:
            self.display.log(step, loss=loss, lr=rate)

    def ended_epoch(self, progress: Progress) -> None:
        """Write down what was measured after an epoch."""
        if self.display is None:
            return
        step = self._done(progress)
        last = progress.history[-1]
        own = {key: last[key] for key in (self.context.task.score, "loss") if key in last}
        self.display.log(step, **{self.context.task.score: own[self.context.task.score]})
        self.display.log(step, **{f"val/{key}": value for key, value in own.items()})
        told = ", ".join(f"{key} {value:.4f}" for key, value in own.items())
        epochs = f"{last['stage']} epoch {last['epoch']}"
        self.display.line(f"{self.variant}, seed {self.seed}, {epochs}: {told}")

    def is_mark(self, training: Training, progress: Progress) -> bool:
        """Tell whether the loss is logged after this step: now and then, and at an epoch's end."""
        at_end = progress.update == training.updates
        return at_end or progress.update % self.context.recipe.log_every == 0

    def wants_stop(self, training: Training, progress: Progress) -> bool:
        """Tell whether to stop; several processes agree on it, now and then."""
        if self.context.loading.processes == 1:
            return bool(self.context.wish.signal)
        if not self.is_mark(training, progress):
            return False
        asked = torch.tensor(
            float(self.context.wish.signal > 0), device=self.context.accelerator.device
        )
        return bool(self.context.accelerator.reduce(asked, "sum") > 0)

    def count_time(self, progress: Progress, watch: Stopwatch) -> None:
        """Add what the last steps took; where seconds are the budget, all go by the first's."""
        spent = watch.lap()
        if self.seconds:
            spent = read_by_first(self.context.accelerator, lambda: spent)
        progress.training_s[progress.stage] += spent

    def is_due(self) -> bool:
        """Tell whether it is time to save."""
        return time.monotonic() - self.saved_at > self.context.recipe.checkpoint_seconds

    def save(self, training: Training, progress: Progress) -> None:
        """Write the checkpoint, once for all processes."""
        progress.seconds = time.monotonic() - self.began
        if self.context.accelerator.is_main_process:
            scaler = self.context.accelerator.scaler
            states = {
                "model": training.bare.state_dict(),
                "optimizer": training.optimizer.state_dict(),
                "ema": None if training.ema is None else training.ema.module.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            save_checkpoint(self.folder / CHECKPOINT, self.identity, progress, states)
        self.saved_at = time.monotonic()

    def keep(self, name: str, model: nn.Module) -> None:
        """Write weights, once for all processes."""
        if self.context.accelerator.is_main_process:
            write_weights(self.folder / f"{name}.safetensors", model)

    def finish_stage(self, training: Training, progress: Progress) -> None:
        """Go on with what the stage came to; keep it, if that was the last one."""
        if training.ema is not None:
            self.model.load_state_dict(training.ema.module.state_dict())
        if progress.stage == len(self.stages):
            self.keep("last", self.model)

    def finish(self, progress: Progress, told: dict[str, Any]) -> dict[str, Any]:
        """Write what came of it; from then on the run is done."""
        progress.seconds = time.monotonic() - self.began
        progress.training_s = read_by_first(self.context.accelerator, lambda: progress.training_s)
        metrics = {
            "identity": self.identity,
            "environment": environment(self.context.accelerator),
            **told,
            **asdict(progress),
        }
        if self.context.accelerator.is_main_process:
            write_json(self.folder / METRICS, metrics)
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.close()
        return metrics

    def close(self) -> None:
        """End the display."""
        if self.display is not None:
            self.display.close()
            self.display = None
