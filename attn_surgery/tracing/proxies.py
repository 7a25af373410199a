"""What a traced ``forward`` meets instead of tensors and of its children's ``forward``."""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute
from torch.nn.modules.conv import _ConvNd

from attn_surgery.host import entry_name, put_back_afterwards, refill, steps_from

NUMBER = 8
"""What a traced value is where Python insists on a number."""


class Value(fx.Proxy):
    """A traced value that gives a number where Python insists on one.

    Any number does: what follows is only looked at, never run, and the guess is on record.
    """

    def __getattr__(self, k: str) -> Any:
        if not hasattr(Tensor, k) and _is_asked_for(sys._getframe(1)):
            self._guess(0)
            raise AttributeError(k)
        return self._of_attribute(self, k)

    @property
    def _of_attribute(self) -> type[ValueOfAttribute]:
        return ValueOfAttribute

    def __int__(self) -> int:
        return self._guess(NUMBER)

    def __float__(self) -> float:
        return float(self._guess(NUMBER))

    def __len__(self) -> int:
        return self._guess(4)

    def __hash__(self) -> int:
        self._look_up()
        self._guess(0)  # finding it in a set or a dict is a test, too
        return id(self)

    def __str__(self) -> str:
        self._look_up()  # names of children are made of it
        return str(guess_of(self, 0))

    def __format__(self, format_spec: str) -> str:
        return str(self)

    def _look_up(self) -> None:
        tracer: Any = self.tracer
        tracer.looked_up.append(tracer.stack[-1].module)

    def _guess(self, number: int) -> int:
        tracer: Any = self.tracer
        tracer.branched.append(tracer.stack[-1].module)
        return number

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __iter__(self) -> Iterator[Any]:
        # as in fx, which reads the caller's bytecode anew every time
        frame, elements = sys._getframe(1), cast(Any, self)
        step = steps_from(frame.f_code, frame.f_lasti)[0]
        if step.opname == "UNPACK_SEQUENCE":
            return iter([elements[i] for i in range(step.argval)])
        count = _elements(self.node)
        if count is None:
            count = self._guess(_likely_elements(self.node))
        return iter([elements[i] for i in range(count)])


class ValueOfAttribute(Value, Attribute):
    """An attribute of a traced value, or a method that is about to be called."""


class ValueWithClass(Value):
    """A traced value whose ``__class__``, to a forward that reads it, is that of a tensor.

    What asks for it in C gets the real one: it would take the value for a tensor. Not all values
    are such, as every test of a value's type asks for it.
    """

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        return kind_of(self.node) if _reads_class(sys._getframe(1)) else type(self)

    @property
    def _of_attribute(self) -> type[ValueOfAttribute]:
        return AttributeWithClass


class AttributeWithClass(ValueWithClass, ValueOfAttribute):
    """An attribute of one."""


def _elements(node: fx.Node) -> int | None:
    """Return how many elements the value has, where what makes it says so for certain."""
    name, sizes = _called_name(node), argument_of(node, 1)
    if name in ("split", "split_with_sizes") and isinstance(sizes, (tuple, list)):
        return len(sizes)
    if name == "tensor_split" and isinstance(sizes, int):
        return sizes
    if name == "getitem" and isinstance(sizes, slice) and _is_shape(node.args[0]):
        start, stop, step = sizes.start or 0, sizes.stop, sizes.step
        if step is None and isinstance(start, int) and (stop is None or isinstance(stop, int)):
            if start >= 0 and stop is not None and stop >= 0:
                return max(0, stop - start)
            if start < 0 and stop is None:
                return -start
    return None


def _likely_elements(node: fx.Node) -> int:
    """Return a likely number of elements: of parts as many as asked for, of a shape four."""
    if _called_name(node) == "chunk" and isinstance(parts := argument_of(node, 1), int):
        return parts
    if _called_name(node) == "getitem" and isinstance(part := argument_of(node, 1), slice):
        return len(range(4)[part]) if _is_plain_slice(part) else 2
    return 4 if _is_shape(node) else 2


def _is_plain_slice(part: slice) -> bool:
    return all(each is None or isinstance(each, int) for each in (part.start, part.stop, part.step))


def argument_of(node: fx.Node, place: int) -> Any:
    """Return a positional argument of the node, or its first one by name, or None."""
    if len(node.args) > place:
        return node.args[place]
    return next(iter(node.kwargs.values()), None)


