"""The verbs that a user calls: plan, apply, remove, inserted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from attn_surgery.attention import INITS
from attn_surgery.errors import SurgeryError, check_choice
from attn_surgery.host import check_host, check_module, undisturbed_randomness
from attn_surgery.planning import Attention, Decision, Plan, Request, Where, decide
from attn_surgery.rewriting import (
    Replaced,
    alteration_of,
    give_back,
    give_graph_back,
    graph_attentions,
    held_attentions,
    is_graph_module,
    put_back,
    replaced_by,
    slots,
)
from attn_surgery.surgery.edits import carry_out, edits
from attn_surgery.surgery.origin import check_none_is_lost, next_step
from attn_surgery.surgery.transaction import all_or_nothing


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
        attention: One of these:

            - a name in ``available()``;
            - a callable ``(channels, **options) -> nn.Module``;
            - a mapping from fnmatch patterns over block paths to either, or to a pair of either
              and its own options, ``("se", {"reduction": 8})``; the first match wins, and a block
              that none matches is skipped;
            - a `Plan`, which brings its own position, treatment of existing attention and options.
        where: Which sites: None for all, an fnmatch pattern over block paths, a list of patterns,
            a choice of `attn_surgery.choosing`, or a function ``Site -> bool``.
        position: Which value the attention receives:

            - ``standard``: the end of the branch, before the addition;
            - ``pre``: what enters the branch;
            - ``post``: the sum, after the activation that follows it;
            - ``identity``: the end of the shortcut, before the addition;
            - ``mid``: the branch after its last spatial convolution that another transform follows;
            - ``output``: what the modules return that ``where``, which has to be given, names,
              residual blocks or not.
        existing: What to do about attention that is there already: ``skip`` its site, ``stack``
            the new one on it, or ``replace`` it, in a residual block or not. Only at the position
            ``standard`` can it be replaced.
        **options: Passed to the attention.

    Returns:
        The sites to be cut, in forward order, and those that are skipped, each with its reason.

    Raises:
        SurgeryError: The host or an argument cannot be used; the message says what to do.

    Example:
        >>> import torch, torchvision, attn_surgery
        >>> with torch.device("meta"):
        ...     host = torchvision.models.mobilenet_v2()
        >>> print(attn_surgery.plan(host, where="features.3"))
        1 site to cut, with cbam
        <BLANKLINE>
        block       type              after    channels    dims    method
        ----------  ----------------  -------  ----------  ------  --------
        features.3  InvertedResidual  conv     24          2       rewrite
        ...
    """
    asked = {"position": position, "existing": existing, "options": options}
    request = Request.of(attention, where, **asked)
    check_host(model)
    return all_or_nothing(model, lambda: decide(model, request).plan)


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
    """Insert attention where ``plan`` with the same arguments says, in place.

    Every key, parameter object, hook and attribute of the host stays. With ``init="identity"`` its
    function does, too, bit for bit, in train and in eval mode. What ``existing="replace"`` takes
    the place of goes with its keys and its function, until ``remove``.

    Args:
        model: The host.
        attention: As for ``plan``; a plan is carried out as it was made.
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
    asked = {"position": position, "existing": existing, "options": options}
    return _carried_out(model, Request.of(attention, where, **asked), init)


def _carried_out(model: nn.Module, request: Request, init: str) -> nn.Module:
    check_choice("init", init, INITS)
    check_host(model)
    return all_or_nothing(model, lambda: _operated(model, request, init))


def _operated(model: nn.Module, request: Request, init: str) -> nn.Module:
    decision = decide(model, request)
    if not decision.cuts:
        raise SurgeryError(_why_nothing(model, decision))
    with undisturbed_randomness():
        wanted = edits(decision, init, next_step(inserted(model).values()))
    for edit in wanted:
        carry_out(edit)
    return model


def repeat(model: nn.Module, done: Plan, init: str) -> nn.Module:
    """Do to a fresh host what was done to another: a plan of the sites that were cut, no others.

    Raises:
        SurgeryError: The host is another one; it is as it was.
    """
    request = Request(done, None, done.position, done.existing, is_partial=True)
    return _carried_out(model, request, init)


def remove(model: nn.Module) -> nn.Module:
    """Take out all attention that ``apply`` put in: the host exactly as it was.

    Args:
        model: A host that was operated on, or any other module, which stays as it is.

    Returns:
        The model itself.

    Raises:
        SurgeryError: ``model`` is no module; or an attention is there, and what ran it is not any
            more.

    Example:
        >>> import torchvision, attn_surgery
        >>> host = torchvision.models.resnet18()
        >>> keys = list(host.state_dict())
        >>> list(attn_surgery.remove(attn_surgery.apply(host)).state_dict()) == keys
        True
    """
    check_module(model)
    return all_or_nothing(model, lambda: _restored(model))


def _restored(model: nn.Module) -> nn.Module:
    for path, module in list(model.named_modules()):
        check_none_is_lost(path, module)
        while names := slots(module):
            for name in names:
                attention = module.get_submodule(name)
                put_back(module, _replaced(attention), attention)
        if alteration_of(module) is not None:
            give_back(module)
        if is_graph_module(module) and graph_attentions(module):
            give_graph_back(module)
    return model


def inserted(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention modules that ``apply`` put in, by their dotted paths.

    Each is there once, by the first path to it, where a module is held in several places.

    Raises:
        SurgeryError: ``model`` is no module; or an attention is there, and what ran it is not any
            more.

    Example:
        >>> import torchvision, attn_surgery
        >>> host = attn_surgery.apply(torchvision.models.resnet18(), "se", where="layer4.*")
        >>> list(attn_surgery.inserted(host))
        ['layer4.0.attn', 'layer4.1.attn']
    """
    check_module(model)
    return attentions_among(model.named_modules())


def attentions_among(named: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Return the attention modules that some modules hold, each of which is named once."""
    found = {}
    for path, module in named:
        if not module._modules:
            continue
        check_none_is_lost(path, module)
        for name in held_attentions(module):
            found[f"{path}.{name}" if path else name] = module.get_submodule(name)
    return found


def _replaced(attention: nn.Module) -> Replaced:
    replaced = replaced_by(attention)
    assert replaced is not None
    return replaced


def _why_nothing(model: nn.Module, decision: Decision) -> str:
    """Say why no attention can go anywhere, and what would change it."""
    name, skipped = type(model).__name__, decision.plan.skipped
    if not skipped:
        followed, untraced = decision.survey.followed, decision.survey.untraced
        if untraced:
            path, failure = next(iter(untraced.items()))
            return (
                f"found no residual block in {name}, but could not follow {len(untraced)} of its "
                f"modules, {path or 'the model itself'!r} for one: {failure}"
            )
        return (
            f"{name} has no residual block: looked at the forwards of its {len(followed)} "
            "containers; none adds a convolutional branch to its own input"
        )
    reasons = list(dict.fromkeys(site.reason for site in skipped))
    listed = "; ".join(f"{_count(skipped, reason)} x {reason}" for reason in reasons[:6])
    return f"every site of {name} is skipped: {listed}"


def _count(skipped: tuple[Any, ...], reason: str) -> int:
    return sum(site.reason == reason for site in skipped)
