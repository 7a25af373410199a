"""One module that runs attention within its own ``forward``, and can be itself again.

The module stays the object it was: it gets a one-off subclass of its class, whose ``forward`` is
rewritten (*rewrite*) or passes the host's output through the attention (*attach*). The attention is
a child. What is needed to do it again, after a copy or when an attribute that the trace had read
is set, is kept on the subclass.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from attn_surgery.bytecode import signature
from attn_surgery.errors import SurgeryError
from attn_surgery.rewrite import Insertion, Rewritten, UnfaithfulError, compiled, original

HOST_FORWARD = "_host_forward"


@dataclass(frozen=True)
class Surgery:
    """What was done to one module."""

    base: type[nn.Module]
    insertions: tuple[Insertion, ...] = ()
    """Attentions within the forward, in the order of their insertion."""
    attached: tuple[str, ...] = ()
    """Names of the children through which the output passes, first to last."""
    watched: frozenset[str] = frozenset()

    @property
    def attentions(self) -> tuple[str, ...]:
        """The names of all attentions among the module's children."""
        return (*(each.attention for each in self.insertions), *self.attached)


def surgery_of(module: nn.Module) -> Surgery | None:
    """Return what was done to ``module``, or None."""
    return getattr(type(module), "_surgery", None)


def set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of ``module`` without the ``__setattr__`` of either class."""
    object.__setattr__(module, "__class__", cls)


@contextmanager
def as_host(module: nn.Module) -> Iterator[None]:
    """Make an operated module its former self, its attention children apart, for a while."""
    done = surgery_of(module)
    if done is None:
        yield
        return
    operated, own = type(module), vars(module)
    patched = own.pop(HOST_FORWARD, None)
    if patched is not None:
        own["forward"] = patched
    set_class(module, done.base)
    try:
        yield
    finally:
        set_class(module, operated)
        if patched is not None:
            own[HOST_FORWARD] = own.pop("forward")


def operated_class(module: nn.Module, done: Surgery, forward: Rewritten | None) -> type[nn.Module]:
    """Make the one-off subclass that runs ``done``; the module itself is not touched.

    Args:
        module: Whose class it will be.
        done: What the class does.
        forward: The rewritten forward, where ``done`` has insertions.
    """
    base = done.base
    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_surgery": done,
        "__setattr__": _setattr,
        "__reduce_ex__": _reduce_ex,
        "__setstate__": _setstate,
    }
    if hasattr(base, "__deepcopy__"):
        body["__deepcopy__"] = _deepcopy
    if forward is not None:
        body |= forward.methods
    if done.attached:
        patched = "forward" in vars(module) or HOST_FORWARD in vars(module)
        if forward is not None or not patched:
            body[HOST_FORWARD] = body.get("forward", base.forward)
        body["forward"] = _passing_on(module, done.attached)
    return _subclass(base, body)


def _subclass(base: type[nn.Module], body: dict[str, Any]) -> type[nn.Module]:
    return types.new_class(base.__name__, (base,), exec_body=lambda scope: scope.update(body))


def _passing_on(module: nn.Module, attached: tuple[str, ...]) -> Any:
    """Compile a forward that passes the host's output through the attached children."""
    with as_host(module):
        parameters = list(signature(module.forward).parameters.values())
    result = f"self.{HOST_FORWARD}"
    known: dict[str, Any] = {}
    if any(each.kind is not each.POSITIONAL_OR_KEYWORD for each in parameters):
        head, result = "*args, **kwargs", f"{result}(*args, **kwargs)"
    else:
        head = ", ".join(_declared(each, known) for each in parameters)
        result = f"{result}({', '.join(each.name for each in parameters)})"
    for name in attached:
        result = f"self.{name}({result})"
    head = f"self, {head}" if head else "self"
    return compiled(f"def forward({head}):\n    return {result}\n", known, "forward")


