"""Maps over pictures, on scales that never change with what they show.

A gate of 1 leaves the picture grey, and paler than it is, so that colours show in the dark, too.
Only what is off 1 gets a colour, blue below, red above, the fuller the farther, up to 0.5 and 1.5.
What lies beyond is striped.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch.nn import functional as F

from attn_surgery.finetune.process import need
from attn_surgery.showing.gates import Numbers
from attn_surgery.showing.numbers import HIGH, LOW

BELOW, ABOVE = (33, 102, 172), (178, 24, 43)
UNKNOWN = (230, 171, 2)
"""Of positions where nothing went in."""
_DARKEST, _LIGHTEST = 64, 216
_FULL = 0.9
_STRIPE = 6


def over_gates(picture: Numbers, gates: Numbers) -> Numbers:
    """Draw the gates of positions over a picture.

    Args:
        picture: ``(H, W, 3)`` of uint8.
        gates: ``(h, w)``; NaN where there is none.

    Returns:
        ``(H, W, 3)`` of uint8.

    Example:
        >>> dark = numpy.zeros((1, 2, 3), numpy.uint8)
        >>> over_gates(dark, numpy.array([[1.0, 1.25]])).tolist()
        [[[64, 64, 64], [115, 46, 55]]]
    """
    height, width = picture.shape[:2]
    rows = numpy.arange(height) * gates.shape[0] // height
    columns = numpy.arange(width) * gates.shape[1] // width
    each = gates[rows][:, columns]
    colour, alpha = gate_colour(each)
    grey = _DARKEST + (_LIGHTEST - _DARKEST) / 255 * _luma(picture)[..., None]
    drawn = grey * (1 - alpha[..., None]) + colour * alpha[..., None]
    diagonal = numpy.add.outer(numpy.arange(height), numpy.arange(width)) % _STRIPE < _STRIPE // 3
    drawn[diagonal & is_clipped(each)] = 255
    return drawn.round().astype(numpy.uint8)


def gate_colour(gates: Numbers) -> tuple[Numbers, Numbers]:
    """Return the colours of gates, ``(..., 3)``, and how much each covers, from 0 to 0.9."""
    unknown = numpy.isnan(gates)
    colour = numpy.where((gates < 1)[..., None], BELOW, ABOVE)
    colour = numpy.where(unknown[..., None], UNKNOWN, colour)
    reach = numpy.where(gates < 1, 1 - LOW, HIGH - 1)
    alpha = _FULL * numpy.clip(numpy.abs(gates - 1) / reach, 0, 1)
    return colour, numpy.where(unknown, _FULL, alpha)


def is_clipped(gates: Numbers) -> Numbers:
    """Tell which gates are not on the scale."""
    return (gates < LOW) | (gates > HIGH)


def over_activation(picture: Numbers, activation: Numbers, most: float) -> Numbers:
    """Draw a class activation map over a picture.

    Args:
        picture: ``(H, W, 3)`` of uint8.
        activation: ``(h, w)``, at least 0.
        most: What has the last colour: the greatest number of all maps that are compared.

    Returns:
        ``(H, W, 3)`` of uint8.
    """
    library: Any = need("matplotlib", extra="show")
    height, width = picture.shape[:2]
    scaled = torch.as_tensor(activation / most if most > 0 else activation, dtype=torch.float32)
    smooth = F.interpolate(scaled[None, None], (height, width), mode="bilinear")[0, 0].numpy()
    colour = library.colormaps["inferno"](smooth.clip(0, 1))[..., :3] * 255
    alpha = (0.25 + 0.5 * smooth.clip(0, 1))[..., None]
    grey = numpy.repeat(_luma(picture)[..., None], 3, axis=2)
    return (grey * (1 - alpha) + colour * alpha).round().astype(numpy.uint8)


SCALE = numpy.linspace(0.4, 1.6, 240)
"""The gates of `gate_scale`, from left to right."""
_GREY = numpy.full((24, SCALE.size, 3), 170, numpy.uint8)


def gate_scale() -> Numbers:
    """Draw what the colours of gates mean, over grey: ``(24, 240, 3)`` of uint8."""
    return over_gates(_GREY, SCALE[None])


def activation_scale() -> Numbers:
    """Draw what the colours of activation mean, from 0 to the peak."""
    return over_activation(_GREY, numpy.linspace(0, 1, SCALE.size)[None], 1.0)


def _luma(picture: Numbers) -> Numbers:
    """Return the lightness of each pixel (ITU-R BT.601)."""
    return (picture * numpy.array([0.299, 0.587, 0.114])).sum(-1).round()
