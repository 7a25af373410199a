"""What is shown as one HTML page, which needs no other file, no network and no script."""

from __future__ import annotations

import base64
import importlib.resources
import io
from typing import Any

import numpy
from PIL import Image

from attn_surgery.finetune.process import need
from attn_surgery.showing.colours import activation_scale, gate_scale, over_activation, over_gates
from attn_surgery.showing.exhibits import Exhibits, Shown, SiteGates
from attn_surgery.showing.gates import Numbers
from attn_surgery.showing.numbers import DAMPED, HIGH, LOW, RAISED, mean_gates
from attn_surgery.showing.tables import percent, prediction_table, range_text, site_table

_BINS = 40
"""Of a histogram, between the ends of the scale."""
_FARTHEST = 5
"""Channels that are named, on either side of 1."""
_THUMB = 128
"""Sides of sites' maps, in pixels."""


def page(exhibits: Exhibits) -> bytes:
    """Return the content of a ``.html`` file.

    Raises:
        SurgeryError: jinja2 or matplotlib is not installed.
    """
    library: Any = need("jinja2", extra="show")
    folder = importlib.resources.files("attn_surgery.showing")
    template = library.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=library.StrictUndefined
    ).from_string(folder.joinpath("page.html").read_text("utf-8"))
    return template.render(
        exhibits=exhibits,
        gate_scale=_source(gate_scale()),
        activation_scale=_source(activation_scale()),
        sites=[_site(exhibits, each) for each in exhibits.sites],
        images=[_image(exhibits, i) for i in range(len(exhibits.images))],
        site_table=site_table(exhibits),
        prediction_table=prediction_table(exhibits),
    ).encode()


def _source(picture: Numbers) -> str:
    """Return a picture as the source of an ``img``."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


# Images


def _image(exhibits: Exhibits, number: int) -> dict[str, Any]:
    shown = exhibits.images[number]
    target = shown.host.target
    return {
        "name": shown.name,
        "label": shown.label,
        "target": "" if target is None else exhibits.classes[target],
        "moved": percent(shown.moved),
        "figures": _figures(shown),
        "predictions": _predictions(exhibits, shown),
        "maps": [
            _map(shown, site, number) for site in exhibits.sites if _has_map(shown, site, number)
        ],
    }


def _figures(shown: Shown) -> list[dict[str, str]]:
    if shown.picture is None:
        return []
    seen = "what both models see"
    found = [{"source": _source(shown.picture), "alt": f"{shown.name}, {seen}", "told": seen}]
    for name, response in (("host", shown.host), ("operated", shown.operated)):
        if response.activation_map is not None:
            peak = shown.peak(response)
            drawn = over_activation(shown.picture, response.activation_map, shown.greatest)
            found.append(_activation(name, response.activation_map, peak, drawn))
    return found


def _activation(name: str, activation: Numbers, peak: float, drawn: Numbers) -> dict[str, str]:
    row, column = numpy.unravel_index(activation.argmax(), activation.shape)
    place = f"{_third(row, activation.shape[0], 'top', 'bottom')} " + _third(
        column, activation.shape[1], "left", "right"
    )
    told = f"{name}: peak {peak:.3f}, {place}"
    return {"source": _source(drawn), "alt": f"Activation map of the {told}", "told": told}


def _third(index: Any, size: int, first: str, last: str) -> str:
    """Say where something is along one side."""
    third = int(3 * (index + 0.5) / size)
    return (first, "middle", last)[third]


def _predictions(exhibits: Exhibits, shown: Shown) -> list[list[str]]:
    """Return rows of class, host's and operated model's percents: the best five of each."""
    one, other = shown.host.probabilities, shown.operated.probabilities
    if one is None or other is None:
        return []
    best = dict.fromkeys(i for each in (shown.host, shown.operated) for i, _ in each.best(5))
    return [[exhibits.classes[i], f"{100 * one[i]:.2f}", f"{100 * other[i]:.2f}"] for i in best]


def _has_map(shown: Shown, site: SiteGates, number: int) -> bool:
    position = site.gates[number].position
    return shown.picture is not None and position is not None and position.ndim == 2


def _map(shown: Shown, site: SiteGates, number: int) -> dict[str, str]:
    gate = site.gates[number]
    assert shown.picture is not None
    assert gate.position is not None
    image = Image.fromarray(shown.picture)
    image.thumbnail((_THUMB, _THUMB))
    size = "x".join(map(str, gate.position.shape))
    told = f"{range_text(gate.position_range)}; change {percent(gate.change)} %"
    return {
        "title": site.title,
        "told": told,
        "alt": f"Gates of the {size} positions of {site.title} over {shown.name}: {told}",
        "source": _source(over_gates(numpy.asarray(image), gate.position)),
    }


# Sites


def _site(exhibits: Exhibits, site: SiteGates) -> dict[str, Any]:
    gates = mean_gates(site.channel)
    classes = exhibits.by_class(site)
    named = _farthest(gates)
    return {
        "title": site.title,
        "attention": site.attention,
        "spread": site.spread,
        "change": percent(site.change),
        "bars": _bars(gates),
        "told": _told(site),
        "classes": list(classes),
        "channels": [
            [f"#{i}", f"{gates[i]:.3f}", *(f"{each[i]:.3f}" for each in classes.values())]
            for i in named
        ],
    }


def _farthest(gates: Numbers) -> list[int]:
    """Return the channels that are raised most, and those that are damped most, as 1 is none."""
    known = [int(i) for i in numpy.argsort(gates) if not numpy.isnan(gates[i])]
    damped = [i for i in known[:_FARTHEST] if gates[i] < 1]
    raised = [i for i in known[::-1][:_FARTHEST] if gates[i] > 1]
    return [*raised, *damped[::-1]]


def _told(site: SiteGates) -> str:
    spread = site.spread
    if spread.farthest < 0:
        return "no channel has a gate: all maps were zero"
    dead = f"; {spread.dead} without a gate, their maps were zero" * bool(spread.dead)
    return (
        f"{spread.channels} channels: median {spread.median:.3f}, 5 % to 95 % {spread.low:.3f} to "
        f"{spread.high:.3f}; {spread.raised} above {RAISED}, {spread.damped} below {DAMPED}, "
        f"{spread.silenced} below 0.1; mean distance from 1 {spread.distance:.3f}{dead}"
    )


def _bars(gates: Numbers) -> list[dict[str, Any]]:
    """Return the bars of a histogram on the fixed scale, one beyond either end."""
    known = gates[~numpy.isnan(gates)]
    edges = numpy.linspace(LOW, HIGH, _BINS + 1)
    edges[_BINS // 2] = 1.0
    inside, _ = numpy.histogram(known, edges)
    counts = [int((known < LOW).sum()), *map(int, inside), int((known > HIGH).sum())]
    most = max(*counts, 1)
    off = _BINS // 2 - 1  # one beyond the end, and the bins up to 0.95, or from 1.05 on
    kinds = ["below"] * off + ["near"] * 4 + ["above"] * off
    return [
        {"x": i * 10, "height": 60 * count / most, "kind": kind, "count": count}
        for i, (count, kind) in enumerate(zip(counts, kinds, strict=True))
    ]
