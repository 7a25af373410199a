"""A host that was operated on, taken apart: its attentions, where they are, and its own tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from torch import Tensor, nn

from attn_surgery.errors import SurgeryError
from attn_surgery.host import unwrapped
from attn_surgery.planning import Plan, Site
from attn_surgery.rewriting import (
    Replaced,
    held_attentions,
    replaced_by,
    state_put_back,
    succession,
)
from attn_surgery.surgery.origin import origin_of, surgeries
from attn_surgery.surgery.verbs import attentions_among


class Operated:
    """A host and what is known of it, each looked up once: as long as it lives nothing may change.

    Attributes:
        model: The host.
        attentions: As `inserted` returns them.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._named = list(model.named_modules(remove_duplicate=False))
        once = {module: path for path, module in reversed(self._named)}
        self.attentions = attentions_among((path, each) for each, path in reversed(once.items()))

    @classmethod
    def within(cls, model: nn.Module) -> Operated:
        """Return what was operated on, out of what was wrapped around it since.

        Raises:
            SurgeryError: Some attention does not know its surgery, or that was on another model.
        """
        host = cls(unwrapped(model))
        fault = host._misplaced()
        # unlike DDP it can be operated on; then its attention lies in blocks below "module"
        if isinstance(host.model, nn.DataParallel) and (fault or not host._is_as_whole()):
            return cls.within(host.model.module)
        if fault:
            raise SurgeryError(fault)
        return host

    @property
    def own(self) -> dict[str, Tensor]:
        """The tensors of the attentions, each by the first path to it."""
        return self._parted[0]

    @property
    def again(self) -> dict[str, Tensor]:
        """The same by the other paths."""
        return self._parted[1]

    @property
    def host(self) -> dict[str, Tensor]:
        """The other tensors of the model, parameters as such."""
        return self._parted[2]

    @cached_property
    def replaced(self) -> dict[str, Tensor]:
        """The tensors that come back with what attention took the place of, by every path."""
        return {
            f"{_child(path, name)}.{key}": tensor
            for module, name, state in self._put_back()
            for path in self._paths[module]
            for key, tensor in state.items()
        }

    @property
    def before(self) -> dict[str, Tensor]:
        """All tensors that the host has once `remove` gives it back, each as it is now."""
        taken_out = tuple(
            f"{_child(path, name)}."
            for path, module in self._named
            for name in held_attentions(module)
        )
        kept = {key: each for key, each in self._state.items() if not key.startswith(taken_out)}
        return {**kept, **self.replaced}

    @property
    def surgeries(self) -> list[tuple[Plan, str]]:
        """The plan and the init of each surgery that was done, first to last."""
        attentions = self.attentions.values()
        return surgeries(each for one in attentions for each in succession(one))

    @cached_property
    def _parted(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        first = tuple(f"{path}." for path in self.attentions)
        attentions = self.attentions.values()
        every = tuple(f"{path}." for each in attentions for path in self._paths[each])
        own: dict[str, Tensor] = {}
        again: dict[str, Tensor] = {}
        host: dict[str, Tensor] = {}
        for key, tensor in self._state.items():
            part = host if not key.startswith(every) else own if key.startswith(first) else again
            part[key] = tensor
        return own, again, host

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        return self.model.state_dict(keep_vars=True)

    @cached_property
    def _paths(self) -> dict[nn.Module, list[str]]:
        """Every path to each module: as in a state dict, one for each way there is."""
        found: dict[nn.Module, list[str]] = {}
        for path, module in self._named:
            found.setdefault(module, []).append(path)
        return found

    def _put_back(self) -> Iterator[tuple[nn.Module, str, dict[str, Tensor]]]:
        """Yield which module gets a child when the attention goes, its name and its tensors."""
        for path, attention in self.attentions.items():
            if coming := _coming_back(attention):
                holder = self.model.get_submodule(path.rpartition(".")[0])
                yield from state_put_back(holder, coming, attention)

    def _misplaced(self) -> str:
        """Tell which attention cannot be inserted again where it is, if one cannot, and why."""
        for path, attention in self.attentions.items():
            origin = origin_of(attention)
            if origin is None:
                return f"{path!r} does not know its origin: it cannot be inserted again"
            if not any(_is_of(each, origin.site) for each in self._paths[attention]):
                return (
                    f"{path!r} was inserted into {origin.site.block or '(the host)'!r}: the host "
                    "is part of another model since; save the host itself"
                )
        return ""

    def _is_as_whole(self) -> bool:
        origins = map(origin_of, self.attentions.values())
        return all(origin and f"{origin.site.block}.".startswith("module.") for origin in origins)


def _child(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _coming_back(attention: nn.Module) -> Replaced | None:
    """Return what of the host comes back where an attention goes, past others in its slot."""
    replaced = replaced_by(attention)
    while replaced is not None and replaced.is_slot:
        (before,) = replaced.modules.values()
        if origin_of(before) is None:
            break
        replaced = replaced_by(before)
    return replaced


def _is_of(path: str, site: Site) -> bool:
    """Tell whether a surgery at ``site`` can have put an attention at ``path``."""
    if site.method in ("rewrite", "wrap"):
        return path.rpartition(".")[0] == site.block
    return not site.block or path.startswith(f"{site.block}.")
