"""What is shown, as data: of each image what both models make of it, of each site its gates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy

from attn_surgery.showing.activation_maps import share_moved
from attn_surgery.showing.gates import Gate, Numbers
from attn_surgery.showing.numbers import (
    Contrast,
    Spread,
    by_class,
    contrast_of,
    mean_gates,
    spread_of,
)


@dataclass(frozen=True, eq=False)
class Response:
    """What one model makes of one image.

    Attributes:
        probabilities: Softmax of its logits, ``(classes,)``; None where it returns none.
        target: The class that the map explains; None without a map.
        activation_map: At the layer's resolution, ``(h, w)``, at least 0 and not scaled, so that
            it may be compared with the other model's; None where there is none.
    """

    probabilities: Numbers | None
    target: int | None
    activation_map: Numbers | None

    def best(self, number: int) -> list[tuple[int, float]]:
        """Return the most probable classes and their probabilities."""
        if self.probabilities is None:
            return []
        order = numpy.argsort(-self.probabilities, kind="stable")[:number]
        return [(int(i), float(self.probabilities[i])) for i in order]


@dataclass(frozen=True, eq=False)
class Shown:
    """One image.

    Attributes:
        name: What it is called.
        label: Its class, where that is known.
        picture: What the models see, ``(H, W, 3)`` of uint8; None if it is no image.
        host: What the host makes of it.
        operated: What the operated model makes of it.
    """

    name: str
    label: str | None
    picture: Numbers | None
    host: Response
    operated: Response

    @property
    def responses(self) -> tuple[Response, Response]:
        """The host's and the operated model's."""
        return self.host, self.operated

    @property
    def greatest(self) -> float:
        """The peak of both models' activation maps, which is the end of their scale; else 0."""
        maps = [each.activation_map for each in self.responses]
        return max((float(each.max()) for each in maps if each is not None), default=0.0)

    def peak(self, response: Response) -> float:
        """Return the peak of one's activation map as a part of the greater of the two; else 0."""
        if response.activation_map is None or not self.greatest > 0:
            return 0.0
        return float(response.activation_map.max() / self.greatest)

    @property
    def moved(self) -> float:
        """Which share of the class activation map lies elsewhere, from 0 to 1; NaN without one."""
        one, other = self.host.activation_map, self.operated.activation_map
        if one is None or other is None:
            return math.nan
        return share_moved(one, other)


@dataclass(frozen=True, eq=False)
class SiteGates:
    """The gates of one attention, image by image.

    Attributes:
        path: Of the attention.
        block: Of the block that it was put into; "" for the host itself.
        attention: What it is called.
        gates: For each image.
    """

    path: str
    block: str
    attention: str
    gates: tuple[Gate, ...]

    @property
    def title(self) -> str:
        """The block, as people read it."""
        return self.block or "(the host)"

    @cached_property
    def channel(self) -> Numbers:
        """The gate of each channel, ``(images, channels)``."""
        return numpy.stack([each.channel for each in self.gates])

    @cached_property
    def spread(self) -> Spread:
        """How they are distributed."""
        return spread_of(self.channel)

    @property
    def change(self) -> float:
        """``|out - in| / |in|``, the mean over the images."""
        return float(mean_gates(numpy.array([[each.change] for each in self.gates]))[0])

    @property
    def position_range(self) -> tuple[float, float] | None:
        """The least and the greatest gate of a position; None where no map is known."""
        found = [each.position_range for each in self.gates]
        known = [each for each in found if each is not None]
        if not known:
            return None
        return min(low for low, _ in known), max(high for _, high in known)

    @property
    def has_images(self) -> bool:
        """Whether there is a map over two dims of space."""
        return any(each.position is not None and each.position.ndim == 2 for each in self.gates)


@dataclass(frozen=True, eq=False)
class Exhibits:
    """What attention does to some images.

    Attributes:
        model: What the model is called.
        sites: In forward order.
        images: As they were given.
        classes: The classes' names; empty where the model returns no logits.
        layer: The layer of the class activation maps; None without them.
        method: Of the class activation maps; None without them.
        notes: What has to be known to read it: what was left out, and why.
    """

    model: str
    sites: tuple[SiteGates, ...]
    images: tuple[Shown, ...]
    classes: tuple[str, ...]
    layer: str | None
    method: str | None
    notes: tuple[str, ...]

    @property
    def labels(self) -> list[str | None]:
        """The class of each image."""
        return [each.label for each in self.images]

    @property
    def attentions(self) -> str:
        """What went in, each once."""
        return ", ".join(dict.fromkeys(site.attention for site in self.sites))

    def contrast(self, site: SiteGates) -> Contrast | None:
        """Return how a site's gates differ between classes; None without two labels."""
        return contrast_of(site.channel, self.labels)

    def by_class(self, site: SiteGates) -> dict[str, Numbers]:
        """Return each class -> the mean gates of a site, ``(channels,)``."""
        return by_class(site.channel, self.labels)

    def predicted(self, response: Response, number: int = 1) -> str:
        """Return the most probable classes in words."""
        best = response.best(number)
        return ", ".join(f"{self.classes[i]} {100 * value:.1f} %" for i, value in best)
