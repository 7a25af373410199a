"""Which modules a model calls before anything trains, and who reads what they return."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Watched:
    """A model whose outermost calls of modules that do not train are noted.

    They are noted until one is given what depends on something that trains.

    Args:
        model: The model.
        most: After how many calls it is not run further; None to run it to its end.
        wanted: For the images and each call, whether the result is noted; None for all.

    Attributes:
        paths: Of the modules, one for each call.
        results: The images, and what the calls returned; None where that is not noted.
    """

    def __init__(
        self, model: nn.Module, most: int | None = None, wanted: Sequence[bool] | None = None
    ):
        self.model, self.most, self.wanted = model, most, wanted
        self.paths: list[str] = []
        self.results: list[Any] = []
        self._is_over = False
        self._within: list[bool] = []  # for each module that is running: in a call that is noted?

    @property
    def is_within(self) -> bool:
        """Whether a call is running that will be noted."""
        return bool(self._within) and self._within[-1]

    def __enter__(self) -> Watched:
        self._handles = []
        for path, module in self.model.named_modules():
            trains = not path or any(p.requires_grad for p in module.parameters())
            enter, leave = (partial(each, path, trains) for each in (self._enter, self._leave))
            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, images: Tensor) -> Any:
        """Run the model, as far as is asked for; return what it returns at its end."""
        self._note(images)
        with contextlib.suppress(_Enough):
            return self.model(images)
        return None

    def end(self) -> None:
        """Do what is to be done after the last call that was asked for."""
        raise _Enough

    def noted(self, result: Any) -> Any:
        """Return what is noted of a result: a copy, as it may be changed in place later."""
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), result)

    def _note(self, result: Any) -> None:
        wanted = self.wanted is None or self.wanted[len(self.results)]
        self.results.append(self.noted(result) if wanted else None)

    def _enter(self, _: str, trains: bool, __: nn.Module, args: Any, kwargs: Any) -> None:
        if not trains and not self.is_within:
            self._is_over |= any(each.requires_grad for each in tensors((args, kwargs)))
        self._within.append(self.is_within or not (trains or self._is_over))

    def _leave(self, path: str, trains: bool, _: nn.Module, __: Any, result: Any) -> None:
        self._within.pop()
        if trains or self._is_over or self.is_within:
            return
        self.paths.append(path)
        self._note(result)
        if len(self.paths) == self.most:
            self._is_over = True
            self.end()


class _Enough(Exception):  # noqa: N818 - it is no error
    """All calls were seen that were asked for."""


class Steady(Watched):
    """A model whose calls are noted until something is drawn by chance."""

    def run(self, images: Tensor) -> Any:
        """Run the model, as far as is asked for; return what it returns at its end."""
        with _Seeing(self):
            return super().run(images)

    def saw(self, operation: Any, _: Any) -> None:
        """End where chance begins."""
        self._is_over |= torch.Tag.nondeterministic_seeded in operation.tags


class Reads(Watched):
    """A model run to its end, and who outside of noted calls reads what they return.

    Args:
        model: The model.
        most: How many calls are noted.
    """

    def __init__(self, model: nn.Module, most: int):
        super().__init__(model, most)
        self._read: set[int] = set()
        self._returned: set[int] = set()

    def run(self, images: Tensor) -> list[tuple[int, ...]]:
        """Return, for the images and each call, a number for each leaf of the result.

        It is -1 for one that nobody reads. What is returned again, changed in place or not, keeps
        its number.
        """
        with _Seeing(self):
            self.saw(None, super().run(images))
        numbers: dict[int, int] = {}
        return [
            tuple(
                numbers.setdefault(id(leaf), len(numbers)) if id(leaf) in self._read else -1
                for leaf in pytree.tree_leaves(result)
            )
            for result in self.results
        ]

    def end(self) -> None:
        """Go on: what comes after reads, too."""

    def noted(self, result: Any) -> Any:
        """Note the tensors themselves, by their identity."""
        self._returned |= {id(each) for each in tensors(result)}
        return result  # which is held, so that no other tensor has its identity

    def saw(self, _: Any, given: Any) -> None:
        """Take note of tensors that something reads."""
        if not self.is_within:
            self._read |= {id(each) for each in tensors(given)} & self._returned


class _Seeing(TorchDispatchMode):
    """Every operation, as it is given its arguments."""

    def __init__(self, watched: Steady | Reads):
        super().__init__()
        self.watched = watched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.watched.saw(func, (args, kwargs))
        return func(*args, **(kwargs or {}))


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors among values, however they are nested."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def on_meta(result: Any) -> Any:
    """Return a result with tensors that have shapes and no values."""
    return pytree.tree_map_only(Tensor, lambda leaf: torch.empty_like(leaf, device="meta"), result)
