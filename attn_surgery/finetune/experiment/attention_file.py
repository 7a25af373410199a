"""The attention of a run as a file, with what its training changed of the host."""

from __future__ import annotations

import glob

import torch
from torch import Tensor

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

    All of a host that trained; of one that was frozen those that training changed, its head and its
    norms, and those that nobody can get again, because they begin as chance has it.
    """
    recipe = run.context.recipe
    if not all(stage.freezes_host for stage in (*recipe.pretraining, *recipe.stages)):
        return "all"
    fresh, other = (run.context.fresh_host(run.seed + i).state_dict() for i in range(2))
    now = run.model.state_dict()
    kept = [
        key
        for key in fresh
        if key in now  # attention took the place of the others
        if not (_same(fresh[key], other[key]) and _same(fresh[key], now[key]))
    ]
    return list(map(glob.escape, kept)) or None


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu(), b.cpu())
