"""What one operator costs: multiply-adds, elementwise operations, bytes.

**MACs** are multiply-adds of convolutions (grouped, transposed, of any dimension) and of matrix
products, the two of attention over tokens included: half of what ``torch.utils.flop_counter``
counts. One fused multiply-add is 1, so this is what papers print as "GFLOPs"; FLOPs = 2 x MACs.
Bias additions are part of the convolution and not counted.

**Elementwise operations** are the rest, by this convention:

=============================  ====================================================================
operator                       operations
=============================  ====================================================================
elementwise (add, sigmoid)     1 for each element it writes, whatever the function; upsampling,
                               grid sampling and RoI align too
reduction (mean, amax)         1 for each element it reads; cumulative sums, sort and top-k too
pooling                        1 for each element of each window, padding included
batch norm in evaluation mode  1 for each element
norm that computes statistics  2 for each element: it is read for the statistics, then written
softmax                        2 for each element: read for the normaliser, then written
views and shapes               0
copies                         0 (cat, pad, contiguous, index, dtype conversion, filling), but bytes
convolutions, matrix products  0, and no bytes
=============================  ====================================================================

An operator that is in none of these classes (an FFT, a custom operator) is counted as elementwise
and listed in `Priced.unknown`: nothing is dropped silently.

**Bytes** are what all operators but convolutions and matrix products read and write, each tensor
once for each operator, in its own dtype, as PyTorch runs them one by one and with no cache. What
works in place reads and writes the same tensor. Of an expanded tensor only what is in memory
counts, of a gathered one only what is picked.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

Tensor = torch.Tensor
Rule = Callable[[Sequence[Any], Sequence[Tensor]], int]
"""From an operator's arguments and outputs to its elementwise operations."""


@dataclass(frozen=True)
class Work:
    """What was computed.

    Attributes:
        macs: Multiply-adds of convolutions and matrix products.
        elementwise_ops: Operations of everything else.
        bytes_moved: Bytes that everything else reads and writes.

    Example:
        >>> Work(3, 2, 1) + Work(1) - Work(macs=2)
        Work(macs=2, elementwise_ops=2, bytes_moved=1)
    """

    macs: int = 0
    elementwise_ops: int = 0
    bytes_moved: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.macs + other.macs,
            self.elementwise_ops + other.elementwise_ops,
            self.bytes_moved + other.bytes_moved,
        )

    def __sub__(self, other: "Work") -> "Work":
        return self + Work(-other.macs, -other.elementwise_ops, -other.bytes_moved)


@dataclass(frozen=True)
class Priced:
    """One call of an operator.

    Attributes:
        work: What it costs.
        unknown: The operator's name, if no rule knows it; else "".
    """

    work: Work
    unknown: str = ""


