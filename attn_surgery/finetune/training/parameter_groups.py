"""What trains, and how fast: parameter groups, frozen parameters, frozen norm statistics.

Attention is told from the host by ``attn_surgery.inserted``. A pattern is an fnmatch pattern over
dotted names: it selects the parameters or norms that it names, and all those below a module that
it names (``layer1``, ``layer[12]``, ``*.bn2``, ``*.bias``).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from attn_surgery.errors import SurgeryError, nearest
from attn_surgery.finetune.hosts import head_path
from attn_surgery.finetune.training.owners import (
    attention_parameters,
    has_statistics,
    is_norm,
    is_scale,
    norm_parameters,
)
from attn_surgery.surgery import inserted

Patterns = str | Sequence[str]


def param_groups(
    model: nn.Module,
    lr: float,
    attention_lr_scale: float = 10.0,
    weight_decay: float = 0.01,
    *,
    head_lr_scale: float = 1.0,
    norms_lr_scale: float = 1.0,
    attention_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Group the parameters for a torch optimizer: a higher rate for attention, decay for weights.

    Not decayed, as in timm: biases, whatever has fewer than two dimensions (the norms, the scalars
    of gates), and what a model lists in ``no_weight_decay()``. Beyond timm: norms and scales per
    channel of other shapes, too, such as ConvNeXt's layer scale of ``(C, 1, 1)``.

    Only parameters that require a gradient are in a group, each once: call ``freeze`` before.

    Args:
        model: A host, operated on or not (then there is no group of attention).
        lr: The learning rate of the host.
        attention_lr_scale: How many times the learning rate of the host the attention's is.
        weight_decay: The weight decay of what is decayed.
        head_lr_scale: How many times it the rate of the layer that makes the logits is.
        norms_lr_scale: How many times it that of weights and biases of the host's norms is.
        attention_weight_decay: That of the attention's weights, 0 for none; None for the host's.

    Returns:
        Those groups that are not empty, named ``host``, ``host_no_decay``, ``attention`` and
        ``attention_no_decay`` under the key ``name``; and, where their rate is another than the
        host's, the same two of ``head`` and ``norms``.

    Raises:
        SurgeryError: A number cannot be used, or nothing is left to be trained.

    Example:
        >>> import torch, torchvision, attn_surgery
        >>> model = attn_surgery.apply(torchvision.models.resnet18(), "se")
        >>> groups = param_groups(model, lr=0.01)
        >>> for group in groups:
        ...     print(group["name"], len(group["params"]), group["lr"], group["weight_decay"])
        host 21 0.01 0.01
        host_no_decay 41 0.01 0.0
        attention 16 0.1 0.01
        attention_no_decay 16 0.1 0.0
        >>> optimizer = torch.optim.AdamW(groups)
    """
    scales = {"attention": attention_lr_scale, "head": head_lr_scale, "norms": norms_lr_scale}
    attention_decay = weight_decay if attention_weight_decay is None else attention_weight_decay
    check_numbers(lr=lr, weight_decay=weight_decay, attention_weight_decay=attention_decay)
    check_numbers(**{f"{owner}_lr_scale": scale for owner, scale in scales.items()})
    owners, plain = _owners(model, scales), not_decayed(model)
    rates = {"host": lr, **{owner: lr * scale for owner, scale in scales.items()}}
    groups = {
        owner + suffix: {"name": owner + suffix, "params": [], "lr": rate, "weight_decay": decay}
        for owner, rate in rates.items()
        for suffix, decay in (("", weight_decay), ("_no_decay", 0.0))
    }
    groups["attention"]["weight_decay"] = attention_decay
    for parameter in model.parameters():
        if parameter.requires_grad:
            owner = owners.get(id(parameter), "host")
            suffix = "_no_decay" if id(parameter) in plain else ""
            groups[owner + suffix]["params"].append(parameter)
    filled = [group for group in groups.values() if group["params"]]
    if not filled:
        raise SurgeryError("nothing to train: no parameter of the model requires a gradient")
    return filled


