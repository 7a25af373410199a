"""Data-flow questions about a trace: what depends on what, and which shapes flow where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from attn_surgery.operations import (
    Kind,
    Operation,
    argument,
    function_name,
    is_in_place,
    operation,
)
from attn_surgery.traces import Call, Trace, index, owner

MAPS = "maps"
"""``(N, C, *spatial)``: channels at dim 1."""
LAST = "channels last"
"""Tokens ``(N, L, C)`` and ``(N, *spatial, C)``."""


@dataclass(frozen=True)
class Form:
    """What is known of a tensor: its layout, its channels, its number of spatial dims."""

    layout: str = ""
    channels: int | None = None
    spatial_dims: int | None = None


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
        for node in self.nodes:
            self._add(node)

    def _add(self, node: fx.Node) -> None:
        found = self.operations[node] = operation(self.trace, node)
        inputs = [self.now(each) for each in node.all_input_nodes if each in self.inputs]
        inputs = list(dict.fromkeys(inputs))
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
            self._changed[inputs[0]] = node

    def now(self, node: fx.Node) -> fx.Node:
        """Return the node that last changed the tensor of ``node`` in place, else ``node``."""
        while node in self._changed:
            node = self._changed[node]
        return node

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
    def value_users(self) -> dict[fx.Node, list[fx.Node]]:
        """The nodes into which each node carries its value."""
        users: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.inputs}
        for node, inputs in self.inputs.items():
            for each in inputs:
                users[each].append(node)
        return users

    @cached_property
    def forms(self) -> dict[fx.Node, Form]:
        """What is known of each value from what made it."""
        forms: dict[fx.Node, Form] = {}
        for node, inputs in self.inputs.items():
            forms[node] = self._form(node, [forms[each] for each in inputs])
        return forms

    def form(self, node: fx.Node) -> Form:
        """Return what is known of the value from what made it, else from what takes it."""
        known = self.forms[node]
        if known.layout and known.channels and known.spatial_dims:
            return known
        for user in self.value_users[node]:
            conv = self.operations[user].convolution
            if conv is not None and self.inputs[user][0] is node:
                return Form(MAPS, conv.in_channels, len(conv.kernel_size))
            module = self.trace.called_module(user)
            if isinstance(module, _NormBase) and not known.layout:
                known = Form(MAPS, module.num_features, _norm_dims(module))
        return known

    def _form(self, node: fx.Node, inputs: list[Form]) -> Form:
        found = self.operations[node]
        if found.convolution is not None:
            conv = found.convolution
            return Form(MAPS, conv.out_channels, len(conv.kernel_size))
        if found.kind in (Kind.INPUT, Kind.MIX, Kind.OTHER, Kind.OPAQUE, Kind.SPLIT):
            return self._split_form(node, inputs) if found.kind is Kind.SPLIT else Form()
        module = self.trace.called_module(node)
        best = max(inputs, key=lambda form: (bool(form.layout), bool(form.channels)))
        if found.kind is Kind.NORM:
            return self._norm_form(node, module, best)
        if found.kind is Kind.LINEAR:
            features = module.out_features if isinstance(module, nn.Linear) else None
            return Form(LAST, features, best.spatial_dims)
        if found.kind is Kind.VIEW:
            return _view_form(node, module, best)
        if found.kind is Kind.PAD and _pads_channels(node, module, best):
            return Form(best.layout, None, best.spatial_dims)
        if found.kind is Kind.CAT:
            known = [form.channels for form in inputs]
            total = None if None in known else sum(c for c in known if c)
            return Form(best.layout, total, best.spatial_dims)
        if found.kind is Kind.SLICE and slices_channels(node):
            return Form(best.layout, self._sliced_channels(node, best), best.spatial_dims)
        if found.kind in (Kind.UPSAMPLE, Kind.REARRANGE) and "shuffle" in _spelling(node, module):
            return Form(best.layout, None, best.spatial_dims)
        if found.kind is Kind.ACTIVATION and _spelling(node, module) == "glu":
            return Form(best.layout, best.channels and best.channels // 2, best.spatial_dims)
        return best

    def _norm_form(self, node: fx.Node, module: nn.Module | None, form: Form) -> Form:
        if module is None and function_name(node) == "batch_norm":
            mean = argument(node, 1, "running_mean")
            if isinstance(mean, fx.Node) and mean.op == "get_attr":
                channels = len(self.trace.attribute(mean))
                return Form(MAPS, channels, form.spatial_dims or _norm_dims(owner(node).module))
        if isinstance(module, _NormBase):
            return Form(
                MAPS, module.num_features or form.channels, _norm_dims(module) or form.spatial_dims
            )
        if isinstance(module, nn.GroupNorm):
            return Form(form.layout or MAPS, module.num_channels, form.spatial_dims)
        if (
            isinstance(module, nn.LayerNorm)
            and len(module.normalized_shape) == 1
            and not form.layout
        ):
            return Form(LAST, module.normalized_shape[0], form.spatial_dims)
        return form

    def _split_form(self, node: fx.Node, inputs: list[Form]) -> Form:
        parts = argument(node, 1, "chunks")
        form = inputs[0]
        if function_name(node) == "chunk" and isinstance(parts, int) and form.channels:
            return Form(form.layout, form.channels // parts, form.spatial_dims)
        return Form(form.layout, None, form.spatial_dims)

    def _sliced_channels(self, node: fx.Node, form: Form) -> int | None:
        (source,) = self.inputs[node][:1]
        if self.kind(source) is Kind.SPLIT:
            sizes = argument(source, 1, "split_size_or_sections")
            place = node.args[1]
            if isinstance(sizes, (list, tuple)) and isinstance(place, int):
                size = sizes[place]
                return size if isinstance(size, int) else None
            return form.channels or (sizes if isinstance(sizes, int) else None)
        item = node.args[1]
        if (
            isinstance(item, tuple)
            and len(item) > 1
            and isinstance(item[1], slice)
            and form.channels
        ):
            try:
                return len(range(*item[1].indices(form.channels)))
            except TypeError:
                return None
        return None


def slices_channels(node: fx.Node) -> bool:
    """Tell whether a SLICE node takes a part of the channels or an element of several tensors."""
    if function_name(node) != "getitem":
        return True
    item = node.args[1]
    if not isinstance(item, tuple):
        return item is not Ellipsis and not _is_whole(item)
    if Ellipsis in item:
        return item.index(Ellipsis) > 1
    return len(item) > 1 and not _is_whole(item[1])


def _pads_channels(node: fx.Node, module: nn.Module | None, form: Form) -> bool:
    """Tell whether padding may reach beyond the spatial dims."""
    sizes = getattr(module, "padding", None) if module else argument(node, 1, "pad")
    if module is not None and not isinstance(sizes, (tuple, list)):
        return False
    if not isinstance(sizes, (tuple, list)) or not form.spatial_dims:
        return True
    return len(sizes) > 2 * form.spatial_dims


def _is_whole(item: Any) -> bool:
    return isinstance(item, slice) and item == slice(None)


def _norm_dims(module: nn.Module) -> int | None:
    digit = next((c for c in reversed(_torch_name(module)) if c.isdigit()), None)
    return int(digit) if digit else None


def _torch_name(module: nn.Module) -> str:
    names = (
        c.__name__ for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules.")
    )
    return next(names, "")


def _spelling(node: fx.Node, module: nn.Module | None) -> str:
    return function_name(node) if module is None else _torch_name(module).lower()


def _view_form(node: fx.Node, module: nn.Module | None, form: Form) -> Form:
    """Follow permutations between channels first and last; other views lose the layout."""
    if module is not None:
        return Form()
    name = function_name(node)
    dims = node.args[1:]
    if len(dims) == 1 and isinstance(dims[0], (tuple, list)):
        dims = tuple(dims[0])
    if name == "permute":
        order = dims or tuple(node.kwargs.get("dims", ()))  # pyright: ignore[reportArgumentType]
        return _permuted(order, form)
    if name in ("transpose", "swapaxes", "swapdims"):
        if set(dims) in ({1, 2}, {1, -1}, {-2, -1}) and form.spatial_dims in (None, 1):
            layout = {MAPS: LAST, LAST: MAPS}.get(form.layout, "")
            return Form(layout, form.channels, form.spatial_dims or 1)
        return Form()
    if name in ("flatten",) and form.layout == MAPS and dims[:1] == (2,):
        return Form(MAPS, form.channels, 1)
    return Form()


def _permuted(order: tuple[Any, ...], form: Form) -> Form:
    count = len(order)
    spatial = count - 2
    if order == (0, *range(2, count), 1) and form.layout != LAST:
        return Form(LAST, form.channels, spatial)
    if order == (0, count - 1, *range(1, count - 1)) and form.layout != MAPS:
        return Form(MAPS, form.channels, spatial)
    return Form()