def _called_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _is_shape(node: Any) -> bool:
    """Tell whether the node is the shape of a tensor."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return bool(node.target == "size" and len(node.args) == 1 and not node.kwargs)
    return node.target is getattr and node.args[1:] == ("shape",)


def _in_place(operation: Callable[..., Any]) -> Callable[[Value, Any], Any]:
    """Make ``a += b`` change a tensor, as Python does; fx would compute another one."""

    def operate(self: Value, other: Any) -> Any:
        if _is_number(self.node):
            return NotImplemented
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return operate


for _name in "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor imatmul".split():
    setattr(Value, f"__{_name}__", _in_place(getattr(operator, _name)))


def _is_number(node: fx.Node) -> bool:
    """Tell whether the node is a size, or computed from sizes."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    from_operators = getattr(node.target, "__module__", None) == "_operator"
    return from_operators and all(_is_number(each) for each in node.all_input_nodes)


def kind_of(node: fx.Node) -> type:
    """Return the type of what the node stands for, as far as a forward may ask."""
    if _is_shape(node):
        return torch.Size
    return int if _is_number(node) else Tensor


def guess_of(value: Value, otherwise: object) -> Any:
    """Return what a value may be where somebody insists on one, and note that it is a guess.

    Args:
        value: The value.
        otherwise: The guess where it is no dtype and no device.
    """
    value._guess(0)
    asked = value.node.args[1] if value.node.target is getattr else None
    likely = {"dtype": torch.float32, "device": torch.device("cpu"), "type": "cpu"}
    return likely.get(str(asked), otherwise)


def _reads_class(frame: types.FrameType) -> bool:
    step = steps_from(frame.f_code, frame.f_lasti)[0]
    return step.opname == "LOAD_ATTR" and step.argval == "__class__" and _is_hosts(frame)


def _is_asked_for(frame: types.FrameType) -> bool:
    """Tell whether the host asks if there is an attribute, and does not just read it."""
    step = steps_from(frame.f_code, frame.f_lasti)[0].opname
    return step not in ("LOAD_ATTR", "LOAD_METHOD") and _is_hosts(frame)


def _is_hosts(frame: types.FrameType) -> bool:
    home = str(frame.f_globals.get("__name__", ""))
    return home.partition(".")[0] not in ("torch", "attn_surgery", "einops")


class Watched:
    """Takes the place of a module's ``forward``, so that calls which bypass hooks are seen."""

    def __init__(self, tracer: Any, module: nn.Module):
        self.tracer = tracer
        self.module = module
        self.patched = "forward" in vars(module)
        self.original = module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tell the tracer instead of running the forward."""
        return self.tracer.direct_forward(self.module, args, kwargs)


class OneStep:
    """Takes the place of a method of a child's, so that a call of it is one step of the trace."""

    def __init__(self, tracer: Any, module: nn.Module, name: str):
        self.tracer = tracer
        self.module = module
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tell the tracer instead of running the method."""
        return self.tracer.call_of_method(self.module, self.name, args, kwargs)


@contextmanager
def listings_noted(tracer: Any, module: nn.Module) -> Iterator[None]:
    """Let the tracer know when the children of ``module`` are listed or counted."""
    children = module._modules
    noted = _Noted(children)
    noted.tracer = tracer
    tracer.tensor_names  # what the tracer itself lists has to be listed before  # noqa: B018

    def put_back() -> None:
        vars(module)["_modules"] = children
        now = dict(dict.items(noted))
        if list(now.items()) != list(children.items()):  # a write, to be noticed as any other
            refill(children, now)

    with put_back_afterwards(put_back):
        vars(module)["_modules"] = noted
        yield


class _Noted(dict[str, Any]):
    """The children of a module, which tell the tracer when they are listed or counted."""

    tracer: Any


def _noting(name: str) -> Callable[..., Any]:
    def method(self: _Noted, *args: Any) -> Any:
        self.tracer.lists_children = True
        return getattr(super(_Noted, self), name)(*args)

    return method


for _name in "__iter__ __len__ __reversed__ keys values items".split():
    setattr(_Noted, _name, _noting(_name))


def is_primitive(module: nn.Module) -> bool:
    """Tell whether torch itself defines what ``module`` computes.

    A convolution that only prepares its weight or its padding is still a convolution.
    """
    if entry_name(type(module)) != "forward":
        return False
    forward = vars(module).get("forward")
    if forward is not None and not (isinstance(forward, Watched) and not forward.patched):
        return False
    defined_in = getattr(type(module).forward, "__module__", None) or ""
    if isinstance(module, _ConvNd):
        return not defined_in.startswith("attn_surgery")
    is_torchs = defined_in.startswith(("torch.nn.", "torch.ao.", "einops.layers."))
    return is_torchs and not defined_in.endswith(".container")
