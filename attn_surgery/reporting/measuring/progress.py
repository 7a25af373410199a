"""What is seen while something takes long: the bar of a measurement, and how long it has taken."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from tqdm import tqdm

PATIENCE_S = 2.0
"""Seconds of work of which nothing is said."""
_INTERVAL_S = 0.5


def progress_bar(seconds: float, progress: bool | None, title: str) -> tqdm:
    """Return a bar of so many seconds; with ``progress=None`` it shows on a terminal only."""
    disable = None if progress is None else not progress
    layout = "{desc}: {percentage:3.0f} %|{bar}| {n:.1f}/{total:.1f} s"
    return tqdm(total=seconds, desc=title, disable=disable, leave=False, bar_format=layout)


@contextlib.contextmanager
def waiting(title: str, progress: bool | None = None) -> Iterator[None]:
    """Tell on stderr how long the work within has taken, once that is two seconds.

    The line is gone when the work ends, however it ends.

    Args:
        title: What is done.
        progress: Whether to; None is "if stderr is a terminal".

    Example:
        >>> with waiting("adding"):
        ...     print(1 + 1)
        2
    """
    if not (_is_terminal() if progress is None else progress):
        yield
        return
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(title, time.time(), done), daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _tell(title: str, began: float, done: threading.Event) -> None:
    if done.wait(PATIENCE_S):
        return
    layout = "{desc} ... {elapsed_s:.0f} s"
    # a delay, however small, keeps tqdm from showing the line before it knows when the work began
    with tqdm(desc=title, leave=False, bar_format=layout, delay=1e-9) as line:
        line.start_t = began
        while True:
            line.refresh()
            if done.wait(_INTERVAL_S):
                return
