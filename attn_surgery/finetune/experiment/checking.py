"""What can be wrong with a recipe, found before anything runs."""

from __future__ import annotations

import math

from timm.optim import list_optimizers  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from attn_surgery.errors import SurgeryError, check_choice, nearest
from attn_surgery.finetune.data import DOMAINS, Splits
from attn_surgery.finetune.experiment.variants import surgery_of
from attn_surgery.finetune.recipe import (
    CONTROL,
    CONTROLS,
    HOST,
    SCALE,
    Data,
    Recipe,
    Stage,
    is_control,
    variant_of,
)
from attn_surgery.finetune.tasks import TASKS
from attn_surgery.planning import Request
from attn_surgery.surgery import plan

SCHEDULES = ("cosine", "poly", "tanh", "step", "multistep", "constant")
_AT_LEAST = {
    "epochs": 1,
    "accumulate": 1,
    "lr": 0,
    "attention_lr_scale": 0,
    "head_lr_scale": 0,
    "norms_lr_scale": 0,
    "weight_decay": 0,
    "warmup_epochs": 0,
    "label_smoothing": 0,
    "mixup": 0,
    "cutmix": 0,
    "ema": 0,
    "clip_grad": 0,
    "distill_weight": 0,
    "distill_temperature": 0,
}
_BELOW = {"label_smoothing": 1, "ema": 1}


def check_recipe(recipe: Recipe) -> None:
    """Check what can be checked without the host and the data.

    Raises:
        SurgeryError: Something cannot be done.

    Example:
        >>> from attn_surgery.finetune import read_recipe
        >>> check_recipe(read_recipe("digits", ["stages.0.optimizer=adamv"]))
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: stages.0: timm has no optimizer 'adamv'; did you mean \
'adam'?
    """
    check_choice("amp", recipe.amp, ("no", "bf16", "fp16"))
    check_choice("device", recipe.device, ("", "cpu"))
    check_choice("budget", recipe.budget, ("steps", "seconds"))
    for name in ("seeds", "log_every", "val_interval"):
        _check_number(name, getattr(recipe, name), at_least=1)
    for name in ("first_seed", "threads", "checkpoint_seconds", "report_seconds"):
        _check_number(name, getattr(recipe, name), at_least=0)
    if not recipe.stages:
        raise SurgeryError("a recipe needs one [[stages]] at least")
    _check_data(recipe.data)
    _check_controls(recipe)
    _check_surgery(recipe)
    if not recipe.variants:
        raise SurgeryError("there is nothing to train: no attention and no control")
    for where, stage in recipe.stages_of(HOST) + recipe.stages_of(CONTROL):
        _check_stage(where, stage, recipe)


def _check_data(data: Data) -> None:
    check_choice("data.task", data.task, tuple(TASKS))
    if data.channels not in {1, 3}:
        raise SurgeryError(f"data.channels={data.channels!r} must be 1 or 3")
    _check_number("data.batch_size", data.batch_size, at_least=1)
    for name in ("classes", "image_size", "workers", "limit", "val_limit", "held_out", "views"):
        _check_number(f"data.{name}", getattr(data, name), at_least=0)
    for name in data.domains:
        check_choice("data.domains", name, tuple(DOMAINS))
    if len(set(data.domains)) < len(data.domains):
        raise SurgeryError(f"data.domains={list(data.domains)}: names must be unlike")
    _check_number("data.repeats", data.repeats, at_least=1)
    if data.views and data.task != "classification":
        raise SurgeryError("data.views are for classification")
    if data.prefix and not data.views:
        raise SurgeryError("data.prefix is of a fixed number of views: give data.views, as 4")
    if data.domains and data.task == "detection":
        raise SurgeryError("data.domains are not for detection")
    if not data.domains and data.task == "restoration":
        raise SurgeryError("data.domains say what is to be restored, as ['grainy', 'recoloured']")


def _check_controls(recipe: Recipe) -> None:
    for name in recipe.controls:
        check_choice("controls", name, tuple(CONTROLS))
    if len(set(recipe.controls)) < len(recipe.controls):
        raise SurgeryError(f"controls={list(recipe.controls)}: names must be unlike")
    if not recipe.data.has_head and recipe.control and "head" in recipe.controls:
        raise SurgeryError(
            "controls: 'head' trains the head of a classification; where the stages train what the "
            "host's head is, and attention, 'same' trains that alone"
        )
    if recipe.budget == "seconds" and not recipe.surgery.attention:
        raise SurgeryError("budget='seconds' is as long as the attention takes, and there is none")


def _check_surgery(recipe: Recipe) -> None:
    surgery, names = recipe.surgery, recipe.surgery.attention
    if len(set(names)) < len(names) or any(name == HOST or is_control(name) for name in names):
        raise SurgeryError(f"surgery.attention={list(names)}: names must be unlike")
    known = [*names, *([SCALE] if variant_of(SCALE) in recipe.variants else [])]
    for name in surgery.options:
        if name not in known:
            raise SurgeryError(
                f"surgery.options has a table for {name!r}, which is none of "
                f"surgery.attention{nearest(name, known)}"
            )
    check_choice("surgery.init", surgery.init, ("identity", "paper"))
    for variant in recipe.operated_variants:
        attention, asked = surgery_of(surgery, variant)
        options = {k: v for k, v in asked.items() if k not in {"where", "position", "existing"}}
        words = {key: asked[key] for key in ("position", "existing")}
        Request.of(attention, asked["where"], options=options, **words).check()


