"""One module that runs attention within its own ``forward``, and can be itself again.

The module stays the object it was: it gets a one-off subclass of its class, whose ``forward`` is
rewritten (*rewrite*) or passes the host's output through the attention (*attach*). The attention is
a child. What is needed to do it again, after a copy or when an attribute that the trace had read
is set, is kept on the subclass.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

from attn_surgery.errors import SurgeryError
from attn_surgery.host import entry_name, parameters_of, renamed, watched_attributes
from attn_surgery.rewriting.alteration import (
    HOST_FORWARD,
    Alteration,
    alteration_in,
    alteration_of,
    as_host,
    class_of_surgery,
    host_class,
    host_view,
    in_host_class,
    set_class,
    twin,
)
from attn_surgery.rewriting.attached_forward import passing_on
from attn_surgery.rewriting.containers import container_methods
from attn_surgery.rewriting.derived_classes import class_beneath, rebased
from attn_surgery.rewriting.generated_forward import original
from attn_surgery.rewriting.hooks import listening
from attn_surgery.rewriting.insertion import UnfaithfulError
from attn_surgery.rewriting.replaced_modules import put_back, replaced_by
from attn_surgery.rewriting.unannounced_class import unannounced_class
from attn_surgery.rewriting.watched_attributes import watching_setters
from attn_surgery.rewriting.wrapped_source import wrapped_methods

INNER_FORWARD = "_forward_before_attention"


def operated_class(module: nn.Module, done: Alteration, methods: dict[str, Any]) -> type[nn.Module]:
    """Make the one-off subclass that runs ``done``; the module itself is not touched.

    Args:
        module: Whose class it will be.
        done: What the class does.
        methods: The forward with the insertions of ``done``, where it has any.
    """
    base, patched = done.base, _is_patched(module, done.base)
    declared = tuple(map(str, _host_parameters(module))) if patched else ()
    key = (base, done, patched, declared, _identity(methods))
    known = _classes.get(key)
    if known is None:
        known = _classes[key] = _subclass(base, _body(module, done, methods, patched))
    return known


_classes: WeakValueDictionary[object, type[nn.Module]] = WeakValueDictionary()
"""Blocks and copies that were operated on alike share their class."""


def _identity(methods: dict[str, Any]) -> object:
    """Return what tells generated methods apart: their code, and the objects that they know."""
    return tuple(
        (name, method.__code__.co_filename, method.__code__, *_known_objects(method))
        for name, method in methods.items()
    )


def _known_objects(method: Any) -> list[tuple[str, int]]:
    scope, code = method.__globals__, method.__code__
    globals_ = [(name, id(scope[name])) for name in code.co_names if name in scope]
    cells = zip(code.co_freevars, map(id, method.__closure__ or ()), strict=True)
    defaults = [("", id(each)) for each in method.__defaults__ or ()]
    return [*globals_, *cells, *defaults]


def _body(
    module: nn.Module, done: Alteration, methods: dict[str, Any], patched: bool
) -> dict[str, Any]:
    base = done.base
    body: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "_surgery": done,
        "__reduce_ex__": _reduce_ex,
        "__setstate__": _setstate,
        **watching_setters(renew),
        **container_methods(base, renew),
    }
    if hasattr(base, "__deepcopy__"):
        body["__deepcopy__"] = _deepcopy
    body |= methods
    if done.is_around:
        own = entry_name(base)
        inner = HOST_FORWARD if patched and own not in methods else INNER_FORWARD
        if inner == INNER_FORWARD:
            body[inner] = renamed(body.get(own, getattr(base, own)), inner)
        body[own] = passing_on(_host_parameters(module), inner, done.attached_before, done.attached)
    return body


def _host_parameters(module: nn.Module) -> list[inspect.Parameter]:
    with as_host(module):
        return parameters_of(module)


def _is_patched(module: nn.Module, base: type[nn.Module]) -> bool:
    """Tell whether the forward that calls run is one that was set on the instance."""
    own = vars(module)
    return entry_name(base) == "forward" and ("forward" in own or HOST_FORWARD in own)


def _subclass(base: type[nn.Module], body: dict[str, Any]) -> type[nn.Module]:
    return unannounced_class(base.__name__, (base,), body)


def renew(module: nn.Module, done: Alteration) -> None:
    """Give ``module`` the one-off class for ``done``, its forward traced anew.

    Raises:
        SurgeryError: The forward can no longer be rewritten, nor its children listened to.
    """
    methods: dict[str, Any] = {}
    if done.insertions or done.wrappings:
        with as_host(module):
            methods, watches_children = _methods_now(module, done)
            watched = watched_attributes(module) if done.insertions else frozenset(methods)
        done = replace(done, watched=watched, watches_children=watches_children)
    change_class(module, operated_class(module, done, methods))


def _methods_now(module: nn.Module, done: Alteration) -> tuple[dict[str, Any], bool]:
    """Rewrite the forward as it is now, or, where that is not faithful, listen to the children.

    Returns:
        The methods, and whether they go by what children there are.
    """
    try:
        if done.wrappings:
            return wrapped_methods(module, done.wrappings), False
        forward = original(module).with_attention(done.insertions)
    except UnfaithfulError as error:
        follow_children = not done.wrappings and all(
            each.after.kind == "child" and not each.into for each in done.insertions
        )
        if follow_children and not done.watches_children:
            return _listening(module, done), False
        raise SurgeryError(
            f"the forward of this {done.base.__name__} cannot be rewritten as it is now: {error}; "
            "call attn_surgery.remove first, change it, then apply again"
        ) from None
    return forward.methods, forward.watches_children


def _listening(module: nn.Module, done: Alteration) -> dict[str, Any]:
    own = entry_name(done.base)
    body: dict[str, Any] = {own: listening(done.insertions, HOST_FORWARD)}
    if not _is_patched(module, done.base):
        body[HOST_FORWARD] = getattr(done.base, own)
    return body


def change_class(module: nn.Module, operated: type[nn.Module]) -> None:
    """Give ``module`` its one-off class; a forward patched on the instance steps aside for its own.

    Where attention is in a method alone that the patched forward calls, that forward stays.
    """
    now = type(module)
    before = class_beneath(now) if alteration_of(module) is None else class_of_surgery(module)
    set_class(module, rebased(now, before, operated))
    if _is_patched(module, operated) and {"forward"} <= vars(module).keys() & vars(operated).keys():
        vars(module)[HOST_FORWARD] = vars(module).pop("forward")


def give_back(module: nn.Module) -> None:
    """Make an operated module what it was, without its attention."""
    done = alteration_in(module)
    for name in reversed(done.attentions):
        attention = module._modules.pop(name)
        replaced = None if attention is None else replaced_by(attention)
        if attention is not None and replaced is not None and not replaced.is_slot:
            put_back(module, replaced, attention)
    set_class(module, host_class(module, done))
    if HOST_FORWARD in vars(module):
        vars(module)["forward"] = vars(module).pop(HOST_FORWARD)


# Methods of every one-off class.


def _setstate(self: nn.Module, state: Any) -> None:
    host_view(self).__setstate__(state)
    renew(self, alteration_in(self))


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    done = alteration_in(self)
    if not _is_copied_by_its_state(done.base):
        return (_again, (twin(self, done), done, _attentions(self, done)))
    with in_host_class(self, done):
        reduced: Any = object.__reduce_ex__(self, protocol)
    return (_blank, (done,), *reduced[2:])


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    done = alteration_in(self)
    copied = copy.deepcopy(twin(self, done), memo)
    memo[id(self)] = copied
    return _again(copied, done, copy.deepcopy(_attentions(self, done), memo))


def _is_copied_by_its_state(base: type) -> bool:
    return (
        base.__reduce_ex__ is object.__reduce_ex__
        and base.__reduce__ is object.__reduce__
        and not hasattr(base, "__deepcopy__")
    )


def _blank(done: Alteration) -> nn.Module:
    """Make an operated module whose state is to come."""
    body = {"_surgery": done, "__setstate__": _setstate}
    return object.__new__(_subclass(done.base, body))


def _attentions(module: nn.Module, done: Alteration) -> dict[str, nn.Module]:
    return {name: module.get_submodule(name) for name in done.attentions}


def _again(module: nn.Module, done: Alteration, attentions: dict[str, nn.Module]) -> nn.Module:
    """Operate on a copy of the host it was, which may have left its attention behind."""
    for name, attention in attentions.items():
        if name not in module._modules:
            module.add_module(name, attention)
    renew(module, replace(done, base=class_beneath(type(module))))
    return module
