"""From a model and images to what is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attn_surgery.errors import SurgeryError
from attn_surgery.host import guess_input
from attn_surgery.showing.activation_maps import (
    ActivationMap,
    activation_maps,
    check_method,
    chosen_layer,
    maps_of,
)
from attn_surgery.showing.exhibits import Response, Shown, SiteGates
from attn_surgery.showing.gallery import Gallery
from attn_surgery.showing.images import Given, opened
from attn_surgery.showing.pair import Pair, Run
from attn_surgery.showing.predictions import Target, class_names, targets_of
from attn_surgery.showing.transforms import Transform, default_transform
from attn_surgery.surgery import origin_of


def show(
    model: nn.Module,
    images: Any,
    *,
    host: nn.Module | None = None,
    transform: Transform | None = None,
    labels: Sequence[object] | None = None,
    classes: str | Sequence[str] | None = None,
    target: Target | Sequence[Target] | None = None,
    layer: str | None = None,
    method: str | None = "GradCAM",
    name: str = "",
) -> Gallery:
    """Show what inserted attention does to images, beside the host.

    Images are run one by one, in evaluation mode, through copies of both models. Of every attention
    is measured, by what goes in and what comes out, whatever it is: the gate of each channel and of
    each position, which is the least-squares gain ``<out, in> / <in, in>`` over the map, or over
    the channels; and the change, ``|out - in| / |in|``, which also holds what of an attention is
    no gain. 1 and 0 are the identity.

    Class activation maps are those of the package ``grad-cam``, for the same class in both models,
    on one scale for both.

    Args:
        model: A host that was operated on.
        images: A tensor ``(N, C, *spatial)`` as the model takes it; or files, a folder (the names
            of its subfolders are labels), PIL images, arrays ``(H, W, 3)`` of uint8, tensors
            ``(C, *spatial)``; or a mapping from names to these.
        host: The model beside it; by default ``model`` without its attention, which is not the
            host of before where training changed more than attention.
        transform: What makes ``(C, H, W)`` of a PIL image; by default timm's or torchvision's
            own for the model, and where that cannot be told the usual one of ImageNet (the
            shorter side to 256, the central 224 x 224, normalised): then give the one that the
            host was trained with, as ``weights.transforms()`` of torchvision.
        labels: The class of each image, to compare gates by class.
        classes: The names of the model's classes, or ``"imagenet"``; by default what timm or
            torchvision says, if anything.
        target: The class that activation maps explain: a number or a name, or one for each image.
            By default the host's most probable one, for both models.
        layer: The module whose maps are looked at, as ``"layer4.1"``; by default the last that
            gives maps ``(N, C, H, W)`` of more than one position.
        method: ``GradCAM``, ``GradCAMPlusPlus``, ``HiResCAM``, ``LayerCAM`` or ``XGradCAM``; None
            for no activation maps, which needs no ``grad-cam``.
        name: What to call the model; by default its class. By torchvision's name its transform and
            its classes are known, too.

    Returns:
        A gallery: print it, ``.save`` it as a sheet, a page or arrays.

    Raises:
        SurgeryError: The model holds no attention, an image cannot be read or run, an argument
            does not fit, or a package is missing.

    Example:
        >>> import torch, torchvision, attn_surgery
        >>> host = torchvision.models.resnet18()
        >>> model = attn_surgery.apply(host, "se", where="layer4.*")
        >>> gallery = attn_surgery.show(model, torch.rand(2, 3, 64, 64))
        >>> gallery.layer, [site.block for site in gallery.sites], gallery.sites[0].change
        ('layer4', ['layer4.0', 'layer4.1'], 0.0)
        >>> gallery.images[0].host.activation_map.shape
        (2, 2)
    """
    check_method(method)
    with _plainly():
        pair = Pair(model, host)
        usual, whose = default_transform(pair.operated, name)
        mode = "L" if guess_input(pair.operated).shapes[0][0] == 1 else "RGB"
        given = opened(images, transform or usual, mode, labels)
        runs = [pair.run(each) for each in given]
        names = _names(runs, classes, pair.operated, name)
        why_none = _why_no_maps(runs, method)
        _refuse_what_is_idle(why_none, layer=layer, target=target)
        targets = targets_of(target, len(given), names)
        looked_at = None if why_none else _layer(pair, runs[0].image, layer)
        shown = _shown(pair, given, runs, targets, looked_at, method)
        sites, left_out = _sites(pair, runs)
    notes = [
        f"host: {_told_of_host(pair, host)}",
        *(
            [f"transform: {'as given' if transform else whose}"]
            * any(e.is_transformed for e in given)
        ),
        why_none or f"class activation maps: {method} of {looked_at!r}, {_told_of(target)}",
        *([f"no predictions: {_returned(runs)}"] * (not names)),
        *left_out,
    ]
    return Gallery(
        model=name or type(pair.operated).__name__,
        sites=sites,
        images=shown,
        classes=tuple(names),
        layer=looked_at,
        method=method if looked_at else None,
        notes=tuple(notes),
    )


@contextmanager
def _plainly() -> Iterator[None]:
    """Compute without gradients, unless they are asked for, and without what is compiled."""
    eager: Any = torch.compiler.set_stance("force_eager")
    with torch.inference_mode(False), torch.no_grad(), eager:
        yield


# Predictions


def _names(
    runs: Sequence[Run], classes: str | Sequence[str] | None, model: nn.Module, name: str
) -> list[str]:
    """Return the names of the classes; none where a model returns no logits."""
    host, operated = runs[0].host, runs[0].operated
    if host is None or operated is None:
        return []
    if len(host) != len(operated):
        raise SurgeryError(
            f"the host has {len(host)} classes, and the model {len(operated)}: give the host with "
            "the head that it was fine-tuned with"
        )
    return class_names(classes, len(host), model, name)


def _returned(runs: Sequence[Run]) -> str:
    return f"the model returns {runs[0].returned}, not logits (N, classes)"


# Class activation maps


def _why_no_maps(runs: Sequence[Run], method: str | None) -> str:
    dims = runs[0].image.dim() - 2
    if method is None:
        return "no class activation maps: method=None"
    if dims != 2:
        return f"no class activation maps: they are for 2 dims of space, and the images have {dims}"
    if runs[0].host is None or runs[0].operated is None:
        return f"no class activation maps: {_returned(runs)}"
    return ""


def _refuse_what_is_idle(why_none: str, **asked: object) -> None:
    """Refuse arguments for activation maps where there are none."""
    for name, value in asked.items():
        if why_none and value is not None:
            raise SurgeryError(f"{name}={value!r} is for activation maps, but there are {why_none}")


def _layer(pair: Pair, image: Tensor, asked: str | None) -> str:
    return chosen_layer(maps_of(pair.host, image), maps_of(pair.operated, image), asked)


def _told_of(target: Target | Sequence[Target] | None) -> str:
    return "of the host's most probable class" if target is None else "of the class asked for"


def _shown(
    pair: Pair,
    given: Sequence[Given],
    runs: Sequence[Run],
    targets: Sequence[int | None],
    layer: str | None,
    method: str | None,
) -> tuple[Shown, ...]:
    with (
        _mapping(pair.host, layer, method) as of_host,
        _mapping(pair.operated, layer, method) as own,
    ):
        found = []
        for each, run, target in zip(given, runs, targets, strict=True):
            if target is None and run.host is not None:
                target = int(run.host.argmax())
            host = _response(run.host, run.image, target, of_host)
            operated = _response(run.operated, run.image, target, own)
            found.append(Shown(each.name, each.label, each.picture, host, operated))
    return tuple(found)


@contextmanager
def _mapping(
    model: nn.Module, layer: str | None, method: str | None
) -> Iterator[ActivationMap | None]:
    """Yield what makes class activation maps, or None."""
    if layer is None or method is None:
        yield None
    else:
        with activation_maps(model, layer, method) as made:
            yield made


def _response(
    logits: Tensor | None, image: Tensor, target: int | None, made: ActivationMap | None
) -> Response:
    probabilities = None if logits is None else logits.softmax(0).numpy()
    if made is None or target is None:
        return Response(probabilities, None, None)
    return Response(probabilities, target, made(image, target))


# Sites and host


def _sites(pair: Pair, runs: Sequence[Run]) -> tuple[tuple[SiteGates, ...], list[str]]:
    """Return the gates of each attention that ran for every image, and notes on the others."""
    found, idle = [], []
    for path, attention in pair.attentions.items():
        gates = [run.gates[path] for run in runs if path in run.gates]
        if len(gates) < len(runs):
            idle.append(f"{path}: left out, it ran for {len(gates)} of {len(runs)} images")
            continue
        origin = origin_of(attention)
        block = path.rpartition(".")[0] if origin is None else origin.site.block
        kind = type(attention).__name__ if origin is None else str(origin.assignment)
        found.append(SiteGates(path, block, kind, tuple(gates)))
    if not found:
        raise SurgeryError(f"no attention ran: {'; '.join(idle)}")
    return tuple(found), idle


def _told_of_host(pair: Pair, host: nn.Module | None) -> str:
    if host is None:
        return "the model without its attention"
    if differing := pair.differing():
        return (
            f"as given; {len(differing)} of its tensors differ from the model's, "
            f"{differing[0]!r} the first, so that not all is the attention's doing"
        )
    return "as given; the model differs from it in attention alone"
