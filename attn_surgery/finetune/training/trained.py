"""What of a model a stage trains, and what of the host stays as it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from torch import nn

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.hosts import head_path
from attn_surgery.finetune.recipe import Stage
from attn_surgery.finetune.training.owners import norm_parameters
from attn_surgery.finetune.training.parameter_groups import (
    freeze,
    freeze_norm_statistics,
    selected,
)
from attn_surgery.surgery import inserted

LIVE_FROM = 16
"""Images in a batch from which its statistics are good enough to be followed."""


def choose_trained(model: nn.Module, stage: Stage) -> None:
    """Let those parameters alone require a gradient that a stage trains; no others than before.

    Raises:
        SurgeryError: A word or pattern selects nothing.

    Example:
        >>> import torchvision
        >>> model = torchvision.models.resnet18()
        >>> choose_trained(model, Stage(trains=("head",)))
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['fc.weight', 'fc.bias']
    """
    if stage.trains != ("all",) and (inserted(model) or not stage.is_for_attention_alone):
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kept = [*_by_pattern(model, stage, own), *_by_norms(model, stage, own)]
        freeze(model, "*")
        for name in kept:
            own[name].requires_grad_(True)
    if stage.freezes:
        freeze(model, stage.freezes, keep_attention=not stage.freezes_attention)


def _by_pattern(model: nn.Module, stage: Stage, own: Iterable[str]) -> list[str]:
    words = [each for each in stage.trains if each not in {"all", "attention", "norms"}]
    return selected(own, [head_path(model) if each == "head" else each for each in words])


def _by_norms(model: nn.Module, stage: Stage, own: Collection[str]) -> list[str]:
    if "norms" not in stage.trains:
        return []
    found = [name for name in norm_parameters(model) if name in own]
    if not found:
        raise SurgeryError("'norms' names no parameter: no norm of the host has a weight to train")
    return found


def trained_parameters(model: nn.Module, stages: Iterable[Stage]) -> int:
    """Return how many parameters train in one of some stages, or several; the model is as before.

    Example:
        >>> import torchvision
        >>> trained_parameters(torchvision.models.resnet18(), [Stage(trains=("head", "norms"))])
        522600
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    trained: dict[int, int] = {}
    for stage in stages:
        try:
            choose_trained(model, stage)
            trained |= {id(p): p.numel() for p in model.parameters() if p.requires_grad}
        finally:
            for parameter, required in before:
                parameter.requires_grad_(required)
    return sum(trained.values())


# Statistics, and other buffers


def keep_statistics(model: nn.Module, stage: Stage, norm_batch: int) -> None:
    """Freeze the running statistics of the host that a stage does not let follow the batches."""
    if stage.norm_stats == "frozen" or (stage.norm_stats == "auto" and norm_batch < LIVE_FROM):
        freeze_norm_statistics(model)
        return
    if inserted(model) and stage.is_for_attention_alone:
        freeze_norm_statistics(model)
        return
    for path in _untrained_norms(model, _in_frozen_host(model, stage)):
        freeze_norm_statistics(model, path)


def holds_host(model: nn.Module, stage: Stage) -> bool:
    """Tell whether every buffer of the host stays as it is."""
    if stage.is_for_attention_alone:
        return bool(inserted(model))
    asked = "norms" in stage.trains and stage.norm_stats == "live"
    return stage.freezes_host and not asked


def _in_frozen_host(model: nn.Module, stage: Stage) -> set[str]:
    """Return the parameters of norms that train in a host that is frozen around them."""
    if "norms" not in stage.trains or stage.norm_stats == "live":
        return set()
    own = dict(model.named_parameters())
    return set(norm_parameters(model)) - set(_by_pattern(model, stage, own))


def _untrained_norms(model: nn.Module, frozen_around: Collection[str]) -> Iterator[str]:
    """Yield norms of which nothing trains; for those without weights, nothing around them."""
    attention = tuple(f"{path}." for path in inserted(model))
    host = {name: p for name, p in model.named_parameters() if not name.startswith(attention)}
    trained = {n for n, p in host.items() if p.requires_grad and n not in frozen_around}
    for path, module in model.named_modules():
        if module._buffers.get("running_mean") is None or path.startswith(attention):
            continue
        around = path
        while around and not any(name.startswith(f"{around}.") for name in host):
            around = around.rpartition(".")[0]
        within = f"{around}." if around else ""
        if not any(name.startswith(within) for name in trained):
            yield path