def _declared(parameter: inspect.Parameter, known: dict[str, Any]) -> str:
    """Write a parameter with its annotation and default, which go into ``known``."""
    text = parameter.name
    if parameter.annotation is not parameter.empty and not isinstance(parameter.annotation, str):
        known[f"_type_of_{parameter.name}"] = parameter.annotation
        text += f": _type_of_{parameter.name}"
    if parameter.default is not parameter.empty:
        known[f"_default_of_{parameter.name}"] = parameter.default
        text += f" = _default_of_{parameter.name}"
    return text


def renew(module: nn.Module, done: Surgery) -> None:
    """Give ``module`` the one-off class for ``done``, its forward traced anew.

    Raises:
        SurgeryError: The forward can no longer be rewritten.
    """
    forward = None
    if done.insertions:
        try:
            with as_host(module):
                forward = original(module).with_attention(done.insertions)
        except UnfaithfulError as error:
            raise SurgeryError(
                f"the forward of this {done.base.__name__} cannot be rewritten as it is now: "
                f"{error}; call attn_surgery.remove first, change it, then apply again"
            ) from None
        done = replace(done, watched=forward.watched)
    change_class(module, operated_class(module, done, forward))


def change_class(module: nn.Module, operated: type[nn.Module]) -> None:
    """Give ``module`` its one-off class; a forward patched on the instance steps aside."""
    set_class(module, operated)
    if "forward" in vars(module):
        vars(module)[HOST_FORWARD] = vars(module).pop("forward")


def give_back(module: nn.Module) -> None:
    """Make an operated module what it was, without its attention."""
    done = _done(module)
    for name in done.attentions:
        del module._modules[name]
    set_class(module, done.base)
    if HOST_FORWARD in vars(module):
        vars(module)["forward"] = vars(module).pop(HOST_FORWARD)


# Methods of every one-off class.


def _host_view(module: nn.Module) -> Any:
    """Return ``super()`` as the one-off class of ``module`` would, however it was subclassed."""
    operated = next(cls for cls in type(module).__mro__ if "_surgery" in vars(cls))
    return super(operated, module)


def _setattr(self: nn.Module, name: str, value: Any) -> None:
    _host_view(self).__setattr__(name, value)
    done = _done(self)
    if name in done.watched:
        renew(self, done)


def _setstate(self: nn.Module, state: Any) -> None:
    _host_view(self).__setstate__(state)
    renew(self, _done(self))


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    done = _done(self)
    if not _is_copied_by_its_state(done.base):
        return (_again, (_twin(self, done), done, _attentions(self, done)))
    with as_host(self):
        reduced: Any = object.__reduce_ex__(self, protocol)
    return (_blank, (done,), *reduced[2:])


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    done = _done(self)
    twin = copy.deepcopy(_twin(self, done), memo)
    memo[id(self)] = twin
    return _again(twin, done, copy.deepcopy(_attentions(self, done), memo))


def _done(module: nn.Module) -> Surgery:
    return type(module)._surgery  # pyright: ignore[reportAttributeAccessIssue]


def _is_copied_by_its_state(base: type) -> bool:
    return (
        base.__reduce_ex__ is object.__reduce_ex__
        and base.__reduce__ is object.__reduce__
        and not hasattr(base, "__deepcopy__")
    )


def _blank(done: Surgery) -> nn.Module:
    """Make an operated module whose state is to come."""
    body = {"_surgery": done, "__setstate__": _setstate}
    return object.__new__(_subclass(done.base, body))


def _twin(module: nn.Module, done: Surgery) -> nn.Module:
    """Return the module's former self, sharing all its attributes, for its own way of copying."""
    twin = object.__new__(done.base)
    vars(twin).update(vars(module))
    if HOST_FORWARD in vars(twin):
        vars(twin)["forward"] = vars(twin).pop(HOST_FORWARD)
    return twin


def _attentions(module: nn.Module, done: Surgery) -> dict[str, nn.Module]:
    return {name: module.get_submodule(name) for name in done.attentions}


def _again(module: nn.Module, done: Surgery, attentions: dict[str, nn.Module]) -> nn.Module:
    """Operate on a copy of the former self, which may have left its attention behind."""
    for name, attention in attentions.items():
        if name not in module._modules:
            module.add_module(name, attention)
    renew(module, replace(done, base=type(module)))
    return module
