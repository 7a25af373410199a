"""From a model's name to the model.

=========================  =========================================================
name                       model
=========================  =========================================================
``resnet50``               timm's model of that name, else torchvision's
``timm/NAME``              timm's; NAME may carry a pretrained tag (``resnet50.a1_in1k``)
``torchvision/NAME``       torchvision's, of any task; quantizable ones in floating point
``package.module:attr``    what a callable returns, or the model that is there; found from the
                           current directory too
=========================  =========================================================

Planning and counting need shapes, not numbers, so models are built on the meta device unless
somebody wants their weights.
"""

import contextlib
import functools
import importlib
import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torchvision
from torch import nn

from attn_surgery.errors import SurgeryError, nearest, one_line
from attn_surgery.host.files import load_weights

Builder = Callable[..., object]
"""Builds one model, perhaps with keywords; what it returns is checked."""


def load_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    device: Literal["meta"] | None = "meta",
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the model called ``name``.

    Args:
        name: ``resnet50``, ``timm/NAME``, ``torchvision/NAME`` or ``package.module:callable``.
        pretrained: Download and load the library's default weights (or those of timm's tag).
        checkpoint: A file with a state dict (``.safetensors``, else what ``torch.save`` wrote),
            bare or under ``state_dict`` or ``model``, with or without ``module.`` prefixes.
            Every key has to fit.
        device: ``"meta"`` builds without memory for weights. A constructor that needs real
            numbers runs on the CPU and its parameters and buffers move to meta afterwards.
            ``None``, or any request for weights, builds on the CPU.
        options: Keywords for the library's builder, or for the callable.

    Returns:
        The model, in training mode, as its library returns it.

    Raises:
        SurgeryError: Unknown name, a constructor that fails, or weights that do not fit.

    Example:
        >>> load_model("torchvision/resnet18").fc
        Linear(in_features=512, out_features=1000, bias=True)
        >>> load_model("resnet5O")
        Traceback (most recent call last):
        ...
        attn_surgery.errors.SurgeryError: unknown model 'resnet5O'; did you mean 'resnet50'?
    """
    if pretrained or checkpoint is not None:
        device = None
    with _current_directory_importable():
        build = functools.partial(_builder(name, pretrained=pretrained), **(options or {}))
        model = _build_on_meta(name, build) if device == "meta" else _build(name, build)
    if checkpoint is not None:
        load_weights(model, Path(checkpoint), name)
    return model


# Names to builders


@dataclass(frozen=True)
class _Library:
    names: Callable[[], list[str]]
    knows: Callable[[str], bool]
    builder: Callable[[str, bool], Builder]


def _timm_knows(arch: str) -> bool:
    # timm reads "folder/arch" and "hf-hub:arch" as the arch alone.
    return not set("/:\\") & set(arch) and timm.is_model(arch)


def _timm_builder(arch: str, pretrained: bool) -> Builder:
    return functools.partial(timm.create_model, arch, pretrained=pretrained)


def _torchvision_knows(arch: str) -> bool:
    return arch in torchvision.models.list_models()


def _torchvision_builder(arch: str, pretrained: bool) -> Builder:
    accepted = inspect.signature(torchvision.models.get_model_builder(arch)).parameters
    options: dict = {"weights": "DEFAULT" if pretrained else None}
    if "weights_backbone" in accepted:
        options["weights_backbone"] = None
    if "quantize" in accepted:
        options["quantize"] = False
    if arch.endswith(("googlenet", "inception_v3")) and not pretrained:
        # Left open, the two warn that their slow default initialisation will change.
        options["init_weights"] = False
    return functools.partial(torchvision.models.get_model, arch, **options)


_LIBRARIES = {  # in the order in which a bare name is looked up
    "timm": _Library(timm.list_models, _timm_knows, _timm_builder),
    "torchvision": _Library(
        torchvision.models.list_models, _torchvision_knows, _torchvision_builder
    ),
}


def _builder(name: str, *, pretrained: bool) -> Builder:
    """Return the function that builds ``name``."""
    prefix, slash, arch = name.partition("/")
    if slash and prefix in _LIBRARIES:
        library = _LIBRARIES[prefix]
        if not library.knows(arch):
            raise SurgeryError(f"unknown {prefix} model {arch!r}{nearest(arch, library.names())}")
        return library.builder(arch, pretrained)
    if ":" in name:
        if pretrained:
            raise SurgeryError(
                f"{name!r} is your own code: pretrained weights come from its callable "
                "or from a checkpoint file"
            )
        return _imported_builder(name)
    for library in _LIBRARIES.values():
        if library.knows(name):
            return library.builder(name, pretrained)
    known = [arch for library in _LIBRARIES.values() for arch in library.names()]
    hint = nearest(name, known) or "; a model of your own is package.module:callable"
    raise SurgeryError(f"unknown model {name!r}{hint}")


def _imported_builder(name: str) -> Builder:
    """Import the callable of ``package.module:attr``."""
    module_name, _, attribute = name.partition(":")
    try:
        builder = operator.attrgetter(attribute)(importlib.import_module(module_name))
    except Exception as error:
        raise SurgeryError(f"cannot import {name!r}: {one_line(error)}") from error
    if isinstance(builder, nn.Module):
        return functools.partial(_built_already, name, builder)
    if not callable(builder):
        raise SurgeryError(f"{name!r} is a {type(builder).__name__}, not a callable")
    return builder


def _built_already(name: str, model: nn.Module, **options: Any) -> nn.Module:
    if options:
        raise SurgeryError(f"{name!r} is a model, built already: it takes no options")
    return model


@contextlib.contextmanager
def _current_directory_importable() -> Iterator[None]:
    """Put the current directory on the import path, as ``python -m`` does."""
    entry = str(Path.cwd())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


# Building


def _build_on_meta(name: str, build: Builder) -> nn.Module:
    try:
        with torch.device("meta"):
            return _checked(name, build())
    except SurgeryError:
        raise
    except Exception:
        # Some constructors read numbers back (`.item()`, numpy), which meta tensors do not have.
        # If this was no such error, building on the CPU raises it again.
        return _build(name, build).to("meta")


def _build(name: str, build: Builder) -> nn.Module:
    try:
        model = build()
    except Exception as error:
        raise SurgeryError(f"cannot build {name!r}: {one_line(error)}") from error
    return _checked(name, model)


def _checked(name: str, model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"{name!r} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


# Checkpoints
