"""A variant starts as its host, and where a device cannot show that by scores, by outputs."""

from __future__ import annotations

import copy
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.backends import cudnn

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment import at_insertion
from attn_surgery.finetune.experiment.at_insertion import check_start, distance
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.variants import operated
from attn_surgery.finetune.running import run_recipe
from attn_surgery.finetune.tasks.classification import Classification
from tests.finetuning import tiny

STAGE = {"trains": ["attention"], "epochs": 1, "lr": 0.01}


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context.of(tiny(tmp_path_factory.mktemp("out")))


@pytest.fixture(scope="module")
def host(context) -> nn.Module:
    return context.fresh_host(0)


@pytest.fixture
def jittery(monkeypatch) -> None:
    """A device that chooses another kernel for each run."""
    monkeypatch.setattr(at_insertion, "_is_exact", lambda _: False)


def moved(model: nn.Module, share: float) -> nn.Module:
    """Return a copy whose weights are others by a share of them."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(1 + share * torch.randn(each.shape, generator=torch.Generator()))
    return model


def checked(context: Context, host: nn.Module, model: nn.Module, again: float = 0.6) -> str:
    """Check a model that scores 0.5, whose host scored 0.7, and now something else."""
    scores = [{"accuracy": each} for each in (0.5, 0.7, again)]
    own: Any = types.SimpleNamespace(**vars(context), measure=lambda _: scores[2])
    return check_start(own, "cbam", model, scores[0], scores[1], host)


def test_what_scores_the_same_starts_the_same(context, host):
    score = context.measure(operated(context.recipe, "cbam", 0, host))
    assert check_start(context, "cbam", host, score, score, host) == ""
    assert checked(context, host, host, again=0.5) == "", "the host as it is measured now"


def test_on_the_cpu_the_last_image_decides(context, host):
    with pytest.raises(SurgeryError, match=r"cbam: accuracy at insertion is 0.5, the host's 0.6: "):
        checked(context, host, operated(context.recipe, "cbam", 0, host))


@pytest.mark.usefixtures("jittery")
def test_elsewhere_the_outputs_decide(context, host):
    told = checked(context, host, operated(context.recipe, "cbam", 0, host))
    assert told.startswith("accuracy at insertion is 0.5, the host's 0.6, as the device chooses")
    assert told.endswith("outputs on the first batch are the host's")
    assert "away from the host's, which is rounding" in checked(context, host, moved(host, 1e-5))


@pytest.mark.usefixtures("jittery")
@pytest.mark.parametrize("share", [0.3, torch.nan])
def test_a_host_that_is_disturbed(context, host, share):
    with pytest.raises(SurgeryError, match=r"(nan|e-?\d\d) away from the host's, which is more"):
        checked(context, host, moved(host, share))


@pytest.mark.parametrize("amp", ["no", "bf16"])
def test_what_rounding_comes_to(tmp_path, host, amp):
    own = Context.of(tiny(tmp_path, amp=amp))
    away = distance(own, moved(host, 1e-5), host)
    assert 0 < away < 2e-2
    assert (away > 1e-4) is (amp == "bf16"), "in what it is computed in when it is trained"


class Told(nn.Module):
    """A model that returns what a detector does: some boxes for each image, no tensor alone."""

    def __init__(self, boxes: int, score: float = 1.0):
        super().__init__()
        self.boxes, self.score = boxes, score

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        assert not (cudnn.benchmark)
        assert not (self.training)
        assert not (torch.is_grad_enabled())
        assert cudnn.deterministic
        told = {"boxes": torch.ones(self.boxes, 4), "scores": torch.full((1,), self.score)}
        return [told, {"boxes": torch.empty(0, 4), "labels": torch.ones(1, dtype=torch.int64)}]


def test_outputs_of_any_form(context, monkeypatch):
    monkeypatch.setattr(cudnn, "benchmark", True)
    assert distance(context, Told(2), Told(2)) == 0
    assert distance(context, Told(2, score=1.5), Told(2)) == 0.5
    assert distance(context, Told(3), Told(2)) == torch.inf
    assert (cudnn.benchmark, cudnn.deterministic) == (True, False)


@pytest.mark.usefixtures("jittery")
def test_a_run_on_such_a_device(tmp_path, monkeypatch):
    measure, calls = Classification.measure, []

    def measured(*words: Any) -> dict[str, float]:
        calls.append(0)
        return {**measure(*words), "accuracy": len(calls) / 100}

    monkeypatch.setattr(Classification, "measure", measured)
    outcome = run_recipe(tiny(tmp_path, control=False, pretraining=[], stages=[STAGE]))
    assert outcome is not None
    said = "cbam, seed 0: accuracy at insertion is 0.02, the host's 0.03, as the device chooses"
    assert any(each.startswith(said) for each in outcome.remarks())
