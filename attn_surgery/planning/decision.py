"""From what was found to what will be done: everything is checked here, nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from attn_surgery.errors import SurgeryError
from attn_surgery.finding import OUTPUT, Finding, Survey, survey
from attn_surgery.host import may_add, spells_addition, undisturbed_randomness
from attn_surgery.planning.cut_methods import Method, Owners, choose_method, insertion, wrapping
from attn_surgery.planning.request import Chosen, Request
from attn_surgery.planning.rewritten_forwards import Forwards
from attn_surgery.planning.sites import Plan, Site
from attn_surgery.planning.where import Candidate
from attn_surgery.rewriting import (
    Insertion,
    Rewritten,
    UnfaithfulError,
    Wrapping,
    alteration_of,
    free_name,
    held_attentions,
    is_graph_module,
)
from attn_surgery.tracing import modules_intercepted


@dataclass(frozen=True)
class Cut:
    """A site to be cut: what goes there, and how."""

    site: Site
    chosen: Chosen
    block: nn.Module
    holder: nn.Module
    """The module that gets the attention as a child."""
    name: str
    """The attention's name among the children of the holder."""
    is_before: bool = False
    """Where it is attached, whether to what the holder is given, and not to what it returns."""
    insertion: Insertion | None = None
    """Where it goes in the holder's forward, which is rewritten."""
    wrapping: Wrapping | None = None
    """Around which expression of the holder's source it goes."""


@dataclass(frozen=True)
class Decision:
    """A plan, and what it takes to carry it out."""

    plan: Plan
    cuts: tuple[Cut, ...]
    rewritten: Mapping[nn.Module, Rewritten]
    """The new forward of each module that gets one."""
    survey: Survey


@dataclass(frozen=True)
class _Draft:
    """A place that was found, and how it can be cut."""

    site: Site
    finding: Finding
    method: Method

    @property
    def holder(self) -> nn.Module:
        return self.finding.block.get_submodule(self.method.holder)

    def insertion(self, name: str) -> Insertion | None:
        """Return where the attention called ``name`` goes in the block's forward, if there."""
        if self.method.name != "rewrite":
            return None
        return insertion(self.finding, name, self.method.step)

    def cut(self, name: str, chosen: Chosen) -> Cut:
        """Return the cut by which the attention gets there as ``name``."""
        expression = self.method.expression
        return Cut(
            self.site,
            chosen,
            self.finding.block,
            self.holder,
            name,
            self.method.is_before,
            self.insertion(name),
            None if expression is None else wrapping(self.finding, name, expression),
        )


def decide(model: nn.Module, request: Request) -> Decision:
    """Find the sites of ``model`` and decide what to do at each.

    Raises:
        SurgeryError: The request cannot be met as it stands.
    """
    request.check()
    forwards = Forwards()
    with undisturbed_randomness(), modules_intercepted():
        found = survey(model, request.position, replacing=request.existing == "replace")
        owners, ours = _owners(model), _inserted(model)
        findings = [each for each in found.findings if each.block not in ours]
        drafts = _once([each for one in findings for each in _drafts(one, owners, forwards)])
    wanted, skipped = _wanted(drafts, request)
    wanted, clashing = _parted(wanted, forwards)
    cuts = _named(wanted)
    _check_attentions(cuts)
    skipped += clashing
    if request.position != OUTPUT:
        skipped += _unfollowed(model, found, ours)
    plan = Plan(
        sites=tuple(cut.site for cut in cuts),
        skipped=tuple(skipped),
        assignments=tuple(cut.chosen.assignment for cut in cuts),
        position=request.position,
        existing=request.existing,
    )
    return Decision(plan, tuple(cuts), _rewritten(cuts, forwards), found)


def _inserted(model: nn.Module) -> set[nn.Module]:
    """Return the modules of attention that was put in before: no block of the host is there."""
    attentions = (
        module.get_submodule(name) for module in model.modules() for name in held_attentions(module)
    )
    return {each for attention in attentions for each in attention.modules()}


def _owners(model: nn.Module) -> Owners:
    found: dict[nn.Module | None, list[nn.Module]] = {}
    for module in model.modules():
        for child in module._modules.values():
            found.setdefault(child, []).append(module)
    return found


def _drafts(finding: Finding, owners: Owners, forwards: Forwards) -> list[_Draft]:
    """Return how a place can be cut: for all that have it made, or else for each of them."""
    draft = _draft(finding, owners, forwards)
    if not finding.doubles or draft.method.name == "attach":
        return [draft]
    each_alone = (*finding.doubles, replace(finding, doubles=()))
    return [_draft(each, owners, forwards) for each in each_alone]


