"""How shapes look, in light and in dark."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = {
    "page": ("#ffffff", "#0d1117"),
    "panel": ("#f3f5f8", "#161b22"),
    "ink": ("#1f2328", "#e6edf3"),
    "pale ink": ("#57606a", "#9da7b3"),
    "edge": ("#6e7781", "#8b949e"),
    "track": ("#d5dbe3", "#30363d"),
    "attention": ("#0a5cad", "#58a6ff"),
    "attention's box": ("#dfeeff", "#12304f"),
    "on attention": ("#ffffff", "#0d1117"),
    "there already": ("#8a4b00", "#f0a84b"),
    "there already's tag": ("#fff1d6", "#3d2a0c"),
}
"""Each colour's name to what it is in light and in dark."""
LIGHT, DARK = 0, 1


@dataclass(frozen=True)
class Look:
    """How a kind of shape looks.

    Attributes:
        fill: The name of the colour that it is filled with, or "".
        stroke: The name of its outline's, or "".
        width: Of the outline.
        dashes: Lengths of its strokes and of the gaps between them; by default it is whole.
        size: Of text, in pixels; 0 for what is none.
        is_bold: Whether text is.
        is_monospaced: Whether all letters are as wide, so that it is known how wide a text is.
    """

    fill: str = ""
    stroke: str = ""
    width: float = 1.0
    dashes: tuple[float, ...] = ()
    size: float = 0.0
    is_bold: bool = False
    is_monospaced: bool = True

    @property
    def letter(self) -> float:
        """The width of a letter."""
        return _LETTER * self.size


_LETTER = 0.603  # of the size, in DejaVu Sans Mono; Menlo, Consolas and Courier are no wider

LOOKS = {
    "page": Look(fill="page"),
    "panel": Look(fill="panel"),
    "title": Look("ink", size=20, is_bold=True, is_monospaced=False),
    "said": Look("pale ink", size=12.5, is_monospaced=False),
    "stage": Look("ink", size=13, is_bold=True),
    "about": Look("pale ink", size=11),
    "name": Look("ink", size=12, is_bold=True),
    "detail": Look("ink", size=11),
    "cut": Look("attention's box", "attention", 1.5),
    "skipped": Look("", "edge", 1.2, (4, 3)),
    "behind-cut": Look("attention's box", "attention"),
    "behind-skipped": Look("page", "edge"),
    "tag": Look("attention"),
    "on-tag": Look("on attention", size=11, is_bold=True),
    "held": Look("there already's tag", "there already", 1.2),
    "on-held": Look("there already", size=11, is_bold=True),
    "held-rim": Look("", "there already", 1.2),
    "why": Look("pale ink", size=11),
    "number": Look("ink", size=11, is_bold=True),
    "track": Look("track"),
    "bar": Look("attention"),
    "arrow": Look("", "edge", 1.3),
}
"""The looks by name."""
