"""Thousands of random residual networks: no miss, no false hit, the identity bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generated import Recipe, TrueSite, gated, recipes, true_sites
from hypothesis import HealthCheck, given, settings
from torch import Tensor, fx, nn

import attn_surgery
from attn_surgery import Site

OFTEN = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
VERY_OFTEN = settings(OFTEN, max_examples=5000, derandomize=False)
OPTIONS: dict[str, Any] = {"reduction": 2, "existing": "stack"}
LOGIT = 0.4
GATE = 2 * torch.sigmoid(torch.tensor(LOGIT))


@settings(OFTEN)
@given(recipes())
def test_generated(recipe: Recipe):
    check(recipe)


@pytest.mark.slow
@settings(VERY_OFTEN)
@given(recipes())
def test_many_generated(recipe: Recipe):
    check(recipe)


def check(recipe: Recipe) -> None:
    truth, host, source = truth_of(recipe), recipe.build(), recipe.source()
    check_plan(host, truth)
    if not truth:
        return
    before = attributes(host)
    attn_surgery.apply(host, "se", **OPTIONS)
    check_same(recipe, source, host)
    check_gates(recipe, source, host, len(truth))
    attn_surgery.remove(host)
    assert attributes(host) == before
    check_same(recipe, source, host)


# No miss, no false hit


def truth_of(recipe: Recipe) -> list[TrueSite]:
    """Return the true sites; a ``GraphModule`` holds them all itself, and its calls are flat."""
    sites = true_sites(recipe.source().eval(), *recipe.inputs())
    if recipe.host == "fx":
        return [TrueSite("", None, site.channels, site.spatial_dims) for site in sites]
    return list(dict.fromkeys(sites))


def check_plan(host: nn.Module, truth: list[TrueSite]) -> None:
    plan = attn_surgery.plan(host, "se", **OPTIONS)
    left, missed = list(plan.sites), []
    for true in sorted(truth, key=lambda site: site.after is None):
        match = next((site for site in left if _is_same(site, true)), None)
        missed.append(true) if match is None else left.remove(match)
    assert (missed, left) == ([], []), f"missed, false: {(missed, left)}\n{plan}"


def _is_same(site: Site, true: TrueSite) -> bool:
    facts = (site.block, site.channels, site.spatial_dims)
    known = true.after in (None, site.after)
    return known and facts == (true.block, true.channels, true.spatial_dims)


# The identity, bit for bit


def check_same(recipe: Recipe, source: nn.Module, host: nn.Module) -> None:
    for training in recipe.modes():
        assert_same(observe(source, recipe, training), observe(host, recipe, training))


def observe(model: nn.Module, recipe: Recipe, training: bool) -> dict[str, Tensor]:
    """Run ``model`` and return its output and all that the pass left behind."""
    torch.manual_seed(2)
    with torch.no_grad():
        out = model.train(training)(*recipe.inputs())
    out = out["features"] if isinstance(out, dict) else out
    state = {name: each.clone() for name, each in model.state_dict().items()}
    return {"the output": out, "the random state": torch.get_rng_state(), **state}


def assert_same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name in expected.keys() & found.keys():
        assert torch.equal(expected[name], found[name]), name


CHANGES = {"training", "calls", "_graph", "_code", "_lineno_map", "_prologue_start"}
"""What a pass may change, and what a ``GraphModule`` makes anew from an equal graph."""


def attributes(model: nn.Module) -> dict[str, Any]:
    """Return the class and the attributes of every module, but for CHANGES."""
    code = {"code": model.code} if isinstance(model, fx.GraphModule) else {}
    return code | {
        path: (id(module), type(module), _identities(vars(module)))
        for path, module in model.named_modules()
    }


def _identities(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _identities(value) if isinstance(value, dict) else id(value)
        for name, value in values.items()
        if name not in CHANGES
    }


# The branch is scaled, and nothing else


def check_gates(recipe: Recipe, source: nn.Module, host: nn.Module, sites: int) -> None:
    """Compare constant gates at the sites with the source's own ends scaled by hand."""
    inserted = attn_surgery.inserted(host)
    assert len(inserted) == sites
    for attention in inserted.values():
        nn.init.constant_(attention.get_parameter("fc2.bias"), LOGIT)
    for training in recipe.modes():
        with gated(GATE):
            expected = observe(source, recipe, training)
        assert_same(expected, observe(host, recipe, training))
