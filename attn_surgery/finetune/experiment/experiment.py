"""From one start, the control and each attention, with the same seeds and the same budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment.at_insertion import check_start
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.evaluation import gate_movement
from attn_surgery.finetune.experiment.loop import train
from attn_surgery.finetune.experiment.run import CHECKPOINT, METRICS, Run
from attn_surgery.finetune.experiment.variants import operated
from attn_surgery.finetune.process import (
    Progress,
    check_identity,
    environment,
    load_checkpoint,
    read_by_first,
    read_json,
    write_json,
)
from attn_surgery.finetune.recipe import CONTROL, HOST, Recipe
from attn_surgery.finetune.training import teacher_of
from attn_surgery.host import read_weights
from attn_surgery.surgery import save

RECIPE = "recipe.json"
ENVIRONMENT = "environment.json"
ATTENTION = "attention.safetensors"


def run_experiment(context: Context) -> list[dict[str, Any]]:
    """Carry out a recipe, or what is left of it.

    Args:
        context: The recipe, and what its runs share.

    Returns:
        What came of each run: first the host's of a seed, then the control's and each attention's.

    Raises:
        SurgeryError: Something cannot be done, or went wrong; what was saved is whole.
        Interrupted: A signal asked to stop; what was done is saved.
    """
    read_by_first(context.accelerator, lambda: _begin(context))
    return [told for seed in range(context.recipe.seeds) for told in _seed(context, seed)]


def _begin(context: Context) -> None:
    """Look at all that is there, and write what is going to be done beside it.

    Raises:
        SurgeryError: A run is of another recipe.
    """
    folder = Path(context.recipe.output)
    for seed in range(context.recipe.seeds):
        for variant in (HOST, *context.recipe.variants):
            run = Run(context, variant, seed, nn.Identity())
            if recorded(run) is None:
                load_checkpoint(run.folder / CHECKPOINT, run.identity)
    write_json(folder / RECIPE, context.recipe.to_dict())
    write_json(folder / ENVIRONMENT, environment(context.accelerator))


def _seed(context: Context, seed: int) -> Iterator[dict[str, Any]]:
    """Yield what came of the host, and of each variant."""
    start, host = _start(context, seed)
    yield host
    for variant in context.recipe.variants:
        yield _variant(context, variant, seed, start, host)


def _start(context: Context, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return the host of a seed, trained from nothing if the recipe says so, and its metrics."""
    host = context.fresh_host(seed)
    run = Run(context, HOST, seed, host)
    done = _done(run)
    if done is None:
        progress = _trained(run)
        if not run.stages:
            run.keep("last", host)
        done = run.finish(progress, {"score": context.measure(host)})
    context.accelerator.wait_for_everyone()
    host.load_state_dict(read_by_first(context.accelerator, lambda: _kept(run)))
    return host.cpu(), done


def _kept(run: Run) -> dict[str, Tensor]:
    """Read the weights that a finished run ended with."""
    try:
        return read_weights(run.folder / "last.safetensors")
    except SurgeryError as error:
        raise SurgeryError(f"{error}; remove {run.folder} to run it again") from error


def _variant(
    context: Context, variant: str, seed: int, start: nn.Module, host: dict[str, Any]
) -> dict[str, Any]:
    """Return what came of a variant."""
    needs_teacher = any(stage.distill_weight for stage in context.recipe.stages)
    teacher = teacher_of(start) if needs_teacher else None
    run = Run(context, variant, seed, operated(context.recipe, variant, seed, start), teacher)
    done = _done(run)
    if done is None:
        at_insertion = context.measure(run.model)
        found = check_start(context, variant, run.model, at_insertion, host["score"], start)
        progress = _trained(run)
        told = {
            "at_insertion": at_insertion,
            "start": found,
            "score": context.measure(run.model),
            "gates": gate_movement(
                run.model, context.splits.val, context.task, context.loading, context.accelerator
            ),
        }
        if variant != CONTROL and context.accelerator.is_main_process:
            save(run.model.cpu(), run.folder / ATTENTION, host=_changed(context.recipe))
        done = run.finish(progress, told)
    context.accelerator.wait_for_everyone()
    return done


def _changed(recipe: Recipe) -> str | None:
    """Tell which tensors of the host have to be kept with the attention: those nobody can fetch."""
    alone = all(stage.is_for_attention_alone for stage in recipe.stages)
    return None if alone and recipe.host.has_weights and not recipe.pretraining else "all"


def _done(run: Run) -> dict[str, Any] | None:
    """Return what came of a run that was carried out before."""
    return read_by_first(run.context.accelerator, lambda: recorded(run))


def recorded(run: Run) -> dict[str, Any] | None:
    """Read what was written when the run was finished; None where it was not.

    Raises:
        SurgeryError: The file cannot be read, or is of another recipe.
    """
    path = run.folder / METRICS
    if not path.exists():
        return None
    try:
        metrics = read_json(path)
    except SurgeryError as error:
        raise SurgeryError(f"{error}; remove it to run again") from error
    if not isinstance(metrics, dict) or "identity" not in metrics:
        raise SurgeryError(f"{path} is not what a finished run writes; remove it to run again")
    check_identity(path, metrics["identity"], run.identity)
    return metrics


def _trained(run: Run) -> Progress:
    try:
        return train(run)
    finally:
        run.close()