def price(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Priced:
    """Return the cost of one call of an operator.

    Args:
        func: The operator, with its overload (``torch.ops.aten.add.Tensor``).
        args: What it was called with.
        kwargs: What it was called with.
        result: What it returned.

    Example:
        >>> x, gate = torch.ones(2, 8), torch.ones(2, 1)
        >>> price(torch.ops.aten.mul.Tensor, (x, gate), {}, x * gate).work
        Work(macs=0, elementwise_ops=16, bytes_moved=136)
    """
    macs = flop_registry.get(_out_of_place(func)._overloadpacket)
    if macs is not None:
        return Priced(Work(macs=macs(*args, **kwargs, out_val=result) // 2))
    kind = _kind(func)
    if kind.rule is None:
        return Priced(Work())
    written = list(_tensors((result,)))
    moved = _bytes_read(kind, args, kwargs, written) + sum(map(_in_memory, written))
    return Priced(Work(0, kind.rule(args, written), moved), kind.unknown)


# Kinds


@dataclass(frozen=True)
class _Kind:
    """How an operator is counted; no rule: it costs nothing.

    ``overwrites``: the first argument is written, not read. ``gathers``: of the first argument
    only as much is read as is written.
    """

    rule: Rule | None
    unknown: str = ""
    overwrites: bool = False
    gathers: bool = False


@cache
def _kind(func: Any) -> _Kind:
    name = func._schema.name.partition("::")[2]
    base = name.removesuffix("_")
    plain = _out_of_place(func)
    if plain.is_view or base in _FREE:
        return _Kind(None)
    if base in _COPIES:
        return _Kind(_nothing, overwrites=name in _OVERWRITES, gathers=base in _GATHERS)
    rule = _RULES.get(base) or _tagged(func) or _tagged(plain)
    if rule is None and base.startswith(_SAMPLERS):
        rule = _each_written
    if rule is None:
        return _Kind(_each_written, unknown=func._schema.name)
    return _Kind(rule, overwrites=name in _OVERWRITES)


@cache
def _out_of_place(func: Any) -> Any:
    """Return the operator that computes the same without writing on its first argument.

    It has the formula and the tags that many an operator that works in place lacks.
    """
    namespace, _, name = func._schema.name.partition("::")
    if not name.endswith("_"):
        return func
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, func._overloadname, func)


def _tagged(func: Any) -> Rule | None:
    # The tag for reductions is younger than the oldest torch that is supported.
    if getattr(torch.Tag, "reduction", None) in func.tags or func._schema.name in _OLD_REDUCTIONS:
        return _each_read
    return _each_written if torch.Tag.pointwise in func.tags else None


def _nothing(args: Sequence[Any], written: Sequence[Tensor]) -> int:
    return 0


def _each_written(args: Sequence[Any], written: Sequence[Tensor]) -> int:
    return written[0].numel() if written else 0


def _each_read(args: Sequence[Any], written: Sequence[Tensor]) -> int:
    return next((tensor.numel() for tensor in _tensors(args)), 0)


def _read_and_written(args: Sequence[Any], written: Sequence[Tensor]) -> int:
    return 2 * _each_read(args, written)


def _batch_norm(args: Sequence[Any], written: Sequence[Tensor]) -> int:
    computes_statistics = bool(args[5])  # input, weight, bias, running mean and variance, training
    return args[0].numel() * (1 + computes_statistics)


def _windows(dims: int) -> Rule:
    def count(args: Sequence[Any], written: Sequence[Tensor]) -> int:
        kernel = [args[1]] if isinstance(args[1], int) else list(args[1])
        return written[0].numel() * math.prod(kernel * dims if len(kernel) == 1 else kernel)

    return count


def _adaptive_windows(dims: int) -> Rule:
    def count(args: Sequence[Any], written: Sequence[Tensor]) -> int:
        sides = zip(args[0].shape[-dims:], written[0].shape[-dims:], strict=True)
        maps = math.prod(written[0].shape[:-dims])
        return maps * math.prod(_cover(before, after) for before, after in sides)

    return count


def _cover(before: int, after: int) -> int:
    """Sum the widths of ``after`` adaptive windows on ``before`` elements."""
    return sum(-(-(i + 1) * before // after) - i * before // after for i in range(after))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(["native_batch_norm", "cudnn_batch_norm"], _batch_norm),
    **{f"avg_pool{dims}d": _windows(dims) for dims in (1, 2, 3)},
    **{f"max_pool{dims}d_with_indices": _windows(dims) for dims in (1, 2, 3)},
    **{f"_adaptive_avg_pool{dims}d": _adaptive_windows(dims) for dims in (2, 3)},
    **{f"adaptive_max_pool{dims}d": _adaptive_windows(dims) for dims in (1, 2, 3)},
    **dict.fromkeys(
        "_softmax _log_softmax _safe_softmax native_layer_norm native_group_norm _fused_rms_norm "
        "_native_batch_norm_legit native_dropout".split(),
        _read_and_written,
    ),
    **dict.fromkeys(
        "cumsum cumprod topk sort kthvalue median nms nonzero unique _unique2 unique_dim bincount "
        "histc logsumexp col2im std var var_mean std_mean norm linalg_vector_norm aminmax "
        "_cdist_forward".split(),
        _each_read,
    ),
    **dict.fromkeys(
        "_native_batch_norm_legit_no_training hardswish hardshrink where glu mish softplus "
        "_prelu_kernel roi_align rand randn rand_like randn_like bernoulli uniform "
        "normal randint randperm masked_fill isin bucketize searchsorted complex "
        "view_as_complex_copy polar addcmul addcdiv lerp clamp floor_divide leaky_relu rsub "
        "_conj_physical".split(),
        _each_written,
    ),
}

_SAMPLERS = ("upsample_", "_upsample_", "grid_sampler_")

_OLD_REDUCTIONS = {
    f"aten::{name}"
    for name in "sum nansum mean amax amin max min argmax argmin prod all any count_nonzero".split()
}

_FREE = set(
    "empty empty_strided empty_like new_empty new_empty_strided empty_permuted as_strided "
    "_unsafe_view unsafe_split unsafe_split_with_sizes unsafe_chunk _local_scalar_dense set "
    "resize t transpose squeeze unsqueeze lift_fresh device sym_size sym_stride sym_numel "
    "sym_storage_offset is_same_size equal detach _assert_async".split()
)

_COPIES = set(
    "clone copy _to_copy cat stack constant_pad_nd reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d index index_select "
    "_unsafe_index "
    "index_put _index_put_impl index_copy index_fill gather scatter embedding roll flip repeat "
    "repeat_interleave fill zero zeros ones full zeros_like ones_like full_like new_zeros new_ones "
    "new_full arange linspace scalar_tensor eye im2col pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle select_scatter slice_scatter tril triu tril_indices "
    "triu_indices masked_select lift_fresh_copy unfold_copy narrow_copy rot90 diag_embed "
    "_reshape_copy _reshape_alias_copy permute_copy one_hot masked_scatter".split()
)

_GATHERS = {"index", "_unsafe_index", "index_select", "gather", "embedding", "masked_select"}

_OVERWRITES = set(
    "copy_ fill_ zero_ bernoulli_ uniform_ normal_ zeros_like ones_like full_like rand_like "
    "randn_like new_zeros new_ones new_full".split()
)


# Bytes


def _bytes_read(
    kind: _Kind, args: Sequence[Any], kwargs: Mapping[str, Any], written: Sequence[Tensor]
) -> int:
    read = {id(tensor): tensor for tensor in _tensors((*args, *kwargs.values()))}
    first = next(iter(read.values()), None)
    if first is None:
        return 0
    size = sum(map(_in_memory, read.values()))
    if kind.overwrites:
        return size - _in_memory(first)
    if kind.gathers and written:
        return size - _in_memory(first) + min(_in_memory(first), _in_memory(written[0]))
    return size


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _in_memory(tensor: Tensor) -> int:
    """Return the bytes of the elements that an expanded tensor really has."""
    if tensor.layout is not torch.strided:
        return tensor.numel() * tensor.element_size()
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sides if stride) * tensor.element_size()
