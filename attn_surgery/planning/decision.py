"""From what was found to what will be done: everything is checked here, nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from attn_surgery.attention import build
from attn_surgery.finding import OUTPUT, Finding, Survey, survey
from attn_surgery.host import spells_addition, undisturbed_randomness
from attn_surgery.planning.methods import Method, choose_method, insertion, wrapping
from attn_surgery.planning.request import Chosen, Request
from attn_surgery.planning.rewritten_forwards import Forwards
from attn_surgery.planning.sites import Plan, Site
from attn_surgery.planning.where import Candidate
from attn_surgery.rewriting import Insertion, Wrapping, free_name
from attn_surgery.tracing import modules_intercepted


@dataclass(frozen=True)
class Cut:
    """A site to be cut, what goes there, and how."""

    site: Site
    finding: Finding
    method: Method
    chosen: Chosen

    @property
    def holder(self) -> nn.Module:
        """The module that gets the attention as a child."""
        return self.finding.block.get_submodule(self.method.holder)

    def insertion(self, name: str) -> Insertion:
        """Return where the attention called ``name`` goes in the block's forward."""
        return insertion(self.finding, name, self.method.step)

    def wrapping(self, name: str) -> Wrapping:
        """Return how the attention called ``name`` goes around an expression."""
        assert self.method.expression is not None
        return wrapping(self.finding, name, self.method.expression)


@dataclass(frozen=True)
class Decision:
    """A plan, and what it takes to carry it out."""

    plan: Plan
    cuts: tuple[Cut, ...]
    forwards: Forwards
    survey: Survey


@dataclass(frozen=True)
class _Draft:
    site: Site
    finding: Finding
    method: Method


def decide(model: nn.Module, request: Request) -> Decision:
    """Find the sites of ``model`` and decide what to do at each.

    Raises:
        SurgeryError: The request cannot be met as it stands.
    """
    request.check()
    with undisturbed_randomness(), modules_intercepted():
        found = survey(model, request.position, replacing=request.existing == "replace")
        forwards = Forwards()
        owners = Counter(child for module in model.modules() for child in module._modules.values())
        drafts = _once([_draft(each, owners, forwards) for each in found.findings])
    candidates = [Candidate(draft.site, draft.finding.width) for draft in drafts]
    selected = request.chosen_among(candidates)
    cuts, skipped = [], []
    for draft in drafts:
        site, chosen = draft.site, request.attention_for(draft.site)
        if request.position == OUTPUT and site not in selected:
            continue  # every module of the host is one
        reason = site.reason or _skip_reason(site, site in selected, chosen, request)
        if reason or chosen is None:
            skipped.append(replace(site, reason=reason))
            continue
        cuts.append(Cut(site, draft.finding, draft.method, chosen))
    cuts, clashing = _parted(cuts, forwards)
    skipped += clashing
    _check_attentions(cuts)
    if request.position != OUTPUT:
        skipped += _unfollowed(model, found)
    plan = Plan(
        sites=tuple(cut.site for cut in cuts),
        skipped=tuple(skipped),
        assignments=tuple(cut.chosen.assignment for cut in cuts),
        position=request.position,
        existing=request.existing,
    )
    return Decision(plan, tuple(cuts), forwards, found)


def _draft(finding: Finding, owners: Counter[nn.Module | None], forwards: Forwards) -> _Draft:
    shape, method = finding.shape, Method("", finding.spot.step.name, reason=finding.refusal)
    if not finding.refusal:
        method = choose_method(finding, owners, forwards)
    site = Site(
        block=finding.path,
        block_type=type(finding.block).__name__,
        after=method.after,
        channels=shape.channels,
        spatial_dims=shape.spatial_dims,
        existing=finding.existing,
        method=method.name,
        reason=method.reason,
    )
    return _Draft(site, finding, method)


def _once(drafts: list[_Draft]) -> list[_Draft]:
    """Leave out what would be put at the same place again, to which two ways through a block lead.

    On each of them another step makes the value, but it is before the same child, or stands at
    the same place in the code.
    """
    first: dict[object, _Draft] = {}
    for draft in drafts:
        method, block = draft.method, draft.finding.block
        is_around = method.name in ("attach", "wrap")
        place = (
            (block, method.holder, method.is_before, method.expression) if is_around else id(draft)
        )
        first.setdefault(place, draft)
    return list(first.values())


def _skip_reason(site: Site, is_selected: bool, chosen: Chosen | None, request: Request) -> str:
    if not is_selected:
        return "not selected by where"
    if chosen is None:
        return "no pattern of attention matches the block"
    if site.existing is not None and request.existing == "skip":
        return (
            f"holds an attention already ({site.existing}); existing='stack' adds one all the same"
        )
    return ""


def _parted(cuts: list[Cut], forwards: Forwards) -> tuple[list[Cut], list[Site]]:
    """Return the cuts that can be made together, and the sites of those that cannot."""
    inside: dict[nn.Module, list[Cut]] = {}
    for cut in cuts:
        if cut.method.name == "rewrite":
            inside.setdefault(cut.holder, []).append(cut)
    refused: dict[int, str] = {
        id(cut): "cannot be wrapped in a forward that is rewritten for other sites"
        for cut in cuts
        if cut.method.name == "wrap" and cut.holder in inside
    }
    for block, several in inside.items():
        if len(several) > 1:
            names: list[str] = []
            for _ in several:
                names.append(free_name(block, names))
            wanted = [cut.insertion(name) for cut, name in zip(several, names, strict=True)]
            reasons = forwards.fitting(block, wanted)
            refused |= {id(cut): why for cut, why in zip(several, reasons, strict=True) if why}
    sites = [replace(cut.site, reason=refused[id(cut)]) for cut in cuts if id(cut) in refused]
    return [cut for cut in cuts if id(cut) not in refused], sites


def _check_attentions(cuts: list[Cut]) -> None:
    """Build each named attention once on the meta device, so that impossible options show."""
    kinds = {
        (str(cut.chosen.assignment), cut.site.channels, cut.site.spatial_dims): cut
        for cut in cuts
        if isinstance(cut.chosen.attention, str)
    }
    with torch.device("meta"), undisturbed_randomness():
        for cut in kinds.values():
            build_at(cut, "paper")


def build_at(cut: Cut, init: str) -> nn.Module:
    """Build the attention for a site."""
    assert cut.site.channels is not None
    assert cut.site.spatial_dims is not None
    return build(
        cut.chosen.attention,
        cut.site.channels,
        spatial_dims=cut.site.spatial_dims,
        init=init,
        options=cut.chosen.options,
    )


def _unfollowed(model: nn.Module, found: Survey) -> Iterator[Site]:
    """Yield the modules that add and convolve but could not be followed."""
    placed = {finding.path for finding in found.findings}
    for path, failure in found.untraced.items():
        module = model.get_submodule(path)
        convolves = any(isinstance(each, nn.modules.conv._ConvNd) for each in module.modules())
        if path not in placed and convolves and spells_addition(module):
            reason = f"its forward could not be followed: {failure}"
            yield Site(path, type(module).__name__, "", None, None, None, "", reason)
