"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from attn_surgery.errors import SurgeryError
from attn_surgery.models import one_line


def write_whole(path: Path, content: bytes) -> None:
    """Write a file such that at any moment, a loss of power included, it is the old or the new.

    Raises:
        SurgeryError: It cannot be written; what was there is as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise SurgeryError(
            f"cannot write {path}: {one_line(error)}; what was saved before is whole"
        ) from error
    _keep_entry(path.parent)


def _keep_entry(folder: Path) -> None:
    """Let the new name of a file survive a loss of power, where the file system can."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            entry = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(entry)
            finally:
                os.close(entry)
