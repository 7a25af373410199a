"""The progress bar of a measurement."""

from __future__ import annotations

from tqdm import tqdm


def progress_bar(seconds: float, progress: bool | None, title: str) -> tqdm:
    """Return a bar of so many seconds; with ``progress=None`` it shows on a terminal only."""
    disable = None if progress is None else not progress
    layout = "{desc}: {percentage:3.0f} %|{bar}| {n:.1f}/{total:.1f} s"
    return tqdm(total=seconds, desc=title, disable=disable, leave=False, bar_format=layout)
