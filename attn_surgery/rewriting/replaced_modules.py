"""What an attention took the place of, kept with it until it goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from attn_surgery.host import put_back_afterwards, refill

_REPLACED = "_stands_for"
"""Where an attention keeps it: no child, so that it is neither trained nor saved with the host."""


@dataclass
class Replaced:
    """The modules that an attention stands for."""

    modules: dict[str, nn.Module]
    """Path, below the module that holds the attention -> module."""
    made_for: str
    """Device and dtype of the holder then."""
    order: dict[str, list[str]] = field(default_factory=dict)
    """Path of each container of those -> the names of its children, as they were."""
    is_slot: bool = False
    """Whether the attention is a child under the name of the one that it replaces."""


def replaced_by(attention: nn.Module) -> Replaced | None:
    """Return what ``attention`` took the place of, or None."""
    return vars(attention).get(_REPLACED)


def stand_for(attention: nn.Module, replaced: Replaced) -> None:
    """Let ``attention`` keep what it takes the place of."""
    vars(attention)[_REPLACED] = replaced


def succession(attention: nn.Module) -> Iterator[nn.Module]:
    """Yield the attention, the one in whose slot it is, and so on."""
    found: nn.Module | None = attention
    while found is not None:
        yield found
        replaced = replaced_by(found)
        found = next(iter(replaced.modules.values())) if replaced and replaced.is_slot else None


def all_replaced(holder: nn.Module, attentions: Iterable[str]) -> list[Replaced]:
    """Return what the forward of ``holder`` needs to run without these attentions."""
    chains = (succession(holder.get_submodule(name)) for name in attentions)
    found = (replaced_by(each) for chain in chains for each in chain)
    return [replaced for replaced in found if replaced is not None and not replaced.is_slot]


def slots(holder: nn.Module) -> list[str]:
    """Return the names of the children of ``holder`` that stand where another one was.

    Not of those that are held by another name as well, in a list that was made since.
    """
    children = (
        (name, replaced_by(child)) for name, child in holder._modules.items() if child is not None
    )
    return [
        name
        for name, replaced in children
        if replaced is not None and replaced.is_slot and name in replaced.modules
    ]


def replaced_in_slot(holder: nn.Module, name: str) -> Replaced:
    """Return the child called ``name``, whose name the attention gets."""
    return Replaced({name: holder.get_submodule(name)}, _home(holder), is_slot=True)


def replaced_at(holder: nn.Module, paths: Iterable[str]) -> Replaced:
    """Return the modules at ``paths`` and the order of what is around them."""
    modules = {path: holder.get_submodule(path) for path in paths}
    around = {path.rpartition(".")[0] for path in modules}
    order = {path: list(holder.get_submodule(path)._modules) for path in around}
    return Replaced(modules, _home(holder), order)


def _home(*modules: nn.Module) -> str:
    like = _like(*modules)
    return f"{like.device} {like.dtype}"


def _like(*modules: nn.Module) -> torch.Tensor:
    tensors = (each for module in modules for each in (*module.parameters(), *module.buffers()))
    return next((each for each in tensors if each.is_floating_point()), torch.empty(0))


def take_out(holder: nn.Module, replaced: Replaced) -> None:
    """Take the modules out of ``holder``."""
    for path in replaced.modules:
        parent, _, name = path.rpartition(".")
        holder.get_submodule(parent)._modules.pop(name, None)


def put_back(holder: nn.Module, replaced: Replaced, attention: nn.Module) -> None:
    """Put the modules back in their order, where the holder has moved to and in its mode."""
    like, has_moved = _like(holder, attention), _home(holder, attention) != replaced.made_for
    for path, module in replaced.modules.items():
        parent, _, name = path.rpartition(".")
        if has_moved:
            module.to(device=like.device, dtype=like.dtype)
        holder.get_submodule(parent)._modules[name] = module.train(attention.training)
    _order(holder, replaced)


def state_put_back(
    holder: nn.Module, replaced: Replaced, attention: nn.Module
) -> Iterator[tuple[nn.Module, str, dict[str, torch.Tensor]]]:
    """Yield which module `put_back` would give a child, its name, and the child's tensors then."""
    like, has_moved = _like(holder, attention), _home(holder, attention) != replaced.made_for
    for path, module in replaced.modules.items():
        parent, _, name = path.rpartition(".")
        state = module.state_dict()
        if has_moved:
            state = {key: _moved(tensor, like) for key, tensor in state.items()}
        yield holder.get_submodule(parent), name, state


def _moved(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor as ``nn.Module.to`` moves it."""
    is_counted = not (tensor.is_floating_point() or tensor.is_complex())
    return tensor.to(like.device, None if is_counted else like.dtype)


def _order(holder: nn.Module, replaced: Replaced) -> None:
    for path, names in replaced.order.items():
        children = holder.get_submodule(path)._modules
        in_order(children, names, dict(children))


def in_order(
    children: dict[str, nn.Module | None], names: list[str], now: dict[str, nn.Module | None]
) -> None:
    """Let ``children`` hold what is given, first those of these names, in this order."""
    ordered = {name: now[name] for name in names if name in now}
    refill(children, {**ordered, **{n: each for n, each in now.items() if n not in ordered}})


@contextmanager
def back_for_a_while(holder: nn.Module, found: list[Replaced]) -> Iterator[None]:
    """Hold the modules as before, as the host's own forward expects it."""

    def take_all_out() -> None:
        for replaced in found:
            take_out(holder, replaced)

    with put_back_afterwards(take_all_out):
        for replaced in found:
            for path, module in replaced.modules.items():
                parent, _, name = path.rpartition(".")
                holder.get_submodule(parent)._modules[name] = module
            _order(holder, replaced)
        yield
