"""What one forward pass computes, block by block, without running it on numbers.

The pass is one image, clip or volume (or what a callable makes), in evaluation mode, on a copy of
the model on the meta device. A dispatch mode sees every operator once, after PyTorch has taken
composite ones apart; what each costs, and what is not counted, is said in
`attn_surgery.reporting.counting.operator_costs`.

An operator belongs to the innermost of the named blocks whose ``forward`` is running, so that the
blocks and the rest add up to the whole.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from attn_surgery.host import Input, InputSize, as_input, floating_dtype, meta_copy
from attn_surgery.reporting.counting.data_dependent import EverythingPasses
from attn_surgery.reporting.counting.operator_costs import Work, price


@dataclass(frozen=True)
class Workload:
    """The work of one forward pass.

    Attributes:
        by_block: Block path to the work of that block without that of blocks inside it; None is
            everything outside of the blocks.
        unknown: Operators that no rule knows, counted as elementwise.
        assumed: Data-dependent operators that were answered as
            `attn_surgery.reporting.counting.data_dependent` says.
    """

    by_block: Mapping[str | None, Work]
    unknown: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def total(self) -> Work:
        """The work of the whole pass."""
        return sum(self.by_block.values(), Work())


def count_work(
    model: nn.Module, input_size: InputSize | Input, blocks: Iterable[str] = ()
) -> Workload:
    """Count one forward pass in evaluation mode.

    Args:
        model: Left as it is; a copy on the meta device is counted.
        input_size: Shape of one input without its batch dimension, ``(C, *spatial)``, a list of
            shapes, or a callable that makes the input.
        blocks: Paths of modules whose work is told apart.

    Raises:
        Exception: Whatever the model's forward raises for that input on the meta device.

    Example:
        >>> count_work(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), (3, 10, 10)).total
        Work(macs=2400, elementwise_ops=800, bytes_moved=6400)
    """
    return count_copy(meta_copy(model), as_input(input_size, model), blocks)


def count_macs(model: nn.Module, input_size: InputSize | Input) -> int:
    """Return the multiply-adds of one forward pass in evaluation mode.

    Equal to half of ``torch.utils.flop_counter.FlopCounterMode``'s number. `fvcore
    <https://github.com/facebookresearch/fvcore>`_ counts the same multiply-adds for convolutions
    and linear layers, plus its own numbers for norms (5 an element for layer norm, 2 for batch
    norm), pooling and upsampling, which are no multiply-adds here; it misses fused scaled dot
    product attention, which is counted here.

    Args:
        model: As for `count_work`.
        input_size: As for `count_work`.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10))  # 3 * 8 * 9 * 100
        21600
    """
    return count_work(model, input_size).total.macs


def count_copy(copied: nn.Module, given: Input, blocks: Iterable[str] = ()) -> Workload:
    """Count a model that is on the meta device and that nobody needs afterwards as it was.

    Args:
        copied: The model; its mode changes and its blocks are wrapped.
        given: The input.
        blocks: As for `count_work`.

    Example:
        >>> net = meta_copy(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        >>> list(count_copy(net, Input(((2,),)), ["1"]).by_block)
        [None, '1']
    """
    copied.eval()
    args, kwargs = given.build(dtype=floating_dtype(copied))
    assumptions, tally = EverythingPasses(), _Tally()
    for path in blocks:
        tally.watch(copied.get_submodule(path), path)
    with torch.no_grad(), assumptions, tally:
        copied(*args, **kwargs)
    return Workload(
        dict(tally.by_block), tuple(sorted(tally.unknown)), tuple(sorted(assumptions.assumed))
    )


@dataclass(eq=False)
class _Tally(TorchDispatchMode):
    """Adds up the operators, each for the innermost watched block that is running."""

    by_block: dict[str | None, Work] = field(default_factory=lambda: defaultdict(Work))
    unknown: set[str] = field(default_factory=set)
    running: list[str | None] = field(default_factory=lambda: [None])

    def __post_init__(self) -> None:
        super().__init__()

    def watch(self, module: nn.Module, path: str) -> None:
        """Wrap the forward; a hook would miss a block whose ``forward`` is called directly."""
        inner: Callable[..., Any] = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.running.append(path)
            try:
                return inner(*args, **kwargs)
            finally:
                self.running.pop()

        vars(module)["forward"] = forward

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        priced = price(func, args, kwargs, result)
        self.by_block[self.running[-1]] += priced.work
        if priced.unknown:
            self.unknown.add(priced.unknown)
        return result


@cache
def _is_composite(func: Any) -> bool:
    # Most are taken apart before a mode sees them, but not within torch.inference_mode.
    known = func._overloadpacket in flop_registry
    return not known and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
