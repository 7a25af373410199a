"""What the user asks for: which attention goes to which sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NoReturn, TypeAlias

from torch import nn

from attn_surgery.attention import build, check_options, get_builder
from attn_surgery.errors import SurgeryError, check_choice
from attn_surgery.finding import OUTPUT, POSITIONS
from attn_surgery.planning.sites import Assignment, Plan, Site
from attn_surgery.planning.where import Candidate, Choice

Builder: TypeAlias = Callable[..., nn.Module]
One: TypeAlias = str | Builder | tuple[str | Builder, Mapping[str, Any]]
Attention: TypeAlias = str | Builder | Mapping[str, One] | Plan
Where: TypeAlias = str | Sequence[str] | Choice | Callable[[Site], bool] | None

EXISTING = ("skip", "stack", "replace")


@dataclass(frozen=True)
class Chosen:
    """The attention for one site, with its options."""

    attention: str | Builder
    options: Mapping[str, Any]

    @property
    def assignment(self) -> Assignment:
        """The same as a plan writes it."""
        name = self.attention
        if not isinstance(name, str):
            made_by = name if hasattr(name, "__qualname__") else type(name)
            name = f"{made_by.__module__}:{made_by.__qualname__}"  # no name that one may register
        return Assignment(name, {key: _plain(value) for key, value in self.options.items()})

    def build(self, site: Site, init: str) -> nn.Module:
        """Build the attention for the maps of ``site``."""
        assert site.channels is not None
        assert site.spatial_dims is not None
        return build(
            self.attention,
            site.channels,
            spatial_dims=site.spatial_dims,
            init=init,
            options=self.options,
        )


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples, as JSON would."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


@dataclass(frozen=True)
class Request:
    """What the user asked for, in the words of the contract."""

    attention: Attention
    where: Where = None
    position: str = "standard"
    existing: str = "skip"
    options: Mapping[str, Any] = field(default_factory=dict)
    is_partial: bool = False
    """Whether a plan may say nothing of sites that the host has."""

    @classmethod
    def of(cls, attention: Attention, where: Where, **asked: Any) -> Request:
        """Return the request for these arguments of `apply`; a plan brings its own.

        Raises:
            SurgeryError: A plan was given, and arguments that contradict it.
        """
        if not isinstance(attention, Plan):
            return cls(attention, where, **asked)
        own = {"position": attention.position, "existing": attention.existing, "options": {}}
        usual = {"position": "standard", "existing": "skip", "options": {}}
        for name, value in asked.items():
            if value not in (usual[name], own[name]):
                raise SurgeryError(
                    f"a plan is carried out as it was made, with {name}={own[name]!r}, not with "
                    f"{value!r}; make another plan"
                )
        return cls(attention, where, **own)

    def check(self) -> None:
        """Check what can be checked without a host.

        Raises:
            SurgeryError: A word is not understood, or an attention or option is unknown.
        """
        check_choice("position", self.position, POSITIONS)
        check_choice("existing", self.existing, EXISTING)
        if self.existing == "replace" and self.position != "standard":
            raise SurgeryError(
                f"existing='replace' puts the new attention where the old one was, so position="
                f"{self.position!r} has no meaning; leave position out, or existing"
            )
        if self.position == OUTPUT and self.where is None and not isinstance(self.attention, Plan):
            raise SurgeryError(
                "position='output' puts attention after the modules that where names: give where, "
                "as in where=['layer1', 'layer2']"
            )
        if isinstance(self.attention, Mapping) and not self.attention:
            raise SurgeryError("attention={} names no attention; give pattern -> attention")
        if isinstance(self.attention, Plan):
            self.attention.check_is_data()
        for each in self._all():
            get_builder(each.attention)
            check_options(each.attention, each.options)

    def _all(self) -> list[Chosen]:
        if isinstance(self.attention, Plan):
            return [Chosen(each.attention, each.options) for each in self.attention.assignments]
        if isinstance(self.attention, Mapping):
            return [self._chosen(each) for each in self.attention.values()]
        return [self._chosen(self.attention)]

    def _chosen(self, one: One) -> Chosen:
        if not isinstance(one, tuple | list):
            return Chosen(one, self.options)
        if len(one) != 2 or not isinstance(one[1], Mapping):
            raise SurgeryError(
                f"{one!r} is no attention with options, as in ('se', {{'bias': False}})"
            )
        return Chosen(one[0], {**self.options, **one[1]})

    def attention_for(self, site: Site) -> Chosen | None:
        """Return the attention for ``site``, or None if no pattern of a mapping matches it."""
        if isinstance(self.attention, Plan):
            planned = zip(self.attention.sites, self.attention.assignments, strict=True)
            alike = (each for other, each in planned if _same_place(other, site))
            return next((Chosen(each.attention, each.options) for each in alike), None)
        if isinstance(self.attention, Mapping):
            patterns = self.attention.items()
            matches = (each for pattern, each in patterns if fnmatchcase(site.block, pattern))
            return next((self._chosen(each) for each in matches), None)
        return self._chosen(self.attention)

    def chosen_among(self, candidates: list[Candidate]) -> set[Site]:
        """Return the sites that ``where`` selects.

        Raises:
            SurgeryError: It selects none, or a pattern matches no block.
        """
        sites = [each.site for each in candidates]
        if isinstance(self.attention, Plan):
            _check_replay(self.attention, sites, is_partial=self.is_partial)
        if isinstance(self.attention, Mapping):
            self._check_patterns("attention", self.attention, sites)
        if self.where is None:
            return set(sites)
        chosen = self._selected(candidates)
        if not chosen:
            raise SurgeryError(f"where selects no site; {self._those(sites)}")
        return chosen

    def _selected(self, candidates: list[Candidate]) -> set[Site]:
        where, sites = self.where, [each.site for each in candidates]
        free = [each for each in candidates if not each.site.reason]
        if isinstance(where, Choice):
            return {each.site for each in where.choose(free)}
        if callable(where):
            return {each.site for each in free if where(each.site)}
        if isinstance(where, (str, Sequence)) and all(isinstance(each, str) for each in where):
            patterns = [where] if isinstance(where, str) else list(where)
            self._check_patterns("where", patterns, sites)
            matches = (site for site in sites for each in patterns if fnmatchcase(site.block, each))
            return set(matches)
        raise SurgeryError(
            f"where={where!r} is not understood; give an fnmatch pattern over block paths, "
            "a list of patterns, a choice of attn_surgery.choosing, or a function Site -> bool"
        )

    def _check_patterns(self, argument: str, patterns: Iterable[str], sites: list[Site]) -> None:
        kind = "module that returns a map" if self.position == OUTPUT else "block"
        for pattern in patterns:
            if not any(fnmatchcase(site.block, pattern) for site in sites):
                raise SurgeryError(
                    f"{argument}: {pattern!r} matches no {kind}; {self._those(sites)}"
                )

    def _those(self, sites: list[Site]) -> str:
        """Say what a pattern may name."""
        if self.position == OUTPUT:
            return f"the modules that return a map are: {_listed(sites) or 'none'}"
        return _blocks(sites)


def _same_place(a: Site, b: Site) -> bool:
    """Tell whether two sites, of two instances of a host perhaps, are the same place."""
    return (a.block, a.after, a.existing) == (b.block, b.after, b.existing)


def _check_replay(plan: Plan, sites: list[Site], *, is_partial: bool) -> None:
    """Refuse a plan that was made for another host."""
    known = [*plan.sites, *plan.skipped]
    unknown = [site for site in sites if not any(_same_place(site, each) for each in known)]
    if unknown and not is_partial and plan.position != OUTPUT:
        _refuse_unknown(unknown[0], known)
    if len(set(plan.sites)) < len(plan.sites):
        raise SurgeryError("the plan was altered: it has a site twice")
    for planned in plan.sites:
        here = next((site for site in sites if _same_place(site, planned)), None)
        if here is None:
            raise SurgeryError(
                f"the plan was made for another host: it has a site in {planned.block!r} after "
                f"{planned.after!r}, which is not here; {_blocks(sites)}"
            )
        seen = (here.channels, here.spatial_dims)
        if seen != (planned.channels, planned.spatial_dims):
            raise SurgeryError(
                f"the plan was made for another host: {planned.block!r} has {planned.channels} "
                f"channels and {planned.spatial_dims} spatial dims there, {seen[0]} and {seen[1]} "
                "here"
            )
        if here.reason:
            raise SurgeryError(f"the plan cuts {planned.block!r}, but here it {here.reason}")
        for name in ("block_type", "method"):
            was, is_now = getattr(planned, name), getattr(here, name)
            if was != is_now:
                raise SurgeryError(
                    f"the plan was made for another host: {name} of {planned.block!r} is {was!r} "
                    f"there, {is_now!r} here"
                )


def _refuse_unknown(here: Site, known: list[Site]) -> NoReturn:
    """Say in what a site differs from all that the plan knows."""
    block = here.block
    planned = next((each for each in known if each.block == block), None)
    if planned is None:
        raise SurgeryError(
            f"the plan was made for another host: it says nothing of {block!r}, which has a site "
            "here"
        )
    if here.existing != planned.existing:
        raise SurgeryError(
            f"the attention that {block!r} holds is {here.existing or 'none'}, and was "
            f"{planned.existing or 'none'} when the plan was made; call attn_surgery.remove first, "
            "or make a plan of the host as it is"
        )
    raise SurgeryError(
        f"the plan was made for another host: it has a site in {block!r} after {planned.after!r}, "
        f"here there is one after {here.after!r}"
    )


def _blocks(sites: list[Site]) -> str:
    listed = _listed(sites)
    if not listed:
        return "the host has no residual block to be cut"
    return f"the residual blocks are: {listed}"


def _listed(sites: list[Site]) -> str:
    paths = list(dict.fromkeys(site.block or "'' (the host)" for site in sites if not site.reason))
    return ", ".join(paths[:40]) + (f", ... ({len(paths)} in all)" if len(paths) > 40 else "")


def parse_attention(text: str) -> str | dict[str, str] | Plan:
    """Read a name, ``PATTERN=NAME,PATTERN=NAME``, or the name of a plan's file, ``*.json``.

    Raises:
        SurgeryError: The file cannot be read.

    Example:
        >>> parse_attention("se"), parse_attention("layer4.*=cbam,*=se")
        ('se', {'layer4.*': 'cbam', '*': 'se'})
    """
    if text.endswith(".json"):
        return Plan.load(text)
    if "=" not in text:
        return text
    pairs = (each.partition("=") for each in text.split(","))
    return {pattern: name for pattern, _, name in pairs}
