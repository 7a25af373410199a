"""Symbolic traces of one module's own ``forward``, its children kept whole or followed inside.

A trace is a ``torch.fx`` graph whose nodes know in which call they were made. Tracing leaves the
host as it was: modes, attributes and random states are put back.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import get_testing_overrides, is_tensor_method_or_property
from torch.utils._pytree import tree_leaves

from attn_surgery.bytecode import is_asserted, place_in_code, signature
from attn_surgery.convolutions import unusual_convolutions
from attn_surgery.preserve import Attributes, in_mode
from attn_surgery.proxies import Value, Watched, is_primitive
from attn_surgery.traces import Call, Trace, baked_constant, note_owner

MAX_PATHS = 8
"""How many ways through the branches of one ``forward`` are explored."""


class _Tracer(fx.Tracer):
    """Follows one way through ``forward``, taking each branch as ``answers`` says."""

    def __init__(self, root: nn.Module, inline: bool, defaults: bool, answers: tuple[bool, ...]):
        super().__init__(autowrap_modules=(math,))
        self.root_call = Call(root, "")
        self.stack = [self.root_call]
        self.calls: list[Call] = []
        self.opaque: list[str] = []
        self.inline = inline
        self.defaults = defaults
        self.answers = list(answers)
        self.asked = 0
        self.made = 0
        self.branched: list[nn.Module] = []
        self.constants = False
        self.before: dict[nn.Module, Attributes] = {}
        self.attribute_proxies: dict[int, fx.Proxy] = {}
        self.unusual: set[nn.Module] = set()

    # what the root is called with

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        bound = self.root_call.module.forward
        parameters = list(signature(bound).parameters.values())
        if parameters and all(each.default is not each.empty for each in parameters):
            # something has to go in: models whose every argument is optional still take a tensor
            parameters[0] = parameters[0].replace(default=inspect.Parameter.empty)
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
            return bound(*values, **kwargs)

        return forward, args

    def _argument(self, parameter: inspect.Parameter) -> Any:
        has_default = parameter.default is not parameter.empty
        if has_default and self.defaults:
            return parameter.default
        default = (parameter.default,) if has_default else ()
        annotation = _known_type(parameter.annotation)
        return self.create_proxy("placeholder", parameter.name, default, {}, type_expr=annotation)

    # calls

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
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
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            mark = len(self.graph.nodes)
            try:
                return self._follow(Call(m, path, self.stack[-1], self.made), args, kwargs)
            except Exception as error:
                # what cannot be followed stays one opaque step, so that its parent can be
                self.opaque.append(_one_line(error))
                self._forget_after(mark)
                result = self.create_proxy("call_module", path, args, kwargs)
                result.node.meta["is_opaque"] = True
                return result
        return self.create_proxy("call_module", path, args, kwargs)

    def direct_forward(self, m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record ``child.forward(...)``: the child without its hooks."""
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            return self.call_module(m, m.forward, args, kwargs)
        child = self.create_proxy("get_attr", path, (), {})
        return self.create_proxy("call_method", "forward", (child, *args), kwargs)

    def _follow(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = call.module
        self.before.setdefault(module, Attributes(module))
        watched = vars(module).get("forward")
        forward = watched.original if isinstance(watched, Watched) else module.forward
        self.stack.append(call)
        try:
            # not __call__: the user's hooks must not see traced values
            result = forward(*args, **kwargs)
        finally:
            self.stack.pop()
        if isinstance(result, fx.Proxy):
            call.node = result.node
        self.calls.append(call)
        return result

    def _forget_after(self, mark: int) -> None:
        gone = list(self.graph.nodes)[mark:]
        for node in reversed(gone):
            self.graph.erase_node(node)
        self.calls = [call for call in self.calls if call.node not in gone]
        kept = self.attribute_proxies.items()
        self.attribute_proxies = {key: proxy for key, proxy in kept if proxy.node not in gone}

    # nodes

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        note_owner(node, self.stack[-1])
        node.meta["index"] = self.made
        self.made += 1
        if not self.inline:
            node.meta["place"] = place_in_code(_run.__code__)
        return node

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any
    ) -> Any:
        if self.inline and kind == "call_function" and _is_users_function(target):
            # torch.fx.wrap keeps a function whole; the analysis has to see inside
            result = target(*args, **kwargs)
            if isinstance(result, fx.Proxy):
                return result
        return super().create_proxy(kind, target, args, kwargs, *more, **options)

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        named = self.getattr("", a, {})
        if isinstance(named, fx.Proxy):
            return named.node
        self.constants = True
        return self.create_node("call_function", baked_constant, (), {})

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        key = id(attr_val)
        if key not in self.attribute_proxies:
            if not isinstance(attr_val, Tensor) or key not in self._tensor_names:
                return attr_val
            name = self._tensor_names[key]
            self.attribute_proxies[key] = self.create_proxy("get_attr", name, (), {})
        return self.attribute_proxies[key]

    @functools.cached_property
    def _tensor_names(self) -> dict[int, str]:
        names = {id(tensor): name for tensor, name in self.tensor_attrs.items()}
        root = self.root_call.module
        for name, tensor in (*root.named_buffers(), *root.named_parameters()):
            names.setdefault(id(tensor), name)
        return names

    # branches

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.branched.append(self.stack[-1].module)
        if is_asserted(sys._getframe(2)):
            return True
        if self.asked == len(self.answers):
            self.answers.append(False)
        self.asked += 1
        return self.answers[self.asked - 1]


