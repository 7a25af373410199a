"""From what was found to what will be done: everything is checked here, nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils import parametrize

from attn_surgery.attention import build, check_options, get_builder
from attn_surgery.checks import check_host
from attn_surgery.errors import SurgeryError, check_choice
from attn_surgery.fidelity import spells_addition
from attn_surgery.finder import Finding, Survey, survey
from attn_surgery.graph_module import is_graph_module
from attn_surgery.operated import as_host, surgery_of
from attn_surgery.placing import ELSEWHERE
from attn_surgery.preserve import likeness, undisturbed_randomness
from attn_surgery.rewrite import (
    Insertion,
    Original,
    Rewritten,
    UnfaithfulError,
    find,
    original,
)
from attn_surgery.sites import Plan, Site

Builder: TypeAlias = Callable[..., nn.Module]
Attention: TypeAlias = str | Builder | Mapping[str, str | Builder]
Where: TypeAlias = str | Sequence[str] | Callable[[Site], bool] | None

POSITIONS = ("standard",)
EXISTING = ("skip", "stack")


@dataclass(frozen=True)
class Request:
    """What the user asked for, in the words of the contract."""

    attention: Attention
    where: Where = None
    position: str = "standard"
    existing: str = "skip"
    options: Mapping[str, Any] = field(default_factory=dict)


def insertion(finding: Finding, name: str) -> Insertion:
    """Return where the attention called ``name`` goes in the block's forward."""
    spot, residual = finding.spot, finding.residual
    dims = residual.form.spatial_dims or 0
    return Insertion(
        after=spot.name,
        is_child=spot.is_child,
        occurrence=spot.occurrence,
        attention=name,
        in_place=spot.in_place,
        channels_last_dims=dims if residual.is_channels_last else 0,
    )


@dataclass(frozen=True)
class Cut:
    """A site to be cut, what goes there, and how."""

    site: Site
    finding: Finding
    attention: str | Builder

    @property
    def holder(self) -> nn.Module:
        """The module that gets the attention as a child."""
        block, source = self.finding.block, self.finding.spot.source
        if self.site.method == "rewrite" or source is None:
            return block
        return block.get_submodule(source)

    def insertion(self, name: str) -> Insertion:
        """Return where the attention called ``name`` goes in the block's forward."""
        return insertion(self.finding, name)


class Forwards:
    """The forwards that are rewritten; blocks that are built alike share one."""

    def __init__(self) -> None:
        self._originals: dict[object, Original | UnfaithfulError] = {}
        self._rewritten: dict[object, Rewritten] = {}

    def original(self, block: nn.Module) -> Original:
        """Trace the forward of ``block``, or return the trace of a block like it.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        alike = likeness(block)
        if alike not in self._originals:
            try:
                with as_host(block):
                    self._originals[alike] = original(block)
            except UnfaithfulError as error:
                self._originals[alike] = error
        known = self._originals[alike]
        if isinstance(known, UnfaithfulError):
            raise known
        return known

    def rewritten(self, block: nn.Module, insertions: tuple[Insertion, ...]) -> Rewritten:
        """Rewrite the forward of ``block``, or return what a block like it got.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        key = likeness(block), insertions
        if key not in self._rewritten:
            self._rewritten[key] = self.original(block).with_attention(insertions)
        return self._rewritten[key]

    def value(self, block: nn.Module, insertion: Insertion) -> str:
        """Return the name of the value that the insertion would receive.

        Raises:
            UnfaithfulError: Why the forward cannot be rewritten.
        """
        if is_graph_module(block):
            return find(block.graph, insertion).name
        done = surgery_of(block)
        if done is not None and done.insertions:
            return self.rewritten(block, (*done.insertions, insertion)).after[-1]
        names = [find(graph, insertion).name for graph in self.original(block).graphs]
        return names[0]


@dataclass(frozen=True)
class Decision:
    """A plan, and what it takes to carry it out."""

    plan: Plan
    cuts: tuple[Cut, ...]
    forwards: Forwards
    survey: Survey


def decide(model: object, request: Request) -> Decision:
    """Find the sites of ``model`` and decide what to do at each.

    Raises:
        SurgeryError: The host cannot be operated on, or the request cannot be met as it stands.
    """
    check_host(model)
    assert isinstance(model, nn.Module)
    _check_request(request)
    with undisturbed_randomness():
        found = survey(model)
        forwards = Forwards()
        owners = Counter(child for module in model.modules() for child in module._modules.values())
        drafts = [(_draft(each, owners, forwards), each) for each in found.findings]
    chosen = _chosen([site for site, _ in drafts], request)
    cuts, skipped = [], []
    for site, finding in drafts:
        attention = _attention_for(site, request.attention)
        reason = site.reason or _skip_reason(site, site in chosen, attention, request)
        if reason or attention is None:
            skipped.append(replace(site, reason=reason))
        else:
            cuts.append(Cut(site, finding, attention))
    _check_attentions(cuts, request)
    skipped += _unfollowed(model, found)
    plan = Plan(tuple(cut.site for cut in cuts), tuple(skipped))
    return Decision(plan, tuple(cuts), forwards, found)


def _check_request(request: Request) -> None:
    check_choice("position", request.position, POSITIONS)
    check_choice("existing", request.existing, EXISTING)
    attention = request.attention
    if isinstance(attention, Mapping) and not attention:
        raise SurgeryError("attention={} names no attention; give pattern -> attention")
    for each in attention.values() if isinstance(attention, Mapping) else [attention]:
        get_builder(each)
        check_options(each, request.options)