def _draft(finding: Finding, owners: Owners, forwards: Forwards) -> _Draft:
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
    the same place in the code, or is passed on to where another one is wrapped, as it may be on
    those to which other values lead.
    """
    usual = (each for each in drafts if not each.finding.is_untaken)
    wrapped = {each.finding.block for each in usual if each.method.name == "wrap"}
    drafts = [
        each for each in drafts if not (each.finding.is_untaken and each.finding.block in wrapped)
    ]
    covered = {(each.finding.block, step) for each in drafts for step in each.method.covers}
    first: dict[object, _Draft] = {}
    for draft in drafts:
        if (draft.finding.block, draft.finding.spot.step) in covered and not draft.method.covers:
            continue
        method, block = draft.method, draft.finding.block
        is_around = method.name in ("attach", "wrap")
        place = (
            (block, method.holder, method.is_before, method.expression) if is_around else id(draft)
        )
        first.setdefault(place, draft)
    return list(first.values())


_Wanted = tuple[_Draft, Chosen]


def _wanted(drafts: list[_Draft], request: Request) -> tuple[list[_Wanted], list[Site]]:
    """Return the places that are to be cut, each with its attention, and the sites of the rest."""
    candidates = [Candidate(draft.site, draft.finding.width) for draft in drafts]
    selected = request.chosen_among(candidates)
    wanted: list[_Wanted] = []
    skipped: list[Site] = []
    for draft in drafts:
        site, chosen = draft.site, request.attention_for(draft.site)
        if request.position == OUTPUT and site not in selected:
            continue  # every module of the host is one
        reason = site.reason or _skip_reason(site, site in selected, chosen, request)
        if reason or chosen is None:
            skipped.append(replace(site, reason=reason))
        else:
            wanted.append((draft, chosen))
    return wanted, skipped


def _skip_reason(site: Site, is_selected: bool, chosen: Chosen | None, request: Request) -> str:
    if not is_selected:
        return "not selected by where"
    if chosen is None:
        return "no pattern of attention matches the block"
    if site.existing is not None and request.existing == "skip":
        return (
            f"holds an attention already ({site.existing}); existing='stack' adds one, "
            "'replace' replaces it"
        )
    return ""


def _parted(wanted: list[_Wanted], forwards: Forwards) -> tuple[list[_Wanted], list[Site]]:
    """Return what can be cut together, and the sites of the rest."""
    inside: dict[nn.Module, list[_Draft]] = {}
    for draft, _ in wanted:
        if draft.method.name == "rewrite":
            inside.setdefault(draft.holder, []).append(draft)
    refused = {
        id(draft): "cannot be wrapped in a forward that is rewritten for other sites"
        for draft, _ in wanted
        if draft.method.name == "wrap" and draft.holder in inside
    }
    for block, several in inside.items():
        if len(several) > 1:
            names: list[str] = []
            for _ in several:
                names.append(free_name(block, names))
            insertions = [each.insertion(name) for each, name in zip(several, names, strict=True)]
            reasons = forwards.try_together(block, [each for each in insertions if each])
            refused |= {id(draft): why for draft, why in zip(several, reasons, strict=True) if why}
    sites = [
        replace(each.site, reason=refused[id(each)]) for each, _ in wanted if id(each) in refused
    ]
    return [each for each in wanted if id(each[0]) not in refused], sites


def _named(wanted: list[_Wanted]) -> list[Cut]:
    """Give each attention a name that is free in the module that holds it."""
    taken: dict[nn.Module, list[str]] = {}
    cuts: list[Cut] = []
    for draft, chosen in wanted:
        names = taken.setdefault(draft.holder, [])
        names.append(draft.method.slot or free_name(draft.holder, names))
        cuts.append(draft.cut(names[-1], chosen))
    return cuts


def _rewritten(cuts: list[Cut], forwards: Forwards) -> dict[nn.Module, Rewritten]:
    """Rewrite the forward of each module that runs attention within it, or did before."""
    inside: dict[nn.Module, list[Insertion]] = {}
    for cut in cuts:
        done = alteration_of(cut.holder)
        if is_graph_module(cut.holder) or not (cut.insertion or (done and done.insertions)):
            continue
        inside.setdefault(cut.holder, []).extend([cut.insertion] if cut.insertion else [])
    try:
        return {block: forwards.rewrite(block, tuple(new)) for block, new in inside.items()}
    except UnfaithfulError as error:  # each insertion was tried alone
        raise SurgeryError(f"a block that was operated on cannot be rewritten: {error}") from error


def _check_attentions(cuts: list[Cut]) -> None:
    """Build each named attention once on the meta device, so that impossible options show."""
    kinds = {
        (str(cut.chosen.assignment), cut.site.channels, cut.site.spatial_dims): cut
        for cut in cuts
        if isinstance(cut.chosen.attention, str)
    }
    with torch.device("meta"), undisturbed_randomness():
        for cut in kinds.values():
            cut.chosen.build(cut.site, "paper")


def _adds(module: nn.Module, path: str, found: Survey) -> bool:
    """Tell whether a module that was not followed adds: if it is a block, in what it calls, too."""
    holds_others = any(each.startswith(f"{path}." if path else "") for each in found.followed)
    return spells_addition(module) or (not holds_others and may_add(module))


def _unfollowed(model: nn.Module, found: Survey, ours: set[nn.Module]) -> Iterator[Site]:
    """Yield the modules of the host that add and convolve but could not be followed."""
    placed = {finding.path for finding in found.findings}
    for path, failure in found.untraced.items():
        module = model.get_submodule(path)
        if module in ours:
            continue
        convolves = any(isinstance(each, nn.modules.conv._ConvNd) for each in module.modules())
        if path not in placed and convolves and _adds(module, path, found):
            reason = f"its forward could not be followed: {failure}"
            yield Site(path, type(module).__name__, "", None, None, None, "", reason)
