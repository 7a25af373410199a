"""The attention of a run as a file, with what its training changed of the host."""

from __future__ import annotations

import glob

import torch

from attn_surgery.finetune.experiment.run import Run
from attn_surgery.surgery import save

ATTENTION = "attention.safetensors"


def save_attention(run: Run) -> int:
    """Write what `attn_surgery.load` needs to bring a run back; return its size in bytes."""
    path = run.folder / ATTENTION
    save(run.model.cpu(), path, host=_changed(run))
    return path.stat().st_size


def _changed(run: Run) -> str | list[str] | None:
    """Tell which tensors of the host have to be kept with the attention.

    All of a host that nobody can fetch, or that trained; of one that was frozen those that are
    other numbers now: its head, its norms.
    """
    recipe = run.context.recipe
    stages = (*recipe.pretraining, *recipe.stages)
    if not recipe.host.has_weights or not all(stage.freezes_host for stage in stages):
        return "all"
    state, fresh = run.model.state_dict(), run.context.fresh_host(run.seed).state_dict()
    changed = [key for key, value in fresh.items() if _differs(value, state.get(key))]
    return list(map(glob.escape, changed)) or None


def _differs(value: torch.Tensor, now: torch.Tensor | None) -> bool:
    """Tell whether a tensor changed; what attention took the place of did not."""
    return now is not None and not torch.equal(value.cpu(), now)
