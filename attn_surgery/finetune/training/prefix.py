"""What a model computes before anything that trains: computed once, and given to it ever after.

Where a host is frozen, all that comes before the first site gives the same for an image in every
epoch. Which modules these are is found by running the model: its outermost modules without anything
that trains, in the order of their calls, as long as what goes in does not depend on what trains,
nor what comes out on chance or on the other images. Of what they return only that is kept which is
read by something other than the modules among them; the rest is stood in for by tensors without
values, so that nothing can go wrong in silence.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.process import seed_all
from attn_surgery.finetune.training.watching import Reads, Steady, Watched, on_meta, tensors
from attn_surgery.host import undisturbed_randomness

_ROUNDING = 1e-3
"""The difference that the other images of a batch may make, as a part of the length."""


@dataclass(frozen=True)
class Call:
    """What is not computed again: the images, or what a call of a module returned.

    Attributes:
        path: The module's; "" for the images.
        result: What it returned, with tensors that have no values.
        kept: For each leaf of the result, its number among the tensors that are kept; -1 for one
            that nothing reads that is run again.
    """

    path: str
    result: Any
    kept: tuple[int, ...]

    def numbered(self, result: Any) -> dict[int, Tensor]:
        """Return the leaves of a result that are kept, by their number."""
        leaves = zip(self.kept, pytree.tree_leaves(result), strict=True)
        return {number: leaf for number, leaf in leaves if number >= 0}


@dataclass(frozen=True)
class Prefix:
    """What comes before anything that trains.

    Attributes:
        calls: The images, then each call of a module.
    """

    calls: tuple[Call, ...]

    @property
    def paths(self) -> list[str]:
        """The modules that are called, in order."""
        return [call.path for call in self.calls[1:]]

    @property
    def values(self) -> int:
        """How many numbers are kept of an image."""
        shapes = {n: x.shape for call in self.calls for n, x in call.numbered(call.result).items()}
        return sum(shape[1:].numel() for shape in shapes.values())

    def __str__(self) -> str:
        """Say how much is spared, and by what."""
        calls = f"{len(self.paths)} calls of modules, up to {self.paths[-1]}, are"
        return f"{calls} computed once: {self.values:,} numbers for an image"

    def described(self) -> list[Any]:
        """Return what decides it, as plain data."""
        return [
            [call.path, call.kept, [str(getattr(each, "shape", each)) for each in leaves]]
            for call in self.calls
            for leaves in [pytree.tree_leaves(call.result)]
        ]

    @torch.no_grad()
    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """Run what comes first, and no more: ``(N, ...)`` -> ``(N, values)``, in float32.

        Args:
            model: What the prefix is of, in the mode in which it trains.
            images: A batch.
        """
        wanted = [max(call.kept, default=-1) >= 0 for call in self.calls]
        with Watched(model, len(self.calls) - 1, wanted) as seen:
            seen.run(images)
        found: dict[int, Tensor] = {}
        for call, result, is_wanted in zip(self.calls, seen.results, wanted, strict=True):
            found |= call.numbered(result) if is_wanted else {}  # the last that returned it counts
        return torch.cat([found[number].flatten(1).float() for number in range(len(found))], 1)

    @contextlib.contextmanager
    def given(self, model: nn.Module) -> Iterator[None]:
        """Let a model take features where it takes images, and run what comes after them."""
        replay = _Replay(self)
        modules = {path: model.get_submodule(path) for path in self.paths}
        own: dict[str, Any] = {path: vars(m).get("forward") for path, m in modules.items()}
        handle = model.register_forward_pre_hook(replay.begin)
        for path, module in modules.items():
            module.forward = replay.forward(path, module.forward)
        try:
            yield
        finally:
            handle.remove()
            for path, module in modules.items():
                del module.forward
                if own[path] is not None:
                    module.forward = own[path]


class _Replay:
    """The calls of a prefix, answered from features."""

    def __init__(self, prefix: Prefix):
        self.prefix = prefix
        self.results: list[Any] = []

    def begin(self, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Take a batch's features apart; return the images, or what stands in for them."""
        features, *others = given
        parts: dict[int, Tensor] = {}
        start = 0
        for call in self.prefix.calls:
            for number, leaf in call.numbered(call.result).items():
                if number not in parts:
                    end = start + leaf.shape[1:].numel()
                    part, start = features[:, start:end], end
                    # copied: what is done to one in place is done to that one alone
                    part = part.to(leaf.dtype, copy=True, memory_format=torch.contiguous_format)
                    parts[number] = part.reshape(-1, *leaf.shape[1:])
        answers = [_answer(call, parts, len(features)) for call in self.prefix.calls]
        self.results = answers[::-1]
        return self.results.pop(), *others

    def forward(self, path: str, own: Any) -> Any:
        """Return the forward of a module: what it returned, and itself after the prefix."""

        def answer(*given: Any, **named: Any) -> Any:
            if not self.results:
                return own(*given, **named)
            expected = self.prefix.calls[-len(self.results)].path
            if path != expected:
                raise SurgeryError(
                    f"{path} was called where {expected} was before: the model does not compute "
                    "the same before anything trains each time; leave data.prefix out"
                )
            return self.results.pop()

        return answer