def _check_stage(where: str, stage: Stage, recipe: Recipe) -> None:
    for name, least in _AT_LEAST.items():
        below = _BELOW.get(name, math.inf)
        _check_number(f"{where}.{name}", getattr(stage, name), at_least=least, below=below)
    known = [str(name) for name in list_optimizers()]
    if stage.optimizer not in known:
        raise SurgeryError(
            f"{where}: timm has no optimizer {stage.optimizer!r}{nearest(stage.optimizer, known)}"
        )
    check_choice(f"{where}.schedule", stage.schedule, SCHEDULES)
    check_choice(f"{where}.norm_stats", stage.norm_stats, ("auto", "live", "frozen"))
    if not stage.trains:
        raise SurgeryError(f"{where}.trains is empty: give 'all', 'attention' or patterns")
    if "all" in stage.trains and len(stage.trains) > 1:
        raise SurgeryError(f"{where}.trains: 'all' leaves nothing for other patterns")
    if stage.warmup_epochs > stage.epochs:
        raise SurgeryError(f"{where}: warmup_epochs are part of epochs, and longer here")
    if stage.distill_temperature <= 0:
        raise SurgeryError(f"{where}.distill_temperature must be above 0")
    if double := {"lr", "weight_decay"} & set(stage.optimizer_options):
        raise SurgeryError(f"{where}.optimizer_options: {min(double)} is a key of the stage itself")
    if where.startswith("pretraining") and (stage.distill_weight or "attention" in stage.trains):
        raise SurgeryError(f"{where}: before the surgery there is no attention and no teacher")
    if not recipe.data.has_head and "head" in stage.trains:
        raise SurgeryError(f"{where}.trains: 'head' is for classification; name it by a pattern")
    if recipe.data.task != "classification" and (
        stage.mixup or stage.cutmix or stage.label_smoothing or stage.distill_weight
    ):
        raise SurgeryError(
            f"{where}: mixup, cutmix, label_smoothing and distill_weight are for classification"
        )
    if recipe.data.prefix and (stage.mixup or stage.cutmix or stage.distill_weight):
        raise SurgeryError(
            f"{where}: mixup, cutmix and distill_weight need images, not data.prefix"
        )
    if recipe.data.unlabelled and not any(each.distill_weight for each in recipe.stages):
        raise SurgeryError("data.unlabelled is for distillation: give a stage distill_weight")
    if (stage.mixup or stage.cutmix) and recipe.data.batch_size % 2:
        raise SurgeryError(f"{where}: mixup and cutmix need an even data.batch_size")


def _check_number(name: str, value: float, *, at_least: float = 0, below: float = math.inf) -> None:
    if not at_least <= value < below:
        end = f" and below {below}" if below < math.inf else ""
        raise SurgeryError(f"{name}={value!r} must be at least {at_least}{end}")


# With the host and the data


def check_together(
    recipe: Recipe, plain: nn.Module, host: nn.Module, splits: Splits, processes: int
) -> None:
    """Check what needs the host and the data: sites, batches, the head.

    Args:
        recipe: The recipe.
        plain: The network as it was found.
        host: The network with its head fitted; left as it is.
        splits: The data.
        processes: How many processes train.

    Raises:
        SurgeryError: Something cannot be done.
    """
    size = recipe.data.batch_size
    if size % processes:
        raise SurgeryError(f"data.batch_size={size} cannot be divided among {processes} processes")
    for where, stage in recipe.stages_of(HOST) + recipe.stages_of(CONTROL):
        if (stage.mixup or stage.cutmix) and size // processes % 2:
            raise SurgeryError(f"{where}: mixup and cutmix need an even number for each process")
        if len(splits.train) < size * stage.accumulate:
            raise SurgeryError(
                f"{where}: {len(splits.train)} images to learn from are fewer than one step "
                f"takes: batch_size {size} x accumulate {stage.accumulate}"
            )
    if len(splits.val) < processes:
        raise SurgeryError(f"{len(splits.val)} images to measure on, for {processes} processes")
    if splits.unlabelled is not None and len(splits.unlabelled) < size:
        raise SurgeryError(
            f"data.unlabelled: {len(splits.unlabelled)} images are fewer than data.batch_size"
        )
    _check_sites(recipe, host)
    _check_head(recipe, plain, host)


def _check_sites(recipe: Recipe, host: nn.Module) -> None:
    """Refuse attention that can go nowhere, and a constant gate at other sites than attention."""
    places = {}
    for variant in recipe.operated_variants:
        attention, asked = surgery_of(recipe.surgery, variant)
        found = plan(host, attention, **asked)
        if not found.sites:
            reasons = "; ".join(dict.fromkeys(site.reason for site in found.skipped))
            raise SurgeryError(
                f"{variant} can go nowhere in {recipe.host.model}: "
                f"{reasons or 'it has no residual block'}"
            )
        places[variant] = [(site.block, site.after) for site in found.sites]
    of_scale = places.get(variant_of(SCALE))
    for variant, own in places.items():
        if of_scale is not None and own != of_scale:
            raise SurgeryError(
                f"the control {SCALE!r} has {len(of_scale)} sites, and {variant} {len(own)}, which "
                "are not the same: it goes where [surgery] says, or where surgery.options."
                f"{SCALE} does; give attention at other sites a recipe of its own"
            )


def _check_head(recipe: Recipe, plain: nn.Module, host: nn.Module) -> None:
    """Refuse to learn from, or by, a head that is new."""
    shapes = [[value.shape for value in each.state_dict().values()] for each in (plain, host)]
    if shapes[0] == shapes[1] or recipe.pretraining:
        return
    first, *_ = recipe.stages
    is_left_new = first.freezes_host and "head" not in first.trains
    if is_left_new or any(stage.distill_weight for stage in recipe.stages):
        raise SurgeryError(
            "the head is new, fitted to the classes, and knows nothing yet: train it before the "
            "attention that depends on it, and before it teaches, by a table [[pretraining]] with "
            'trains = "head"'
        )
