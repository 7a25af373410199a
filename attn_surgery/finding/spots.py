"""Where a value of a trace is held: in which module's own forward, and under which name there."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx, nn

from attn_surgery.dataflow import Flow, Kind, function_name, is_item_set
from attn_surgery.tracing import Call, called_path, index, owner

ELSEWHERE = "?"
"""Stands for the path of a module that a block uses but does not hold."""


@dataclass(frozen=True)
class Step:
    """One value of a module's own forward, told by what makes it there."""

    name: str
    """The path of the child, or the name of the function, that returns it; "" for an argument."""
    kind: str
    """``child``, ``function`` or ``argument``."""
    occurrence: int = 0
    """How many earlier values of the same name and kind the forward holds."""

    def renamed(self, names: Mapping[str, str]) -> Step:
        """Return the step of a module whose children have other names now."""
        head, dot, rest = self.name.partition(".")
        if self.kind != "child" or head not in names:
            return self
        return replace(self, name=f"{names[head]}{dot}{rest}")


@dataclass(frozen=True)
class Spot:
    """Where a value is held, as the block's own forward sees it."""

    step: Step
    is_direct: bool
    """Whether the block's own forward holds the value, and not a child's of its."""
    into: tuple[Step, ...] = ()
    """The only steps of the block that are to get the result; () for all that take the value."""
    in_place: bool = False
    """Whether making the value changed another, whose later uses mean this one."""
    source: str | None = None
    """The path of the innermost module that returns the value."""
    is_only_call: bool = False
    """Whether that module is called once for each call of the block."""
    is_part: bool = False
    """Whether making the value wrote on a part of it, which is all that is returned."""
    is_read_late: bool = False
    """Whether its memory is changed in place between where it is made and where it is taken."""
    is_used: bool = True
    """Whether what it returns is used, and not just what it changed in place."""
    is_result: bool = False
    """Whether the block itself returns the value."""
    alternatives: tuple[Step, ...] = ()
    """Children that return the value as they got it, which ``into`` may take it from."""
    taker: str | None = None
    """The path of the one module, called once, that takes the value as its first argument."""


def place(flow: Flow, value: fx.Node, into: tuple[fx.Node, ...], block: Call) -> tuple[Call, Spot]:
    """Return the call that holds ``value``, and where in it.

    Args:
        flow: The trace.
        value: A value made in the block, or an argument of it.
        into: The only nodes, all made in the block, that are to get the result; () for all.
        block: The block's call; the call that is returned is this one, or, where only a function
            deep inside makes the value, the one in which that function runs.
    """
    steps = tuple(dict.fromkeys(_step_of(flow, node, block) for node in into))
    spot = Spot(
        Step("", "argument"),
        is_direct=True,
        into=steps,
        taker=_taker(flow, value, into, block),
        alternatives=_passing(flow, value, block) if into else (),
        is_only_call=True,
    )
    if index(value) < block.start or value.op == "placeholder":
        return block, spot
    returning = [
        call
        for call in calls_below(owner(value), block)
        if call.node is not None and _passes(flow, call.node, value)
    ]
    in_place = flow.is_in_place(value)
    if in_place and returning:  # what is changed within the child is no matter of the block's
        in_place = index(flow.inputs[value][0]) < returning[-1].start
    is_result = not into and block.node is not None and _passes(flow, block.node, value)
    change = flow.change_of(value)  # a call of the block returns what is changed
    is_result = is_result and (change is None or block not in owner(change).lineage())
    spot = replace(spot, in_place=in_place, is_result=is_result)
    source = flow.trace.called_module(value) or (returning[0].module if returning else None)
    if source is None:
        return _place_function(flow, value, spot, block)
    if returning:
        called, caller = returning[-1].module, returning[-1].parent
        earlier = _earlier_calls(flow, returning[-1])
    else:
        called, caller, earlier = source, owner(value), _earlier_steps(flow, value)
    return block, replace(
        spot,
        step=Step(path_below(block.module, called), "child", earlier),
        is_direct=caller is block,
        source=path_below(block.module, source),
        is_only_call=_is_called_once(flow, source, block),
        is_used=bool(value.users) or not in_place,
    )


