"""One split: images and targets, as their library gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy
from PIL import Image

from attn_surgery.errors import SurgeryError

_SIXTEEN_BITS = 65_535


@dataclass(frozen=True)
class Source:
    """One split.

    Attributes:
        samples: Index -> ``(image, target)``, with PIL images.
        classes: How many classes there are; 0 where the data does not say.
        names: What each sample is called in messages; may be empty.
        class_to_idx: The classes' names and numbers; may be empty.
    """

    samples: Any
    classes: int
    names: Sequence[str] = ()
    class_to_idx: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """Return what a sample is called in messages."""
        return str(self.names[index]) if self.names else f"number {index}"


def read_image(file: str | Path | IO[bytes]) -> Image.Image:
    """Read the whole image, and close its file."""
    with Image.open(file) as image:
        image.load()
        return image


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in one of PIL's modes of 8 bits; PIL alone cuts 16 bits off at 255.

    Raises:
        SurgeryError: It is not known what its pixels mean.

    Example:
        >>> grey = Image.new("I;16", (1, 1), 32_896)
        >>> as_mode(grey, "L").getpixel((0, 0)), grey.convert("L").getpixel((0, 0))
        (128, 255)
    """
    if image.mode.startswith("I") or image.mode == "F":
        pixels = numpy.asarray(image)
        if image.mode == "F" or not 0 <= pixels.min() <= pixels.max() <= _SIXTEEN_BITS:
            raise SurgeryError(f"mode {image.mode}: give images of 8 or 16 bits for each channel")
        image = Image.fromarray((pixels / (_SIXTEEN_BITS / 255)).round().astype("uint8"))
    return image.convert(mode)
