"""Symbolic traces of one module's own ``forward``, its children kept whole or followed inside.

A trace is a ``torch.fx`` graph whose nodes know in which call they were made. Tracing leaves the
host as it was: modes, attributes and random states are put back.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn

from attn_surgery.errors import is_exhausted
from attn_surgery.host import (
    Attributes,
    ReachableState,
    entry,
    entry_name,
    in_mode,
    matches_patterns,
    put_back_afterwards,
    signature,
)
from attn_surgery.tracing.asked_types import taken_for_tensors
from attn_surgery.tracing.einops_calls import recorded_patterns
from attn_surgery.tracing.failures import one_line
from attn_surgery.tracing.insisting_calls import guessed_arguments
from attn_surgery.tracing.module_calls import remembered
from attn_surgery.tracing.proxies import OneStep, Watched
from attn_surgery.tracing.returned_values import returns_noted
from attn_surgery.tracing.set_aside import set_aside
from attn_surgery.tracing.tensor_factories import recorded_factories
from attn_surgery.tracing.trace_graph import Trace
from attn_surgery.tracing.tracer import Tracer, known_type
from attn_surgery.tracing.unusual_convolutions import unusual_convolutions

MAX_PATHS = 8
"""How many ways through the branches of one ``forward`` are explored."""


def trace(
    module: nn.Module,
    *,
    training: bool = False,
    inline: bool = False,
    passed: frozenset[str] | None = None,
    given: Mapping[str, Any] | None = None,
    every_path: bool = False,
    places: bool = False,
) -> tuple[list[Trace], str]:
    """Trace ``module.forward``, trying at most ``MAX_PATHS`` ways through its branches.

    Args:
        module: Whose own forward is followed.
        training: What ``self.training`` is during the trace, in every module.
        inline: Whether children are followed down to torch's own modules, or kept whole.
        passed: The arguments that are traced values, the others taking their defaults; None for
            all.
        given: Plain values for other arguments, in place of their defaults.
        every_path: Whether to go on after the first way that could be followed to its end.
        places: Whether the nodes know where in the code they are made, as they do of children that
            are kept whole.

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
        tracer = Tracer(module, inline, passed, answers, given=given or {}, places=places)
        try:
            result, answered = _run(tracer, training), tracer.answers
        finally:
            vars(tracer).clear()  # it stands in cycles of fx's, and the module would with it
        if isinstance(result, Trace):
            traces.append(result)
        else:
            failure = failure or result
        flips = range(len(answers), len(answered))
        pending += [(*answered[:i], not answered[i]) for i in flips]
    return sorted(traces, key=lambda found: len(found.opaque)), failure


def _run(tracer: Tracer, training: bool) -> Trace | str:
    root, tracer.outermost = tracer.root_call.module, _run.__code__
    modules = list(root.modules())
    # those that are never called have methods that write, too
    own = [each for each in modules if each is root or not _is_torchs(each)]
    with _prepared(tracer, modules, own, training):
        tracer.before = {each: Attributes(each) for each in own}
        reachable = remembered(ReachableState, ReachableState).of(own)
        wrote: list[bool] = []

        def put_back() -> None:
            wrote.extend(before.restore() for before in (*tracer.before.values(), reachable))

        with put_back_afterwards(put_back):
            graph = _graph(tracer)
    if isinstance(graph, str):
        return graph
    output = graph.output_node()
    output.type = known_type(signature(entry(root)).return_annotation)
    tracer.root_call.node = output.args[0] if isinstance(output.args[0], fx.Node) else None
    return Trace(
        root=tracer.root_call,
        graph=graph,
        calls=[*tracer.calls, tracer.root_call],
        opaque=tracer.opaque,
        branched=tracer.branched,
        forked=tracer.forked,
        looked_up=tracer.looked_up,
        matched=_matching([call.module for call in (*tracer.calls, tracer.root_call)]),
        wrote=any(wrote),
        constants=tracer.constants,
        reentered=tracer.reentered,
        lists_children=tracer.lists_children,
        foreign=frozenset(tracer.foreign.names),
    )


