"""The forms of what a pattern of einops' makes of a tensor."""

from __future__ import annotations

from attn_surgery.dataflow.shapes import BARE, LAST, MAPS, UNKNOWN, Form
from attn_surgery.tracing import Side, sides


def arranged(pattern: str, form: Form) -> Form:
    """Return what is known of a tensor after its axes were rearranged, reduced or repeated.

    Args:
        pattern: As einops takes it.
        form: What is known of the tensor before.

    Example:
        >>> arranged("b c h w -> b (h w) c", Form(MAPS, 8, 2))
        Form(layout='channels last', channels=8, spatial_dims=1, is_spread=False, stacked=None)
    """
    found = sides(pattern)
    if found is None or form.stacked is not None or form.layout not in (MAPS, LAST):
        return UNKNOWN
    left, right = found
    if "..." in (*left, *right) or len(left) < 2 or form.rank not in (None, len(left)):
        return UNKNOWN
    channel = left[1] if form.layout == MAPS else left[-1]
    if not channel.isidentifier():
        return UNKNOWN
    if channel not in right:
        return _without(channel, left, right)
    spatial = len(right) - 2
    is_spread = spatial > 0 and all(_is_new(axis, left) for axis in right[2:])
    if right.index(channel) == 1 and spatial > 0:
        return Form(MAPS, form.channels, spatial, is_spread=is_spread or form.is_spread)
    if right.index(channel) == len(right) - 1:
        return Form(LAST, form.channels, spatial or None)
    return UNKNOWN


def _is_new(axis: str, left: Side) -> bool:
    """Tell whether an axis is none that the tensor had before."""
    names = axis.strip("()").split()
    return not any(name in " ".join(left).replace("(", "").replace(")", "").split()
                   for name in names if not name.isdigit())  # fmt: skip


def _without(channel: str, left: Side, right: Side) -> Form:
    """Return the form of what holds the channels no longer, or not alone."""
    if any(channel in axis.strip("()").split() for axis in right):
        return UNKNOWN
    same = [axis for axis in left if axis != channel]
    if right == [same[0], "1", *same[1:]]:
        return Form(MAPS, 1, len(same) - 1)
    return Form(BARE, None, len(same) - 1) if right == same else UNKNOWN
