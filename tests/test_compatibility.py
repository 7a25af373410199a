"""The matrix of docs/compatibility.md: made of what was tried, and able to tell what fails."""

from __future__ import annotations

import re
from pathlib import Path

import matrix
import pytest
from compatibility.cells import ALONE, Cells, tried
from compatibility.hosts import HOSTS, Host
from compatibility.page import page
from compatibility.trial import Trial
from torch import nn

import attn_surgery

ROOT = Path(__file__).parents[1]
CELLS = Cells.read(ROOT / "docs/compatibility.json")
DESCRIPTIONS = {name: use.__doc__ or "" for name, use in matrix.USES.items()}
LIGHT = ("fx", "features (timm)", "DDP", "FSDP2", "torch.func", "checkpointing", "EMA", "autocast")


def test_the_page_is_made_of_what_was_tried() -> None:
    made = page(CELLS, DESCRIPTIONS, matrix.ALL_IN, len(HOSTS), matrix.broken())
    assert (ROOT / "docs/compatibility.md").read_text(encoding="utf-8") == made


def test_what_is_tried_is_what_the_hosts_and_uses_are() -> None:
    assert set(CELLS.outcomes) <= set(HOSTS)
    for host, found in CELLS.outcomes.items():
        assert set(found) <= set(matrix.USES)
        for outcomes in found.values():
            assert set(outcomes) == set(matrix.attentions_of(host))


def test_limits_tell_why_a_cell_fails() -> None:
    limits = (ROOT / "docs/limits.md").read_text(encoding="utf-8")
    failing = {
        use
        for found in CELLS.outcomes.values()
        for use, outcomes in found.items()
        if any(why and not why.startswith("host: ") for why in outcomes.values())
    }
    assert [use for use in failing if not re.search(rf"\*\*{re.escape(use)}\*\*", limits)] == []


# A cell


@pytest.mark.parametrize("use", LIGHT)
def test_a_cell_that_works(use: str) -> None:
    found = list(tried(HOSTS["timm/mobilenetv3_small_050"], {use: matrix.USES[use]}, ["cbam"]))
    assert found == [(use, ALONE, ""), (use, "cbam", "")]


@pytest.mark.slow
def test_a_use_in_a_process_of_its_own() -> None:
    host, attentions = "timm/mobilenetv3_small_050", matrix.ATTENTIONS
    assert matrix.run(host, ["fx"], 300.0) == {"fx": dict.fromkeys(attentions, "")}
    late = "host: not finished within 0 s"
    assert matrix.run(host, ["fx"], 0.0) == {"fx": dict.fromkeys(attentions, late)}


def _forgets(trial: Trial) -> None:
    """Give back what the host gives."""
    expected = trial.expected
    host = attn_surgery.remove(trial.model)
    if not (host(trial.x) - expected).abs().max() <= 1e-4 * expected.abs().max():
        raise ValueError("the attention is lost")


def test_attention_that_is_lost_is_seen() -> None:
    for name in ("timm/resnet18", "timm/mobilenetv3_small_050", "timm/convnext_atto"):
        found = {each[1]: each[2] for each in tried(HOSTS[name], {"use": _forgets}, ["se", "eca"])}
        assert found == {
            ALONE: "",
            "se": "ValueError: the attention is lost",
            "eca": "ValueError: the attention is lost",
        }


def test_what_the_host_cannot_is_not_tried_with_attention() -> None:
    def never(_: Trial) -> None:
        raise TypeError("no\nsecond line")

    host = Host(lambda: nn.Conv2d(3, 3, 1))
    assert list(tried(host, {"use": never}, ["se"])) == [("use", ALONE, "TypeError: no")]
