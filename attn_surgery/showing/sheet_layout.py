"""A figure on which things are placed in inches from its upper left corner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attn_surgery.showing.gates import Numbers


@dataclass(frozen=True)
class Canvas:
    """A matplotlib figure and its size.

    Attributes:
        figure: The figure.
        width: In inches.
        height: In inches.
    """

    figure: Any
    width: float
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Add axes."""
        bottom = 1 - (top + height) / self.height
        place = (left / self.width, bottom, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def text(
        self,
        left: float,
        top: float,
        text: str,
        *,
        size: float,
        bold: bool = False,
        colour: str = "black",
    ) -> None:
        """Write a line that begins there."""
        self.figure.text(
            left / self.width,
            1 - top / self.height,
            text.replace("$", r"\$"),  # which would begin a formula
            size=size,
            weight="bold" if bold else "normal",
            color=colour,
            va="top",
        )

    def picture(self, left: float, top: float, width: float, height: float, drawn: Numbers) -> Any:
        """Add a picture, as large as it can be there, in its own proportions, and its axes."""
        axes = self.axes(left, top, width, height)
        axes.imshow(drawn, interpolation="nearest", aspect="auto" if height < 0.5 else "equal")
        axes.set_anchor("NW")
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def ticks(self, axes: Any, places: Sequence[float] | Numbers, texts: Sequence[str]) -> None:
        """Write what the places along a scale mean."""
        axes.set_xticks(places, texts, size=8)
        axes.tick_params(length=2, pad=1)