def trace(
    module: nn.Module,
    *,
    training: bool = False,
    inline: bool = False,
    defaults: bool = True,
    every_path: bool = False,
) -> tuple[list[Trace], str]:
    """Trace ``module.forward``, trying at most ``MAX_PATHS`` ways through its branches.

    Args:
        module: Whose own forward is followed.
        training: What ``self.training`` is during the trace, in every module.
        inline: Whether children are followed down to torch's own modules, or kept whole.
        defaults: Whether optional arguments take their defaults, or are traced values as well.
        every_path: Whether to go on after the first way that could be followed to its end.

    Returns:
        The traces, those that could follow most first, and why the first way that could not be
        followed to its end failed ("" where none did).
    """
    traces: list[Trace] = []
    failure = ""
    pending: list[tuple[bool, ...]] = [()]
    for _ in range(MAX_PATHS):
        if not pending or (traces and not every_path):
            break
        answers = pending.pop(0)
        tracer = _Tracer(module, inline, defaults, answers)
        try:
            result, given = _run(tracer, training), tracer.answers
        finally:
            vars(tracer).clear()  # it stands in cycles of fx's, and the module would with it
        if isinstance(result, Trace):
            traces.append(result)
        else:
            failure = failure or result
        flips = range(len(answers), len(given))
        pending += [(*given[:i], not given[i]) for i in flips]
    return sorted(traces, key=lambda found: len(found.opaque)), failure


def _run(tracer: _Tracer, training: bool) -> Trace | str:
    root = tracer.root_call.module
    with _prepared(tracer, training):
        tracer.before[root] = Attributes(root)
        try:
            graph = tracer.trace(root)
        except Exception as error:
            graph = _one_line(error)
        wrote = [before.restore() for before in tracer.before.values()]
    if isinstance(graph, str):
        return graph
    output = graph.output_node()
    output.type = _known_type(signature(root.forward).return_annotation)
    tracer.root_call.node = output.args[0] if isinstance(output.args[0], fx.Node) else None
    return Trace(
        root=tracer.root_call,
        graph=graph,
        calls=[*tracer.calls, tracer.root_call],
        opaque=tracer.opaque,
        branched=tracer.branched,
        wrote=any(wrote),
        constants=tracer.constants,
    )


@contextmanager
def _prepared(tracer: _Tracer, training: bool) -> Iterator[None]:
    root = tracer.root_call.module
    modules = list(root.modules())
    if tracer.inline:
        tracer.unusual = unusual_convolutions(modules)
    with warnings.catch_warnings(), in_mode(modules, training), _watching(tracer):
        warnings.simplefilter("ignore")
        with _recorded_factories(tracer):
            yield


@contextmanager
def _recorded_factories(tracer: _Tracer) -> Iterator[None]:
    """Let torch's factories take traced sizes, which their parsers would refuse."""
    # these note all of torch's functions when first asked, for good: not what stands there now
    get_testing_overrides()
    is_tensor_method_or_property(torch.add)
    originals = {name: getattr(torch, name) for name in _FACTORIES}

    def recorded(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def make(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
                return tracer.create_proxy("call_function", original, args, kwargs)
            tracer.constants = True
            return original(*args, **kwargs)

        return make

    try:
        for name, original in originals.items():
            setattr(torch, name, recorded(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


_FACTORIES = (
    "zeros ones empty full eye tensor arange linspace rand randn randint randperm normal".split()
)


@contextmanager
def _watching(tracer: _Tracer) -> Iterator[None]:
    """Let the tracer see every ``child.forward(...)`` below its root."""
    below = list(tracer.root_call.module.modules())[1:]
    children = [child for child in below if not isinstance(child, torch.jit.ScriptModule)]
    patched = {child: vars(child)["forward"] for child in children if "forward" in vars(child)}
    try:
        for child in children:
            vars(child)["forward"] = Watched(tracer, child)
        yield
    finally:
        for child in children:
            vars(child).pop("forward", None)
        for child, forward in patched.items():
            vars(child)["forward"] = forward


def _known_type(annotation: Any) -> Any:
    return (
        None if annotation is inspect.Parameter.empty or isinstance(annotation, str) else annotation
    )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _is_users_function(target: Any) -> bool:
    home = getattr(target, "__module__", None) or ""
    return isinstance(target, types.FunctionType) and home.partition(".")[0] not in (
        "torch",
        "attn_surgery",
    )
