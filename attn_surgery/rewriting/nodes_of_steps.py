"""Which node of a trace a step of a block's forward is."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from attn_surgery.dataflow import Flow, function_name
from attn_surgery.finding import Step, path_below
from attn_surgery.rewriting.insertion import UnfaithfulError


def node_of(flow: Flow, block: nn.Module, step: Step) -> fx.Node:
    """Return the node of a step of the block's own forward, or of the only one such below it.

    Raises:
        UnfaithfulError: It is not there.
    """
    matches = list(_steps(flow, block, step)) or list(_steps_below(flow, block, step))
    if len(matches) <= step.occurrence:
        raise UnfaithfulError(f"{step.name!r} is in no method of its own")
    node = sorted(matches, key=lambda each: each[0])[step.occurrence][1]
    if node not in flow.inputs:
        raise UnfaithfulError(f"{step.name!r} is something else on another way")
    return node


def _steps(flow: Flow, block: nn.Module, step: Step) -> Iterator[tuple[int, fx.Node]]:
    """Yield the nodes that the forward itself makes by such a step, each with when."""
    root = flow.trace.root
    for node in flow.steps_in.get(root, ()):
        module = flow.trace.called_module(node)
        if module is not None:
            is_such = step.kind == "child" and path_below(block, module) == step.name
        else:
            is_call = step.kind == "function" and node.op.startswith("call_")
            is_such = is_call and function_name(node) == step.name
        if is_such:
            yield node.meta["index"], node
    for call in flow.calls_in.get(root, ()) if step.kind == "child" else ():
        if call.node is not None and path_below(block, call.module) == step.name:
            yield call.start, call.node


def _steps_below(flow: Flow, block: nn.Module, step: Step) -> Iterator[tuple[int, fx.Node]]:
    """Yield the one call, in a child, of what makes a value that the child returns among others."""
    calls = [(flow.trace.called_module(each), each) for each in flow.nodes]
    below = [node for module, node in calls if module and path_below(block, module) == step.name]
    if step.kind == "child" and len(below) == 1 and not flow.is_in_place(below[0]):
        yield 0, below[0]
