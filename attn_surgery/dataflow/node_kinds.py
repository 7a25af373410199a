"""What the nodes of a trace do, in the few words that the data-flow rules need.

Operations are told apart by what torch calls them, however they are spelled: ``F.relu``,
``x.relu_()`` and ``nn.ReLU`` are one. Modules of the host's own making are never asked for their
names; they have been followed inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from attn_surgery.dataflow.called_functions import argument, callable_name, function_name
from attn_surgery.dataflow.computed_kernels import tensor_behind, viewed_shape
from attn_surgery.tracing import (
    Trace,
    baked_constant,
    is_layer_of_patterns,
    is_opaque,
    is_primitive,
    name_of_function,
)


class Kind(Enum):
    """The kinds of operation that the rules tell apart."""

    INPUT = auto()
    CONSTANT = auto()
    QUERY = auto()  # asks for shape, dtype, device: carries no value of the tensor
    CONV = auto()
    FILTER = auto()  # a convolution whose kernel is not learned
    LINEAR = auto()
    NORM = auto()
    ACTIVATION = auto()
    MATH = auto()  # elementwise, as norms use it
    SIGMOID = auto()
    SOFTMAX = auto()
    POOL = auto()
    REDUCE = auto()  # pools whole dimensions away
    UPSAMPLE = auto()
    PAD = auto()
    VIEW = auto()
    REARRANGE = auto()
    SLICE = auto()
    SPLIT = auto()
    IDENTITY = auto()
    DROPOUT = auto()
    ADD = auto()
    SUB = auto()
    LERP = auto()
    MUL = auto()
    DIV = auto()
    CAT = auto()
    MIX = auto()  # a matrix product: attention where both factors are computed
    OPAQUE = auto()  # a module that could not be followed inside
    OTHER = auto()


_NAMES = {
    Kind.QUERY: "size dim ndimension numel nelement stride is_contiguous get_device element_size "
    "new_empty new_zeros new_ones new_full new_tensor empty_like zeros_like ones_like full_like "
    "rand_like randn_like bernoulli_like is_floating_point is_complex get_dimensions",
    Kind.CONV: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "convolution",
    Kind.LINEAR: "linear",
    Kind.NORM: "batch_norm group_norm layer_norm instance_norm rms_norm local_response_norm "
    "normalize native_layer_norm native_group_norm native_batch_norm",
    Kind.ACTIVATION: "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish "
    "hardtanh hardshrink softshrink tanhshrink softplus softsign logsigmoid "
    "log_sigmoid tanh glu threshold _threshold abs exp exp2 log log2 log10 log1p expm1 clamp clip "
    "clamp_min clamp_max maximum minimum fmax fmin erf erfc sin cos tan asin acos atan atan2 sinh "
    "cosh asinh acosh atanh sign sgn heaviside floor ceil round trunc frac fmod remainder where "
    "masked_fill masked_scatter nan_to_num logit gt lt ge le eq ne sparsemax",
    Kind.MATH: "pow square sqrt rsqrt reciprocal",
    Kind.SIGMOID: "sigmoid hardsigmoid",
    Kind.SOFTMAX: "softmax log_softmax gumbel_softmax softmin",
    Kind.POOL: "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d lp_pool1d "
    "lp_pool2d lp_pool3d fractional_max_pool2d fractional_max_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d max_pool2d_with_indices",
    Kind.REDUCE: "mean sum amax amin max min std var var_mean std_mean logsumexp norm prod median",
    Kind.UPSAMPLE: "interpolate upsample upsample_nearest upsample_bilinear pixel_shuffle fold "
    "repeat_interleave",
    Kind.PAD: "pad",
    Kind.VIEW: "reshape view flatten unflatten permute transpose movedim moveaxis swapaxes "
    "swapdims squeeze unsqueeze expand expand_as view_as reshape_as t ravel unfold rearrange",
    Kind.REARRANGE: "roll flip channel_shuffle pixel_unshuffle rot90",
    Kind.SLICE: "narrow select index_select",
    Kind.SPLIT: "chunk split tensor_split unbind split_with_sizes hsplit vsplit dsplit",
    Kind.IDENTITY: "contiguous clone to type_as type float half bfloat16 double cpu cuda detach "
    "requires_grad alias identity as_tensor asarray",
    Kind.DROPOUT: "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout "
    "feature_alpha_dropout",
    Kind.ADD: "add iadd radd addcmul addcdiv",
    Kind.SUB: "sub isub rsub subtract",
    Kind.LERP: "lerp",
    Kind.MUL: "mul imul rmul multiply",
    Kind.DIV: "div idiv truediv itruediv rtruediv true_divide divide",
    Kind.CAT: "cat concat concatenate stack hstack vstack dstack",
    Kind.MIX: "matmul bmm mm einsum baddbmm scaled_dot_product_attention imatmul rmatmul",
}
_KIND_OF_NAME = {name: kind for kind, names in _NAMES.items() for name in names.split()}

_KIND_OF_TORCH_FILE = {
    "conv": Kind.CONV,
    "batchnorm": Kind.NORM,
    "instancenorm": Kind.NORM,
    "normalization": Kind.NORM,
    "activation": Kind.ACTIVATION,
    "pooling": Kind.POOL,
    "dropout": Kind.DROPOUT,
    "padding": Kind.PAD,
    "upsampling": Kind.UPSAMPLE,
    "pixelshuffle": Kind.UPSAMPLE,
    "flatten": Kind.VIEW,
    "channelshuffle": Kind.REARRANGE,
    "stubs": Kind.IDENTITY,
    "fake_quantize": Kind.IDENTITY,
    "observer": Kind.IDENTITY,
}

_DROPOUT_FILES = {"torch.nn.modules.dropout"}

_VALUE_ATTRIBUTES = {"T", "mT", "H", "mH", "data", "real", "values"}


@dataclass(frozen=True)
class Convolution:
    """The facts of a convolution, by module or by function; None where unknown."""

    kernel_size: tuple[int, ...]
    in_channels: int | None
    out_channels: int | None
    upsamples: bool = False

    @property
    def is_spatial(self) -> bool:
        """Whether it looks at more than one position."""
        return any(size > 1 for size in self.kernel_size)


@dataclass(frozen=True)
class Operation:
    """What one node does, and, where it is one, the convolution."""

    kind: Kind
    convolution: Convolution | None = None


def operation(trace: Trace, node: fx.Node) -> Operation:
    """Tell what ``node`` does."""
    if node.op == "placeholder":
        return Operation(Kind.INPUT)
    if node.op in ("get_attr", "output") or node.target is baked_constant:
        return Operation(Kind.CONSTANT)
    module = trace.called_module(node)
    if module is not None:
        return Operation(Kind.OPAQUE) if is_opaque(node) else _of_module(module)
    if node.target is getattr:
        return Operation(Kind.VIEW if node.args[1] in _VALUE_ATTRIBUTES else Kind.QUERY)
    if name := name_of_function(node):
        return Operation(_KIND_OF_PATTERNS.get(name, Kind.OTHER))
    return _of_function(trace, node)


_KIND_OF_PATTERNS = {
    "rearrange": Kind.VIEW,
    "repeat": Kind.VIEW,
    "reduce": Kind.REDUCE,
    "einsum": Kind.MIX,
    "pack": Kind.CAT,
    "unpack": Kind.SPLIT,
}


def _of_module(module: nn.Module) -> Operation:
    if isinstance(module, _ConvNd):
        conv = Convolution(
            tuple(module.kernel_size), module.in_channels, module.out_channels, _upsamples(module)
        )
        return Operation(Kind.UPSAMPLE if conv.upsamples else Kind.CONV, conv)
    if is_layer_of_patterns(module):
        kind = Kind.REDUCE if hasattr(module, "reduction") else Kind.VIEW
        return Operation(Kind.LINEAR if module._parameters else kind)
    torchs = next((c for c in type(module).__mro__ if _is_torchs(c)), nn.Module)
    if isinstance(module, nn.Identity) or (torchs.__module__ in _DROPOUT_FILES and module.p == 0):
        return Operation(Kind.IDENTITY)
    if isinstance(module, nn.Linear):
        return Operation(Kind.LINEAR)
    if isinstance(module, nn.MultiheadAttention):
        return Operation(Kind.MIX)
    if isinstance(module, (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)):
        return Operation(Kind.SOFTMAX)
    if isinstance(module, (nn.Sigmoid, nn.Hardsigmoid)):
        return Operation(Kind.SIGMOID)
    if isinstance(module, nn.PixelUnshuffle):
        return Operation(Kind.REARRANGE)
    size = getattr(module, "output_size", None)
    if "Adaptive" in torchs.__name__ and size is not None and _is_one(size):
        return Operation(Kind.REDUCE)
    return Operation(_KIND_OF_TORCH_FILE.get(torchs.__module__.rpartition(".")[2], Kind.OPAQUE))


def _is_torchs(cls: type) -> bool:
    # not torch.nn.utils: a parametrized module is still what it was
    home = cls.__module__
    return home.startswith(("torch.nn.modules.", "torch.ao.")) and cls is not nn.Module


def _upsamples(module: _ConvNd) -> bool:
    return isinstance(module, _ConvTransposeNd) and any(step > 1 for step in module.stride)


def _is_one(size: Any) -> bool:
    return all(s == 1 for s in size) if isinstance(size, (tuple, list)) else size == 1


def _of_function(trace: Trace, node: fx.Node) -> Operation:
    name = function_name(node)
    kind = _KIND_OF_NAME.get(name, Kind.OTHER)
    if name == "getitem":
        return Operation(Kind.SLICE)
    if name == "type" and len(node.args) == 1 and not node.kwargs:
        return Operation(Kind.QUERY)
    if name in ("max", "min") and len(node.all_input_nodes) > 1:
        return Operation(Kind.ACTIVATION)
    if kind is Kind.CONV:
        return _of_functional_convolution(trace, node, name)
    if (
        kind is Kind.POOL
        and name.startswith("adaptive")
        and _is_one(argument(node, 1, "output_size"))
    ):
        return Operation(Kind.REDUCE)
    return Operation(kind)


def is_in_place(trace: Trace, node: fx.Node) -> bool:
    """Tell whether the node changes its first operand."""
    module = trace.called_module(node)
    if module is not None:
        return getattr(module, "inplace", False) is True and is_primitive(module)
    if not node.op.startswith("call_") or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.kwargs.get("inplace") is True or is_item_set(node):
        return True
    target = node.target
    name = target if isinstance(target, str) else callable_name(target)
    if node.op == "call_function" and getattr(target, "__module__", None) == "_operator":
        return name in _IN_PLACE_OPERATORS
    return name.endswith("_") and not name.endswith("__")


def is_item_set(node: fx.Node) -> bool:
    """Tell whether the node writes on a part of a tensor, and returns nothing."""
    return node.op == "call_function" and function_name(node) == "setitem"


_IN_PLACE_OPERATORS = frozenset(
    "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor imatmul setitem".split()
)


def value_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the inputs whose numbers may matter, and not their shape, type or device alone."""
    given = node.all_input_nodes
    if len(given) < 2 or not node.op.startswith("call_"):
        return given
    if function_name(node) in _MADE_LIKE_ANOTHER:
        return [each for each in given if each in node.args[:1]]
    return given


_MADE_LIKE_ANOTHER = frozenset("to type_as expand_as view_as reshape_as".split())


def _of_functional_convolution(trace: Trace, node: fx.Node, name: str) -> Operation:
    kernel = argument(node, 1, "weight")
    weight = tensor_behind(trace, kernel)
    if weight is None:
        return Operation(Kind.FILTER)
    is_transposed = "transpose" in name
    outward, inward, *sizes = viewed_shape(kernel) or tuple(weight.shape)
    groups = argument(node, 7 if is_transposed else 6, "groups") or 1
    if inward is not None:
        inward = inward * groups if isinstance(groups, int) else None
    if is_transposed:
        outward, inward = inward, outward
    stride = argument(node, 3, "stride") or 1
    steps = stride if isinstance(stride, (tuple, list)) else (stride,)
    upsamples = is_transposed and any(step != 1 for step in steps)
    conv = Convolution(tuple(sizes), inward, outward, upsamples)
    if upsamples:
        return Operation(Kind.UPSAMPLE, conv)
    return Operation(Kind.CONV if isinstance(weight, nn.Parameter) else Kind.FILTER, conv)
