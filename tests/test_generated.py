"""Thousands of random residual networks: no miss, no false hit, the identity bit for bit."""

import copy
from collections import Counter

import pytest
import torch
from generated import Recipe, TrueSite, gated, recipes, true_sites
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import attn_surgery
from attn_surgery import Plan

OFTEN = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
VERY_OFTEN = settings(OFTEN, max_examples=5000, derandomize=False)
OPTIONS = {"reduction": 2, "existing": "stack"}


def expected(recipe: Recipe) -> list[TrueSite]:
    """The true sites of the host; in a ``GraphModule`` every one is the root's own."""
    sites = true_sites(recipe.build().eval(), recipe.input())
    if recipe.host == "fx":
        return [_at_root(site) for site in sites]
    return list(dict.fromkeys(sites))


def _at_root(site: TrueSite) -> TrueSite:
    path = [each for each in (site.block, site.after) if each]
    after = ".".join(path) if site.after is not None else None
    return TrueSite("", after, site.channels, site.spatial_dims)


def check_plan(recipe: Recipe) -> None:
    host = recipe.as_graph(recipe.build().eval())
    plan = attn_surgery.plan(host, "se", **OPTIONS)
    assert difference(plan, expected(recipe)) == ([], []), str(plan)


def difference(plan: Plan, truth: list[TrueSite]) -> tuple[list[TrueSite], list[TrueSite]]:
    """What the plan missed, and what it found beside."""
    ...


def run(model: nn.Module, x: Tensor, training: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One forward pass under a fixed seed: output, random state after it, state dict."""
    torch.manual_seed(3)
    with torch.no_grad():
        out = model.train(training)(x.clone())
    return out, torch.get_rng_state(), dict(model.state_dict())