def place_output(flow: Flow, value: fx.Node, call: Call, module: nn.Module) -> Spot:
    """Return where ``module`` returns ``value``: held by the innermost module that does.

    Args:
        flow: The trace.
        value: What the module returns.
        call: The module's own call, or, where it is not followed inside, its caller's.
        module: The module.
    """
    around = [each for each in owner(value).lineage() if index(value) >= each.start]
    inside = itertools.takewhile(lambda each: each is not call.parent, around)
    returning = [each.module for each in inside if each.node and _passes(flow, each.node, value)]
    called = flow.trace.called_module(value)
    candidates = [called, *returning] if called is not None else returning
    candidates = [each for each in candidates if path_below(module, each) != ELSEWHERE] or [module]
    once = [each for each in candidates if flow.call_counts[each] == 1 and not _is_chain(each)]
    source = path_below(module, (once or candidates)[0])
    return Spot(Step(source or "output", "child"), False, source=source, is_only_call=bool(once))


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and len(module) > 0


def _place_function(flow: Flow, value: fx.Node, spot: Spot, block: Call) -> tuple[Call, Spot]:
    call = owner(value)
    step = Step(function_name(value), "function", _earlier_steps(flow, value))
    spot = replace(spot, is_part=value in flow.written_in_parts and not is_item_set(value))
    # what a child did to its argument without returning it cannot be cut there
    is_reachable = not spot.in_place or index(flow.inputs[value][0]) >= call.start
    if not spot.into and call is not block:
        return call, replace(spot, step=step, is_direct=is_reachable, is_result=False, taker=None)
    return block, replace(spot, step=step, is_direct=is_reachable and call is block)


def _taker(flow: Flow, value: fx.Node, into: tuple[fx.Node, ...], block: Call) -> str | None:
    takers = into or tuple(value.users)
    module = flow.trace.called_module(takers[0]) if len(takers) == 1 else None
    if module is None or takers[0].args[:1] != (value,) or takers[0].op != "call_module":
        return None
    return path_below(block.module, module) if _is_called_once(flow, module, block) else None


def _passing(flow: Flow, value: fx.Node, block: Call) -> tuple[Step, ...]:
    """Return the children of the block that hand the value on, as an empty Sequential does."""
    calls = [call for call in flow.calls_in.get(block, ()) if call.node is value]
    return tuple(
        Step(path_below(block.module, call.module), "child", _earlier_calls(flow, call))
        for call in calls
        if call.start > index(value)
    )


def _is_called_once(flow: Flow, module: nn.Module, block: Call) -> bool:
    return flow.call_counts[module] == flow.call_counts[block.module]


def _step_of(flow: Flow, node: fx.Node, block: Call) -> Step:
    """Return the step of the block's own forward in which ``node`` is made."""
    inside = calls_below(owner(node), block)
    if inside:
        called = inside[-1]
        path = path_below(block.module, called.module)
        return Step(path, "child", _earlier_calls(flow, called))
    module, earlier = flow.trace.called_module(node), _earlier_steps(flow, node)
    if module is None:
        return Step(function_name(node), "function", earlier)
    return Step(path_below(block.module, module), "child", earlier)


def calls_below(inner: Call, outer: Call) -> list[Call]:
    """Return ``inner`` and the calls around it that lie within ``outer``, innermost first."""
    return list(itertools.takewhile(lambda call: call is not outer, inner.lineage()))


def path_below(block: nn.Module, module: nn.Module) -> str:
    """Return the path of ``module`` in ``block``, or ``ELSEWHERE``."""
    return next((path for path, each in block.named_modules() if each is module), ELSEWHERE)


def _passes(flow: Flow, node: fx.Node, end: fx.Node) -> bool:
    """Tell whether ``node`` is ``end``, handed on by nothing but ``nn.Identity``."""
    while node is not end and flow.kind(node) is Kind.IDENTITY and flow.trace.called_module(node):
        (node,) = flow.inputs[node]
    return flow.becomes(node, end)


def _earlier_steps(flow: Flow, end: fx.Node) -> int:
    earlier = itertools.takewhile(lambda node: node is not end, flow.steps_in[owner(end)])
    return sum(_same_step(node, end) for node in earlier)


def _earlier_calls(flow: Flow, call: Call) -> int:
    assert call.parent is not None
    return sum(
        each.module is call.module and each.start < call.start
        for each in flow.calls_in[call.parent]
    )


def _same_step(node: fx.Node, other: fx.Node) -> bool:
    """Tell whether two nodes call the same child, or functions of the same name."""
    if called_path(node) or called_path(other):
        return called_path(node) == called_path(other)
    calls = node.op.startswith("call_") and other.op.startswith("call_")
    return calls and function_name(node) == function_name(other)
