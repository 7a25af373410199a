"""Ways to choose sites that look at all of them: by stage, every n-th, by width.

Each returns a ``Choice`` for ``where``. Choices combine with ``&``, ``|`` and ``~``, patterns over
block paths (``matching``) among them.

A *stage* is a run of blocks held by the same container (``layer3`` of a ResNet, ``blocks.4`` of a
timm EfficientNet). Where one container holds them all, as in torchvision's MobileNets, it is a run
of blocks of the same width. Stages are numbered from 1 in forward order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby

from attn_surgery.errors import SurgeryError
from attn_surgery.planning.sites import Site


@dataclass(frozen=True)
class Candidate:
    """A site, and how wide its block is.

    Attributes:
        site: The site.
        width: The number of channels that the block returns.
    """

    site: Site
    width: int | None


@dataclass(frozen=True)
class Choice:
    """A choice among the sites of a host.

    Attributes:
        choose: From every site that could be cut, in forward order, to those chosen.
        description: How messages write it.
    """

    choose: Callable[[Sequence[Candidate]], list[Candidate]]
    description: str

    def __and__(self, other: Choice | str) -> Choice:
        other = matching(other) if isinstance(other, str) else other

        def both(sites: Sequence[Candidate]) -> list[Candidate]:
            others = other.choose(sites)
            return [site for site in self.choose(sites) if site in others]

        return Choice(both, f"({self.description} & {other.description})")

    def __or__(self, other: Choice | str) -> Choice:
        other = matching(other) if isinstance(other, str) else other

        def either(sites: Sequence[Candidate]) -> list[Candidate]:
            chosen = {*self.choose(sites), *other.choose(sites)}
            return [site for site in sites if site in chosen]

        return Choice(either, f"({self.description} | {other.description})")

    def __invert__(self) -> Choice:
        def rest(sites: Sequence[Candidate]) -> list[Candidate]:
            chosen = self.choose(sites)
            return [site for site in sites if site not in chosen]

        return Choice(rest, f"~{self.description}")

    def __repr__(self) -> str:
        return self.description


def matching(*patterns: str) -> Choice:
    """Choose the blocks whose path matches one of the fnmatch patterns.

    Example:
        >>> import torchvision, attn_surgery
        >>> where = matching("layer4.*") & ~last_of_stage()
        >>> plan = attn_surgery.plan(torchvision.models.resnet50(), "se", where=where)
        >>> [site.block for site in plan.sites]
        ['layer4.0', 'layer4.1']
    """

    def choose(sites: Sequence[Candidate]) -> list[Candidate]:
        return [
            site for site in sites if any(fnmatchcase(site.site.block, each) for each in patterns)
        ]

    return Choice(choose, f"matching({', '.join(map(repr, patterns))})")


def stage(*numbers: int) -> Choice:
    """Choose the blocks of the stages with these numbers, the first being 1.

    Raises:
        SurgeryError: A number is none, or, later, the host has no such stage.

    Example:
        >>> import torchvision, attn_surgery
        >>> plan = attn_surgery.plan(torchvision.models.resnet18(), "se", where=stage(3, 4))
        >>> [site.block for site in plan.sites]
        ['layer3.0', 'layer3.1', 'layer4.0', 'layer4.1']
    """
    for number in numbers or (None,):
        _check_positive("stage", number)

    def choose(sites: Sequence[Candidate]) -> list[Candidate]:
        found = stages(sites)
        if missing := [number for number in numbers if number > len(found)]:
            listed = ", ".join(f"{i}: {each[0].site.block}" for i, each in enumerate(found, 1))
            raise SurgeryError(f"there is no stage {missing[0]}; the stages begin at {listed}")
        return [site for i, each in enumerate(found, 1) if i in numbers for site in each]

    return Choice(choose, f"stage({', '.join(map(str, numbers))})")


def last_of_stage() -> Choice:
    """Choose the last block of each stage.

    Example:
        >>> import torchvision, attn_surgery
        >>> plan = attn_surgery.plan(torchvision.models.resnet50(), "se", where=last_of_stage())
        >>> [site.block for site in plan.sites]
        ['layer1.2', 'layer2.3', 'layer3.5', 'layer4.2']
    """

    def choose(sites: Sequence[Candidate]) -> list[Candidate]:
        ends = {each[-1].site.block for each in stages(sites)}
        return [site for site in sites if site.site.block in ends]

    return Choice(choose, "last_of_stage()")


def every(n: int) -> Choice:
    """Choose the n-th block, the 2n-th, the 3n-th, ... in forward order.

    Raises:
        SurgeryError: ``n`` is not a positive whole number.

    Example:
        >>> import torchvision, attn_surgery
        >>> plan = attn_surgery.plan(torchvision.models.resnet18(), "se", where=every(3))
        >>> [site.block for site in plan.sites]
        ['layer2.0', 'layer3.1']
    """
    _check_positive("every", n)

    def choose(sites: Sequence[Candidate]) -> list[Candidate]:
        blocks = list(dict.fromkeys(each.site.block for each in sites))[n - 1 :: n]
        return [site for site in sites if site.site.block in blocks]

    return Choice(choose, f"every({n})")


def min_channels(channels: int) -> Choice:
    """Choose the sites whose maps have at least so many channels.

    Raises:
        SurgeryError: ``channels`` is not a positive whole number.

    Example:
        >>> import torchvision, attn_surgery
        >>> plan = attn_surgery.plan(torchvision.models.resnet18(), "se", where=min_channels(512))
        >>> [site.block for site in plan.sites]
        ['layer4.0', 'layer4.1']
    """
    _check_positive("min_channels", channels)

    def choose(sites: Sequence[Candidate]) -> list[Candidate]:
        return [site for site in sites if (site.site.channels or 0) >= channels]

    return Choice(choose, f"min_channels({channels})")


def stages(sites: Sequence[Candidate]) -> list[list[Candidate]]:
    """Group sites, given in forward order, into stages."""
    containers = [list(run) for _, run in groupby(sites, key=_container)]
    if len({_container(site) for site in sites}) > 1:
        return containers
    return [list(run) for _, run in groupby(sites, key=lambda each: each.width)]


def _container(candidate: Candidate) -> str:
    return candidate.site.block.rpartition(".")[0]


def _check_positive(name: str, number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise SurgeryError(f"{name}({number!r}): must be a whole number, 1 or more")
