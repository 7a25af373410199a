"""Inserted attention that is compiled where it stands, while its host goes on in eager mode."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from attn_surgery.errors import SurgeryError
from attn_surgery.surgery.verbs import inserted


def compile_attention(model: nn.Module, **options: Any) -> nn.Module:
    """Compile what ``apply`` inserted, and only that, in place.

    Attention is many small steps over one map, which a compiler fuses; the host stays as it is,
    with its hooks, its control flow and its speed. Attentions that are alike are compiled once,
    when the first of them runs, for all sizes and batches (once more for a batch of one, for maps
    that are not square, and with gradients). Where the whole model is traced, exported or compiled,
    its attention takes part in that uncompiled.

    It is undone by ``remove``, or by ``compile_attention(model, disable=True)``. Copies and pickles
    of the model are compiled, too; keys, parameters and hooks are as before. Like all that
    ``torch.compile`` makes, it has no second derivatives.

    Args:
        model: A host that was operated on.
        **options: For ``torch.compile``; ``dynamic`` is True unless given.

    Returns:
        The model itself.

    Raises:
        SurgeryError: Nothing is inserted, or an attention is scripted.

    Example:
        >>> import torchvision, attn_surgery
        >>> host = attn_surgery.apply(torchvision.models.resnet18(), "se")
        >>> keys = list(host.state_dict())
        >>> attn_surgery.compile_attention(host, backend="eager") is host
        True
        >>> keys == list(host.state_dict())
        True
    """
    attentions = inserted(model)
    if not attentions:
        raise SurgeryError("nothing is inserted that could be compiled: call apply before")
    for path, attention in attentions.items():
        if isinstance(attention, torch.jit.ScriptModule):
            raise SurgeryError(f"{path} is scripted, and runs no Python that could be compiled")
    for attention in attentions.values():
        vars(attention)["forward"] = CompiledForward(attention, options)
    return model


class CompiledForward:
    """Stands for the forward of one attention.

    Args:
        attention: Whose.
        options: For ``torch.compile``.
    """

    def __init__(self, attention: nn.Module, options: Mapping[str, Any]):
        self.attention = attention
        self.options = _in_the_layout_given({"dynamic": True, **options})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, plainly where somebody follows what it does."""
        plain = type(self.attention).forward
        run = plain if _is_followed((args, kwargs)) else self._compiled
        return run(self.attention, *args, **kwargs)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        return _compiled(_Kind.of(self.attention), _Options(self.options))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is compiled, which is made anew."""
        return {"attention": self.attention, "options": self.options}


def _in_the_layout_given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, with which inductor leaves maps in the layout that they come in.

    It would bring them into channels last for the sake of convolutions, which in attention are on
    what is left of a map; and what it keeps for the backward pass in another layout fits one size
    of maps alone (pytorch/pytorch#194420).
    """
    mode, chosen = options.get("mode"), options.get("options")
    if options.get("backend", "inductor") != "inductor" or (mode and chosen):
        return options
    if mode:
        chosen = torch._inductor.list_mode_options(mode)
    return {**options, "mode": None, "options": {"layout_optimization": False, **(chosen or {})}}


def _is_followed(given: Any) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True
    return any(isinstance(each, fx.Proxy) for each in tree_leaves(given))


@dataclass(frozen=True)
class _Kind:
    """Equal for attentions that compile to the same."""

    forward: Callable[..., Any]
    shown: str
    shapes: tuple[tuple[str, torch.Size], ...]

    @classmethod
    def of(cls, attention: nn.Module) -> _Kind:
        held = attention.state_dict().items()
        shapes = tuple((key, each.shape) for key, each in held)
        return cls(type(attention).forward, str(attention), shapes)


class _Options(dict[str, Any]):
    """Equal where their values are the same ones, or print alike."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@functools.cache
def _compiled(kind: _Kind, options: _Options) -> Callable[..., Any]:
    """Compile a forward of a kind's own.

    What was compiled belongs to a function's code, which has a limit beyond which it runs
    uncompiled; so that many kinds do not share it, each has a copy.
    """
    forward = kind.forward
    if isinstance(forward, types.FunctionType):
        own = types.FunctionType(
            forward.__code__.replace(),
            forward.__globals__,
            forward.__name__,
            forward.__defaults__,
            forward.__closure__,
        )
        own.__kwdefaults__ = forward.__kwdefaults__
        forward = own
    return torch.compile(forward, **options)
