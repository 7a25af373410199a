"""The attentions of a report, each planned in the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from attn_surgery.planning import Attention, Chosen, One, Plan
from attn_surgery.surgery import apply, plan


@dataclass(frozen=True)
class Variant:
    """One attention in the host, planned.

    Attributes:
        attention: As `attn_surgery.apply` takes it.
        plan: Where it goes.
        asked: The keywords of `attn_surgery.apply`.
    """

    attention: Attention
    plan: Plan
    asked: Mapping[str, Any]

    @classmethod
    def planned(
        cls, host: nn.Module, attention: Attention, asked: Mapping[str, Any], init: str
    ) -> Variant:
        """Plan an attention in a host.

        Raises:
            SurgeryError: As `attn_surgery.plan` does.
        """
        return cls(attention, plan(host, attention, **asked), {**asked, "init": init})

    @property
    def label(self) -> str:
        """What the report calls it."""
        return _label(self.attention)

    def apply(self, copied: nn.Module) -> nn.Module:
        """Put it into a copy of the host."""
        return apply(copied, self.attention, **self.asked)


def as_list(attention: Attention | Sequence[Attention]) -> list[Attention]:
    """Return the attentions, be they one or several.

    Example:
        >>> as_list("se"), as_list(("se", "cbam"))
        (['se'], ['se', 'cbam'])
    """
    if isinstance(attention, (str, Mapping, Plan)) or callable(attention):
        return [attention]
    return list(attention)


def _label(attention: Attention | One) -> str:
    if isinstance(attention, str):
        return attention
    if isinstance(attention, Mapping):
        return ", ".join(f"{pattern}: {_label(one)}" for pattern, one in attention.items())
    if isinstance(attention, Plan):
        return ", ".join(dict.fromkeys(map(str, attention.assignments)))
    if isinstance(attention, tuple):
        builder, options = attention
        return str(Chosen(builder, options).assignment)
    return getattr(attention, "__name__", type(attention).__name__)
