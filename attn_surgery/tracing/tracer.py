"""A tracer that follows one way through a module's forward, and notes what it met.

Every node of the graph knows in which call it was made, and at which place in the code.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from attn_surgery.errors import is_exhausted
from attn_surgery.host import (
    Attributes,
    entry,
    entry_name,
    is_asserted,
    parameters_of,
    place_in_code,
)
from attn_surgery.tracing.einops_calls import called_for, is_layer_of_patterns
from attn_surgery.tracing.failures import one_line
from attn_surgery.tracing.foreign_reads import ForeignReads
from attn_surgery.tracing.module_calls import at_work, modules_intercepted
from attn_surgery.tracing.proxies import (
    Value,
    Watched,
    is_primitive,
    listings_noted,
)
from attn_surgery.tracing.set_aside import shown
from attn_surgery.tracing.trace_graph import CALLED, Call, baked_constant, note_owner


class Tracer(fx.Tracer):
    """Follows one way through ``forward``, taking each branch as ``answers`` says."""

    def __init__(
        self,
        root: nn.Module,
        inline: bool,
        passed: frozenset[str] | None,
        answers: tuple[bool, ...],
        *,
        given: Mapping[str, Any],
        places: bool = False,
    ):
        super().__init__(autowrap_modules=(math,))
        self.root_call = Call(root, "")
        self.stack = [self.root_call]
        self.calls: list[Call] = []
        self.opaque: list[str] = []
        self.inline = inline
        self.places = places or not inline
        self.passed, self.given = passed, given
        self.answers = list(answers)
        self.asked = 0
        self.made = 0
        self.branched: list[nn.Module] = []
        self.forked: list[nn.Module] = []
        self.looked_up: list[nn.Module] = []
        self.constants = False
        self.reentered = False
        self.lists_children = False
        self.foreign = ForeignReads(root)
        self.before: dict[nn.Module, Attributes] = {}
        self.attribute_proxies: dict[int, fx.Proxy] = {}
        self.unusual: set[nn.Module] = set()
        self.value_class: type[Value] = Value
        self.plain_tensors: dict[int, dict[str, Tensor]] = {}
        """Of each module, by the identity of its attributes, those that are no buffers."""
        self.hiding: list[tuple[dict[str, Any], str]] = []
        """Those of them that hide attributes of their classes: where, and under which name."""
        self.outermost = Tracer.__init__.__code__
        """The code of the function in which the tracer is run."""

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Trace the root's forward."""
        with modules_intercepted(), at_work(self):
            return super().trace(root, concrete_args)

    # what the root is called with

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return the root's entry, and traced values or defaults for its arguments."""
        root = self.root_call.module
        bound, parameters = entry(root), parameters_of(root)
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            if parameter.kind is parameter.VAR_POSITIONAL and len(parameters) > 1:
                continue
            value = self._argument(parameter)
            if parameter.kind is parameter.KEYWORD_ONLY:
                kwargs[parameter.name] = value
            else:
                args.append(value)

        def forward(*values: Any) -> Any:
            with shown(self), nullcontext() if self.inline else listings_noted(self, root):
                return bound(*values, **kwargs)

        return forward, args

    def _argument(self, parameter: inspect.Parameter) -> Any:
        if parameter.name in self.given:
            return self.given[parameter.name]
        has_default = parameter.default is not parameter.empty
        is_passed = self.passed is None or parameter.name in self.passed
        if has_default and not is_passed:
            return parameter.default
        default = (parameter.default,) if has_default and self.passed is None else ()
        annotation = known_type(parameter.annotation)
        return self.create_proxy("placeholder", parameter.name, default, {}, type_expr=annotation)

    # calls

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a call of the module is one step."""
        if not self.inline or isinstance(m, torch.jit.ScriptModule):
            return True
        return is_primitive(m) and m not in self.unusual

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a call of a module, or follow it inside."""
        if m not in (self.submodule_paths or {}):
            return self._made_here(m, args, kwargs)
        if entry_name(type(m)) == "forward":
            return self._called(m, _own_forward(m), args, kwargs)
        if m is self.stack[-1].module:  # a __call__ of its own that goes on to its forward
            self.reentered = True
            return _own_forward(m)(*args, **kwargs)
        return self._called(m, forward, args, kwargs)

    def _called(
        self, m: nn.Module, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        nodes, calls = len(self.graph.nodes), len(self.calls)
        try:
            return self._follow(Call(m, path, self.stack[-1], self.made), own, args, kwargs)
        except Exception as error:
            if is_exhausted(error):
                raise
            # what cannot be followed stays one opaque step, so that its parent can be
            self.opaque.append(one_line(error))
            self._forget_after(nodes, calls)
            result = self.create_proxy("call_module", path, args, kwargs)
            result.node.meta["is_opaque"] = True
            return result

    def _made_here(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record what a module that forward made on the spot does, which has no path."""
        if is_layer_of_patterns(m):
            function, more, sizes = called_for(m)
            return self.create_proxy("call_function", function, (*args, *more), {**kwargs, **sizes})
        return _own_forward(m)(*args, **kwargs)

    def direct_forward(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record ``child.forward(...)``: the child without its hooks."""
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            return self._called(m, _own_forward(m), args, kwargs)
        return self.call_of_method(m, "forward", args, kwargs)

    def call_of_method(
        self, m: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record ``child.name(...)`` as one step, or follow it inside."""
        path = self.path_of_module(m)
        if self.inline and name != "forward":
            own = functools.partial(getattr(type(m), name), m)
            return self._follow(Call(m, path, self.stack[-1], self.made), own, args, kwargs)
        child = self.create_proxy("get_attr", path, (), {})
        result = self.create_proxy("call_method", name, (child, *args), kwargs)
        result.node.meta[CALLED] = path
        return result

    def _follow(
        self,
        call: Call,
        own: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        module = call.module
        if module not in self.before:
            self.before[module] = Attributes(module)
        _make_nodes((args, kwargs))
        self.stack.append(call)
        try:
            # not through hooks: they must not see traced values
            result = own(*args, **kwargs)
            _make_nodes(result)
        finally:
            self.stack.pop()
        if isinstance(result, fx.Proxy):
            call.node = result.node
        self.calls.append(call)
        return result

    def _forget_after(self, nodes: int, calls: int) -> None:
        """Forget what was made and called, a call that returned several values included."""
        gone = list(self.graph.nodes)[nodes:]
        for node in reversed(gone):
            self.graph.erase_node(node)
        del self.calls[calls:]
        kept = self.attribute_proxies.items()
        self.attribute_proxies = {key: proxy for key, proxy in kept if proxy.node not in gone}

    def one_of(self, container: nn.Module) -> nn.Module:
        """Return the first of a container's children, for the one that a traced value chooses."""
        module = self.stack[-1].module
        self.branched.append(module)
        self.looked_up.append(module)
        first, *_ = container.children()
        return first

    # nodes

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Stand for the node's value."""
        return self.value_class(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node that knows its call and, in a rewritten forward, its place in the code."""
        node = super().create_node(*args, **kwargs)
        note_owner(node, self.stack[-1])
        node.meta["index"] = self.made
        self.made += 1
        if self.places:
            node.meta["place"] = place_in_code(self.outermost)
        return node

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any
    ) -> Any:
        """Record a step, or follow it inside."""
        if self.inline and kind == "call_function" and _is_users_function(target):
            # torch.fx.wrap keeps a function whole; the analysis has to see inside
            result = target(*args, **kwargs)
            if isinstance(result, fx.Proxy):
                return result
        return super().create_proxy(kind, target, args, kwargs, *more, **options)

    def create_arg(self, a: Any) -> Any:
        """Return what stands for an argument in the graph."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, np.generic):
            return a.item()
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        named = self.getattr("", a, {})
        if isinstance(named, fx.Proxy):
            return named.node
        self.constants = True
        return self.create_node("call_function", baked_constant, (), {})

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Let parameters and buffers be read in the graph."""
        key = id(attr_val)
        if key not in self.attribute_proxies:
            if key not in self.tensor_names:
                return attr_val
            name = self.tensor_names[key]
            self.attribute_proxies[key] = self.create_proxy("get_attr", name, (), {})
        return self.attribute_proxies[key]

    @functools.cached_property
    def tensor_names(self) -> dict[int, str]:
        """The names of the root's tensors, by identity."""
        names = {id(tensor): name for tensor, name in self.tensor_attrs.items()}
        for module, path in (self.submodule_paths or {}).items():
            plain = self.plain_tensors.get(id(vars(module)), {})
            held = (*module._buffers.items(), *module._parameters.items(), *plain.items())
            for name, tensor in held:
                if tensor is not None:
                    names.setdefault(id(tensor), f"{path}.{name}".removeprefix("."))
        return names

    # branches

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Answer for the truth of a traced value."""
        self.branched.append(self.stack[-1].module)
        if is_asserted(sys._getframe(2)):
            return True
        self.forked.append(self.stack[-1].module)
        if self.asked == len(self.answers):
            self.answers.append(False)
        self.asked += 1
        return self.answers[self.asked - 1]


def _make_nodes(values: Any) -> None:
    """Let attributes that were read be steps of the call that read them, not of what takes them."""

    def make(value: Any) -> Any:
        return value.node if isinstance(value, fx.Proxy) else value

    map_aggregate(values, make)


def _own_forward(module: nn.Module) -> Callable[..., Any]:
    watched = vars(module).get("forward")
    return watched.original if isinstance(watched, Watched) else module.forward


def known_type(annotation: Any) -> Any:
    """Return an annotation that can be written down, else None."""
    return (
        None if annotation is inspect.Parameter.empty or isinstance(annotation, str) else annotation
    )


def _is_users_function(target: Any) -> bool:
    home = getattr(target, "__module__", None) or ""
    return isinstance(target, types.FunctionType) and home.partition(".")[0] not in (
        "torch",
        "attn_surgery",
        "einops",
    )
