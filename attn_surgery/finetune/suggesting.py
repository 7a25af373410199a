"""Which sites of a recipe's host are worth an attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from attn_surgery.finetune.data import train_batches
from attn_surgery.finetune.experiment import Context, host_with_head, surgery_of
from attn_surgery.finetune.process import alone_in, derived
from attn_surgery.finetune.recipe import Recipe
from attn_surgery.finetune.training import freeze_norm_statistics
from attn_surgery.suggesting import Suggestion, check_budget, suggest


def suggest_for(
    recipe: Recipe, *, batches: int = 20, budget: Mapping[str, float] | None = None
) -> dict[str, Suggestion]:
    """Tell which sites each attention of a recipe is worth its costs at.

    The host is that of the recipe's first seed, its head trained as the control ``head`` trains it;
    both are kept in the recipe's output folder, where `run_recipe` finds them. The loss is that of
    the last stage on training images, in training mode, but that the host's norms go by their
    running statistics.

    Args:
        recipe: The host, the data, the stages and the attentions.
        batches: How many batches to look at.
        budget: As for `attn_surgery.suggest`.

    Returns:
        The name of each attention -> what is suggested.

    Raises:
        SurgeryError: Something cannot be done.
        Interrupted: A signal asked to stop while the host or its head was trained.
    """
    check_budget(budget)
    context, seed = Context.of(recipe), recipe.first_seed
    with alone_in(Path(recipe.output), context.accelerator), context.at_work():
        context = context.with_views()
        host = host_with_head(context, seed).to(context.accelerator.device).train()
        freeze_norm_statistics(host)
        loss = context.task.loss(recipe.stages[-1], context.splits.classes)
        found = {}
        for name in recipe.surgery.attention:
            attention, asked = surgery_of(recipe.surgery, name)
            some = islice(_batches(context), batches)
            found[name] = suggest(host, some, loss, attention, budget=budget, **asked)
        return found


def _batches(context: Context) -> Iterator[Any]:
    """Yield training batches, the same each time, epoch after epoch."""
    epoch = 0
    while True:
        seed = derived(context.recipe.first_seed, "suggest", epoch)
        for batch in train_batches(context.splits.train, context.loading, seed):
            yield context.on_device(batch)
        epoch += 1
