"""What a stage does not compute again: the features of its views, from their file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from attn_surgery.finetune.data import Views, features_of
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.digests import of_frozen
from attn_surgery.finetune.training import Prefix, find_prefix


def spare_prefix(
    context: Context, model: nn.Module, views: Views
) -> tuple[Prefix | None, Views | None]:
    """Compute once what a model makes of views before anything trains.

    Args:
        context: Where.
        model: Set up to train.
        views: What it learns from.

    Returns:
        What is spared, and what is learned from instead; None, twice, where nothing can be spared.

    Raises:
        SurgeryError: The features cannot be written or read.
    """
    accelerator = context.accelerator
    two = torch.stack([views[0, 0][0], views[1, 0][0]])
    with accelerator.autocast():
        prefix = find_prefix(model, context.on_device(two))
    if prefix is None:
        return None, None

    def computed(images: Tensor) -> Tensor:
        with accelerator.autocast():
            return prefix.features(model, context.on_device(images))

    told = [prefix.described(), of_frozen(model), context.recipe.amp]
    folder = Path(context.recipe.output, "features")
    with accelerator.local_main_process_first():
        return prefix, features_of(views, prefix.values, computed, told, folder)
