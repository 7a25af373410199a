"""Which sites are worth an attention: scores, budgets, and what is left alone."""

from __future__ import annotations

import copy
import itertools
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hosts import WIDTH, Block
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.suggesting.budget import admitted
from attn_surgery.suggesting.gradients import Gradient, gradients_of
from attn_surgery.suggesting.score import score_of


class Host(nn.Module):
    """Three blocks and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(WIDTH, 2)

    @property
    def second(self) -> Any:
        return self.blocks[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def made() -> Host:
    torch.manual_seed(0)
    return Host().eval()


def batches(number: int = 6, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    made_by = torch.Generator().manual_seed(1)
    drawn = [torch.randn(32, WIDTH, 6, 6, generator=made_by) for _ in range(number)]
    return [(x.to(dtype), (x[:, 0].mean((1, 2)) > 0).long()) for x in drawn]


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def suggest(host: nn.Module, attention: Any = "se", **asked: Any) -> attn_surgery.Suggestion:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return attn_surgery.suggest(host, batches(), loss, attention, **asked)


def test_a_site_that_the_loss_cannot_see_promises_nothing():
    host = made()
    nn.init.zeros_(host.second.bn2.weight)
    nn.init.zeros_(host.second.bn2.bias)
    scores = {each.site.block: each.score for each in suggest(host).scores}
    assert scores["blocks.1"] == 0
    assert max(scores.values()) > 0


def test_the_site_whose_gates_are_wrong_promises_most():
    """A host whose gates were right, until those of one block were halved and doubled."""
    host = made()
    for x, _ in batches(1):
        host.train()(x)
    host.eval()
    right = copy.deepcopy(host)
    with torch.no_grad():
        wrong = torch.tensor([0.5, 2.0] * (WIDTH // 2))
        host.second.bn2.weight *= wrong
        host.second.bn2.bias *= wrong

    def distance(model: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            wanted = right.blocks(batch[0])
        return F.mse_loss(model.blocks(batch[0]), wanted)

    found = attn_surgery.suggest(host, batches(), distance, "scale", budget={"sites": 1})
    assert [site.block for site in found.plan.sites] == ["blocks.1"]


@pytest.mark.parametrize("training", [False, True])
def test_the_host_is_left_as_it_is(training):
    host = made().train(training)
    host.head.weight.requires_grad_(False)
    before = copy.deepcopy(host)
    state, random_state = host.state_dict(keep_vars=True), torch.get_rng_state()
    attn_surgery.suggest(host, batches(), loss, "cbam", budget={"latency": 1.5})
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, now in host.state_dict(keep_vars=True).items():
        was = before.state_dict(keep_vars=True)[name]
        assert now is state[name]
        assert torch.equal(now, was)
        assert now.requires_grad == was.requires_grad
        assert now.grad is None
    assert not attn_surgery.inserted(host)
    assert [each.training for each in host.modules()] == [
        each.training for each in before.modules()
    ]
    assert not any(each._forward_pre_hooks or each._forward_hooks for each in host.modules())


def test_the_plan_is_carried_out():
    host, x = made(), batches()[0][0]
    expected = host(x)
    found = suggest(host, budget={"sites": 2}, reduction=4)
    assert len(found.plan.sites) == 2
    assert [each.site for each in found.scores if each.is_chosen] == list(found.plan.sites)
    attn_surgery.apply(host, found.plan)
    assert torch.equal(host(x), expected)
    paths = [f"{site.block}.attention" for site in found.plan.sites]
    assert [path.rpartition(".")[0] for path in attn_surgery.inserted(host)] == [
        path.rpartition(".")[0] for path in paths
    ]


def test_the_rest_is_skipped_with_the_reason():
    found = suggest(made(), budget={"sites": 1})
    reasons = {site.reason for site in found.plan.skipped}
    assert reasons == {"not suggested: it promises little for what it costs"}
    assert len(found.plan.skipped) == 2
    again = attn_surgery.Plan.from_dict(json.loads(json.dumps(found.plan.to_dict())))
    assert again == found.plan


@pytest.mark.parametrize("thing", ["sites", "params", "bytes", "macs"])
def test_a_budget_is_kept(thing):
    whole = suggest(made(), "cbam")
    costs = [1 if thing == "sites" else getattr(each, thing) for each in whole.scores]
    limit = sum(costs) * 2 / 3
    found = suggest(made(), "cbam", budget={thing: limit})
    spent = sum(c for c, each in zip(costs, found.scores, strict=True) if each.is_chosen)
    assert 0 < spent <= limit


def test_costs_are_those_of_the_report():
    found = suggest(made(), "cbam")
    told = attn_surgery.report(made(), ["cbam"], input_size=(WIDTH, 6, 6), latency=False)
    host, row = told.rows
    assert sum(each.params for each in found.scores) == (row.params or 0) - (host.params or 0)
    assert sum(each.macs for each in found.scores) == (row.macs or 0) - (host.macs or 0)
    assert all(each.bytes == 4 * each.params for each in found.scores)


def test_latency_is_measured_where_it_is_the_budget():
    assert suggest(made()).latency_ms is None
    found = suggest(made(), budget={"latency": 100.0})
    assert (found.latency_ms or 0) > 0
    assert all((each.latency_ms or 0) > 0 for each in found.scores)
    assert all(each.is_chosen for each in found.scores if each.score)
    assert "ms" in str(found).splitlines()[0]
    assert not suggest(made(), budget={"latency": 1.0001}).plan.sites


def test_what_plan_takes():
    host = made()
    assert len(suggest(host, where="blocks.2").scores) == 1
    assert suggest(host, position="mid").plan.position == "mid"
    mixed = suggest(host, {"blocks.0": "eca", "*": ("se", {"reduction": 2})})
    assert [each.params for each in mixed.scores] == [3 + 1, 2 * 8 * 4 + 12, 2 * 8 * 4 + 12]
    replayed = suggest(host, attn_surgery.plan(host, "se", where="blocks.0"))
    assert [each.site.block for each in replayed.scores] == ["blocks.0"]
    made_here = suggest(host, lambda channels: nn.Conv2d(channels, channels, 1))
    assert len(made_here.scores) == 3


def test_half_precision():
    host = made().to(torch.bfloat16)
    found = attn_surgery.suggest(host, batches(dtype=torch.bfloat16), loss, "se")
    assert all(math.isfinite(each.score) for each in found.scores)
    assert all(each.bytes == 2 * each.params for each in found.scores)


def test_a_block_that_is_called_twice_is_one_site():
    class Twice(Host):
        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks[0](self.blocks[0](x))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    scores = {each.site.block: each for each in suggest(Twice().eval()).scores}
    assert scores["blocks.0"].score > 0
    assert scores["blocks.1"].score == scores["blocks.1"].macs == 0  # it is never called


def test_it_is_shown():
    found = suggest(made(), budget={"sites": 2})
    head, _, *rows, _, last = str(found).splitlines()
    assert head.split() == "block after channels score (%) params bytes MACs".split()
    assert [row.startswith("x") for row in rows] == [each.is_chosen for each in found.scores]
    assert last.startswith("2 of 3 sites (x) hold ")
    assert last.endswith(" % of the score over 6 batches")
    told = json.loads(json.dumps(found.to_dict()))
    assert [each["site"]["block"] for each in told["scores"]] == [f"blocks.{i}" for i in range(3)]
    assert told["batches"] == 6


# Refusals


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"flops": 3}, "budget='flops' is not supported; accepted: 'sites'"),
        ({"params": 0}, r"budget\['params'\]=0 must be a number above 0"),
        ({"params": "many"}, "must be a number above 0"),
        ({"latency": 1}, r"budget\['latency'\]=1 must be a ratio to the host's time, as 1.05"),
        (5, "budget=5 must be a table"),
    ],
)
def test_budgets_that_are_none(budget, message):
    with pytest.raises(SurgeryError, match=message):
        suggest(made(), budget=budget)


def refused(message: str, loss: Any = loss, number: int = 3, **asked: Any) -> None:
    with pytest.raises(SurgeryError, match=message):
        attn_surgery.suggest(made(), batches(number), loss, "se", **asked)


def test_losses_that_are_none():
    refused("must be a scalar tensor, not 3.0", lambda model, batch: 3.0)
    refused("must be a scalar tensor", lambda model, batch: model(batch[0]))
    refused("is nan for batch 0", lambda model, batch: model(batch[0]).sum() * math.nan)
    refused("depends on no attention", lambda model, batch: model(batch[0]).sum().detach())
    refused(
        "does not call the model itself",
        lambda model, batch: model.blocks(batch[0]).sum(),
        budget={"latency": 2.0},
    )


def test_one_batch_is_too_few():
    refused("batches has 1, and noise is told", number=1)
    refused("batches has 0", number=0)


# Budgets


numbers = st.integers(0, 20)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(numbers, st.integers(1, 20)), min_size=1, max_size=8), st.integers(1, 60))
def test_no_other_choice_promises_more_than_twice_as_much(sites, limit):
    scores, costs = [score for score, _ in sites], [cost for _, cost in sites]

    def promise(choice: Any) -> float:
        return sum(scores[i] for i in choice)

    every = itertools.chain.from_iterable(
        itertools.combinations(range(len(sites)), n) for n in range(len(sites) + 1)
    )
    best = max(promise(each) for each in every if sum(costs[i] for i in each) <= limit)
    taken = admitted(scores, {"params": costs}, {"params": limit})
    assert sum(costs[i] for i in taken) <= limit
    assert taken == sorted(set(taken))
    assert 2 * promise(taken) >= best


@settings(max_examples=100, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=8), st.integers(1, 8))
def test_of_sites_that_cost_the_same_the_best_are_taken(scores, limit):
    taken = admitted(scores, {"sites": [1.0] * len(scores)}, {"sites": limit})
    assert sum(scores[i] for i in taken) == sum(sorted(scores)[-limit:])
    assert all(scores[i] > 0 for i in taken)


def test_all_limits_hold_together():
    scores, costs = [3.0, 2.0, 1.0], {"params": [5, 1, 1], "macs": [1, 5, 1]}
    assert admitted(scores, costs, {"params": 5, "macs": 5}) == [0]
    assert admitted(scores, costs, {"params": 7, "macs": 7}) == [0, 1, 2]
    assert admitted(scores, {}, {}) == [0, 1, 2]


# Scores


def drawn_ones(signal: float = 1.0) -> list[Tensor]:
    made_by = torch.Generator().manual_seed(0)
    return [signal + torch.randn(500, dtype=torch.float64, generator=made_by) for _ in range(40)]


def drawn(signal: float, scale: float = 1.0) -> Gradient:
    told = Gradient()
    for each in drawn_ones(signal):
        told.add(scale * each)
    return told


def test_chance_promises_nothing_on_the_whole():
    assert score_of(drawn(0.0)) < 0.1 * score_of(drawn(1.0))


def test_a_loss_twice_as_steep_promises_twice_as_much():
    assert score_of(drawn(1.0)) == pytest.approx(math.sqrt(500), rel=0.02)
    assert score_of(drawn(1.0, 2.0)) == pytest.approx(2 * score_of(drawn(1.0)))


def test_more_batches_do_not_promise_more():
    few, many = Gradient(), Gradient()
    for i, each in enumerate(drawn_ones()):
        many.add(each)
        if i < 10:
            few.add(each)
    assert score_of(few) == pytest.approx(score_of(many), rel=0.05)


def test_gradients_are_those_of_the_attention():
    operated, some = attn_surgery.apply(made(), "se", reduction=2), batches(3)
    found = gradients_of(copy.deepcopy(operated), some, loss)
    attentions = attn_surgery.inserted(operated)
    assert list(found.by_path) == list(attentions)
    assert set(found.shapes.values()) == {(32, WIDTH, 6, 6)}
    for path, each in attentions.items():
        own = list(each.parameters())
        told = [torch.autograd.grad(loss(operated, batch), own) for batch in some]
        expected = torch.stack([torch.cat([g.flatten() for g in one]) for one in told]).mean(0)
        torch.testing.assert_close(found.by_path[path].mean.float(), expected, rtol=1e-4, atol=1e-7)
