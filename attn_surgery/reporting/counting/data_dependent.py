"""Operators whose result depends on the data, answered without data.

On the meta device a tensor has a shape and no numbers, so that "which boxes score above 0.05" has
no answer. Here every box passes: an upper bound, as papers count detection models with all their
proposals.

======================  ===========================================================================
operator                answer
======================  ===========================================================================
nonzero                 every element is nonzero
boolean index, mask     every element is true
nms                     every box is kept
unique                  one value (all boxes are of one class)
a number read back      1 (``tensor.item()``); a truth value is False, no special case applies
======================  ===========================================================================

Norms are answered here, too, by their shapes alone: that is no assumption, but many times faster
than PyTorch's own way on the meta device, which runs them in Python step by step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class EverythingPasses(TorchDispatchMode):
    """Answers data-dependent operators on the meta device as if every test were passed.

    Attributes:
        only_answers: All else is as it would be without: attention need not be plain for it.
        assumed: Names of the operators that were answered so.

    Example:
        >>> boxes = torch.empty(100, 4, device="meta")
        >>> with EverythingPasses() as mode:
        ...     kept = boxes[boxes[:, 0] > 0]
        >>> kept.shape, mode.assumed
        (torch.Size([100, 4]), {'aten::index'})
    """

    only_answers = True

    def __init__(self) -> None:
        super().__init__()
        self.assumed: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        norm = _NORMS.get(func._schema.name)
        if norm is not None and args[0].is_meta:
            return norm(*args)
        answer = _ANSWERS.get(func._schema.name)
        if answer is not None and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            answered = answer(func, args, kwargs)
            if answered is not NotImplemented:
                self.assumed.add(func._schema.name)
                return answered
        return func(*args, **kwargs)


def _indices(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


def _nonzero(func: Any, args: Any, kwargs: Any) -> Any:
    return _indices(args[0].numel(), args[0].dim())


def _nms(func: Any, args: Any, kwargs: Any) -> Any:
    return _indices(args[0].shape[0])


def _masked_select(func: Any, args: Any, kwargs: Any) -> Any:
    tensor, mask = args
    shape = torch.broadcast_shapes(tensor.shape, mask.shape)
    return tensor.new_empty(torch.Size(shape).numel())


def _index(func: Any, args: Any, kwargs: Any) -> Any:
    """Replace every mask among the indices by the indices of all its elements."""
    tensor, indices, *rest = args
    if not any(_is_mask(index) for index in indices):
        return NotImplemented
    numbers: list[torch.Tensor | None] = []
    for index in indices:
        numbers += [_indices(index.numel())] * index.dim() if _is_mask(index) else [index]
    return func(tensor, numbers, *rest, **kwargs)


def _is_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype in {torch.bool, torch.uint8}


def _unique(func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0]
    return tensor.new_empty(1), _indices(*tensor.shape), _indices(1)


def _number(func: Any, args: Any, kwargs: Any) -> Any:
    return False if args[0].dtype is torch.bool else torch.ones((), dtype=args[0].dtype).item()


_ANSWERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "aten::nonzero": _nonzero,
    "aten::masked_select": _masked_select,
    "aten::index": _index,
    "aten::index_put": _index,
    "aten::index_put_": _index,
    "aten::_unique2": _unique,
    "aten::_local_scalar_dense": _number,
    "torchvision::nms": _nms,
}


# Norms: the output, and the statistics that are kept for the backward pass


def _batch_norm(x: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    training = others[4]  # after weight, bias, running mean and running variance
    return _normed(x, x.shape[1] if training else 0)


def _group_norm(x: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    batch, groups = others[2], others[5]  # weight, bias, N, C, positions, groups, eps
    return _normed(x, batch, groups)


def _layer_norm(x: torch.Tensor, shape: list[int], *others: Any) -> tuple[torch.Tensor, ...]:
    rows = x.shape[: x.dim() - len(shape)]
    return _normed(x, *rows, *[1] * len(shape))


def _normed(x: torch.Tensor, *statistics: int) -> tuple[torch.Tensor, ...]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    kept = (torch.empty(statistics, dtype=dtype, device="meta") for _ in ("mean", "deviation"))
    return torch.empty_like(x), *kept


_NORMS: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    "aten::native_batch_norm": _batch_norm,
    "aten::native_group_norm": _group_norm,
    "aten::native_layer_norm": _layer_norm,
}
