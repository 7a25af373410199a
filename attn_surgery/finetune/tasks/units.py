"""How scores are written: shares in percent, ratios of signal and noise in decibels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A unit, and how many of it a score of 1 is."""

    name: str
    scale: float

    def write(self, score: float, form: str = ".2f") -> str:
        """Write a score, or a difference of scores.

        Example:
            >>> PERCENT.write(0.5), DECIBELS.write(0.5, "+.1f")
            ('50.00', '+0.5')
        """
        return format(self.scale * score, form)


PERCENT, DECIBELS = Unit("%", 100), Unit("dB", 1)
_UNITS = {"psnr": DECIBELS}


def unit_of(score: str) -> Unit:
    """Return the unit of a metric.

    Example:
        >>> unit_of("psnr").name, unit_of("accuracy").name
        ('dB', '%')
    """
    return _UNITS.get(score, PERCENT)
