"""Models that were pickled when the package's modules stood elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attn_surgery

GOLDEN = Path(__file__).parents[1] / "golden" / "pickled_models.pt"
"""Hosts with attention whose gates moved, an input and the output of each, from ``torch.save``."""

CASES = ["rewrite", "mixture", "stacked", "post", "pre", "swap", "wrap or attach", "graph"]


@pytest.fixture(scope="module")
def known():
    return torch.load(GOLDEN, weights_only=False)


@pytest.mark.parametrize("name", [*CASES, "callable"])
def test_pickled_models_load_and_can_be_restored(known, name):
    host, x = known["hosts"][name].eval(), known["inputs"][name]
    assert attn_surgery.inserted(host)
    with_attention = host(x)
    torch.testing.assert_close(with_attention, known["outputs"][name])  # of another processor
    attn_surgery.remove(host)
    assert not attn_surgery.inserted(host)
    assert not torch.equal(host(x), with_attention)
    attn_surgery.apply(host, "se", reduction=2, existing="stack")
