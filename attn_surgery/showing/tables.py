"""Gates and predictions as tables: heads and rows, for text, the page and the sheet."""

from __future__ import annotations

import math

from attn_surgery.showing.exhibits import Exhibits, SiteGates
from attn_surgery.showing.numbers import Contrast

Table = tuple[list[str], list[list[str]]]
"""Heads, and rows as long."""

_SITE_HEADS = (
    *("block", "attention", "channels", "median", "5 % to 95 %", ">1.05", "<0.95", "<0.1"),
    *("farthest from 1", "positions", "change (%)"),
)


def site_table(exhibits: Exhibits) -> Table:
    """Return a row for each site; with labels, how classes differ there."""
    contrasts = [exhibits.contrast(site) for site in exhibits.sites]
    told = any(contrasts)
    rows = [
        [*_site_row(site), *([contrast_text(contrast)] if told else [])]
        for site, contrast in zip(exhibits.sites, contrasts, strict=True)
    ]
    return [*_SITE_HEADS, *["between classes"] * told], rows


def _site_row(site: SiteGates) -> list[str]:
    spread = site.spread
    counts = [str(each) for each in (spread.raised, spread.damped, spread.silenced)]
    is_known = spread.farthest >= 0
    return [
        site.title,
        site.attention,
        str(spread.channels),
        f"{spread.median:.3f}" if is_known else "",
        f"{spread.low:.3f} to {spread.high:.3f}" if is_known else "",
        *counts,
        f"{spread.farthest_gate:.3f} (#{spread.farthest})" if is_known else "",
        range_text(site.position_range),
        percent(site.change),
    ]


def prediction_table(exhibits: Exhibits) -> Table:
    """Return a row for each image; none where neither model returns logits."""
    labelled = any(exhibits.labels)
    rows = [
        [
            each.name,
            *[each.label or ""] * labelled,
            exhibits.predicted(each.host),
            exhibits.predicted(each.operated),
            percent(each.moved),
        ]
        for each in exhibits.images
    ]
    heads = ["image", *["label"] * labelled, "host", "operated", "map moved (%)"]
    return heads, rows if exhibits.classes else []


def range_text(ends: tuple[float, float] | None) -> str:
    """Return the two ends of a range, or nothing.

    Example:
        >>> range_text((0.5, 1.0)), range_text(None)
        ('0.500 to 1.000', '')
    """
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def percent(share: float) -> str:
    """Return a share in percent, or nothing where it is not a number.

    Example:
        >>> percent(0.0123), percent(float("nan"))
        ('1.23', '')
    """
    return "" if math.isnan(share) else f"{100 * share:.2f}"


def contrast_text(contrast: Contrast | None) -> str:
    """Return in words how classes differ at a site.

    Example:
        >>> contrast_text(Contrast(7, ("cat", 0.9), ("dog", 1.2), 0.5))
        '#7: cat 0.900, dog 1.200; 50 % of variance'
        >>> contrast_text(Contrast(0, ("cat", 1.0), ("cat", 1.0), math.nan))  # before training
        'no difference'
    """
    if contrast is None:
        return ""
    (low, least), (high, most) = contrast.low, contrast.high
    if low == high:
        return "no difference"
    share = "" if math.isnan(contrast.share) else f"; {100 * contrast.share:.0f} % of variance"
    return f"#{contrast.channel}: {low} {least:.3f}, {high} {most:.3f}{share}"