def check_numbers(**numbers: float) -> None:
    """Refuse numbers below 0, and what is none.

    Raises:
        SurgeryError: There is one.
    """
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise SurgeryError(f"{name}={value!r} is not a number of at least 0")


def _owners(model: nn.Module, scales: Mapping[str, float]) -> dict[int, str]:
    """Return whose the parameters are that have a learning rate of their own, by identity."""
    named, owners = dict(model.named_parameters(remove_duplicate=False)), {}
    if scales["norms"] != 1:
        owners |= {id(named[name]): "norms" for name in norm_parameters(model)}
    if scales["head"] != 1:
        head = model.get_submodule(head_path(model))
        owners |= {id(parameter): "head" for parameter in head.parameters()}
    return owners | dict.fromkeys(attention_parameters(model), "attention")


def not_decayed(model: nn.Module) -> set[int]:
    """Return the identities of biases, norms, scales and what models except themselves."""
    found: set[int] = set()
    for module in model.modules():
        own = module.named_parameters(recurse=False)
        found |= {id(p) for name, p in own if is_norm(module) or is_scale(module, name, p)}
        if excepted := _excepted(module):
            found |= {id(p) for name, p in module.named_parameters() if name in excepted}
    return found


def _excepted(module: nn.Module) -> set[str]:
    """Return the names that a timm model excepts from weight decay."""
    listed = getattr(module, "no_weight_decay", None)
    return set(listed()) if inspect.ismethod(listed) else set()


# Frozen parameters


def freeze(model: nn.Module, patterns: Patterns, *, keep_attention: bool = True) -> list[str]:
    """Stop the training of parameters of the host, but not of the attention among them.

    Running statistics are not parameters: ``freeze_norm_statistics`` keeps those.

    Args:
        model: A host, operated on or not.
        patterns: One or several, over names of parameters and of modules: ``"*"`` for attention
            alone, ``["conv1", "bn1", "layer1"]`` for a stem and a stage.
        keep_attention: Whether the attention trains on where a pattern covers it, too.

    Returns:
        The names of the parameters that are frozen now, in the model's order.

    Raises:
        SurgeryError: A pattern selects nothing that can be frozen; then nothing is.

    Example:
        >>> import torchvision, attn_surgery
        >>> model = attn_surgery.apply(torchvision.models.resnet18(), "se")
        >>> frozen = freeze(model, ["conv1", "layer1"])
        >>> len(frozen), frozen[:3]
        (13, ['conv1.weight', 'layer1.0.conv1.weight', 'layer1.0.bn1.weight'])
        >>> freeze(model, "layr1")
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: 'layr1' names no parameter and no module with \
parameters; did you mean 'layer1'?
    """
    attention = attention_parameters(model)
    names = dict(model.named_parameters(remove_duplicate=False))
    kept = {name for name, p in names.items() if keep_attention and id(p) in attention}
    chosen = selected(names, patterns, "parameter", kept)
    frozen = {id(names[name]) for name in chosen}
    for name in chosen:
        names[name].requires_grad_(False)
    return [name for name, p in model.named_parameters() if id(p) in frozen]


def selected(
    names: Iterable[str], patterns: Patterns, kind: str = "parameter", kept: Iterable[str] = ()
) -> list[str]:
    """Return the names, and those below modules, that a pattern matches, but for those kept.

    Raises:
        SurgeryError: A pattern selects nothing.
    """
    candidates = {name: _and_above(name) for name in names}
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {
            name
            for name, paths in candidates.items()
            if any(fnmatchcase(path, pattern) for path in paths)
        }
        if not found:
            known = dict.fromkeys(path for paths in candidates.values() for path in paths)
            raise SurgeryError(
                f"{pattern!r} names no {kind} and no module with {kind}s"
                f"{nearest(pattern.removesuffix('.*'), known)}"
            )
        if found <= set(kept):
            raise SurgeryError(
                f"{pattern!r} selects attention alone, which stays as it is; "
                "keep_attention=False freezes it"
            )
        chosen |= found
    return [name for name in candidates if name in chosen and name not in kept]


