"""One run at a time in an output folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.process.distributed import read_by_first

PATIENCE_S = 10.0
"""Workers of a run that was killed, which hold on to its folder, see so within some 5 s."""


@contextlib.contextmanager
def alone_in(folder: Path, accelerator: Any) -> Iterator[None]:
    """Hold a folder, made if need be, against other runs; the system lets go of what is killed.

    Args:
        folder: The output folder.
        accelerator: Accelerate's; its first process holds for all.

    Raises:
        SurgeryError: Another run is in there, or nothing can be written.
    """
    lock = FileLock(folder / ".lock", timeout=PATIENCE_S)
    read_by_first(accelerator, lambda: _take(lock, folder))
    try:
        yield
    finally:
        lock.release()


def _take(lock: FileLock, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise SurgeryError(
            f"another run is at work in output={str(folder)!r}: wait for its end, or give another "
            "folder"
        ) from error
    except OSError as error:
        raise SurgeryError(f"cannot write to output={str(folder)!r}: {error}") from error