def _answer(call: Call, parts: dict[int, Tensor], batch: int) -> Any:
    """Return what a call returned, of a batch: with tensors that were kept, or without values."""
    leaves, spec = pytree.tree_flatten(call.result)
    for i, (leaf, number) in enumerate(zip(leaves, call.kept, strict=True)):
        if number >= 0:
            leaves[i] = parts[number]
        elif isinstance(leaf, Tensor):
            leaves[i] = leaf.new_empty((batch, *leaf.shape[1:]))
    return pytree.tree_unflatten(leaves, spec)


def find_prefix(model: nn.Module, images: Tensor) -> Prefix | None:
    """Find what a model computes before anything that trains.

    Args:
        model: In the mode in which it trains, with ``requires_grad`` as it trains; left as it is.
        images: A batch of two or more.

    Returns:
        The prefix; None where what is called first trains already, or depends on chance or on the
        other images.

    Raises:
        SurgeryError: The model makes something else of what is kept.

    Example:
        >>> import torchvision
        >>> model = torchvision.models.resnet18().requires_grad_(False).eval()
        >>> _ = model.layer4.requires_grad_(True)
        >>> prefix = find_prefix(model, torch.randn(2, 3, 64, 64))
        >>> prefix.paths
        ['conv1', 'bn1', 'relu', 'maxpool', 'layer1', 'layer2', 'layer3']
        >>> images = torch.randn(8, 3, 64, 64)
        >>> features = prefix.features(model, images)
        >>> with prefix.given(model):
        ...     logits = model(features)
        >>> features.shape, torch.equal(logits, model(images))
        (torch.Size([8, 4096]), True)
    """
    with undisturbed_randomness():
        count = _constant_calls(copy.deepcopy(model), images)
        if not count:
            return None
        prefix = _with_reads(copy.deepcopy(model), images, count)
        _check(model, prefix, images)
        return prefix


def _constant_calls(model: nn.Module, images: Tensor) -> int:
    """Count the calls that give the same for an image each time.

    Whatever chance does, whatever was learned since, and whichever images are beside it.
    """
    runs, trained = [], [p for p in model.parameters() if p.requires_grad]
    others = torch.cat([images[:1], torch.randn_like(images[1:])])
    for seed, batch in enumerate((images, images, others)):
        seed_all(seed)
        for parameter in trained:
            parameter.data = torch.randn_like(parameter) if seed else parameter.data
        with Steady(model) as seen:
            seen.run(batch)
        runs.append(list(zip(["", *seen.paths], seen.results, strict=True)))
    count = -1  # the images are no call
    for (path, result), again, beside in zip(*runs, strict=False):
        is_same = _is_constant(len(images), result, again[1], beside[1])
        if not (path == again[0] == beside[0] and is_same):
            break
        count += 1
    return max(count, 0)


def _is_constant(batch: int, *results: Any) -> bool:
    leaves, specs = zip(*map(pytree.tree_flatten, results), strict=True)
    return specs.count(specs[0]) == len(specs) and all(
        _is_same(batch, *each) for each in zip(*leaves, strict=True)
    )


def _is_same(batch: int, leaf: Any, again: Any, beside: Any) -> bool:
    """Tell whether three leaves are the same, the third of the first image and others beside it."""
    if not isinstance(leaf, Tensor):
        return bool(leaf == again == beside)
    if not leaf.is_floating_point() or not leaf.dim() or len(leaf) != batch:
        return False
    difference = (leaf[:1].double() - beside[:1].double()).norm()
    return torch.equal(leaf, again) and bool(difference <= _ROUNDING * leaf[:1].double().norm())


@torch.no_grad()
def _with_reads(model: nn.Module, images: Tensor, count: int) -> Prefix:
    """Find which results are read by something that is run again."""
    with Reads(model, count) as seen:
        kept = seen.run(images)
    paths = ["", *seen.paths]
    results = [on_meta(result) for result in seen.results]
    return Prefix(tuple(map(Call, paths, results, kept)))


@torch.no_grad()
def _check(model: nn.Module, prefix: Prefix, images: Tensor) -> None:
    whole, parted = copy.deepcopy(model), copy.deepcopy(model)
    features = prefix.features(copy.deepcopy(model), images)
    seed_all(0)
    expected = tensors(whole(images))
    try:
        seed_all(0)
        with prefix.given(parted):
            found = tensors(parted(features))
        same = all(
            torch.allclose(*pair, rtol=_ROUNDING, atol=_ROUNDING)
            for pair in zip(found, expected, strict=True)
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise SurgeryError(f"the model cannot go on from what is kept: {error}") from error
    if not same:
        raise SurgeryError("the model makes something else of what is kept; leave data.prefix out")
