"""Whether a variant starts as what its host is, before it is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.utils._pytree import tree_leaves

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.data import val_batches
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.evaluation import evaluating, output_of
from attn_surgery.finetune.experiment.variants import starts_as_host
from attn_surgery.finetune.tasks import Metrics

_COMPUTED_IN = {"no": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What numbers are rounded to on an accelerator; TF32, which float32 may be, is as fine as half."""


def check_start(
    context: Context,
    variant: str,
    model: nn.Module,
    seen: Metrics,
    recorded: Metrics,
    start: nn.Module,
) -> str:
    """Refuse a start that computes something else than the host, where it should be the same.

    On the CPU the scores are the same, to the last image. An accelerator may choose another kernel
    for each run, so that outputs differ in the last bits, and a score by an image. Where it does,
    outputs are compared, with kernels that are chosen alike: they are the same, or as far from
    another as half of the digits of what they are computed in.

    Args:
        context: Where it is measured.
        variant: Its name.
        model: The variant, not trained so far.
        seen: What it scores.
        recorded: What the host scored when it was measured.
        start: The host; left as it is.

    Returns:
        How it was found to be the same; "" where the scores are.

    Raises:
        SurgeryError: It is another.
    """
    score = context.task.score
    if not starts_as_host(context.recipe, variant) or seen[score] == recorded[score]:
        return ""
    # What is recorded may have been measured on another device, or by more processes.
    host = copy.deepcopy(start)
    again = context.measure(host)[score]
    if seen[score] == again:
        return ""
    told = f"{score} at insertion is {seen[score]}, the host's {again}"
    defect = "the surgery disturbed the host, which is a defect of attn_surgery"
    if _is_exact(context.accelerator.device):
        raise SurgeryError(f"{variant}: {told}: {defect}")
    away = distance(context, model, host)
    if not away <= torch.finfo(_COMPUTED_IN[context.recipe.amp]).eps ** 0.5:  # nor is nan
        raise SurgeryError(
            f"{variant}: {told}, and its outputs are {away:.1e} away from the host's, which is "
            f"more than rounding comes to: {defect}"
        )
    outputs = f"{away:.1e} away from the host's, which is rounding" if away else "the host's"
    return f"{told}, as the device chooses kernels anew; outputs on the first batch are {outputs}"


def _is_exact(device: torch.device) -> bool:
    return device.type == "cpu"


def distance(context: Context, model: nn.Module, host: nn.Module) -> float:
    """Return how far the outputs of a model are from the host's, on the first batch.

    That is the norm of the difference divided by the norm of the host's output; the most of all
    tensors and processes, 0 where all are the same, infinite where they are not alike in shape.

    Args:
        context: Where to compute.
        model: The model, on the device.
        host: The host, on the device.
    """
    device = context.accelerator.device
    images = next(iter(val_batches(context.splits.val, context.loading)))[0]
    with evaluating(model), evaluating(host), context.accelerator.autocast(), _kernels_alike():
        own, hosts = (tree_leaves(output_of(each, images, device)) for each in (model, host))
    away = [_relative(a, b) for a, b in zip(own, hosts, strict=True) if isinstance(b, Tensor)]
    most = torch.stack(away).max().reshape(1)
    return float(context.accelerator.gather(most).max())


def _relative(a: Any, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        return torch.full((), torch.inf, device=b.device)
    difference = torch.linalg.vector_norm(a.float() - b.float())
    return difference / torch.linalg.vector_norm(b.float()).clamp_min(1e-12)


@contextmanager
def _kernels_alike() -> Iterator[None]:
    """Let cuDNN choose kernels by what they are given, not by which was the fastest in a trial."""
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
