"""What the documentation says of each refusal, and which of them a message is."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from dataclasses import dataclass

_HOLE = "…"
"""Stands in a message for a name or a number of the user's."""
_ENOUGH = 8
"""Letters that a message has, to be known by them."""


@dataclass(frozen=True)
class Refusal:
    """A section of the page of refusals.

    Attributes:
        anchor: Its title, one word.
        messages: What it is of, as the messages are spelled.
        text: What it says of them, Markdown.
    """

    anchor: str
    messages: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        """Return it as it is read on a terminal."""
        spelled = "\n".join(f"  {each}" for each in self.messages)
        return "\n\n".join(each for each in (self.anchor, spelled, self.text) if each)


@functools.cache
def refusals() -> dict[str, Refusal]:
    """Return all, by their anchors.

    Example:
        >>> refusals()["linear"].messages
        ('the branch is linear: no residual function',)
    """
    page = importlib.resources.files("attn_surgery.cli").joinpath("refusals.json")
    return {
        each["anchor"]: Refusal(each["anchor"], tuple(each["messages"]), each["text"])
        for each in json.loads(page.read_text("utf-8"))
    }


def anchor_of(message: str) -> str:
    """Return the anchor of the refusal that a message is, ``""`` where the page tells of none.

    Where several are spelled so, it is the one that has most letters of its own; those that have
    hardly any would be everything.

    Example:
        >>> anchor_of("unknown attention 'cbma'; did you mean 'cbam'?; available: se, cbam")
        'unknown-attention'
        >>> anchor_of("no such words")
        ''
    """
    message = " ".join(message.split())
    fitting = [
        (_letters(spelled), each.anchor)
        for each in refusals().values()
        for spelled in each.messages
        if _letters(spelled) >= _ENOUGH and _pattern(spelled).fullmatch(message)
    ]
    return max(fitting, default=(0, ""))[1]


def _letters(spelled: str) -> int:
    return sum(map(str.isalpha, spelled))


@functools.cache
def _pattern(spelled: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split(f"{_HOLE}+", spelled))))
