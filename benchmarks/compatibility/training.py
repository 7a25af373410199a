"""Uses that train a model, and what is put around or into it for that."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from compatibility.trial import Trial, same


def loss(out: Tensor) -> Tensor:
    """Return something to be minimised."""
    return out.square().mean()


def gradients(model: nn.Module, run: Any, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of all parameters."""
    model.zero_grad()
    loss(run(x)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Check all of them together."""
    if found.keys() != expected.keys():
        raise ValueError("other parameters have a gradient")
    one, other = (torch.cat([e[name].flatten() for name in expected]) for e in (found, expected))
    same(one, other, tolerance)


@contextmanager
def one_process() -> Iterator[None]:
    """Be a group of one process, by gloo."""
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", init_method=f"file://{file.name}-s", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def ddp(trial: Trial) -> None:
    """DistributedDataParallel, one process, gloo."""
    expected = gradients(trial.model, trial.model, trial.x)
    with one_process():
        run = nn.parallel.DistributedDataParallel(trial.model)
        same_gradients(gradients(trial.model, run, trial.x), expected, 1e-4)


def fsdp(trial: Trial) -> None:
    """FSDP2's `fully_shard`, one process, gloo, block by block."""
    from torch.distributed.fsdp import fully_shard

    plain = copy.deepcopy(trial.model)
    expected = gradients(plain, plain, trial.x)
    with one_process():
        mesh = init_device_mesh("cpu", (1,))
        for child in _called(trial.model):
            if any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh)
        fully_shard(trial.model, mesh=mesh)
        loss(trial.model(trial.x)).backward()
        found: dict[str, Any] = {
            name: p.grad for name, p in trial.model.named_parameters() if p.grad is not None
        }
        whole = {name: each.full_tensor() for name, each in found.items()}
        same_gradients(whole, expected, 1e-4)


def _called(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model's children; of lists and dicts, which are not called, theirs."""
    for child in model.children():
        is_called = not isinstance(child, nn.ModuleList | nn.ModuleDict)
        yield from [child] if is_called else _called(child)


def data_parallel(trial: Trial) -> None:
    """DataParallel, without devices to spread over."""
    same(nn.DataParallel(trial.model)(trial.x), trial.expected)


def functional(trial: Trial) -> None:
    """`torch.func`: gradients of each sample, `vmap` of `grad` of `functional_call`, in float64."""
    trial = trial.in_float64()
    model, x = trial.model, trial.x
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def of_one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return loss(functional_call(model, (parameters, buffers), (x[None],)))

    found = vmap(grad(of_one), in_dims=(None, 0))(parameters, x)
    expected = gradients(model, model, x[:1])
    same_gradients({name: found[name][0] for name in expected}, expected, 1e-9)


def checkpointed(trial: Trial) -> None:
    """Activation checkpointing of the whole."""
    expected = gradients(trial.model, trial.model, trial.x)

    def run(x: Tensor) -> Any:
        return checkpoint(trial.model, x, use_reentrant=False)

    same_gradients(gradients(trial.model, run, trial.x), expected, 1e-4)


def autocast(trial: Trial) -> None:
    """bfloat16 by autocast, forward and backward."""
    with torch.autocast("cpu", torch.bfloat16):
        out = trial.model(trial.x)
    loss(out.float()).backward()
    if not all(p.grad.isfinite().all() for p in trial.model.parameters() if p.grad is not None):
        raise ValueError("a gradient is not finite")
    same(out.float(), trial.expected, 0.2)


def ema(trial: Trial) -> None:
    """Averages: torch's `AveragedModel` and timm's `ModelEmaV3`."""
    from timm.utils.model_ema import ModelEmaV3
    from torch.optim.swa_utils import AveragedModel

    torchs, timms = AveragedModel(trial.model), ModelEmaV3(trial.model)
    torchs.update_parameters(trial.model)
    timms.update(trial.model)
    for average in (torchs, timms):
        same(average(trial.x), trial.expected)


def pruned(trial: Trial) -> None:
    """Pruning of all convolutions, made permanent."""
    convolutions = [m for m in trial.model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    for each in convolutions:
        prune.l1_unstructured(each, "weight", 0.2)
    masked = trial.model(trial.x)
    for each in convolutions:
        prune.remove(each, "weight")
    same(trial.model(trial.x), masked)


def parametrized(trial: Trial) -> None:
    """`weight_norm` on all convolutions, and taken off again."""
    convolutions = [m for m in trial.model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    for each in convolutions:
        parametrizations.weight_norm(each)
    same(trial.model(trial.x), trial.expected)
    gradients(trial.model, trial.model, trial.x)
    for each in convolutions:
        parametrize.remove_parametrizations(each, "weight")
    same(trial.model(trial.x), trial.expected)


def lora(trial: Trial) -> None:
    """peft's LoRA beside it, on convolutions of 1 x 1 and linear layers of the host."""
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]

    names = [
        name
        for name, m in trial.model.named_modules()
        if isinstance(m, nn.Linear)
        or (type(m) is nn.Conv2d and m.kernel_size == (1, 1) and m.groups == 1)
    ]
    expected = trial.expected
    wrapped: Any = get_peft_model(trial.model, LoraConfig(r=2, target_modules=names))
    same(wrapped(trial.x), expected)
    loss(wrapped(trial.x)).backward()
    same(wrapped.merge_and_unload()(trial.x), expected, 1e-3)


def opacus(trial: Trial) -> None:
    """Gradients of each sample by opacus, in float64; norms frozen, nothing in place: its terms."""
    from opacus import GradSampleModule  # pyright: ignore[reportMissingImports]

    trial = trial.in_float64()
    model = _for_opacus(trial.model)
    plain = copy.deepcopy(model)
    expected = gradients(plain, plain, trial.x)
    wrapped = GradSampleModule(model, strict=False)
    loss(wrapped(trial.x)).backward()
    of_samples = {name: getattr(p, "grad_sample", None) for name, p in model.named_parameters()}
    missing = [name for name in expected if of_samples[name] is None]
    if missing:
        raise ValueError(f"no gradient of each sample: {missing[0]}")
    found = {name: of_samples[name].mean(0) for name in expected}  # type: ignore[union-attr]
    same_gradients(found, expected, 1e-9)


def _for_opacus(model: nn.Module) -> nn.Module:
    model.train()
    for each in model.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.requires_grad_(False).eval()
        if getattr(each, "inplace", False):
            each.inplace = False  # type: ignore[assignment]
        if hasattr(each, "drop_prob") or isinstance(each, nn.modules.dropout._DropoutNd):
            each.eval()
    return model


TRAINING = {
    "DDP": ddp,
    "FSDP2": fsdp,
    "DataParallel": data_parallel,
    "torch.func": functional,
    "checkpointing": checkpointed,
    "autocast": autocast,
    "EMA": ema,
    "pruning": pruned,
    "parametrizations": parametrized,
    "LoRA (peft)": lora,
    "opacus": opacus,
}
