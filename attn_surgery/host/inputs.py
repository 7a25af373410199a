"""What a model is fed while it is counted and measured.

A shape, several shapes for a model that takes several tensors, or a callable that makes the input:
a tensor, a tuple of positional arguments, or a dict of keyword arguments, batch included.
"""

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.host.restore import undisturbed_randomness

DEFAULT_SIDE = 224
DEFAULT_FRAMES = 16

Shape = tuple[int, ...]
InputSize = Sequence[int] | Sequence[Sequence[int]] | Callable[[], object]


@dataclass(frozen=True)
class Input:
    """The input of one model.

    Attributes:
        shapes: One shape ``(C, *spatial)`` for each tensor, without the batch.
        make: What makes the input instead; shapes is empty then.

    Example:
        >>> given = Input(((3, 8, 8),))
        >>> args, kwargs = given.build(batch=2, device="meta", dtype=torch.float16)
        >>> str(given), args[0].shape, args[0].dtype, kwargs
        ('3x8x8', torch.Size([2, 3, 8, 8]), torch.float16, {})
    """

    shapes: tuple[Shape, ...] = ()
    make: Callable[[], object] | None = None

    def build(
        self, batch: int = 1, device: torch.device | str = "meta", dtype: torch.dtype | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make the positional and the keyword arguments of one call.

        Args:
            batch: Inputs in the batch. What a callable made is repeated that often: tensors along
                dimension 0, lists (of images) item by item.
            device: Where the tensors are.
            dtype: Of tensors of floating point; None leaves a callable's as they are.

        Raises:
            SurgeryError: The callable fails or returns something else than an input.
        """
        if self.make is None:
            shapes = [(batch, *shape) for shape in self.shapes]
            return _drawn(shapes, torch.device(device), dtype or torch.float32), {}
        args, kwargs = _arguments(self._made())
        args = tuple(_moved(value, batch, device, dtype) for value in args)
        return args, {name: _moved(value, batch, device, dtype) for name, value in kwargs.items()}

    def _made(self) -> object:
        assert self.make is not None
        try:
            return self.make()
        except Exception as error:
            raise SurgeryError(f"input {self} could not be made: {one_line(error)}") from error

    def __str__(self) -> str:
        if self.make is not None:
            return getattr(self.make, "__qualname__", type(self.make).__name__)
        return ",".join(map(format_size, self.shapes))

    def to_json(self) -> list[int] | list[list[int]] | str:
        """Return the shape, the shapes, or the name of what makes the input.

        Example:
            >>> Input(((3, 8, 8),)).to_json()
            [3, 8, 8]
        """
        if self.make is not None:
            return str(self)
        shapes = [list(shape) for shape in self.shapes]
        return shapes[0] if len(shapes) == 1 else shapes


def _drawn(
    shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Draw the same numbers each time, on the device itself: host memory may be smaller."""
    if device.type == "meta":
        return tuple(torch.empty(each, dtype=dtype, device=device) for each in shapes)
    # the CPU rounds: so the numbers of all dtypes are alike
    drawn = None if device.type == "cpu" else dtype
    with undisturbed_randomness(device, seed=0):
        made = [torch.randn(each, dtype=drawn, device=device) for each in shapes]
    return tuple(tensor.to(dtype) for tensor in made)


def _arguments(made: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(made, Mapping):
        return (), {str(name): value for name, value in made.items()}
    if isinstance(made, tuple):
        return made, {}
    if isinstance(made, (torch.Tensor, list)):
        return (made,), {}
    raise SurgeryError(
        f"an input is a tensor, a tuple of arguments or a dict of keywords, not a "
        f"{type(made).__name__}"
    )


def _moved(value: Any, batch: int, device: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, torch.Tensor):
        kept = dtype if value.is_floating_point() else None
        moved = value.to(device=device, dtype=kept)
        return torch.cat([moved] * batch) if batch > 1 and moved.dim() else moved
    if isinstance(value, list):
        return [_moved(item, 1, device, dtype) for item in value] * batch
    if isinstance(value, tuple):
        return tuple(_moved(item, batch, device, dtype) for item in value)
    if isinstance(value, Mapping):
        return {name: _moved(item, batch, device, dtype) for name, item in value.items()}
    return value


# What the user gave


def as_input(size: InputSize | Input | None, model: nn.Module) -> Input:
    """Read what the user gave as ``input_size``; None is a guess.

    Raises:
        SurgeryError: It is neither a shape, nor several, nor a callable.

    Example:
        >>> str(as_input([(3, 8, 8), (1, 4)], nn.Identity())), str(as_input((3, 9), nn.Identity()))
        ('3x8x8,1x4', '3x9')
    """
    if isinstance(size, Input):
        return size
    if size is None:
        return guess_input(model)
    if callable(size):
        return Input(make=size)
    is_listed = isinstance(size, Iterable) and not isinstance(size, str)
    if is_listed and size and all(isinstance(each, Sequence) for each in size):
        return Input(tuple(_checked_shape(each) for each in size))
    return Input((_checked_shape(size),))


def _checked_shape(shape: Any) -> Shape:
    sides = tuple(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else ()
    if len(sides) < 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise SurgeryError(
            f"input_size {shape!r} is no shape; give channels and sides, as in (3, 224, 224), a "
            "list of shapes, or a callable that makes the input"
        )
    return sides


def parse_input(text: str) -> Input:
    """Read the command line's input.

    Args:
        text: ``3x224x224``, ``3x520x960,3x520x960`` or ``package.module:callable``, which is found
            from the current directory, too.

    Raises:
        SurgeryError: It is none of these.

    Example:
        >>> parse_input("3x520x960,3x520x960").shapes
        ((3, 520, 960), (3, 520, 960))
    """
    if ":" in text:
        return Input(make=_imported(text))
    if not re.fullmatch(r"\d+(x\d+)*(,\d+(x\d+)*)*", text):
        raise SurgeryError(
            f"{text!r} is no shape such as 3x224x224, nor package.module:callable for a function "
            "that makes the input"
        )
    shapes = [tuple(map(int, part.split("x"))) for part in text.split(",")]
    return Input(tuple(map(_checked_shape, shapes)))


def _imported(text: str) -> Callable[[], object]:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = pkgutil.resolve_name(text)
    except Exception as error:
        raise SurgeryError(f"cannot import {text!r}: {one_line(error)}") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    if not callable(found):
        raise SurgeryError(f"{text!r} is a {type(found).__name__}, not a callable")
    return found


def format_size(size: Sequence[int]) -> str:
    """Write a shape as people do.

    Example:
        >>> format_size((3, 224, 224))
        '3x224x224'
    """
    return "x".join(map(str, size))


# Guesses


def guess_input(model: nn.Module) -> Input:
    """Guess the input: the same shape for every argument that ``forward`` requires.

    Example:
        >>> str(guess_input(nn.Bilinear(2, 2, 2)))
        '3x224x224,3x224x224'
    """
    return Input((guess_input_size(model),) * max(1, _required_arguments(model)))


def _required_arguments(model: nn.Module) -> int:
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return sum(each.kind in positional and each.default is each.empty for each in parameters)


def guess_input_size(model: nn.Module) -> Shape:
    """Return the shape that ``model`` was made for, ``(C, *spatial)``.

    timm's models say so themselves. For others it is a guess: channels and number of spatial
    dimensions of the first convolution, 224 a side, 16 frames.

    Example:
        >>> guess_input_size(nn.Sequential(nn.Conv3d(1, 8, 3)))
        (1, 16, 224, 224)
    """
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        size = config.get("input_size") if isinstance(config, dict) else None
        if size:
            return tuple(size)
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            spatial = (DEFAULT_FRAMES, DEFAULT_SIDE, DEFAULT_SIDE)
            return (module.in_channels, *spatial[3 - len(module.kernel_size) :])
    return (3, DEFAULT_SIDE, DEFAULT_SIDE)


def floating_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first parameter of floating point.

    Example:
        >>> floating_dtype(nn.Linear(2, 2).half())
        torch.float16
    """
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
