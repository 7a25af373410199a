"""Domains: kinds of images that one network has to cope with, made of one data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2

F: Any = v2.functional  # its annotations speak of tensors alone

CONTRAST = 0.25
"""What is left of the contrast."""
NOISE = 0.25
"""Standard deviation, where black is 0 and white is 1."""
STRONGEST_NOISE = 0.2
"""Most of the standard deviation, where it is drawn."""
GAIN, GAMMA, CAST = 1.0, 0.5, 0.3
"""How many powers of two a recoloured image is off at most: all of it, its gamma, a channel."""
BLUR = 0.05
"""Standard deviation of the Gaussian, of the shorter side."""


def _clean(image: Image.Image) -> Image.Image:
    return image


def _inverted(image: Image.Image) -> Image.Image:
    return F.invert(image)


def _low_contrast(image: Image.Image) -> Image.Image:
    return F.adjust_contrast(image, CONTRAST)


def _noisy(image: Image.Image) -> Image.Image:
    return _image(F.gaussian_noise(_pixels(image), sigma=NOISE, clip=True), image.mode)


def _grainy(image: Image.Image) -> Image.Image:
    strength = STRONGEST_NOISE * float(torch.rand(()))
    return _image(F.gaussian_noise(_pixels(image), sigma=strength, clip=True), image.mode)


def _recoloured(image: Image.Image) -> Image.Image:
    pixels = _pixels(image)
    channels = len(pixels)
    powers = 2 * torch.rand(2 + channels, 1, 1) - 1
    gain = GAIN * powers[0] + CAST * (powers[2:] if channels > 1 else 0)
    return _image((pixels**2 ** (GAMMA * powers[1]) * 2**gain).clamp(0, 1), image.mode)


def _pixels(image: Image.Image) -> torch.Tensor:
    return F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)


def _image(pixels: torch.Tensor, mode: str | None) -> Image.Image:
    return F.to_pil_image(pixels, mode)


def _blurred(image: Image.Image) -> Image.Image:
    deviation = BLUR * min(image.size)
    side = 2 * round(3 * deviation) + 1
    return F.gaussian_blur(image, [side, side], [deviation, deviation])


DOMAINS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "clean": _clean,
    "inverted": _inverted,
    "low_contrast": _low_contrast,
    "noisy": _noisy,
    "blurred": _blurred,
    "grainy": _grainy,
    "recoloured": _recoloured,
}


def drawn_domain(image: Image.Image, domains: Sequence[str]) -> Image.Image:
    """Bring an image to one of some domains, drawn from torch's generator.

    Args:
        image: Of mode L or RGB; 8 bits.
        domains: Their names, as in `DOMAINS`. A single one leaves the generator alone.

    Example:
        >>> black = Image.new("L", (28, 28))
        >>> drawn_domain(black, ["inverted"]).getpixel((0, 0))
        255
    """
    number = int(torch.randint(len(domains), ())) if len(domains) > 1 else 0
    return DOMAINS[domains[number]](image)
