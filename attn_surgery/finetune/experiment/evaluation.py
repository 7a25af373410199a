"""What a model is worth on the split that it did not learn from, and how far its gates moved."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from attn_surgery.finetune.data import Loading, val_batches
from attn_surgery.finetune.process import share_buffers
from attn_surgery.finetune.tasks import Metrics, Task
from attn_surgery.surgery import inserted

GATE_BATCHES = 4


def measure(
    model: nn.Module,
    split: Dataset[Any],
    task: Task,
    loading: Loading,
    classes: int,
    accelerator: Any,
) -> Metrics:
    """Measure a model over a split; it is in evaluation mode meanwhile.

    Args:
        model: The model.
        split: The images.
        task: What is to be told of them.
        loading: How batches are put together.
        classes: How many classes there are.
        accelerator: Accelerate's.
    """
    model.to(accelerator.device)
    share_buffers(model, accelerator)
    with evaluating(model), accelerator.autocast():
        return task.measure(model, val_batches(split, loading), classes, accelerator)


def mean_over(domains: Mapping[str, Metrics]) -> Metrics:
    """Return the means over some domains, and each domain's own beside them.

    Example:
        >>> mean_over({"clean": {"accuracy": 1.0}, "noisy": {"accuracy": 0.5}})
        {'accuracy': 0.75, 'accuracy/clean': 1.0, 'accuracy/noisy': 0.5}
    """
    names = next(iter(domains.values()))
    means = {key: statistics.fmean(each[key] for each in domains.values()) for key in names}
    own = {f"{key}/{name}": each[key] for name, each in domains.items() for key in names}
    return {**means, **own}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, without gradients, and every module of it back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


def gate_movement(
    model: nn.Module, split: Dataset[Any], task: Task, loading: Loading, accelerator: Any
) -> dict[str, float]:
    """Tell how far each attention is from the identity.

    That is the norm of ``attention(x) - x`` divided by the norm of x, over a few batches of what
    is measured on: 0 for the identity, 1 for a gate that is shut (or, everywhere, 2).

    Args:
        model: The model.
        split: The images.
        task: What is told of them.
        loading: How batches are put together.
        accelerator: Accelerate's.

    Returns:
        The path of each attention -> the mean over the batches.
    """
    seen: dict[str, list[Tensor]] = {path: [] for path in inserted(model)}
    hooks = [
        attention.register_forward_hook(_watch(seen[path]))
        for path, attention in inserted(model).items()
    ]
    model.to(accelerator.device)
    try:
        with evaluating(model):
            for _, batch in zip(range(GATE_BATCHES), val_batches(split, loading), strict=False):
                output_of(model, batch[0], accelerator.device)
    finally:
        for hook in hooks:
            hook.remove()
    means = {path: torch.stack(each).mean() for path, each in seen.items() if each}
    return {path: float(accelerator.reduce(mean, "mean")) for path, mean in means.items()}


def output_of(model: nn.Module, images: Any, device: torch.device) -> Any:
    """Return what a model makes of images: a batch ``(N, C, H, W)``, or a list ``[(C, H, W)]``."""
    if isinstance(images, Tensor):
        return model(images.to(device))
    return model([image.to(device) for image in images])


def _watch(seen: list[Tensor]) -> Any:
    def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        x = given[0].float()
        distance = torch.linalg.vector_norm(output.float() - x)
        seen.append(distance / torch.linalg.vector_norm(x).clamp_min(1e-12))

    return hook
