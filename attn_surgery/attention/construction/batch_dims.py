"""Maps without a batch dimension, and batches of none, which convolutions take."""

import types
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx, nn
from torch.jit import is_scripting, is_tracing  # pyright: ignore[reportPrivateImportUsage]

from attn_surgery.host import renamed


def is_alone(x: Tensor, spatial_dims: int) -> bool:
    """Tell whether a map is ``(C, *spatial)``, and no batch; for ``torch.fx`` none is.

    Example:
        >>> x = torch.zeros(8, 4, 4)
        >>> is_alone(x, 2), is_alone(x, 1)
        (True, False)
    """
    if not is_scripting():  # noqa: SIM102 - TorchScript compiles what is in one condition
        if isinstance(x, fx.Proxy):
            return False
    return x.dim() == spatial_dims + 1


def is_empty(batch: Tensor) -> bool:
    """Tell whether a batch holds no map; for a tracer none is empty.

    Example:
        >>> is_empty(torch.zeros(0, 8, 4, 4))
        True
    """
    if not is_scripting():  # noqa: SIM102 - TorchScript compiles what is in one condition
        if isinstance(batch, fx.Proxy) or is_tracing():
            return False
    return batch.shape[0] == 0


def batched(x: Tensor, spatial_dims: int) -> Tensor:
    """Return a map that is alone as a batch of one, and a batch as it is.

    Args:
        x: ``(C, *spatial)`` or ``(N, C, *spatial)``.
        spatial_dims: How many spatial dimensions it has.

    Example:
        >>> batched(torch.zeros(8, 4, 4), 2).shape
        torch.Size([1, 8, 4, 4])
    """
    # A view that needs no branch would lose the strides of a batch of one in channels last.
    return x.unsqueeze(0) if is_alone(x, spatial_dims) else x


def unbatched(y: Tensor, x: Tensor, spatial_dims: int) -> Tensor:
    """Return ``y``, computed from what `batched` made of ``x``, as a batch only if that is one.

    Example:
        >>> x = torch.zeros(8, 4, 4)
        >>> unbatched(batched(x, 2), x, 2).shape
        torch.Size([8, 4, 4])
    """
    return y.squeeze(0) if is_alone(x, spatial_dims) else y


def std_mean(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Compute `torch.std_mean` over M positions, divided by M; of a batch of none without a word.

    Example:
        >>> [each.item() for each in std_mean(torch.tensor([[1.0, 3.0]]), [1])]
        [1.0, 2.0]
    """
    if is_empty(x):
        mean = x.mean(dims, keepdim=True)
        return mean, mean
    return torch.std_mean(x, dims, correction=0, keepdim=True)


def take_any_batch(module: nn.Module, spatial_dims: int) -> bool:
    """Let a foreign module that only takes batches, of one map at least, take any.

    It stays the object that it is, with its children and keys, in a subclass of its class. A map
    ``(C, *spatial)`` then gives what the batch of one would; of no maps no map comes back, with a
    gradient of zero for every parameter.

    Args:
        module: From ``(N, C, *spatial)`` to the same shape.
        spatial_dims: How many spatial dimensions its maps have.

    Returns:
        Whether that can be done: not to one that is scripted or copies itself in its own way.

    Example:
        >>> flatten = nn.Unflatten(1, (2, -1))
        >>> flatten = nn.Sequential(flatten, nn.Flatten(1, 2))
        >>> take_any_batch(flatten, 2), flatten(torch.zeros(8, 4, 4)).shape
        (True, torch.Size([8, 4, 4]))
    """
    base = type(module)
    if "forward" in vars(module) or not _is_copied_by_its_state(base):
        return False
    object.__setattr__(module, "_spatial_dims", spatial_dims)
    object.__setattr__(module, "__class__", _of_any_batch(base))
    return True


class _AnyBatch(nn.Module):
    """What goes before the class of a module that takes any batch since."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Run the module's own forward on a batch of one map or more: the shape of x."""
        if is_alone(x, self._spatial_dims):
            return self._forward_of_batches(x.unsqueeze(0)).squeeze(0)
        if is_empty(x):
            if is_scripting():
                return x.clone()
            return _nothing(x, self.parameters())
        return self._forward_of_batches(x)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if "_base" not in vars(type(self)):  # someone's subclass, who will know
            return reduced
        return (_blank, (type(self)._base,), *reduced[2:])


def _nothing(x: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Return a batch of none that depends on the parameters: DDP waits for their gradients."""
    nothing = x.flatten()
    for parameter in parameters:
        nothing = nothing + parameter.flatten()[:0].to(x.dtype)
    return nothing.view(x.shape)


_classes: WeakValueDictionary[type[nn.Module], type[nn.Module]] = WeakValueDictionary()


def _of_any_batch(base: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of ``base`` that takes any batch."""
    known = _classes.get(base)
    if known is None:
        body = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "_base": base,
            "_forward_of_batches": renamed(base.forward, "_forward_of_batches"),
        }
        known = types.new_class(
            base.__name__, (_AnyBatch, base), exec_body=lambda scope: scope.update(body)
        )
        _classes[base] = known
    return known


def _blank(base: type[nn.Module]) -> nn.Module:
    """Make a module that takes any batch, whose state is to come."""
    return object.__new__(_of_any_batch(base))


def _is_copied_by_its_state(base: type) -> bool:
    return (
        base.__reduce_ex__ is object.__reduce_ex__
        and base.__reduce__ is object.__reduce__
        and not hasattr(base, "__deepcopy__")
    )
