"""What is shown, to be printed, saved and looked at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.process import need
from attn_surgery.host import write_whole
from attn_surgery.showing.arrays import arrays
from attn_surgery.showing.exhibits import Exhibits, Shown, SiteGates
from attn_surgery.showing.page import page
from attn_surgery.showing.sheet import sheet
from attn_surgery.showing.tables import prediction_table, site_table


class Gallery(Exhibits):
    """What `attn_surgery.show` returns: exhibits that can be saved and printed."""

    def save(self, path: str | Path) -> None:
        """Write a file; its ending says what.

        Args:
            path: ``.png``: a contact sheet. ``.html``: a page, which needs no other file and no
                network. ``.npz``: the arrays, as `numpy.load` reads them: for each attention
                ``channel/PATH`` ``(images, channels)``, ``change/PATH`` ``(images,)`` and
                ``position/PATH`` ``(images, *spatial)``; for ``host`` and ``operated``
                ``probabilities/host`` ``(images, classes)``, ``activation_map/host``
                ``(images, h, w)`` and ``target/host`` ``(images,)``; ``picture``
                ``(images, H, W, 3)``; ``names``, ``labels``, ``classes``, ``notes``. Where sizes
                differ from image to image there is one array each, ``position/PATH/0``.

        Raises:
            SurgeryError: The ending is another one, a package is missing, or the file cannot be
                written.
        """
        check_ending(path)
        write_whole(Path(path), _MAKERS[Path(path).suffix.lower()](self))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data, fit for JSON; maps are in the ``.npz``."""
        return {
            "model": self.model,
            "layer": self.layer,
            "method": self.method,
            "notes": list(self.notes),
            "sites": [self._site_data(site) for site in self.sites],
            "images": [self._image_data(each) for each in self.images],
        }

    def __str__(self) -> str:
        tables = [site_table(self), prediction_table(self)]
        drawn = [tabulate(rows, heads, disable_numparse=True) for heads, rows in tables if rows]
        return "\n\n".join([*drawn, "\n".join(self.notes)]).rstrip()

    def _site_data(self, site: SiteGates) -> dict[str, Any]:
        contrast = self.contrast(site)
        numbers = {
            "path": site.path,
            "block": site.block,
            "attention": site.attention,
            "change": site.change,
            "position_range": site.position_range,
            **asdict(site.spread),
            "contrast": None if contrast is None else asdict(contrast),
        }
        return _without_nan(numbers)

    def _image_data(self, shown: Shown) -> dict[str, Any]:
        best = {
            name: [{"class": self.classes[i], "probability": value} for i, value in each.best(5)]
            for name, each in (("host", shown.host), ("operated", shown.operated))
        }
        return _without_nan(
            {"name": shown.name, "label": shown.label, "moved": shown.moved, **best}
        )


def _without_nan(value: Any) -> Any:
    """Return plain data with None for what is not a number, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


_MAKERS: dict[str, Callable[[Exhibits], bytes]] = {".png": sheet, ".html": page, ".npz": arrays}


def check_ending(path: str | Path) -> None:
    """Refuse a file that could not be made, before there is anything to write into it.

    Raises:
        SurgeryError: Its ending is none that is known, or a package is missing.
    """
    ending = Path(path).suffix.lower()
    if ending not in _MAKERS:
        raise SurgeryError(
            f"cannot save {path}: end it in .png for a sheet, .html for a page or .npz for the "
            "arrays"
        )
    if ending != ".npz":
        need("matplotlib", extra="show")
    if ending == ".html":
        need("jinja2", extra="show")
