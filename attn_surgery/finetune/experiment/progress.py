"""What is seen of a run while it trains: a progress bar, and TensorBoard's logs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.finetune.process import need


class Display:
    """A bar with loss, score, images/s and the time left, on stderr, and logs in a folder.

    Args:
        title: What is trained.
        total: Steps in all; None where that is not known.
        done: Steps that were taken before.
        folder: Where TensorBoard's logs go; None for none.
    """

    def __init__(self, title: str, total: int | None, done: int, folder: Path | None):
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            unit="step",
            file=sys.stderr,
            disable=None,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        self.told: dict[str, str] = {}
        self.writer: Any = None
        self.began, self.images = time.perf_counter(), 0
        if folder is not None:
            need("tensorboard")
            tensorboard: Any = need("torch.utils.tensorboard")
            with _writing_to(folder):
                self.writer = tensorboard.SummaryWriter(str(folder), purge_step=done + 1)

    def step(self, images: int) -> None:
        """Count a step that was taken on so many images."""
        self.images += images
        self.bar.update(1)

    def log(self, step: int, **values: float) -> None:
        """Write values, and show them in the bar.

        Raises:
            SurgeryError: They cannot be written.
        """
        self._write(step, values)
        for name, value in values.items():
            if name in {"loss", "accuracy", "map", "miou"}:
                self.told[name] = f"{value:.4f}"
        speed = self.images / max(1e-9, time.perf_counter() - self.began)
        self.told["images/s"] = f"{speed:.0f}"
        self.bar.set_postfix(self.told, refresh=False)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is None:
            return
        with _writing_to(self.writer.log_dir):
            writer, self.writer = self.writer, None  # one that failed is not written to again
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            self.writer = writer

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """End the bar and the logs."""
        self.bar.close()
        if self.writer is not None:
            with contextlib.suppress(OSError):  # the last lines of a log are worth no run
                self.writer.close()


@contextlib.contextmanager
def _writing_to(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SurgeryError(
            f"cannot write to {folder}: {one_line(error)}; what was saved before is whole, and the "
            "same command continues from there"
        ) from error