def _and_above(name: str) -> list[str]:
    """Return a name and the paths of the modules that it is in, innermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


# Frozen statistics


@dataclass(frozen=True)
class FrozenStatistics:
    """Norms whose running statistics ``freeze_norm_statistics`` keeps, until ``remove``.

    It is a context manager, too, which removes at its end.

    Attributes:
        model: The model.
        paths: The norms.
    """

    model: nn.Module = field(repr=False)
    paths: tuple[str, ...]

    def remove(self) -> None:
        """Let these norms follow their batches again."""
        for path in self.paths:
            _thaw(self.model, path)

    def __enter__(self) -> FrozenStatistics:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def freeze_norm_statistics(model: nn.Module, patterns: Patterns = "*") -> FrozenStatistics:
    """Let norms of the host normalize by their running statistics, and keep these, in training.

    For small batches (fewer than about 16 images a device), and for training attention alone
    without moving anything of the host. It holds whatever ``model.train()`` does, in copies of the
    model and within ``DistributedDataParallel``. Weights and biases of the norms train on, unless
    ``freeze`` stops them. Norms within attention follow their batches.

    It is a hook on each norm: convert to ``SyncBatchNorm`` before (the conversion makes new
    modules), and end it before ``torch.jit.script``. A norm that is run without being called is
    not reached.

    Args:
        model: A host, operated on or not.
        patterns: One or several, over paths of norms and of modules. A host without such norms is
            fine with ``"*"``.

    Returns:
        What ends it: ``.remove()``, or ``with``. ``thaw_norm_statistics`` does so without it.

    Raises:
        SurgeryError: A pattern selects no norm with running statistics; then none is frozen.

    Example:
        >>> import torch, torchvision
        >>> model = torchvision.models.resnet18()
        >>> with freeze_norm_statistics(model) as frozen:
        ...     _ = model.train()(torch.randn(2, 3, 64, 64))
        >>> len(frozen.paths), model.bn1.num_batches_tracked.item(), model.bn1.training
        (20, 0, True)
    """
    paths = [path for path in _norms(model, patterns) if not _is_frozen(model, path)]
    for path in paths:
        model.get_submodule(path).register_forward_pre_hook(_in_evaluation)
    return FrozenStatistics(model, tuple(paths))


def thaw_norm_statistics(model: nn.Module, patterns: Patterns = "*") -> list[str]:
    """Undo ``freeze_norm_statistics``, on a copy of its model too.

    Args:
        model: The model.
        patterns: As for ``freeze_norm_statistics``.

    Returns:
        The paths of the norms that follow their batches again.

    Raises:
        SurgeryError: A pattern selects no norm with running statistics.

    Example:
        >>> import torchvision
        >>> model = torchvision.models.resnet18()
        >>> _ = freeze_norm_statistics(model)
        >>> thaw_norm_statistics(model, "layer1.0")
        ['layer1.0.bn1', 'layer1.0.bn2']
    """
    paths = [path for path in _norms(model, patterns) if _is_frozen(model, path)]
    for path in paths:
        _thaw(model, path)
    return paths


def _norms(model: nn.Module, patterns: Patterns) -> list[str]:
    attention = {id(each) for one in inserted(model).values() for each in one.modules()}
    found = [
        path
        for path, module in model.named_modules()
        if has_statistics(module) and id(module) not in attention
    ]
    return selected(found, patterns, "norm") if found or patterns != "*" else []


def _in_evaluation(norm: nn.Module, _: tuple[Any, ...]) -> None:
    # The flag alone: `eval()` would reach the attention that a norm may hold as its child.
    if norm.training:
        norm.training = False


def _is_frozen(model: nn.Module, path: str) -> bool:
    return _in_evaluation in model.get_submodule(path)._forward_pre_hooks.values()


def _thaw(model: nn.Module, path: str) -> None:
    norm = model.get_submodule(path)
    for key in [k for k, hook in norm._forward_pre_hooks.items() if hook is _in_evaluation]:
        del norm._forward_pre_hooks[key]
    norm.training = model.get_submodule(path.rpartition(".")[0]).training
