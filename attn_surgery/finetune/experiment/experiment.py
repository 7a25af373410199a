"""From one start, the controls and each attention, with the same seeds and the same budget."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment.at_insertion import check_start
from attn_surgery.finetune.experiment.attention_file import save_attention
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.evaluation import gate_movement
from attn_surgery.finetune.experiment.loop import EPOCH, train
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
from attn_surgery.finetune.recipe import HOST, attention_of, is_control, variant_of
from attn_surgery.finetune.training import teacher_of, trained_parameters
from attn_surgery.host import read_weights

RECIPE = "recipe.json"
ENVIRONMENT = "environment.json"


def run_experiment(context: Context) -> list[dict[str, Any]]:
    """Carry out a recipe, or what is left of it.

    Args:
        context: The recipe, and what its runs share.

    Returns:
        What came of each run: first the host's of a seed, then each control's and attention's.

    Raises:
        SurgeryError: Something cannot be done, or went wrong; what was saved is whole.
        Interrupted: A signal asked to stop; what was done is saved.
    """
    read_by_first(context.accelerator, lambda: _begin(context))
    return [told for seed in context.recipe.seed_numbers for told in _seed(context, seed)]


def host_with_head(context: Context, seed: int) -> nn.Module:
    """Return the host of a seed with its head trained for the task, as the control ``head`` is.

    Raises:
        SurgeryError: Something cannot be done, or went wrong; what was saved is whole.
        Interrupted: A signal asked to stop; what was done is saved.
    """
    start, host = _start(context, seed)
    if not context.recipe.data.has_head:
        return start
    run = Run(context, variant_of("head"), seed, copy.deepcopy(start))
    _variant(run, start, host)
    start.load_state_dict(read_by_first(context.accelerator, lambda: _kept(run)))
    return start


def _begin(context: Context) -> None:
    """Look at all that is there, and write what is going to be done beside it.

    Raises:
        SurgeryError: A run is of another recipe.
    """
    folder = Path(context.recipe.output)
    for seed in context.recipe.seed_numbers:
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
    done: dict[str, dict[str, Any]] = {}
    for variant in context.recipe.training_order:
        run = Run(context, variant, seed, operated(context.recipe, variant, seed, start))
        if is_control(variant) and context.recipe.budget == "seconds":
            run.seconds = _longest(run, [done[name] for name in context.recipe.surgery.attention])
        done[variant] = _variant(run, start, host)
    yield from (done[variant] for variant in context.recipe.variants)


def _longest(run: Run, others: list[dict[str, Any]]) -> tuple[float, ...]:
    """Return the seconds of training of the run that took longest, for each stage.

    Raises:
        SurgeryError: A run was not timed from its beginning.
    """
    for other in others:
        if sum(other.get("taken", ())) != run.steps:
            raise SurgeryError(
                f"{other['identity']['variant']}, seed {run.seed}: its training was not timed, so "
                "that no control can take as long: remove its folder to run it again"
            )
    return tuple(max((other["training_s"] for other in others), key=sum))


def _start(context: Context, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return the host of a seed, trained from nothing if the recipe says so, and its metrics."""
    host = context.fresh_host(seed)
    run = Run(context, HOST, seed, host)
    done = _done(run)
    if done is None:
        progress = _trained(run)
        if not run.stages:
            run.keep("last", host)
        done = run.finish(progress, {"score": _score(run, progress)})
    context.accelerator.wait_for_everyone()
    host.load_state_dict(read_by_first(context.accelerator, lambda: _kept(run)))
    return host.cpu(), done


def _kept(run: Run) -> dict[str, Tensor]:
    """Read the weights that a finished run ended with."""
    try:
        return read_weights(run.folder / "last.safetensors")
    except SurgeryError as error:
        raise SurgeryError(f"{error}; remove {run.folder} to run it again") from error


def _variant(run: Run, start: nn.Module, host: dict[str, Any]) -> dict[str, Any]:
    """Return what came of a variant, from the start that scored what the host's metrics say."""
    context, variant = run.context, run.variant
    if any(stage.distill_weight for stage in run.stages):
        run.teacher = teacher_of(start)
    done = _done(run)
    if done is None:
        is_host = attention_of(variant) is None
        at_insertion = host["score"] if is_host else context.measure(run.model)
        found = check_start(context, variant, run.model, at_insertion, host["score"], start)
        progress = _trained(run)
        told = {
            "at_insertion": at_insertion,
            "start": found,
            "score": _score(run, progress),
            "gates": gate_movement(
                run.model, context.splits.val, context.task, context.loading, context.accelerator
            ),
            "trained_params": trained_parameters(run.model, run.stages),
        }
        if attention_of(variant) and context.accelerator.is_main_process:
            told["file_bytes"] = save_attention(run)
        done = run.finish(progress, told)
    context.accelerator.wait_for_everyone()
    return done


def _score(run: Run, progress: Progress) -> dict[str, Any]:
    """Return what the last epoch was measured to have come to; without one, measure."""
    if not progress.history:
        return run.context.measure(run.model)
    return {key: told for key, told in progress.history[-1].items() if key not in EPOCH}


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
