"""The shapes of what a pattern of einops' makes of a tensor."""

from __future__ import annotations

from attn_surgery.dataflow.shapes import BARE, LAST, MAPS, UNKNOWN, Shape
from attn_surgery.tracing import Side, sides


def arranged(pattern: str, shape: Shape) -> Shape:
    """Return what is known of a tensor after its axes were rearranged, reduced or repeated.

    Args:
        pattern: As einops takes it.
        shape: What is known of the tensor before.

    Example:
        >>> arranged("b c h w -> b (h w) c", Shape(MAPS, 8, 2))
        Shape(layout='channels last', channels=8, spatial_dims=1, is_spread=False, stacked=None)
    """
    found = sides(pattern)
    if found is None or shape.stacked is not None or shape.layout not in (MAPS, LAST):
        return UNKNOWN
    left, right = found
    if "..." in (*left, *right) or len(left) < 2 or shape.rank not in (None, len(left)):
        return UNKNOWN
    channel = left[1] if shape.layout == MAPS else left[-1]
    if not channel.isidentifier():
        return UNKNOWN
    if channel not in right:
        return _without(channel, left, right)
    spatial = len(right) - 2
    is_spread = spatial > 0 and all(_is_new(axis, left) for axis in right[2:])
    if right.index(channel) == 1 and spatial > 0:
        return Shape(MAPS, shape.channels, spatial, is_spread=is_spread or shape.is_spread)
    if right.index(channel) == len(right) - 1:
        return Shape(LAST, shape.channels, spatial or None)
    return UNKNOWN


def _is_new(axis: str, left: Side) -> bool:
    """Tell whether an axis is none that the tensor had before."""
    names = axis.strip("()").split()
    return not any(name in " ".join(left).replace("(", "").replace(")", "").split()
                   for name in names if not name.isdigit())  # fmt: skip


def _without(channel: str, left: Side, right: Side) -> Shape:
    """Return the shape of what holds the channels no longer, or not alone."""
    if any(channel in axis.strip("()").split() for axis in right):
        return UNKNOWN
    same = [axis for axis in left if axis != channel]
    if right == [same[0], "1", *same[1:]]:
        return Shape(MAPS, 1, len(same) - 1)
    return Shape(BARE, None, len(same) - 1) if right == same else UNKNOWN