def _draft(finding: Finding, owners: Counter[nn.Module | None], forwards: Forwards) -> Site:
    form, refusal = finding.residual.form, finding.residual.refusal
    method, after = "", finding.spot.name
    if not refusal:
        method, after, refusal = _method(finding, owners, forwards)
    return Site(
        block=finding.path,
        block_type=type(finding.block).__name__,
        after=after,
        channels=form.channels,
        spatial_dims=form.spatial_dims,
        existing=finding.existing,
        method=method,
        reason=refusal,
    )


def _method(
    finding: Finding, owners: Counter[nn.Module | None], forwards: Forwards
) -> tuple[str, str, str]:
    """Return how the site can be cut, what the attention receives, and why it cannot be cut."""
    block, spot = finding.block, finding.spot
    try:
        if not spot.is_direct:
            raise UnfaithfulError(f"{spot.name!r} is inside a child")
        name = forwards.value(block, insertion(finding, free_name(block)))
    except UnfaithfulError as error:
        obstacle = _attach_obstacle(finding, owners)
        if not obstacle:
            return "attach", spot.name, ""
        return "", spot.name, f"cannot be rewritten ({error}) nor attached to ({obstacle})"
    return "rewrite", spot.name if spot.is_child else name, ""


def _attach_obstacle(finding: Finding, owners: Counter[nn.Module | None]) -> str:
    """Return why the output of the child cannot be passed through an attention, or ""."""
    source = finding.spot.source
    if source is None:
        return f"{finding.spot.name!r} is no child"
    if finding.residual.is_channels_last:
        return f"{source!r} returns its channels last"
    if source == ELSEWHERE:
        return "the child is held outside the block"
    if not finding.spot.is_used:
        return f"what {source!r} returns is not used"
    if not finding.spot.is_only_call:
        return f"{source!r} is called more than once"
    target = finding.block.get_submodule(source)
    if owners[target] > 1:
        return f"{source!r} is shared"
    if parametrize.is_parametrized(target):
        return f"{source!r} is parametrized"
    if isinstance(target, torch.jit.ScriptModule):
        return f"{source!r} is scripted"
    if isinstance(target, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and len(target):
        return f"{source!r} runs its own children"
    return ""


def free_name(holder: nn.Module, taken: Sequence[str] = ()) -> str:
    """Return the first of ``attn``, ``attn_1``, ... that ``holder`` does not have."""
    number = 0
    while True:
        name = f"attn_{number}" if number else "attn"
        if name not in taken and not _has(holder, name):
            return name
        number += 1


def _has(holder: nn.Module, name: str) -> bool:
    own = (vars(holder), holder._modules, holder._parameters, holder._buffers)
    return any(name in names for names in own) or hasattr(type(holder), name)


def _chosen(sites: list[Site], request: Request) -> set[Site]:
    """Return the sites that ``where`` selects."""
    where = request.where
    if isinstance(request.attention, Mapping):
        _check_patterns("attention", request.attention, sites)
    if where is None:
        return set(sites)
    if callable(where):
        chosen = {site for site in sites if not site.reason and where(site)}
    elif isinstance(where, (str, Sequence)) and all(isinstance(each, str) for each in where):
        patterns = [where] if isinstance(where, str) else list(where)
        _check_patterns("where", patterns, sites)
        chosen = {
            site for site in sites if any(fnmatchcase(site.block, pattern) for pattern in patterns)
        }
    else:
        raise SurgeryError(
            f"where={where!r} is not understood; give an fnmatch pattern over block paths, "
            "a list of patterns, or a function Site -> bool"
        )
    if not chosen:
        raise SurgeryError(f"where selects no site; {_blocks(sites)}")
    return chosen


def _check_patterns(argument: str, patterns: Iterable[str], sites: list[Site]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(site.block, pattern) for site in sites):
            raise SurgeryError(f"{argument}: {pattern!r} matches no block; {_blocks(sites)}")


def _blocks(sites: list[Site]) -> str:
    paths = list(dict.fromkeys(site.block or "'' (the host)" for site in sites if not site.reason))
    if not paths:
        return "the host has no residual block to be cut"
    shown = ", ".join(paths[:40]) + (f", ... ({len(paths)} in all)" if len(paths) > 40 else "")
    return f"the residual blocks are: {shown}"


def _attention_for(site: Site, attention: Attention) -> str | Builder | None:
    if not isinstance(attention, Mapping):
        return attention
    matches = (value for pattern, value in attention.items() if fnmatchcase(site.block, pattern))
    return next(matches, None)


def _skip_reason(
    site: Site, is_chosen: bool, attention: str | Builder | None, request: Request
) -> str:
    if not is_chosen:
        return "not selected by where"
    if attention is None:
        return "no pattern of attention matches the block"
    if site.existing is not None and request.existing == "skip":
        return (
            f"holds an attention already ({site.existing}); existing='stack' adds one all the same"
        )
    return ""


def _check_attentions(cuts: list[Cut], request: Request) -> None:
    """Build each named attention once on the meta device, so that impossible options show."""
    kinds = {
        (cut.attention, cut.site.channels, cut.site.spatial_dims)
        for cut in cuts
        if isinstance(cut.attention, str)
    }
    with undisturbed_randomness(), torch.device("meta"):
        for attention, channels, spatial_dims in kinds:
            assert channels is not None
            assert spatial_dims is not None
            build(attention, channels, spatial_dims=spatial_dims, options=request.options)


def _unfollowed(model: nn.Module, found: Survey) -> Iterator[Site]:
    """Yield the modules that add and convolve but could not be followed."""
    placed = {finding.path for finding in found.findings}
    for path, failure in found.untraced.items():
        module = model.get_submodule(path)
        convolves = any(isinstance(each, nn.modules.conv._ConvNd) for each in module.modules())
        if path not in placed and convolves and spells_addition(module):
            reason = f"its forward could not be followed: {failure}"
            yield Site(path, type(module).__name__, "", None, None, None, "", reason)
