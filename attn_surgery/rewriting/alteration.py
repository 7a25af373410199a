"""What was done to a module, and the module as it was before: for a while, or as a twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from attn_surgery.host import put_back_afterwards
from attn_surgery.rewriting.derived_classes import rebased
from attn_surgery.rewriting.insertion import Insertion
from attn_surgery.rewriting.replaced_modules import all_replaced, back_for_a_while, in_order
from attn_surgery.rewriting.wrapped_source import Wrapping

HOST_FORWARD = "_host_forward"
"""Where the host's forward stays reachable, if patched on the instance also kept."""


@dataclass(frozen=True)
class Alteration:
    """What was done to one module."""

    base: type[nn.Module]
    insertions: tuple[Insertion, ...] = ()
    """Attentions within the forward, in the order of their insertion."""
    attached: tuple[str, ...] = ()
    """Names of the children through which the output passes, first to last."""
    attached_before: tuple[str, ...] = ()
    """Names of the children through which the first argument passes, first to last."""
    wrappings: tuple[Wrapping, ...] = ()
    """Attentions around expressions in the host's own methods, in the order of their insertion."""
    watched: frozenset[str] = frozenset()
    """The attributes that the forward reads."""
    watches_children: bool = False
    """Whether the forward goes by what children there are, as a loop over them does."""

    @property
    def attentions(self) -> tuple[str, ...]:
        """The names of all attentions among the module's children."""
        return (
            *(each.attention for each in (*self.insertions, *self.wrappings)),
            *self.attached_before,
            *self.attached,
        )

    @property
    def is_around(self) -> bool:
        """Whether anything is attached, around the forward."""
        return bool(self.attached or self.attached_before)


def alteration_of(module: nn.Module) -> Alteration | None:
    """Return what was done to ``module``, or None."""
    return getattr(type(module), "_surgery", None)


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of ``module`` without the ``__setattr__`` of either class."""
    object.__setattr__(module, "__class__", cls)


Renew: TypeAlias = Callable[[nn.Module, Alteration], None]
"""Gives a module the one-off class for what was done to it, made anew."""


@contextmanager
def as_host(module: nn.Module) -> Iterator[None]:
    """Make an operated module the host it was, its attention children apart, for a while."""
    done = alteration_of(module)
    if done is None:
        yield
        return
    # a module that is about to be operated on has not got its attentions yet
    present = [name for name in done.attentions if name in module._modules]
    back = all_replaced(module, present)
    with in_host_class(module, done), _apart(module, present), back_for_a_while(module, back):
        yield


@contextmanager
def in_host_class(module: nn.Module, done: Alteration) -> Iterator[None]:
    """Give an operated module its host's class and forward for a while."""
    operated, own = type(module), vars(module)
    patched = own.get(HOST_FORWARD)

    def put_back() -> None:
        set_class(module, operated)
        if patched is not None:
            own.pop("forward", None)
            own[HOST_FORWARD] = patched

    with put_back_afterwards(put_back):
        if patched is not None:
            own["forward"] = own.pop(HOST_FORWARD)
        set_class(module, host_class(module, done))
        yield


@contextmanager
def _apart(module: nn.Module, names: list[str]) -> Iterator[None]:
    """Hold the children of these names out of the module for a while."""
    children = module._modules
    before = dict(children)
    held = {name: before[name] for name in names}

    def put_back() -> None:
        in_order(children, list(before), {**children, **held})

    with put_back_afterwards(put_back):
        for name in names:
            del children[name]
        yield


def twin(module: nn.Module, done: Alteration) -> nn.Module:
    """Return the host that ``module`` was, with all of its attributes and none of its attentions.

    What happens to the twin's children does not happen to those of the module.
    """
    found = object.__new__(host_class(module, done))
    vars(found).update(vars(module))
    children = ((n, each) for n, each in module._modules.items() if n not in done.attentions)
    vars(found)["_modules"] = type(module._modules)(children)
    if HOST_FORWARD in vars(found):
        vars(found)["forward"] = vars(found).pop(HOST_FORWARD)
    return found


def alteration_in(module: nn.Module) -> Alteration:
    """Return what was done to ``module``, which was operated on."""
    return type(module)._surgery  # pyright: ignore[reportAttributeAccessIssue]


def class_of_surgery(module: nn.Module) -> type[nn.Module]:
    """Return the one-off class of ``module``, which others may have derived from since."""
    return next(cls for cls in type(module).__mro__ if "_surgery" in vars(cls))


def host_class(module: nn.Module, done: Alteration) -> type[nn.Module]:
    """Return the class that ``module`` would have without the surgery."""
    return rebased(type(module), class_of_surgery(module), done.base)


def host_view(module: nn.Module) -> Any:
    """Return ``super()`` as the one-off class of ``module`` would, however it was subclassed."""
    return super(class_of_surgery(module), module)
