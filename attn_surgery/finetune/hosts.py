"""From a recipe's host to a network with weights and as many classes as the data has."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.recipe import Host
from attn_surgery.host import guess_input, load_model, meta_copy, undisturbed_randomness


def build_host(
    host: Host, classes: int, seed: int, device: torch.device | None = None
) -> nn.Module:
    """Build the network that a recipe names, the same for the same seed.

    Args:
        host: What the recipe says.
        classes: How many classes it has to tell; 0 leaves the head as it is.
        seed: Of what is not loaded.
        device: An accelerator on which the network may draw its weights; no other is seeded.

    Raises:
        SurgeryError: It cannot be built, or its weights do not fit.
    """
    with undisturbed_randomness(device, seed):
        model = load_model(
            host.model,
            pretrained=host.pretrained,
            checkpoint=host.checkpoint or None,
            device=None,
            options=host.options,
        )
        if classes:
            fit_head(model, classes)
    return model


# The head


def fit_head(model: nn.Module, classes: int) -> None:
    """Give a classifier as many outputs as there are classes; a head that fits is left alone.

    Raises:
        SurgeryError: It is not clear what the head is.

    Example:
        >>> import torchvision
        >>> model = torchvision.models.resnet18()
        >>> fit_head(model, 10)
        >>> model.fc
        Linear(in_features=512, out_features=10, bias=True)
    """
    if getattr(model, "num_classes", None) == classes:
        return
    reset: Any = getattr(model, "reset_classifier", None)  # timm's
    if callable(reset):
        reset(classes)
        return
    path = head_path(model)
    head = model.get_submodule(path)
    has_bias = head.bias is not None
    if isinstance(head, nn.Linear):
        fitted: nn.Module = nn.Linear(head.in_features, classes, has_bias)
    else:
        of_its_kind: Any = type(head)
        fitted = of_its_kind(head.in_channels, classes, 1, bias=has_bias)
    if getattr(head, "out_features", getattr(head, "out_channels", None)) != classes:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, fitted)


def head_path(model: nn.Module) -> str:
    """Return the path of the layer that makes the logits of a classifier, the last that is called.

    Raises:
        SurgeryError: There is none that it could be.
    """
    named: Any = getattr(model, "default_cfg", None) or {}
    if isinstance(named.get("classifier"), str):
        return named["classifier"]
    layers = {
        path: each
        for path, each in model.named_modules()
        if isinstance(each, nn.Linear)
        or (isinstance(each, _ConvNd) and set(each.kernel_size) == {1})
    }
    if not layers:
        raise SurgeryError(
            f"{type(model).__name__} has no linear layer that could be its head, to be fitted to "
            "the classes"
        )
    return _called_last(model, list(layers)) or list(layers)[-1]


def _called_last(model: nn.Module, paths: list[str]) -> str | None:
    """Return which of some modules a forward calls last; None where the model does not run."""
    copied, called = meta_copy(model).eval(), []
    for path in paths:
        copied.get_submodule(path).register_forward_hook(lambda *_, path=path: called.append(path))
    arguments, keywords = guess_input(model).build()
    with contextlib.suppress(Exception), torch.no_grad():  # whatever a model may object to
        copied(*arguments, **keywords)
        return called[-1]
    return None
