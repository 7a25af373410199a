"""An optimizer that was made before the surgery, or before its undoing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.training.owners import attention_parameters
from attn_surgery.finetune.training.parameter_groups import check_numbers, not_decayed

NAMES = {False: "attention", True: "attention_no_decay"}
"""The groups of attention, as ``param_groups`` calls them: decayed, and not."""

_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""What a group knows of learning rates; schedulers write all but the first."""
_RATES_BY_GROUP = ("base_lrs", "max_lrs", "min_lrs", "_last_lr", "base_values")
_OTHERS_BY_GROUP = ("lr_lambdas", "base_momentums", "max_momentums")
"""What schedulers of torch and timm keep for each group, in lists."""


def update_optimizer(
    optimizer: Optimizer,
    model: nn.Module,
    *,
    attention_lr_scale: float = 10.0,
    schedulers: Iterable[Any] = (),
) -> list[str]:
    """Let an optimizer train what was inserted into its model since, and forget what was removed.

    Attention gets groups of its own, ``attention`` and ``attention_no_decay`` (biases, scales, the
    parameters of norms), with the options of the optimizer's first group. Whatever else the
    optimizer holds stays as it is, its state included. Call it after ``apply``, ``load`` and
    ``remove``.

    Args:
        optimizer: Of ``torch.optim``, or any that keeps its parameters in ``param_groups``.
        model: What was operated on, or is no longer.
        attention_lr_scale: How many times the learning rate of the first group the attention's is,
            now and as schedulers go on.
        schedulers: Those of the optimizer, of torch or timm: they keep numbers for each group. (A
            scheduler that is made afterwards needs nothing.)

    Returns:
        The names of the groups that are new.

    Raises:
        SurgeryError: ``attention_lr_scale`` cannot be used, or the optimizer has no group.

    Example:
        >>> import torch, torchvision, attn_surgery
        >>> model = torchvision.models.resnet18()
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> _ = attn_surgery.apply(model, "se")
        >>> update_optimizer(optimizer, model)
        ['attention', 'attention_no_decay']
        >>> [(group.get("name"), group["lr"]) for group in optimizer.param_groups]
        [(None, 0.001), ('attention', 0.01), ('attention_no_decay', 0.01)]
        >>> _ = attn_surgery.remove(model)
        >>> update_optimizer(optimizer, model), len(optimizer.param_groups)
        ([], 1)
    """
    check_numbers(attention_lr_scale=attention_lr_scale)
    if not optimizer.param_groups:
        raise SurgeryError("the optimizer has no group of parameters, whose options could be taken")
    schedulers = [each for one in schedulers for each in _all_of(one)]
    _forget(optimizer, model, schedulers)
    return _add(optimizer, model, attention_lr_scale, schedulers)


def _all_of(scheduler: Any) -> Iterable[Any]:
    """Yield a scheduler, and those that it consists of."""
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _all_of(inner)


def _forget(optimizer: Optimizer, model: nn.Module, schedulers: list[Any]) -> None:
    """Take out of the groups of attention what is no longer in the model, and empty groups."""
    present = attention_parameters(model)
    for number, group in reversed(list(enumerate(optimizer.param_groups))):
        if group.get("name") not in NAMES.values():
            continue
        kept = [i for i, each in enumerate(group["params"]) if id(each) in present]
        for parameter in group["params"]:
            if id(parameter) not in present:
                optimizer.state.pop(parameter, None)
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [group[key][i] for i in kept]
        if not kept:
            _each_list(schedulers, len(optimizer.param_groups), lambda kept, i=number: kept.pop(i))
            del optimizer.param_groups[number]


def _add(optimizer: Optimizer, model: nn.Module, scale: float, schedulers: list[Any]) -> list[str]:
    """Add what is new to the groups of attention, which are made where there are none."""
    known = {id(each) for group in optimizer.param_groups for each in group["params"]}
    attention, plain = attention_parameters(model), not_decayed(model)
    new = {
        path: each
        for path, each in model.named_parameters()
        if id(each) in attention and id(each) not in known and each.requires_grad
    }
    made = []
    for is_plain, name in NAMES.items():
        own = {path: each for path, each in new.items() if (id(each) in plain) == is_plain}
        group = next((each for each in optimizer.param_groups if each.get("name") == name), None)
        if group is not None:
            group["params"].extend(own.values())
            group.get("param_names", []).extend(own)
        elif own:
            before = len(optimizer.param_groups)
            optimizer.add_param_group(_group(optimizer.param_groups[0], name, own, scale))
            _lengthen(schedulers, before, scale)
            made.append(name)
    return made


def _group(
    first: dict[str, Any], name: str, own: dict[str, nn.Parameter], scale: float
) -> dict[str, Any]:
    options = {key: value for key, value in first.items() if key not in ("params", "param_names")}
    rates = {key: scale * options[key] for key in _RATES if key in options}
    no_decay = {"weight_decay": 0.0} if name == NAMES[True] and "weight_decay" in options else {}
    parameters = list(own.items() if "param_names" in first else own.values())
    return {**options, **rates, **no_decay, "name": name, "params": parameters}


def _lengthen(schedulers: list[Any], groups: int, scale: float) -> None:
    """Give schedulers what they keep for a group: the first group's, its rates scaled."""
    _each_list(schedulers, groups, lambda kept: kept.append(scale * kept[0]), names=_RATES_BY_GROUP)
    _each_list(schedulers, groups, lambda kept: kept.append(kept[0]), names=_OTHERS_BY_GROUP)


def _each_list(
    schedulers: list[Any],
    groups: int,
    change: Any,
    names: tuple[str, ...] = (*_RATES_BY_GROUP, *_OTHERS_BY_GROUP),
) -> None:
    for scheduler in schedulers:
        for name in names:
            kept = getattr(scheduler, name, None)
            if isinstance(kept, list) and len(kept) == groups:
                change(kept)
