"""Containers, whose children are the host's own: ``len``, iteration, ``append`` and the like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from attn_surgery.host import Attributes
from attn_surgery.rewriting.alteration import Alteration, Renew, alteration_in, twin
from attn_surgery.rewriting.replaced_modules import in_order


def container_methods(base: type[nn.Module], renew: Renew) -> dict[str, Any]:
    """Return those of the methods that list and change a container's children which it has."""
    return {name: _as_host_does(name, renew) for name in _METHODS if hasattr(base, name)}


_METHODS = sorted(
    {name for cls in (nn.Sequential, nn.ModuleList, nn.ModuleDict) for name in vars(cls)}
    - set(dir(nn.Module))
)


def _as_host_does(name: str, renew: Renew) -> Any:
    """Make a method of the host's work on its own children, as if there were no attention."""

    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        done = alteration_in(self)
        host = twin(self, done)
        result = getattr(host, name)(*args, **kwargs)
        if not _is_like(self, host, done):
            _adopt(self, done, host, renew)
        return self if result is host else result

    method.__name__ = name
    return method


def _own_children(module: nn.Module, done: Alteration) -> dict[str, nn.Module | None]:
    return {name: child for name, child in module._modules.items() if name not in done.attentions}


def _is_like(module: nn.Module, host: nn.Module, done: Alteration) -> bool:
    if list(_own_children(module, done).items()) != list(host._modules.items()):
        return False
    kept = vars(module)
    return all(kept.get(n) is each for n, each in vars(host).items() if n not in _ITS_OWN)


_ITS_OWN = ("_modules", "forward")


def _adopt(module: nn.Module, done: Alteration, host: nn.Module, renew: Renew) -> None:
    """Let the module have what its host, changed by then, has."""
    before, children = Attributes(module), _own_children(module, done)
    held = {name: module._modules[name] for name in done.attentions}
    vars(module).update({n: each for n, each in vars(host).items() if n not in _ITS_OWN})
    in_order(module._modules, [], {**host._modules, **held})
    try:
        renew(module, _moved(done, children, host._modules))
    except BaseException:
        before.restore()
        raise


def _moved(
    done: Alteration, before: dict[str, nn.Module | None], now: dict[str, nn.Module | None]
) -> Alteration:
    """Return the surgery with its steps at the names that the children have got."""
    names = {id(child): name for name, child in now.items() if child is not None}
    renamed_to = {name: names.get(id(child), name) for name, child in before.items()}
    insertions = tuple(each.renamed(renamed_to) for each in done.insertions)
    return replace(done, insertions=insertions)
