"""What a picture consists of: a few kinds of shapes, each with the name of its look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Rect:
    """A rectangle; ``x`` and ``y`` are its upper left corner, in pixels as everything here."""

    x: float
    y: float
    width: float
    height: float
    look: str
    radius: float = 0.0


@dataclass(frozen=True)
class Line:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    look: str


@dataclass(frozen=True)
class Text:
    """A line of text that begins at ``x``; ``y`` is its baseline."""

    x: float
    y: float
    text: str
    look: str


Shape: TypeAlias = Rect | Line | Text


@dataclass(frozen=True)
class Group:
    """Shapes that belong together.

    Attributes:
        shapes: Those further back first.
        title: What is said of them where a pointer is over them.
    """

    shapes: tuple[Shape, ...]
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        width: In pixels.
        height: In pixels.
        title: What it shows.
        description: The same at more length, for who does not see it.
        groups: Those further back first.
    """

    width: float
    height: float
    title: str
    description: str
    groups: tuple[Group, ...]
