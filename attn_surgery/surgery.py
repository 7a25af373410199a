"""The verbs that a user calls: plan, apply, remove, inserted."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from attn_surgery.attention.gate import INITS
from attn_surgery.errors import SurgeryError, check_choice
from attn_surgery.former import (
    Former,
    former_at,
    former_of,
    put_back,
    slots,
    stand_for,
    take_out,
)
from attn_surgery.graph_module import (
    give_graph_back,
    graph_attentions,
    graph_with_attention,
    is_graph_module,
    set_graph,
)
from attn_surgery.methods import free_name
from attn_surgery.operated import (
    Surgery,
    change_class,
    give_back,
    operated_class,
    set_class,
    surgery_of,
)
from attn_surgery.origin import Origin, next_step, remember
from attn_surgery.planning import Cut, Decision, build_at, decide
from attn_surgery.preserve import undisturbed_randomness
from attn_surgery.request import Attention, Request, Where
from attn_surgery.rewrite import Insertion, UnfaithfulError
from attn_surgery.sites import Plan


def plan(
    model: nn.Module,
    attention: Attention = "cbam",
    *,
    where: Where = None,
    position: str = "standard",
    existing: str = "skip",
    **options: Any,
) -> Plan:
    """Find every place where ``apply`` with the same arguments would put attention.

    The model is not changed, and its parameters are not looked at: it may be on the meta device.

    Args:
        model: The host.
        attention: A name in ``available()``, a callable ``(channels, **options) -> nn.Module``, or
            a mapping from patterns over block paths to either; the first match wins.
        where: None (every site), an fnmatch pattern over block paths, a list of patterns, or a
            function ``Site -> bool``.
        position: ``standard``: at the end of the branch, before the addition.
        existing: What to do where a branch holds an attention already: ``skip`` or ``stack``.
        **options: Passed to the attention.

    Returns:
        The sites to be cut and the skipped ones, in forward order.

    Raises:
        SurgeryError: The host or an argument cannot be used; the message says what to do.

    Example:
        >>> import torch, torchvision, attn_surgery
        >>> with torch.device("meta"):
        ...     host = torchvision.models.mobilenet_v2()
        >>> print(attn_surgery.plan(host, where="features.3"))
        1 site to cut
        <BLANKLINE>
        block       type              after    channels    dims    method
        ----------  ----------------  -------  ----------  ------  --------
        features.3  InvertedResidual  conv     24          2       rewrite
        ...
    """
    asked = {"position": position, "existing": existing, "options": options}
    return decide(model, Request.of(attention, where, **asked)).plan


def apply(
    model: nn.Module,
    attention: Attention = "cbam",
    *,
    where: Where = None,
    position: str = "standard",
    existing: str = "skip",
    init: str = "identity",
    **options: Any,
) -> nn.Module:
    """Insert attention into the residual blocks of ``model``, in place.

    Every key, parameter object, hook and attribute of the host stays. With ``init="identity"`` its
    function does, too, bit for bit, in train and in eval mode.

    Args:
        model: The host.
        attention: As for ``plan``.
        where: As for ``plan``.
        position: As for ``plan``.
        existing: As for ``plan``.
        init: ``identity``, or ``paper`` for the paper's own gate and start.
        **options: Passed to the attention.

    Returns:
        The model itself.

    Raises:
        SurgeryError: Nothing can be done as asked; the host is as it was.

    Example:
        >>> import torch, torchvision, attn_surgery
        >>> host = torchvision.models.resnet18().eval()
        >>> x = torch.randn(1, 3, 64, 64)
        >>> before = host(x)
        >>> torch.equal(attn_surgery.apply(host, "cbam")(x), before)
        True
    """
    check_choice("init", init, INITS)
    asked = {"position": position, "existing": existing, "options": options}
    decision = decide(model, Request.of(attention, where, **asked))
    if not decision.cuts:
        raise SurgeryError(_why_nothing(model, decision))
    with undisturbed_randomness():
        edits = _edits(decision, init, next_step(inserted(model).values()))
    _commit(edits)
    return model


def remove(model: nn.Module) -> nn.Module:
    """Take out all attention that ``apply`` put in: the host exactly as it was.

    Args:
        model: A host that was operated on, or any other module, which stays as it is.

    Returns:
        The model itself.

    Example:
        >>> import torchvision, attn_surgery
        >>> host = torchvision.models.resnet18()
        >>> keys = list(host.state_dict())
        >>> list(attn_surgery.remove(attn_surgery.apply(host)).state_dict()) == keys
        True
    """
    for module in list(model.modules()):
        while names := slots(module):
            for name in names:
                attention = module.get_submodule(name)
                put_back(module, _former(attention), attention)
        if surgery_of(module) is not None:
            give_back(module)
        if is_graph_module(module) and graph_attentions(module):
            give_graph_back(module)
    return model


def inserted(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention modules that ``apply`` put in, by their dotted paths.

    Example:
        >>> import torchvision, attn_surgery
        >>> host = attn_surgery.apply(torchvision.models.resnet18(), "se", where="layer4.*")
        >>> list(attn_surgery.inserted(host))
        ['layer4.0.attn', 'layer4.1.attn']
    """
    found = {}
    for path, module in model.named_modules():
        done = surgery_of(module)
        in_graph = graph_attentions(module) if is_graph_module(module) else ()
        for name in (*in_graph, *(done.attentions if done else ()), *slots(module)):
            found[f"{path}.{name}" if path else name] = module.get_submodule(name)
    return found


