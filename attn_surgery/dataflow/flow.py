"""Data-flow questions about a trace: what depends on what, and which shapes flow where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from attn_surgery.dataflow.node_kinds import (
    Kind,
    Operation,
    is_in_place,
    is_item_set,
    operation,
    value_inputs,
)
from attn_surgery.dataflow.shape_inference import shape_of, shape_without_value
from attn_surgery.dataflow.shapes import MAPS, UNKNOWN, Shape, norm_dims
from attn_surgery.tracing import Call, Trace, index, owner


class Flow:
    """The value dependencies in one trace.

    A node *carries a value* of its input when its result depends on the numbers in it, and not
    on its shape, type or device alone.
    """

    def __init__(self, trace: Trace):
        self.trace = trace
        self.nodes = list(trace.graph.nodes)
        self.operations: dict[fx.Node, Operation] = {}
        self.inputs: dict[fx.Node, list[fx.Node]] = {}
        """Per node, the inputs that carry a value into it; absent where it carries none."""
        self.ancestors: dict[fx.Node, int] = {}
        """Per node that carries a value, a bit for it and for every node it depends on."""
        self._changed: dict[fx.Node, fx.Node] = {}
        """Per tensor that was changed in place, the node that changed it last."""
        self.written_in_parts: set[fx.Node] = set()
        """The nodes that change a view of a tensor that is read afterwards, and stand for it."""
        for node in self.nodes:
            self._add(node)

    def _add(self, node: fx.Node) -> None:
        found = self.operations[node] = operation(self.trace, node)
        read = dict.fromkeys(self.now(each) for each in value_inputs(node))
        inputs = [each for each in read if each in self.inputs]
        if found.kind in (Kind.CONSTANT, Kind.QUERY):
            return
        if found.kind is not Kind.INPUT and not inputs:
            return
        self.inputs[node] = inputs
        mask = 1 << index(node)
        for each in inputs:
            mask |= self.ancestors[each]
        self.ancestors[node] = mask
        if self.is_in_place(node):
            self._note_change(node)

    def _note_change(self, node: fx.Node) -> None:
        """Let the tensor that the node changes, and those that it is a view of, mean the node."""
        changed = node.args[0]
        while isinstance(changed, fx.Node) and (now := self.now(changed)) is not node:
            self._changed[now] = node
            if not self._is_view(changed):
                return
            changed = changed.args[0]
            later = changed.users if isinstance(changed, fx.Node) else ()
            if any(index(user) > index(node) for user in later):
                self.written_in_parts.add(node)

    def _is_view(self, node: fx.Node) -> bool:
        """Tell whether what the node returns shares the memory that it is given."""
        is_part = self.kind(node) in (Kind.SLICE, Kind.SPLIT, Kind.VIEW)
        return is_part and node.op.startswith("call_") and bool(node.args)

    def base(self, value: Any) -> Any:
        """Return the tensor that a value is a view of, or the value itself."""
        while isinstance(value, fx.Node) and self._is_view(value):
            value = value.args[0]
        return value

    def is_number(self, node: fx.Node) -> bool:
        """Tell whether the node reads a parameter or buffer of one element."""
        tensor = self.trace.attribute(node) if node.op == "get_attr" else None
        return isinstance(tensor, Tensor) and tensor.numel() == 1

    def now(self, node: fx.Node) -> fx.Node:
        """Return the node that last changed the tensor of ``node`` in place, else ``node``."""
        while node in self._changed:
            node = self._changed[node]
        return node

    def change_of(self, node: fx.Node) -> fx.Node | None:
        """Return the node that next changes the tensor of ``node`` in place, if one does."""
        return self._changed.get(node)

    def becomes(self, node: fx.Node, later: fx.Node) -> bool:
        """Tell whether ``later`` is the tensor of ``node``, changed in place or not."""
        while node is not later and node in self._changed:
            node = self._changed[node]
        return node is later

    def is_in_place(self, node: fx.Node) -> bool:
        """Tell whether the node changes the tensor that it is given."""
        return is_in_place(self.trace, node)

    def kind(self, node: fx.Node) -> Kind:
        """Return what the node does."""
        return self.operations[node].kind

    def depends(self, node: fx.Node, on: fx.Node) -> bool:
        """Tell whether the value of ``node`` depends on that of ``on`` (or is it)."""
        return bool(self.ancestors[node] >> index(on) & 1)

    def needs_more(self, node: fx.Node, than: fx.Node) -> bool:
        """Tell whether ``node`` depends on an input of the trace that ``than`` does not know."""
        return bool(self.ancestors[node] & ~self.ancestors[than] & self._given)

    @cached_property
    def _given(self) -> int:
        """A bit for every input of the trace."""
        given = (node for node in self.inputs if self.kind(node) is Kind.INPUT)
        return sum(1 << index(node) for node in given)

    def between(self, start: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
        """Yield the nodes on the ways from ``start`` (excluded) to ``end``, in order."""
        mask = self.ancestors[end]
        for node in self.nodes[self._position[start] + 1 : self._position[end] + 1]:
            if node in self.inputs and mask >> index(node) & 1 and self.depends(node, start):
                yield node

    def leads_past(
        self, start: fx.Node, end: fx.Node, is_passed: Callable[[fx.Node], bool]
    ) -> bool:
        """Tell whether some way from ``start`` to ``end`` holds no node that ``is_passed``."""
        reached = {start}
        for node in self.between(start, end):
            if not is_passed(node) and not reached.isdisjoint(self.inputs[node]):
                reached.add(node)
        return end in reached

    @cached_property
    def _position(self) -> dict[fx.Node, int]:
        return {node: place for place, node in enumerate(self.nodes)}

    @cached_property
    def steps_in(self) -> dict[Call, list[fx.Node]]:
        """The nodes made in each call's own forward, in order."""
        steps: dict[Call, list[fx.Node]] = {}
        for node in self.nodes:
            steps.setdefault(owner(node), []).append(node)
        return steps

    @cached_property
    def calls_in(self) -> dict[Call, list[Call]]:
        """The calls that each call's own forward makes and that were followed inside."""
        calls: dict[Call, list[Call]] = {}
        for call in self.trace.calls:
            if call.parent is not None:
                calls.setdefault(call.parent, []).append(call)
        return calls

    @cached_property
    def call_counts(self) -> Counter[nn.Module]:
        """How often each module is called in the trace."""
        counts = Counter(call.module for call in self.trace.calls)
        kept_whole = (self.trace.called_module(node) for node in self.nodes)
        counts.update(module for module in kept_whole if module is not None)
        return counts

    @cached_property
    def from_nowhere(self) -> set[fx.Node]:
        """The steps that are given None for a tensor or nothing, and what is made of these."""
        return _grown(self.nodes, _is_from_nowhere)

    @cached_property
    def known_calls(self) -> set[nn.Module | None]:
        """The modules that are called, but for those whose every call is one from nowhere."""
        if not self.from_nowhere:
            return set(self.call_counts)
        known = [node for node in self.nodes if node not in self.from_nowhere]
        making = {each for node in known for each in owner(node).lineage()}
        lost = {each for node in self.from_nowhere for each in owner(node).lineage()} - making
        called = {self.trace.called_module(node) for node in known}
        calls = (call for call in self.trace.calls if call not in lost)
        return called | {call.module for call in calls if call.node not in self.from_nowhere}

    @cached_property
    def calls_from_nowhere(self) -> set[Call]:
        """The calls that work on what the trace does not know, of which they say nothing.

        Such is what a step made of None or of nothing, and what convolutions make of noise or of
        a learned tensor, on which no input has any influence.
        """
        calls = {each for node in self.from_nowhere for each in owner(node).lineage()}
        free = [node for node in self.nodes if node not in self.inputs]
        for node in _grown(free, lambda node: self.operations[node].convolution is not None):
            for source in (node, *node.all_input_nodes):
                calls |= _calls_between(owner(source), owner(node))
        return calls

    @cached_property
    def value_users(self) -> dict[fx.Node, list[fx.Node]]:
        """The nodes into which each node carries its value."""
        users: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.inputs}
        for node, inputs in self.inputs.items():
            for each in inputs:
                users[each].append(node)
        return users

    @cached_property
    def shapes(self) -> dict[fx.Node, Shape]:
        """What is known of each value from what made it."""
        shapes: dict[fx.Node, Shape] = {}

        def known(argument: Any) -> Shape:
            return shapes.get(argument, UNKNOWN) if isinstance(argument, fx.Node) else UNKNOWN

        for node in self.nodes:
            inputs = self.inputs.get(node)
            if inputs is None:
                shape = shape_without_value(node, known)
            else:
                shape = shape_of(self.trace, node, self.operations[node], inputs, known)
            if node in self.written_in_parts or is_item_set(node):
                whole = known(self.base(node.args[0]))
                shape = whole if shape == whole or not node.users else UNKNOWN
            shapes[node] = shape
        return shapes

    def shape(self, node: fx.Node) -> Shape:
        """Return what is known of the value from what made it, else from what takes it."""
        known = self.shapes[node]
        if known.is_known or known.stacked is not None:
            return known
        for user in self.value_users[node]:
            conv = self.operations[user].convolution
            if conv is not None and self.inputs[user][0] is node:
                is_spread = known.is_spread
                return Shape(MAPS, conv.in_channels, len(conv.kernel_size), is_spread)
            module = self.trace.called_module(user)
            if isinstance(module, _NormBase) and not known.layout:
                known = Shape(MAPS, module.num_features, norm_dims(module))
        return known


def _is_from_nowhere(node: fx.Node) -> bool:
    """Tell whether the step is given None for a tensor, or no tensor at all."""
    if not node.op.startswith("call_"):
        return False
    if node.args[:1] == (None,) or node.kwargs.get("input", node) is None:
        return True
    return node.op == "call_module" and not node.all_input_nodes


def _grown(nodes: list[fx.Node], is_seed: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Return the seeds among the nodes, and those that are made of them."""
    grown: set[fx.Node] = set()
    for node in nodes:
        if is_seed(node) or not grown.isdisjoint(node.all_input_nodes):
            grown.add(node)
    return grown


def _calls_between(one: Call, other: Call) -> set[Call]:
    """Return the calls through which a value passes from one to the other, and those two."""
    others = list(other.lineage())
    shared = next(each for each in one.lineage() if each in others)
    return {shared, *set(one.lineage()).symmetric_difference(others)}
