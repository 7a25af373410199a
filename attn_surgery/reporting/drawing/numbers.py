"""What the sites cost, as it is written into a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

COSTS = {
    "params": ("params", "parameters"),
    "macs": ("MACs", "multiply-adds of convolutions and matrix products"),
    "elementwise": ("ops", "elementwise operations and reductions"),
    "moved": ("bytes moved", "bytes that elementwise operators read and write"),
}
"""Each cost that can be shown, by its word: its unit, and what it is."""


@dataclass(frozen=True)
class Costs:
    """What the attention adds.

    Attributes:
        name: One of `COSTS`.
        by_block: Path of a block to what is added there.
        total: What is added in all, at other places too.
    """

    name: str
    by_block: Mapping[str, int] = field(default_factory=dict)
    total: int = 0

    def text(self, value: int) -> str:
        """Return a cost with sign and unit; parameters to the last one.

        Example:
            >>> Costs("params").text(132136), Costs("macs").text(3936384)
            ('+132,136 params', '+3.94 M MACs')
        """
        number = f"{value:+,}" if self.name == "params" else _short(value)
        return f"{number} {COSTS[self.name][0]}"


def _short(value: int) -> str:
    for exponent, letter in ((9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**exponent:
            return f"{value / 10**exponent:+.3g} {letter}"
    return f"{value:+d}"
