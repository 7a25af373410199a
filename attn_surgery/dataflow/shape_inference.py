"""Which shapes flow where: the form of each value of a trace, from what makes it.

Only what follows for certain is said; what an unknown step makes has no form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from attn_surgery.dataflow.einops_shapes import arranged
from attn_surgery.dataflow.node_kinds import Kind, Operation, argument, function_name
from attn_surgery.dataflow.shapes import (
    BARE,
    LAST,
    MAPS,
    UNKNOWN,
    Form,
    Known,
    Step,
    broadcast,
    norm_dims,
    stacked,
)
from attn_surgery.dataflow.view_shapes import sliced, split, viewed
from attn_surgery.tracing import Trace, owner, pattern_of


def form_of(
    trace: Trace, node: fx.Node, found: Operation, inputs: Sequence[fx.Node], known: Known
) -> Form:
    """Return what is known of the value of ``node``.

    Args:
        trace: The trace.
        node: What makes the value.
        found: What it does.
        inputs: The values that are carried into it.
        known: What is known of the values before.
    """
    if found.convolution is not None:
        conv = found.convolution
        given = known(inputs[0]) if inputs else UNKNOWN
        return Form(MAPS, conv.out_channels, len(conv.kernel_size), given.is_spread)
    pattern = pattern_of(node, trace.called_module(node))
    if pattern is not None:
        return arranged(pattern, known(inputs[0])) if inputs else UNKNOWN
    rule = _RULES.get(found.kind)
    if rule is not None:
        return rule(Step(trace, node, inputs, known))
    return broadcast(known(each) for each in inputs) if found.kind in _ELEMENTWISE else UNKNOWN


def form_without_value(node: fx.Node, known: Known) -> Form:
    """Return the form of a tensor that takes after another one, and carries none of its numbers."""
    if node.op.startswith("call_") and function_name(node).endswith("_like") and node.args:
        return known(node.args[0])
    return UNKNOWN


def _elementwise(step: Step) -> Form:
    form = broadcast(step.known(each) for each in step.inputs)
    operands = (each for each in step.node.all_input_nodes if each.op == "get_attr")
    constants = (step.trace.attribute(each) for each in operands)
    if form.channels == 1 and any(isinstance(c, Tensor) and c.numel() > 1 for c in constants):
        return replace(form, channels=None)  # it may be broadcast to more
    return form


def _activated(step: Step) -> Form:
    form = _elementwise(step)
    if step.name != "glu":
        return form
    halved = form.is_channel_dim(-1 if (dim := step.asked(1, "dim")) is None else dim)
    if halved is None:
        return replace(form, channels=None)
    return replace(form, channels=form.channels and form.channels // 2) if halved else form


def _normed(step: Step) -> Form:
    module, form = step.module, broadcast(step.known(each) for each in step.inputs)
    if module is None and function_name(step.node) == "batch_norm":
        mean = argument(step.node, 1, "running_mean")
        if isinstance(mean, fx.Node) and mean.op == "get_attr":
            channels = len(step.trace.attribute(mean))
            dims = form.spatial_dims or norm_dims(owner(step.node).module)
            return replace(form, layout=MAPS, channels=channels, spatial_dims=dims, stacked=None)
    if isinstance(module, _NormBase):
        channels, dims = module.num_features or form.channels, norm_dims(module)
        dims = dims or form.spatial_dims
        return replace(form, layout=MAPS, channels=channels, spatial_dims=dims, stacked=None)
    if isinstance(module, nn.GroupNorm):
        return replace(form, layout=form.layout or MAPS, channels=module.num_channels)
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1 and not form.layout:
        return Form(LAST, module.normalized_shape[0], form.spatial_dims)
    return form


def _mixed_linearly(step: Step) -> Form:
    module, form = step.module, step.form
    features = module.out_features if isinstance(module, nn.Linear) else None
    return Form(LAST, features, form.spatial_dims)


def _padded(step: Step) -> Form:
    form, module = step.form, step.module
    sizes = step.asked(1, "padding" if module else "pad")
    if module is not None and not isinstance(sizes, (tuple, list)):
        return form
    is_spatial = isinstance(sizes, (tuple, list)) and form.spatial_dims
    if is_spatial and len(sizes) <= 2 * (form.spatial_dims or 0) and form.layout == MAPS:
        return form
    return replace(form, channels=None)


def _upsampled(step: Step) -> Form:
    form = replace(step.form, is_spread=False)
    keeps = "shuffle" not in step.name and step.name not in ("fold", "repeat_interleave")
    return form if keeps else replace(form, channels=None)


def _rearranged(step: Step) -> Form:
    keeps = step.name not in ("pixelunshuffle", "pixel_unshuffle")
    return step.form if keeps else replace(step.form, channels=None)


def _reduced(step: Step) -> Form:
    form, module = step.form, step.module
    if module is not None or step.name.startswith("adaptive"):
        return replace(form, is_spread=form.layout == MAPS)
    dims, keeps = argument(step.node, 1, "dim"), argument(step.node, 2, "keepdim")
    if step.name in ("norm", "logsumexp", "std", "var", "std_mean", "var_mean", "prod"):
        dims, keeps = _late_dims(step)
    places = [form.at(dim) for dim in (dims if isinstance(dims, (tuple, list)) else [dims])]
    if form.rank is None or None in places:
        return UNKNOWN
    return _without(form, {place for place in places if place is not None}, bool(keeps))


def _late_dims(step: Step) -> tuple[Any, Any]:
    """Return the dims and keepdim of reductions that take something else between the two."""
    kwargs, args = step.node.kwargs, step.node.args[1:]
    dims = kwargs.get("dim", args[1] if step.name == "norm" and len(args) > 1 else None)
    if "dim" not in kwargs and step.name != "norm" and args and not isinstance(args[0], bool):
        dims = args[0]
    late = 2 if step.name in ("std", "var", "std_mean", "var_mean", "norm") else 1
    return dims, kwargs.get("keepdim", args[late] if len(args) > late else False)


def _without(form: Form, places: set[int], keeps: bool) -> Form:
    """Return the form of what is reduced over these dims."""
    if form.stacked is not None:
        alone = not keeps and places == {form.stacked}
        return replace(form, stacked=None) if alone else UNKNOWN
    space = _space(form)
    if keeps:
        channels = 1 if form.channel_dim in places else form.channels
        is_spread = form.is_spread or (form.layout == MAPS and space <= places)
        return replace(form, channels=channels, is_spread=is_spread)
    if form.layout == MAPS and places == {1}:
        return Form(BARE, None, form.spatial_dims)
    if form.layout == MAPS and places == space:
        return Form(LAST, form.channels)
    return UNKNOWN


def _space(form: Form) -> set[int]:
    """Return the spatial dims."""
    first = 2 if form.layout == MAPS else 1
    return set(range(first, first + (form.spatial_dims or 0)))


def _concatenated(step: Step) -> Form:
    tensors = argument(step.node, 0, "tensors")
    if not isinstance(tensors, (tuple, list)) or not tensors:
        return replace(broadcast(step.known(each) for each in step.inputs), channels=None)
    each = [step.known(tensor) for tensor in tensors]
    form = broadcast(each)
    dim = argument(step.node, 1, "dim")
    dim = {"hstack": 1, "vstack": 0, "dstack": 2}.get(step.name, 0 if dim is None else dim)
    if step.name == "stack":
        return stacked(form, dim)
    along = form.is_channel_dim(dim)
    widths = [one.channels for one in each]
    if along is None:
        along = form.layout == "" and dim == 1
    if not along:
        return form if len(set(widths)) == 1 else replace(form, channels=None)
    return replace(form, channels=None if None in widths else sum(filter(None, widths)))


_RULES: dict[Kind, Callable[[Step], Form]] = {
    Kind.ACTIVATION: _activated,
    Kind.ADD: _elementwise,
    Kind.SUB: _elementwise,
    Kind.MUL: _elementwise,
    Kind.DIV: _elementwise,
    Kind.NORM: _normed,
    Kind.LINEAR: _mixed_linearly,
    Kind.PAD: _padded,
    Kind.UPSAMPLE: _upsampled,
    Kind.REARRANGE: _rearranged,
    Kind.REDUCE: _reduced,
    Kind.CAT: _concatenated,
    Kind.SPLIT: split,
    Kind.SLICE: sliced,
    Kind.VIEW: viewed,
}
_ELEMENTWISE = {
    Kind.MATH,
    Kind.SIGMOID,
    Kind.SOFTMAX,
    Kind.POOL,
    Kind.FILTER,
    Kind.IDENTITY,
    Kind.DROPOUT,
}
