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
from weakref import WeakValueDictionary

from torch import nn

from attn_surgery.bytecode import signature
from attn_surgery.errors import SurgeryError
from attn_surgery.fidelity import watched_attributes
from attn_surgery.former import back_for_a_while, former_of, formers, put_back
from attn_surgery.inserting import Insertion, UnfaithfulError
from attn_surgery.listening import listening
from attn_surgery.preserve import Attributes
from attn_surgery.rewrite import original, passing_on, renamed

HOST_FORWARD = "_host_forward"
"""Where the host's forward stays reachable, if patched on the instance also kept."""

INNER_FORWARD = "_forward_before_attention"

_SETTERS = (
    "__setattr__",
    "__delattr__",
    "add_module",
    "register_module",
    "register_parameter",
    "register_buffer",
)


@dataclass(frozen=True)
class Surgery:
    """What was done to one module."""

    base: type[nn.Module]
    insertions: tuple[Insertion, ...] = ()
    """Attentions within the forward, in the order of their insertion."""
    attached: tuple[str, ...] = ()
    """Names of the children through which the output passes, first to last."""
    attached_before: tuple[str, ...] = ()
    """Names of the children through which the first argument passes, first to last."""
    watched: frozenset[str] = frozenset()

    @property
    def attentions(self) -> tuple[str, ...]:
        """The names of all attentions among the module's children."""
        return (
            *(each.attention for each in self.insertions),
            *self.attached_before,
            *self.attached,
        )

    @property
    def is_around(self) -> bool:
        """Whether anything is attached, around the forward."""
        return bool(self.attached or self.attached_before)


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
        with back_for_a_while(module, formers(module, _present(module, done))):
            yield
    finally:
        set_class(module, operated)
        if patched is not None:
            own[HOST_FORWARD] = own.pop("forward")


def _present(module: nn.Module, done: Surgery) -> list[str]:
    # a module that is about to be operated on has not got its attentions yet
    return [name for name in done.attentions if name in module._modules]


def operated_class(module: nn.Module, done: Surgery, methods: dict[str, Any]) -> type[nn.Module]:
    """Make the one-off subclass that runs ``done``; the module itself is not touched.

    Args:
        module: Whose class it will be.
        done: What the class does.
        methods: The forward with the insertions of ``done``, where it has any.
    """
    base, patched = done.base, "forward" in vars(module) or HOST_FORWARD in vars(module)
    declared = tuple(map(str, _host_parameters(module))) if patched else ()
    key = (base, done, patched, declared, _identity(methods))
    known = _classes.get(key)
    if known is None:
        known = _classes[key] = _subclass(base, _body(module, done, methods, patched))
    return known


_classes: WeakValueDictionary[object, type[nn.Module]] = WeakValueDictionary()
"""Blocks and copies that were operated on alike share their class."""


def _identity(methods: dict[str, Any]) -> object:
    """Return what tells generated methods apart: their text, and the objects that they name."""
    return tuple(
        (name, method.__code__.co_filename, *_named_objects(method))
        for name, method in methods.items()
    )


def _named_objects(method: Any) -> list[tuple[str, int]]:
    known = method.__globals__
    return [(name, id(known[name])) for name in method.__code__.co_names if name in known]


def _body(
    module: nn.Module, done: Surgery, methods: dict[str, Any], patched: bool
) -> dict[str, Any]:
    base = done.base
    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_surgery": done,
        "__reduce_ex__": _reduce_ex,
        "__setstate__": _setstate,
        **{name: _renewing(name) for name in _SETTERS},
    }
    if hasattr(base, "__deepcopy__"):
        body["__deepcopy__"] = _deepcopy
    body |= methods
    if done.is_around:
        inner = HOST_FORWARD if patched and not methods else INNER_FORWARD
        if inner == INNER_FORWARD:
            body[inner] = renamed(body.get("forward", base.forward), inner)
        body["forward"] = passing_on(
            _host_parameters(module), inner, done.attached_before, done.attached
        )
    return body


def _host_parameters(module: nn.Module) -> list[inspect.Parameter]:
    with as_host(module):
        return list(signature(module.forward).parameters.values())


def _subclass(base: type[nn.Module], body: dict[str, Any]) -> type[nn.Module]:
    return types.new_class(base.__name__, (base,), exec_body=lambda scope: scope.update(body))


def renew(module: nn.Module, done: Surgery) -> None:
    """Give ``module`` the one-off class for ``done``, its forward traced anew.

    Raises:
        SurgeryError: The forward can no longer be rewritten, nor its children listened to.
    """
    methods: dict[str, Any] = {}
    if done.insertions:
        with as_host(module):
            methods = _methods_now(module, done)
            done = replace(done, watched=watched_attributes(module))
    change_class(module, operated_class(module, done, methods))


def _methods_now(module: nn.Module, done: Surgery) -> dict[str, Any]:
    """Rewrite the forward as it is now, or, where that is not faithful, listen to the children."""
    try:
        return original(module).with_attention(done.insertions).methods
    except UnfaithfulError as error:
        if all(each.after.kind == "child" and not each.into for each in done.insertions):
            body = {"forward": listening(done.insertions, HOST_FORWARD)}
            if "forward" not in vars(module):
                body[HOST_FORWARD] = done.base.forward
            return body
        raise SurgeryError(
            f"the forward of this {done.base.__name__} cannot be rewritten as it is now: {error}; "
            "call attn_surgery.remove first, change it, then apply again"
        ) from None


def change_class(module: nn.Module, operated: type[nn.Module]) -> None:
    """Give ``module`` its one-off class; a forward patched on the instance steps aside."""
    set_class(module, operated)
    if "forward" in vars(module):
        vars(module)[HOST_FORWARD] = vars(module).pop("forward")


def give_back(module: nn.Module) -> None:
    """Make an operated module what it was, without its attention."""
    done = _done(module)
    for name in reversed(done.attentions):
        attention = module._modules.pop(name)
        former = None if attention is None else former_of(attention)
        if attention is not None and former is not None and not former.is_slot:
            put_back(module, former, attention)
    set_class(module, _without_surgery(type(module)))
    if HOST_FORWARD in vars(module):
        vars(module)["forward"] = vars(module).pop(HOST_FORWARD)


def _without_surgery(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the host's class, and on it again what others derived from the one-off class since."""
    if "_surgery" in vars(cls):
        return vars(cls)["_surgery"].base
    body = {name: value for name, value in vars(cls).items() if name not in _CLASS_STATE}
    base = _without_surgery(cls.__bases__[0])
    return types.new_class(
        cls.__name__, (base, *cls.__bases__[1:]), exec_body=lambda scope: scope.update(body)
    )


_CLASS_STATE = ("__dict__", "__weakref__")


# Methods of every one-off class.


def _host_view(module: nn.Module) -> Any:
    """Return ``super()`` as the one-off class of ``module`` would, however it was subclassed."""
    operated = next(cls for cls in type(module).__mro__ if "_surgery" in vars(cls))
    return super(operated, module)


def _renewing(setter: str) -> Any:
    """Make the setter of the host trace the forward anew where that had read the attribute."""

    def set_and_renew(self: nn.Module, name: str, *args: Any, **kwargs: Any) -> None:
        done = _done(self)
        before = Attributes(self) if name in done.watched else None
        getattr(_host_view(self), setter)(name, *args, **kwargs)
        if before is not None:
            try:
                renew(self, done)
            except BaseException:
                before.restore()
                raise

    set_and_renew.__name__ = setter
    return set_and_renew


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
