"""What is kept of runs: plain data, weights, and all that a run needs to go on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host import write_whole

FORMAT = "attn_surgery finetune 1"


@dataclass
class Progress:
    """Where a run is, and what was measured so far.

    Attributes:
        stage: The number of the stage.
        epoch: The number of the epoch in it.
        update: Steps taken in the epoch.
        history: For each epoch that ended, what was measured.
        steps: ``[step, mean loss, learning rate]``, now and then.
        best: The best score so far; None before there is one.
        best_at: The epochs after which it was measured.
        seconds: Time spent.
        training_s: For each stage, the seconds of it that were spent on steps, the reading of
            images included, but neither on measuring nor on saving.
        taken: For each stage, how many steps these were.
    """

    stage: int = 0
    epoch: int = 0
    update: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)
    best: float | None = None
    best_at: int = 0
    seconds: float = 0.0
    training_s: list[float] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def enter_stage(self) -> None:
        """Make room for the time and the steps of the stage."""
        for told in (self.training_s, self.taken):
            told += [0] * (self.stage + 1 - len(told))


def write_json(path: Path, data: Any) -> None:
    """Write plain data."""
    write_whole(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read plain data.

    Raises:
        SurgeryError: The file cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SurgeryError(f"cannot read {path}: {one_line(error)}") from error


def write_weights(path: Path, model: nn.Module) -> None:
    """Write a model's state dict as safetensors."""
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    write_whole(path, safetensors_bytes(_apart(state)))


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return dense tensors that share no memory."""
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}


# The state of a run


def save_checkpoint(
    path: Path, identity: Mapping[str, Any], progress: Progress, states: Mapping[str, Any]
) -> None:
    """Write all that a run needs to go on.

    Args:
        path: The file.
        identity: What decides the weights of the run.
        progress: Where it is.
        states: The state dicts.
    """
    buffer = io.BytesIO()
    told = {"identity": dict(identity), "progress": asdict(progress)}
    torch.save({"format": FORMAT, "told": json.dumps(told), "states": dict(states)}, buffer)
    write_whole(path, buffer.getvalue())


def load_checkpoint(
    path: Path, identity: Mapping[str, Any]
) -> tuple[Progress, dict[str, Any]] | None:
    """Read what `save_checkpoint` wrote; None where there is nothing. Nothing is executed.

    Raises:
        SurgeryError: The file is damaged, or of another run.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        told = json.loads(content["told"])
        seen, progress = told["identity"], Progress(**told["progress"])
        states, written = content["states"], content["format"]
    except Exception as error:
        raise SurgeryError(
            f"{path} is no checkpoint of a run: {one_line(error)}; remove it to begin again"
        ) from error
    if written != FORMAT:
        raise SurgeryError(f"{path} has format {written!r}, not {FORMAT!r}")
    check_identity(path, seen, identity)
    return progress, states


def check_identity(path: Path, seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse what another recipe wrote, naming the first key that differs.

    Raises:
        SurgeryError: It is of another recipe.
    """
    found = _difference(json.loads(json.dumps(seen)), json.loads(json.dumps(wanted)))
    if found:
        raise SurgeryError(
            f"{path} is of another recipe: {found}; give another output folder, or remove "
            f"{path.parent}"
        )


def _difference(seen: Any, wanted: Any, where: str = "") -> str:
    if isinstance(seen, dict) and isinstance(wanted, dict):
        for key in dict.fromkeys([*seen, *wanted]):
            place = f"{where}.{key}" if where else str(key)
            if key not in seen or key not in wanted:
                return f"{place} is only in {'it' if key in seen else 'the recipe'}"
            if told := _difference(seen[key], wanted[key], place):
                return told
        return ""
    if isinstance(seen, list) and isinstance(wanted, list) and len(seen) == len(wanted):
        pairs = enumerate(zip(seen, wanted, strict=True))
        return next((t for i, (a, b) in pairs if (t := _difference(a, b, f"{where}.{i}"))), "")
    return "" if seen == wanted else f"{where} is {seen!r} there and {wanted!r} here"