def _graph(tracer: Tracer) -> fx.Graph | str:
    """Return the graph of the root, or why it could not be followed."""
    try:
        with _noted(tracer):
            return tracer.trace(tracer.root_call.module)
    except Exception as error:
        if is_exhausted(error):
            raise
        return one_line(error)


def _noted(tracer: Tracer) -> AbstractContextManager[None]:
    """Note what the way asked for has to know besides the graph."""
    if not tracer.inline:
        return tracer.foreign.noted()
    return returns_noted() if tracer.places else nullcontext()


def _matching(modules: list[nn.Module]) -> list[nn.Module]:
    """Return those that match patterns, of which one class's do so alike."""
    of_a_kind = {type(each): each for each in modules}
    kinds = {kind for kind, each in of_a_kind.items() if matches_patterns(each)}
    return [each for each in modules if type(each) in kinds]


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


@contextmanager
def _prepared(
    tracer: Tracer, modules: list[nn.Module], own: list[nn.Module], training: bool
) -> Iterator[None]:
    if tracer.inline:
        tracer.unusual = unusual_convolutions(modules)
    with (
        warnings.catch_warnings(),
        set_aside(tracer, own),
        in_mode(modules, training),
        _watching(tracer, modules),
    ):
        warnings.simplefilter("ignore")
        with (
            recorded_factories(),
            recorded_patterns(tracer),
            guessed_arguments(),
            taken_for_tensors(tracer, modules),
        ):
            yield


@contextmanager
def _watching(tracer: Tracer, modules: list[nn.Module]) -> Iterator[None]:
    """Let the tracer see every ``child.forward(...)`` below its root, and calls past torch's.

    The arithmetic of a `FloatFunctional` is a call of it, too: quantization puts another module in
    its place, which does it in integers.
    """
    children = [child for child in modules[1:] if not isinstance(child, torch.jit.ScriptModule)]
    patched = {child: vars(child)["forward"] for child in children if "forward" in vars(child)}
    arithmetic = [each for each in children if _is_arithmetic(each)]
    callers = {_caller(type(child)) for child in (tracer.root_call.module, *children)} - {None}
    calls = {cls: vars(cls)["__call__"] for cls in callers if cls is not None}

    def put_back() -> None:
        for cls, call in calls.items():
            cls.__call__ = call
        for child in children:
            if child in patched:
                vars(child)["forward"] = patched[child]
            else:
                vars(child).pop("forward", None)
        for child in arithmetic:
            for name in _ARITHMETIC:
                vars(child).pop(name, None)

    with put_back_afterwards(put_back):
        for child in children:
            vars(child)["forward"] = Watched(tracer, child)
        for child in arithmetic:
            for name in _ARITHMETIC:
                vars(child)[name] = OneStep(tracer, child, name)
        for cls, call in calls.items():
            cls.__call__ = _told(tracer, call)
        yield


_ARITHMETIC = ("add", "add_relu", "add_scalar", "cat", "matmul", "mul", "mul_scalar")


def _is_arithmetic(module: nn.Module) -> bool:
    is_torchs = type(module).__module__ == "torch.ao.nn.quantized.modules.functional_modules"
    return is_torchs and vars(module).keys().isdisjoint(_ARITHMETIC)


def _caller(cls: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class that defines a ``__call__`` of its own for ``cls``, if any does."""
    if entry_name(cls) == "forward":
        return None
    return next(each for each in cls.__mro__ if "__call__" in vars(each))


def _told(tracer: Tracer, call: Callable[..., Any]) -> Callable[..., Any]:
    """Let the tracer know of each call of a module through a ``__call__`` of its own."""

    @functools.wraps(call)
    def told(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = functools.partial(call, module)
        if tracer.stack[-1].module is module:
            return own(*args, **kwargs)
        return tracer.call_module(module, own, args, kwargs)

    return told