def _former(attention: nn.Module) -> Former:
    former = former_of(attention)
    assert former is not None
    return former


@dataclass
class _Edit:
    """All that is done to one module."""

    module: nn.Module
    insertions: list[Insertion] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    attached_before: list[str] = field(default_factory=list)
    attentions: dict[str, nn.Module] = field(default_factory=dict)
    operated: type[nn.Module] | None = None
    graph: fx.Graph | None = None
    former: Former | None = None
    """What the module loses, an old attention's children."""

    def changed(self) -> list[nn.Module]:
        """Return every module that will be changed."""
        inside = [] if self.former is None else [path for path in self.former.order if path]
        return [self.module, *map(self.module.get_submodule, inside)]


def _edits(decision: Decision, init: str, step: int) -> list[_Edit]:
    """Build every attention and every new class; nothing of the host is touched."""
    edits: dict[nn.Module, _Edit] = {}
    for cut in decision.cuts:
        edit = edits.setdefault(cut.holder, _Edit(cut.holder))
        name = cut.method.slot or free_name(cut.holder, tuple(edit.attentions))
        edit.attentions[name] = _built(cut, init)
        asked = (decision.plan.position, decision.plan.existing, init)
        remember(edit.attentions[name], Origin(step, cut.site, cut.chosen.assignment, *asked))
        if cut.method.slot:
            former = Former({name: cut.holder.get_submodule(name)}, is_slot=True)
            stand_for(edit.attentions[name], former)
        elif cut.method.name == "rewrite":
            edit.insertions.append(cut.insertion(name))
        else:
            (edit.attached_before if cut.method.is_before else edit.attached).append(name)
    for edit in edits.values():
        _prepare(edit, decision)
    return list(edits.values())


def _built(cut: Cut, init: str) -> nn.Module:
    block = cut.finding.block
    tensors = (*cut.holder.parameters(), *block.parameters(), *block.buffers())
    like = next((each for each in tensors if each.is_floating_point()), torch.empty(0))
    # elsewhere than on the meta device, the CPU's draws are the same for every host
    with like.device if like.is_meta else nullcontext():
        attention = build_at(cut, init)
    return attention.to(device=like.device, dtype=like.dtype).train(block.training)


def _prepare(edit: _Edit, decision: Decision) -> None:
    """Make the new class of the module, or, where that is what it runs, its new graph."""
    module = edit.module
    done = surgery_of(module) or Surgery(type(module))
    insertions = (*done.insertions, *edit.insertions)
    methods: dict[str, Any] = {}
    if is_graph_module(module):
        edit.graph = graph_with_attention(module, edit.insertions)
        insertions = ()
    if insertions:
        try:
            forward = decision.forwards.rewritten(module, insertions)
        except UnfaithfulError as error:  # each insertion was tried alone
            raise SurgeryError(f"{done.base.__name__} cannot be rewritten: {error}") from error
        methods = forward.methods
        _note_dropped(edit, forward.dropped)
        done = replace(done, watched=forward.watched)
    done = replace(
        done,
        insertions=insertions,
        attached=(*done.attached, *edit.attached),
        attached_before=(*done.attached_before, *edit.attached_before),
    )
    if done.attentions:
        edit.operated = operated_class(module, done, methods)


def _note_dropped(edit: _Edit, dropped: tuple[str, ...]) -> None:
    """Let an attention keep the children of the old one that the new forward does not call."""
    held = [path for path in dropped if _holds(edit.module, path)]
    if held:
        edit.former = former_at(edit.module, held)
        keeper = next(each for each in edit.insertions if each.replaces)
        stand_for(edit.attentions[keeper.attention], edit.former)


def _holds(module: nn.Module, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return name in module.get_submodule(parent)._modules


def _commit(edits: list[_Edit]) -> None:
    """Change every module, or, where anything goes wrong, none."""
    before = [
        (module, type(module), dict(vars(module)), dict(module._modules))
        for edit in edits
        for module in edit.changed()
    ]
    try:
        for edit in edits:
            _carry_out(edit)
    except BaseException:
        for module, cls, attributes, children in before:
            set_class(module, cls)
            vars(module).clear()
            vars(module).update(attributes)
            module._modules.clear()
            module._modules.update(children)
            if is_graph_module(module):
                module.recompile()
        raise


def _carry_out(edit: _Edit) -> None:
    module = edit.module
    for name, attention in edit.attentions.items():
        if name in module._modules:  # a slot: the order of the children stays
            module._modules[name] = attention
        else:
            module.add_module(name, attention)
    if edit.former is not None:
        take_out(module, edit.former)
    if edit.graph is not None and is_graph_module(module):
        set_graph(module, edit.graph, [each.attention for each in edit.insertions])
    if edit.operated is not None:
        change_class(module, edit.operated)


def _why_nothing(model: nn.Module, decision: Decision) -> str:
    """Say why no attention can go anywhere, and what would change it."""
    name, skipped = type(model).__name__, decision.plan.skipped
    if not skipped:
        followed, untraced = decision.survey.followed, decision.survey.untraced
        return (
            f"{name} has no residual block: looked at the forwards of its containers, "
            f"{len(followed)} of which could be followed and {len(untraced)} not; none adds a "
            "convolutional branch to its own input"
        )
    reasons = list(dict.fromkeys(site.reason for site in skipped))
    listed = "; ".join(f"{_count(skipped, reason)} x {reason}" for reason in reasons[:6])
    return f"every site of {name} is skipped: {listed}"


def _count(skipped: tuple[Any, ...], reason: str) -> int:
    return sum(site.reason == reason for site in skipped)
