"""Class activation maps, by the package ``grad-cam``, of a layer that is found by running."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from attn_surgery.errors import SurgeryError, nearest
from attn_surgery.finetune.process import need
from attn_surgery.showing.gates import Numbers
from attn_surgery.showing.predictions import Classifier

METHODS = ("GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM", "XGradCAM")
"""Classes of ``pytorch_grad_cam``: all take a model and layers, and need one backward pass."""

Shapes = Mapping[str, tuple[int, ...]]

ActivationMap = Callable[[Tensor, int], Numbers]
"""From a batch of one, ``(1, C, H, W)``, and a class to a map ``(h, w)``, at least 0."""


def check_method(method: str | None) -> None:
    """Refuse a method that is none of those known, or for which the package is missing.

    Raises:
        SurgeryError: It is so.
    """
    if method is None:
        return
    if method not in METHODS:
        raise SurgeryError(
            f"method={method!r} is not supported{nearest(str(method), METHODS)}; accepted: "
            f"{', '.join(map(repr, METHODS))}, or None for no class activation maps"
        )
    need("pytorch_grad_cam", "grad-cam", "show")


def maps_of(model: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    """Run a model on one image; return each module's path -> the shape of the map it returned.

    Args:
        model: In evaluation mode.
        image: ``(1, C, H, W)``.

    Returns:
        Those that run once and return maps ``(1, c, h, w)`` with h * w > 1, in the order in which
        they end.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> maps_of(net, torch.zeros(1, 3, 6, 6))
        {'0': (1, 8, 4, 4)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    calls: dict[str, int] = {}

    def noting(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            if isinstance(output, Tensor) and output.dim() == 4 and len(output) == 1:
                shapes[path] = tuple(output.shape)

        return note

    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            if path:
                stack.enter_context(module.register_forward_hook(noting(path)))
        model(image)
    return {
        path: shape
        for path, shape in shapes.items()
        if calls[path] == 1 and shape[2] * shape[3] > 1
    }


def chosen_layer(host: Shapes, operated: Shapes, asked: str | None) -> str:
    """Return the layer whose maps are looked at: the last that both models have.

    Args:
        host: As `maps_of` tells it, of the host.
        operated: The same of the operated model.
        asked: The user's choice, the path of a module.

    Raises:
        SurgeryError: What was asked for gives no maps, or nothing does.

    Example:
        >>> maps = {"stem": (1, 8, 9, 9), "stage": (1, 8, 4, 4)}
        >>> chosen_layer(maps, {**maps, "stage.attn": (1, 8, 4, 4)}, None)
        'stage'
    """
    both = [path for path in host if operated.get(path) == host[path]]
    if not both:
        raise SurgeryError(
            "no module gives one map (N, C, H, W) with more than one position in both models, so "
            "there is nothing that a class activation map could show: method=None leaves it out"
        )
    if asked is None:
        return both[-1]
    if asked not in both:
        raise SurgeryError(
            f"layer={asked!r} gives no map (N, C, H, W) with more than one position, once in a "
            f"forward pass of both models{nearest(asked, both)}; {len(both)} modules do, the last "
            f"are {', '.join(map(repr, both[-3:]))}"
        )
    return asked


@contextmanager
def activation_maps(model: nn.Module, layer: str, method: str) -> Iterator[ActivationMap]:
    """Yield what makes class activation maps of a model.

    The maps are the method's own, before it scales each to its own greatest value, so that those of
    two models can be compared, and at the layer's own resolution.

    Args:
        model: In evaluation mode, whose parameters need no gradient: a copy.
        layer: The path of the module that gives the activations.
        method: One of `METHODS`.
    """
    library: Any = need("pytorch_grad_cam", "grad-cam", "show")
    module = model.get_submodule(layer)
    # as numbers that numpy knows, and copied: what follows may work in place
    cam = getattr(library, method)(
        Classifier(model), [module], reshape_transform=lambda maps: maps.detach().float().clone()
    )

    def activation_map(image: Tensor, target: int) -> Numbers:
        targets: Sequence[Any] = [library.utils.model_targets.ClassifierOutputTarget(target)]
        # no leaf, in which a model could not work in place
        image = image.detach().clone().requires_grad_().clone()
        cam(image, targets)
        seen = cam.activations_and_grads
        if not (seen.activations and seen.gradients):
            raise SurgeryError(f"no gradient reaches layer={layer!r}: name another layer")
        maps, gradients = seen.activations[0].numpy(), seen.gradients[0].numpy()
        made = cam.get_cam_image(image, module, targets, maps, gradients, False)
        return numpy.maximum(made[0], 0)

    try:
        with torch.enable_grad():
            yield activation_map
    finally:
        cam.activations_and_grads.release()


def share_moved(one: Numbers, other: Numbers) -> float:
    """Return which share of a map lies elsewhere in another, from 0 to 1: half the L1 distance.

    Each is divided by its sum before. NaN where one is zero everywhere.

    Example:
        >>> share_moved(numpy.array([2.0, 0.0]), numpy.array([1.0, 1.0]))
        0.5
    """
    if not (one.sum() > 0 and other.sum() > 0):
        return float("nan")
    return float(0.5 * numpy.abs(one / one.sum() - other / other.sum()).sum())
