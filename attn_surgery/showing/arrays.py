"""What is shown as arrays, in one compressed file of numpy's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy

from attn_surgery.showing.exhibits import Exhibits
from attn_surgery.showing.gates import Numbers


def arrays(exhibits: Exhibits) -> bytes:
    """Return the content of a ``.npz`` file; `Gallery.save` says what is in it."""
    found: dict[str, Any] = {
        "names": numpy.array([each.name for each in exhibits.images]),
        "labels": numpy.array([each.label or "" for each in exhibits.images]),
        "classes": numpy.array(exhibits.classes, dtype=str),
        "notes": numpy.array(exhibits.notes, dtype=str),
        **_stacked("picture", [each.picture for each in exhibits.images]),
    }
    for site in exhibits.sites:
        found[f"channel/{site.path}"] = site.channel
        found[f"change/{site.path}"] = numpy.array([each.change for each in site.gates])
        found |= _stacked(f"position/{site.path}", [each.position for each in site.gates])
    for name in ("host", "operated"):
        told = [getattr(each, name) for each in exhibits.images]
        found |= _stacked(f"probabilities/{name}", [each.probabilities for each in told])
        found |= _stacked(f"activation_map/{name}", [each.activation_map for each in told])
        if all(each.target is not None for each in told):
            found[f"target/{name}"] = numpy.array([each.target for each in told])
    file = io.BytesIO()
    numpy.savez_compressed(file, **found)
    return file.getvalue()


def _stacked(name: str, images: Sequence[Numbers | None]) -> dict[str, Numbers]:
    """Return one array of all images, or, where their shapes differ, one for each that has one."""
    known = {i: each for i, each in enumerate(images) if each is not None}
    if len(known) == len(images) and len({each.shape for each in known.values()}) == 1:
        return {name: numpy.stack(list(known.values()))}
    return {f"{name}/{i}": each for i, each in known.items()}
