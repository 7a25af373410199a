"""Files: weights that are read, and what is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import nn

from attn_surgery.errors import SurgeryError, one_line


def check_folder(path: Path) -> None:
    """Refuse a file for which there is no folder, before there is anything to write into it.

    Raises:
        SurgeryError: It is so.
    """
    if not path.absolute().parent.is_dir():
        raise SurgeryError(f"cannot write {path}: there is no folder {path.parent}")


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


def load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Fill a model with a file's state dict; every key has to fit.

    Args:
        model: The model.
        path: A ``.safetensors`` file, or what ``torch.save`` wrote.
        name: What to call the model in messages.

    Raises:
        SurgeryError: The file cannot be read, or does not fit.
    """
    state = read_weights(path)
    if not state.keys() & model.state_dict().keys():
        state = {key.removeprefix(_PARALLEL_PREFIX): value for key, value in state.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes that differ are raised even when not strict
        raise SurgeryError(f"{path} does not fit {name!r}: {one_line(error)}") from error
    faults = [
        f"{len(keys)} {kind} (first: {keys[0]!r})"
        for kind, keys in (("keys are missing", missing), ("keys are unexpected", unexpected))
        if keys
    ]
    if faults:
        raise SurgeryError(f"{path} does not fit {name!r}: {', '.join(faults)}")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a file's state dict, bare or under ``state_dict`` or ``model``; nothing is executed.

    Raises:
        SurgeryError: The file cannot be read, or holds something else.
    """
    return _state_dict(_read(path), path)


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise SurgeryError(
            f"cannot read checkpoint {path}: it is a state dict neither of safetensors nor of "
            "torch.save(model.state_dict(), ...), and nothing else is unpickled"
        ) from error
    except Exception as error:
        raise SurgeryError(f"cannot read checkpoint {path}: {one_line(error)}") from error


def _state_dict(content: object, path: Path) -> dict[str, torch.Tensor]:
    """Unwrap a checkpoint file's content down to its state dict."""
    while isinstance(content, Mapping):
        key = next((k for k in _WRAPPER_KEYS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            break
        content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise SurgeryError(f"{path} holds a {type(content).__name__}, not a state dict")
    return dict(content)


_WRAPPER_KEYS = ("state_dict", "model")


_PARALLEL_PREFIX = "module."
