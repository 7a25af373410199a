"""SIGINT and SIGTERM as a wish to stop, granted between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and saved where it was.

    Attributes:
        signal: The number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.signal = number


class Wish:
    """Whether somebody wants the run to stop. The second signal of a kind ends it at once.

    Example:
        >>> with Wish() as wish:
        ...     wish.signal
        0
    """

    def __init__(self) -> None:
        self.signal = 0
        self._former: dict[int, Any] = {}

    def _take(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._former.get(number) or signal.SIG_DFL)

    def __enter__(self) -> Wish:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
