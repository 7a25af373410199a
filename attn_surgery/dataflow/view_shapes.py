"""The shapes of what views, slices and splits make of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx

from attn_surgery.dataflow.called_functions import argument, function_name
from attn_surgery.dataflow.shapes import BARE, LAST, MAPS, UNKNOWN, Shape, Step, stacked, unstacked


def split(step: Step) -> Shape:
    """Return the shape of each of the parts."""
    shape, name = step.shape, step.name
    dim = argument(step.node, 1 if name == "unbind" else 2, "dim") or 0
    if name == "unbind":
        return unstacked(shape, dim)
    along = shape.is_channel_dim(dim)
    if along is False:
        return shape
    parts = argument(step.node, 1, "chunks")
    if name == "chunk" and along and isinstance(parts, int) and shape.channels:
        even = shape.channels % parts == 0
        return replace(shape, channels=shape.channels // parts if even else None)
    return replace(shape, channels=None)


def _part(step: Step, source: fx.Node) -> Shape:
    """Return the shape of one of the parts that ``source`` splits a tensor into."""
    shape, sizes = step.shape, argument(source, 1, "split_size_or_sections")
    place, whole = step.node.args[1], step.known(source.args[0])
    dim = argument(source, 2, "dim") or 0
    if function_name(source) not in ("split", "split_with_sizes") or not isinstance(place, int):
        return shape
    if not whole.is_channel_dim(dim):
        return shape
    if isinstance(sizes, (tuple, list)) and -len(sizes) <= place < len(sizes):
        size = sizes[place]
        return replace(shape, channels=size if isinstance(size, int) else None)
    if not isinstance(sizes, int):
        return shape
    if whole.channels is None:
        return replace(shape, channels=sizes if place == 0 else None)
    start = sizes * (place if place >= 0 else -(-whole.channels // sizes) + place)
    return replace(shape, channels=min(sizes, whole.channels - start))


def sliced(step: Step) -> Shape:
    """Return the shape of a part of a tensor, or of one of several tensors."""
    shape, node = step.shape, step.node
    if step.name == "select":
        return unstacked(shape, argument(node, 1, "dim"))
    if step.name != "getitem":
        along = shape.is_channel_dim(argument(node, 1, "dim"))
        return shape if along is False else replace(shape, channels=_narrowed(step, along))
    source, item = step.inputs[0], node.args[1]
    if isinstance(source, fx.Node) and function_name(source) in _SPLITTING:
        return _part(step, source)
    if isinstance(item, int):
        if function_name(source) in _GIVES_SEVERAL or step.trace.called_module(source):
            return shape
        return unstacked(shape, item if shape.stacked is None else 0)
    return _indexed(shape, item if isinstance(item, tuple) else (item,))


_SPLITTING = frozenset("chunk split split_with_sizes tensor_split hsplit vsplit dsplit".split())
_GIVES_SEVERAL = frozenset(
    "max min median max_pool1d max_pool2d max_pool3d unbind "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d".split()
)


def _narrowed(step: Step, along: bool | None) -> int | None:
    length = argument(step.node, 3, "length")
    is_told = step.name == "narrow" and along and isinstance(length, int)
    return length if is_told else None


def _indexed(shape: Shape, items: tuple[Any, ...]) -> Shape:
    """Return the shape of ``x[items]``."""
    spread = _spread_by(shape, items)
    if spread is not None:
        return spread
    if Ellipsis in items and shape.rank is not None:
        at = items.index(Ellipsis)
        taken = sum(item is not None for item in items) - 1
        items = (*items[:at], *[slice(None)] * (shape.rank - taken), *items[at + 1 :])
    elif Ellipsis in items:
        return shape if items == (Ellipsis,) else UNKNOWN
    channels = shape.channels
    for place, item in enumerate(items):
        if item is None:
            rest = all(_is_whole(each) for each in (*items[:place], *items[place + 1 :]))
            return _unsqueezed(shape, place) if rest else UNKNOWN
        if isinstance(item, int):
            rest = all(_is_whole(each) for each in (*items[:place], *items[place + 1 :]))
            return unstacked(shape, place) if rest else UNKNOWN
        if not isinstance(item, slice):
            return UNKNOWN
        if not _is_whole(item) and shape.is_channel_dim(place) is not False:
            channels = _length(item, channels if shape.is_channel_dim(place) else None)
    return replace(shape, channels=channels)


def _spread_by(shape: Shape, items: tuple[Any, ...]) -> Shape | None:
    """Return the shape of a vector ``(N, C)`` that gets spatial dims of one position, else None."""
    added = 0
    while added < len(items) and items[len(items) - 1 - added] is None:
        added += 1
    before = items[: len(items) - added]
    is_vector = shape.rank is None or shape.spatial_dims is None
    is_plain = before == (Ellipsis,) or (len(before) == 2 and all(map(_is_whole, before)))
    if added and is_plain and is_vector and shape.layout != MAPS:
        return Shape(MAPS, shape.channels, added, is_spread=True)
    return None


def _length(item: slice, channels: int | None) -> int | None:
    try:
        return None if channels is None else len(range(*item.indices(channels)))
    except TypeError:
        return None


def _is_whole(item: Any) -> bool:
    return isinstance(item, slice) and item == slice(None)


def viewed(step: Step) -> Shape:
    """Follow what keeps track of the channels; other views lose the layout."""
    if step.module is not None:
        return UNKNOWN
    if step.node.target is getattr:
        return step.shape if step.node.args[1] in ("data", "values") else UNKNOWN
    rule = _VIEWS.get(step.name)
    return UNKNOWN if rule is None else rule(step)


def _permute(step: Step) -> Shape:
    order = step.listed() or tuple(step.node.kwargs.get("dims", ()))  # pyright: ignore[reportArgumentType]
    count, shape = len(order), step.shape
    is_plain = all(isinstance(dim, int) for dim in order)
    if shape.is_spread or shape.stacked is not None or not is_plain:
        return UNKNOWN
    order = tuple(int(dim) % count for dim in order)  # pyright: ignore[reportArgumentType]
    if order == (0, *range(2, count), 1) and shape.layout != LAST:
        return Shape(LAST, shape.channels, count - 2)
    if order == (0, count - 1, *range(1, count - 1)) and shape.layout != MAPS:
        return Shape(MAPS, shape.channels, count - 2)
    return UNKNOWN


def _transpose(step: Step) -> Shape:
    shape = step.shape
    dims = set(map(repr, (*step.listed(), *step.node.kwargs.values())))
    if dims not in ({"1", "2"}, {"1", "-1"}, {"-2", "-1"}) or shape.spatial_dims not in (None, 1):
        return UNKNOWN
    if shape.stacked is not None:
        return UNKNOWN
    layout = {MAPS: LAST, LAST: MAPS}.get(shape.layout, "")
    return Shape(layout, shape.channels, shape.spatial_dims or 1)


def _flatten(step: Step) -> Shape:
    shape, start = step.shape, argument(step.node, 1, "start_dim")
    end = argument(step.node, 2, "end_dim")
    if shape.layout == MAPS and shape.stacked is None and start == 2 and end in (None, -1):
        return replace(shape, spatial_dims=1)
    return UNKNOWN


def _unsqueeze(step: Step) -> Shape:
    shape, dim = step.shape, argument(step.node, 1, "dim")
    is_vector = shape.layout == LAST and shape.spatial_dims is None
    if is_vector and dim in (2, -1):
        return Shape(MAPS, shape.channels, 1, is_spread=True)
    place = shape.at(dim)
    if isinstance(dim, int) and dim < 0:
        place = None if shape.rank is None else shape.rank + 1 + dim
    return UNKNOWN if place is None else _unsqueezed(shape, place)


def _unsqueezed(shape: Shape, place: int) -> Shape:
    """Return the shape with a new dim at ``place``."""
    if shape.layout == BARE and shape.stacked is None and place == 1:
        return Shape(MAPS, 1, shape.spatial_dims)
    if shape.is_spread and shape.rank == place:
        return replace(shape, spatial_dims=(shape.spatial_dims or 0) + 1)
    return stacked(shape, place) if shape.layout and not shape.is_spread else UNKNOWN


def _squeeze(step: Step) -> Shape:
    shape, dim = step.shape, argument(step.node, 1, "dim")
    if (
        shape.layout == MAPS
        and shape.stacked is None
        and shape.channels == 1
        and shape.at(dim) == 1
    ):
        return Shape(BARE, None, shape.spatial_dims)
    return unstacked(shape, dim)


def _expand(step: Step) -> Shape:
    shape, sizes = step.shape, step.listed()
    if shape.layout != MAPS or shape.stacked is not None or len(sizes) != shape.rank:
        return UNKNOWN
    channels = sizes[1] if isinstance(sizes[1], int) and sizes[1] > 0 else shape.channels
    if channels == 1 and sizes[1] not in (1, -1):
        channels = None
    keeps = all(size in (1, -1) for size in sizes[2:])
    return replace(shape, channels=channels, is_spread=shape.is_spread and keeps)


def _like_another(step: Step) -> Shape:
    return step.known(argument(step.node, 1, "other"))


def _view(step: Step) -> Shape:
    """Follow a view as ``(N, C, 1, ...)`` alone."""
    sizes = step.listed()
    if len(sizes) < 3 or any(size != 1 for size in sizes[2:]):
        return UNKNOWN
    channels = sizes[1] if isinstance(sizes[1], int) and sizes[1] > 0 else None
    return Shape(MAPS, channels or step.shape.channels, len(sizes) - 2, is_spread=True)


_VIEWS: dict[str, Callable[[Step], Shape]] = {
    "permute": _permute,
    "transpose": _transpose,
    "swapaxes": _transpose,
    "swapdims": _transpose,
    "flatten": _flatten,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "expand_as": _like_another,
    "view_as": _like_another,
    "reshape_as": _like_another,
    "view": _view,
    "reshape": _view,
}


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
