"""What an attention took the place of, kept with it until it goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

_FORMER = "_stands_for"
"""Where an attention keeps it: no child, so that it is neither trained nor saved with the host."""


@dataclass
class Former:
    """The modules that an attention stands for."""

    modules: dict[str, nn.Module]
    """Path, below the module that holds the attention -> module."""
    made_for: str
    """Device and dtype of the holder then."""
    order: dict[str, list[str]] = field(default_factory=dict)
    """Path of each container of those -> the names of its children, as they were."""
    is_slot: bool = False
    """Whether the attention is a child under the name of the former one."""


def former_of(attention: nn.Module) -> Former | None:
    """Return what ``attention`` took the place of, or None."""
    return vars(attention).get(_FORMER)


def stand_for(attention: nn.Module, former: Former) -> None:
    """Let ``attention`` keep what it takes the place of."""
    vars(attention)[_FORMER] = former


def succession(attention: nn.Module) -> Iterator[nn.Module]:
    """Yield the attention, the one in whose slot it is, and so on."""
    found: nn.Module | None = attention
    while found is not None:
        yield found
        former = former_of(found)
        found = next(iter(former.modules.values())) if former and former.is_slot else None


def formers(holder: nn.Module, attentions: Iterable[str]) -> list[Former]:
    """Return what the forward of ``holder`` needs to run without these attentions."""
    chains = (succession(holder.get_submodule(name)) for name in attentions)
    found = (former_of(each) for chain in chains for each in chain)
    return [former for former in found if former is not None and not former.is_slot]


def slots(holder: nn.Module) -> list[str]:
    """Return the names of the children of ``holder`` that stand where another one was."""
    children = (
        (name, former_of(child)) for name, child in holder._modules.items() if child is not None
    )
    return [name for name, former in children if former is not None and former.is_slot]


def former_in_slot(holder: nn.Module, name: str) -> Former:
    """Return the child called ``name``, whose name the attention gets."""
    return Former({name: holder.get_submodule(name)}, _home(holder), is_slot=True)


def former_at(holder: nn.Module, paths: Iterable[str]) -> Former:
    """Return the modules at ``paths`` and the order of what is around them."""
    modules = {path: holder.get_submodule(path) for path in paths}
    around = {path.rpartition(".")[0] for path in modules}
    order = {path: list(holder.get_submodule(path)._modules) for path in around}
    return Former(modules, _home(holder), order)


def _home(*modules: nn.Module) -> str:
    like = _like(*modules)
    return f"{like.device} {like.dtype}"


def _like(*modules: nn.Module) -> torch.Tensor:
    tensors = (each for module in modules for each in (*module.parameters(), *module.buffers()))
    return next((each for each in tensors if each.is_floating_point()), torch.empty(0))


def take_out(holder: nn.Module, former: Former) -> None:
    """Take the modules out of ``holder``."""
    for path in former.modules:
        parent, _, name = path.rpartition(".")
        del holder.get_submodule(parent)._modules[name]


def put_back(holder: nn.Module, former: Former, attention: nn.Module) -> None:
    """Put the modules back in their order, where the holder has moved to and in its mode."""
    like, has_moved = _like(holder, attention), _home(holder, attention) != former.made_for
    for path, module in former.modules.items():
        parent, _, name = path.rpartition(".")
        if has_moved:
            module.to(device=like.device, dtype=like.dtype)
        holder.get_submodule(parent)._modules[name] = module.train(attention.training)
    _order(holder, former)


def _order(holder: nn.Module, former: Former) -> None:
    for path, names in former.order.items():
        children = holder.get_submodule(path)._modules
        in_order(children, names, dict(children))


def in_order(
    children: dict[str, nn.Module | None], names: list[str], now: dict[str, nn.Module | None]
) -> None:
    """Let ``children`` hold what is given, first those of these names, in this order."""
    ordered = {name: now[name] for name in names if name in now}
    children.clear()
    children.update({**ordered, **{n: each for n, each in now.items() if n not in ordered}})


@contextmanager
def back_for_a_while(holder: nn.Module, found: list[Former]) -> Iterator[None]:
    """Hold the modules as before, as the host's own forward expects it."""
    try:
        for former in found:
            for path, module in former.modules.items():
                parent, _, name = path.rpartition(".")
                holder.get_submodule(parent)._modules[name] = module
            _order(holder, former)
        yield
    finally:
        for former in found:
            take_out(holder, former)
