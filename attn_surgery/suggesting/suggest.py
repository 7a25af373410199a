"""From gradients and costs to a plan."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from attn_surgery.errors import SurgeryError
from attn_surgery.host import Input, floating_dtype, undisturbed_randomness
from attn_surgery.planning import Attention, Plan, Site
from attn_surgery.reporting import count_work
from attn_surgery.suggesting.budget import admitted, check_budget
from attn_surgery.suggesting.gradients import Gradients, Loss, gradients_of
from attn_surgery.suggesting.score import score_of
from attn_surgery.suggesting.suggestion import SiteScore, Suggestion
from attn_surgery.surgery import apply, inserted, origin_of, plan

_NOT_SUGGESTED = "not suggested: it promises little for what it costs"
_TIMED_FOR = 0.2
"""Seconds for each attention, where time is the budget."""


def suggest(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    attention: Attention = "cbam",
    *,
    budget: Mapping[str, float] | None = None,
    **asked: Any,
) -> Suggestion:
    """Tell which sites are worth an attention, before any is trained.

    A copy of the host gets attention everywhere, which changes nothing, and the loss says by its
    gradients over some batches how much each attention begins to gain:
    `attn_surgery.suggesting.score` says what a score is, ``benchmarks/results/suggest.md`` how well
    it told what training gained.

    Args:
        model: The host as it is to be adapted, its head trained for the task, and in the mode that
            counts: ``eval`` where it stays frozen. It is left as it is.
        batches: Of training data, 20 or so.
        loss: A function of a model and a batch that returns a scalar tensor.
        attention: As for `attn_surgery.plan`.
        budget: What the chosen sites may cost together, any of ``sites``, ``params``, ``bytes``
            (of their parameters), ``macs`` (of one input), and ``latency``, as a ratio to the
            host's: 1.05 lets the first batch take 5 % longer. By default all sites are chosen of
            which the loss says more than noise.
        **asked: ``where``, ``position``, ``existing`` and the attention's options, as for
            `attn_surgery.plan`.

    Returns:
        A score and the costs for every site, and the plan.

    Raises:
        SurgeryError: The host or an argument cannot be used, there are fewer than two batches, or
            the loss depends on no attention.

    Example:
        >>> import torch, torchvision, attn_surgery
        >>> host = torchvision.models.resnet18().eval()
        >>> batches = [(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])) for _ in range(3)]
        >>> def loss(model, batch):
        ...     return nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> found = attn_surgery.suggest(host, batches, loss, "se", budget={"sites": 2})
        >>> len(found.scores), len(found.plan.sites)
        (8, 2)
    """
    check_budget(budget)
    limits = dict(budget or {})
    whole = plan(model, attention, **asked)
    with undisturbed_randomness(seed=0):  # for the same scores each time
        operated = apply(copy.deepcopy(model), attention, **asked)
    found = gradients_of(operated, batches, loss)
    timed, paths = "latency" in limits, _paths(operated)
    scores = [_scored(site, operated, paths[site], found, timed) for site in whole.sites]
    host_ms = _host_milliseconds(model, found) if timed else None
    if host_ms is not None:
        limits["latency"] = (limits["latency"] - 1) * host_ms
    numbers = _chosen(scores, limits)
    told = tuple(replace(each, is_chosen=i in numbers) for i, each in enumerate(scores))
    return Suggestion(told, only(whole, numbers, _NOT_SUGGESTED), found.batches, host_ms)


def _paths(operated: nn.Module) -> dict[Site, str]:
    """Return the path of the attention at each site."""
    origins = {path: origin_of(attention) for path, attention in inserted(operated).items()}
    return {origin.site: path for path, origin in origins.items() if origin is not None}


def _scored(site: Site, operated: nn.Module, path: str, found: Gradients, timed: bool) -> SiteScore:
    attention, shape = operated.get_submodule(path), found.shapes.get(path)
    parameters = list(attention.parameters())
    return SiteScore(
        site,
        score_of(found.by_path[path]),
        params=sum(each.numel() for each in parameters),
        bytes=sum(each.nbytes for each in parameters),
        macs=count_work(attention, Input((shape[1:],))).total.macs if shape else 0,
        latency_ms=_own_milliseconds(attention, shape) if timed and shape else None,
    )


def _own_milliseconds(attention: nn.Module, shape: tuple[int, ...]) -> float:
    device = next((each.device for each in attention.parameters()), None)
    maps = torch.ones(shape, dtype=floating_dtype(attention), device=device)
    return _milliseconds(attention, (maps,), {})


def _host_milliseconds(model: nn.Module, found: Gradients) -> float:
    if found.called is None:
        raise SurgeryError(
            "budget['latency'] is told by the first batch, but loss(model, batch) does not call "
            "the model itself"
        )
    return _milliseconds(copy.deepcopy(model), *found.called)


def _milliseconds(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return the median time of a forward pass."""
    from torch.utils.benchmark import Timer  # slow, and it says so where there is no CUDA

    def forward() -> None:
        with torch.no_grad():
            module(*args, **kwargs)

    timer = Timer("forward()", globals={"forward": forward}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=_TIMED_FOR).median


def _chosen(scores: Sequence[SiteScore], limits: Mapping[str, float]) -> list[int]:
    costs = {name: [_cost(each, name) for each in scores] for name in limits}
    return admitted([each.score for each in scores], costs, limits)


def _cost(score: SiteScore, name: str) -> float:
    """Return what a site takes of one thing that a budget names."""
    if name == "sites":
        return 1.0
    return getattr(score, "latency_ms" if name == "latency" else name) or 0.0


def only(whole: Plan, numbers: Sequence[int], reason: str) -> Plan:
    """Return a plan for some sites of another, by their numbers; the rest is skipped."""
    left = [
        replace(site, method="", reason=reason)
        for i, site in enumerate(whole.sites)
        if i not in numbers
    ]
    return replace(
        whole,
        sites=tuple(whole.sites[i] for i in numbers),
        assignments=tuple(whole.assignments[i] for i in numbers),
        skipped=(*whole.skipped, *left),
    )
