"""Which shapes flow where: the shape of each value of a trace, from what makes it.

Only what follows for certain is said; what an unknown step makes has no shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from attn_surgery.dataflow.called_functions import argument, function_name
from attn_surgery.dataflow.einops_shapes import arranged
from attn_surgery.dataflow.node_kinds import Kind, Operation
from attn_surgery.dataflow.shapes import (
    BARE,
    LAST,
    MAPS,
    UNKNOWN,
    Known,
    Shape,
    Step,
    broadcast,
    norm_dims,
    stacked,
)
from attn_surgery.dataflow.view_shapes import sliced, split, viewed
from attn_surgery.tracing import Trace, owner, pattern_of


def shape_of(
    trace: Trace, node: fx.Node, found: Operation, inputs: Sequence[fx.Node], known: Known
) -> Shape:
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
        return Shape(MAPS, conv.out_channels, len(conv.kernel_size), given.is_spread)
    pattern = pattern_of(node, trace.called_module(node))
    if pattern is not None:
        return arranged(pattern, known(inputs[0])) if inputs else UNKNOWN
    rule = _RULES.get(found.kind)
    if rule is not None:
        return rule(Step(trace, node, inputs, known))
    return broadcast(known(each) for each in inputs) if found.kind in _ELEMENTWISE else UNKNOWN


def shape_without_value(node: fx.Node, known: Known) -> Shape:
    """Return the shape of a tensor that takes after another one, none of its numbers."""
    if node.op.startswith("call_") and function_name(node).endswith("_like") and node.args:
        return known(node.args[0])
    return UNKNOWN


def _elementwise(step: Step) -> Shape:
    shape = broadcast(step.known(each) for each in step.inputs)
    operands = (each for each in step.node.all_input_nodes if each.op == "get_attr")
    constants = (step.trace.attribute(each) for each in operands)
    if shape.channels == 1 and any(isinstance(c, Tensor) and c.numel() > 1 for c in constants):
        return replace(shape, channels=None)  # it may be broadcast to more
    return shape


def _activated(step: Step) -> Shape:
    shape = _elementwise(step)
    if step.name != "glu":
        return shape
    halved = shape.is_channel_dim(-1 if (dim := step.asked(1, "dim")) is None else dim)
    if halved is None:
        return replace(shape, channels=None)
    return replace(shape, channels=shape.channels and shape.channels // 2) if halved else shape


def _normed(step: Step) -> Shape:
    module, shape = step.module, broadcast(step.known(each) for each in step.inputs)
    if module is None and function_name(step.node) == "batch_norm":
        mean = argument(step.node, 1, "running_mean")
        if isinstance(mean, fx.Node) and mean.op == "get_attr":
            channels = len(step.trace.attribute(mean))
            dims = shape.spatial_dims or norm_dims(owner(step.node).module)
            return replace(shape, layout=MAPS, channels=channels, spatial_dims=dims, stacked=None)
    if isinstance(module, _NormBase):
        channels, dims = module.num_features or shape.channels, norm_dims(module)
        dims = dims or shape.spatial_dims
        return replace(shape, layout=MAPS, channels=channels, spatial_dims=dims, stacked=None)
    if isinstance(module, nn.GroupNorm):
        return replace(shape, layout=shape.layout or MAPS, channels=module.num_channels)
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1 and not shape.layout:
        return Shape(LAST, module.normalized_shape[0], shape.spatial_dims)
    return shape


def _mixed_linearly(step: Step) -> Shape:
    module, shape = step.module, step.shape
    features = module.out_features if isinstance(module, nn.Linear) else None
    return Shape(LAST, features, shape.spatial_dims)


def _padded(step: Step) -> Shape:
    shape, module = step.shape, step.module
    sizes = step.asked(1, "padding" if module else "pad")
    if module is not None and not isinstance(sizes, (tuple, list)):
        return shape
    is_spatial = isinstance(sizes, (tuple, list)) and shape.spatial_dims
    if is_spatial and len(sizes) <= 2 * (shape.spatial_dims or 0) and shape.layout == MAPS:
        return shape
    return replace(shape, channels=None)


def _upsampled(step: Step) -> Shape:
    shape = replace(step.shape, is_spread=False)
    keeps = "shuffle" not in step.name and step.name not in ("fold", "repeat_interleave")
    return shape if keeps else replace(shape, channels=None)


def _rearranged(step: Step) -> Shape:
    keeps = step.name not in ("pixelunshuffle", "pixel_unshuffle")
    return step.shape if keeps else replace(step.shape, channels=None)


def _reduced(step: Step) -> Shape:
    shape, module = step.shape, step.module
    if module is not None or step.name.startswith("adaptive"):
        return replace(shape, is_spread=shape.layout == MAPS)
    dims, keeps = argument(step.node, 1, "dim"), argument(step.node, 2, "keepdim")
    if step.name in ("norm", "logsumexp", "std", "var", "std_mean", "var_mean", "prod"):
        dims, keeps = _late_dims(step)
    places = [shape.at(dim) for dim in (dims if isinstance(dims, (tuple, list)) else [dims])]
    if shape.rank is None or None in places:
        return UNKNOWN
    return _without(shape, {place for place in places if place is not None}, bool(keeps))


def _late_dims(step: Step) -> tuple[Any, Any]:
    """Return the dims and keepdim of reductions that take something else between the two."""
    kwargs, args = step.node.kwargs, step.node.args[1:]
    dims = kwargs.get("dim", args[1] if step.name == "norm" and len(args) > 1 else None)
    if "dim" not in kwargs and step.name != "norm" and args and not isinstance(args[0], bool):
        dims = args[0]
    late = 2 if step.name in ("std", "var", "std_mean", "var_mean", "norm") else 1
    return dims, kwargs.get("keepdim", args[late] if len(args) > late else False)


def _without(shape: Shape, places: set[int], keeps: bool) -> Shape:
    """Return the shape of what is reduced over these dims."""
    if shape.stacked is not None:
        alone = not keeps and places == {shape.stacked}
        return replace(shape, stacked=None) if alone else UNKNOWN
    space = _space(shape)
    if keeps:
        channels = 1 if shape.channel_dim in places else shape.channels
        is_spread = shape.is_spread or (shape.layout == MAPS and space <= places)
        return replace(shape, channels=channels, is_spread=is_spread)
    if shape.layout == MAPS and places == {1}:
        return Shape(BARE, None, shape.spatial_dims)
    if shape.layout == MAPS and places == space:
        return Shape(LAST, shape.channels)
    return UNKNOWN


def _space(shape: Shape) -> set[int]:
    """Return the spatial dims."""
    first = 2 if shape.layout == MAPS else 1
    return set(range(first, first + (shape.spatial_dims or 0)))


def _concatenated(step: Step) -> Shape:
    tensors = argument(step.node, 0, "tensors")
    if not isinstance(tensors, (tuple, list)) or not tensors:
        return replace(broadcast(step.known(each) for each in step.inputs), channels=None)
    each = [step.known(tensor) for tensor in tensors]
    shape = broadcast(each)
    dim = argument(step.node, 1, "dim")
    dim = {"hstack": 1, "vstack": 0, "dstack": 2}.get(step.name, 0 if dim is None else dim)
    if step.name == "stack":
        return stacked(shape, dim)
    along = shape.is_channel_dim(dim)
    widths = [one.channels for one in each]
    if along is None:
        along = shape.layout == "" and dim == 1
    if not along:
        return shape if len(set(widths)) == 1 else replace(shape, channels=None)
    return replace(shape, channels=None if None in widths else sum(filter(None, widths)))


_RULES: dict[Kind, Callable[[Step], Shape]] = {
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
