"""How long a stage trains: so many steps, or as many seconds as another run's stage did."""

from __future__ import annotations

import time
from dataclasses import dataclass

from attn_surgery.finetune.process import Progress


@dataclass(frozen=True)
class Budget:
    """What a stage may take.

    Attributes:
        updates: Steps of an epoch.
        epochs: Epochs that the recipe gives it.
        seconds: How long it trains instead; None where steps count.
    """

    updates: int
    epochs: int
    seconds: float | None = None

    @property
    def steps(self) -> int:
        """The steps of the recipe, which schedules are made for."""
        return self.updates * self.epochs

    def position(self, progress: Progress) -> int:
        """Return how far the stage is, as a number of steps: 0 to `steps`.

        Where seconds count, a schedule goes by them: half of the time is half of the steps.

        Example:
            >>> Budget(10, 2).position(Progress(epoch=1, update=3))
            13
            >>> Budget(10, 2, seconds=8.0).position(Progress(epoch=3, training_s=[6.0]))
            15
        """
        if self.seconds is None:
            return progress.epoch * self.updates + progress.update
        done = progress.training_s[progress.stage] / self.seconds
        return min(self.steps, int(self.steps * done))

    def is_spent(self, progress: Progress) -> bool:
        """Tell whether the stage has had all of it."""
        return self.position(progress) >= self.steps


class Stopwatch:
    """Tells the seconds since it was last asked, or begun.

    Example:
        >>> watch = Stopwatch()
        >>> watch.lap() >= 0
        True
    """

    def __init__(self):
        self.began = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds, and begin again."""
        before, self.began = self.began, time.perf_counter()
        return self.began - before
