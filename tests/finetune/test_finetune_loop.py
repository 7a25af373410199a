"""The loop learns, moves what it should and nothing else, and says what goes wrong."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from test_finetune_recipes import picture, write_folder

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.loop import train
from attn_surgery.finetune.experiment.measuring_again import remeasure
from attn_surgery.finetune.experiment.run import Run
from attn_surgery.finetune.experiment.variants import operated
from attn_surgery.finetune.hosts import build_host, fit_head
from attn_surgery.finetune.recipe import Host, Stage
from attn_surgery.finetune.recipe.reading import read_recipe
from attn_surgery.finetune.results.comparison import compare, paired
from attn_surgery.finetune.results.outcome import Line, Outcome
from attn_surgery.finetune.running import run_recipe
from attn_surgery.finetune.small_resnet import SmallResNet
from attn_surgery.finetune.training.trained import choose_trained, keep_statistics
from tests.finetuning import TINY, tiny, weights, within
from tests.pretended import Accelerator


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The recipe digits, shortened."""
    output = tmp_path_factory.mktemp("digits")
    changes = [
        "seeds=2", "threads=1", "device=cpu", "report_seconds=0.3", f"output={output}",
        "surgery.attention=['se']", "pretraining.0.epochs=3", "stages.0.epochs=1",
    ]  # fmt: skip
    outcome = run_recipe(read_recipe("digits", changes))
    assert outcome is not None
    return outcome, output


def test_it_learns(digits):
    outcome, _ = digits
    host, control, se = outcome.lines
    assert host.mean > 0.8
    assert control.mean > 0.9
    assert se.mean > 0.9
    assert se.at_insertion == host.scores == control.at_insertion
    assert se.difference.mean == pytest.approx(se.mean - control.mean)
    assert se.costs.params == 791
    assert se.costs.latency_ratio > 0
    assert list(se.gates) == ["layer1.0.attn", "layer2.0.attn", "layer3.0.attn"]
    assert all(value > 0 for value in se.gates.values())


def test_what_is_written(digits):
    outcome, output = digits
    data = json.loads((output / "result.json").read_text())
    assert data["lines"][2]["mean"] == outcome.lines[2].mean
    assert len((output / "result.csv").read_text().splitlines()) == 4
    assert "| se after" in (output / "result.md").read_text()
    assert (output / "result.png").stat().st_size > 5_000
    assert json.loads((output / "recipe.json").read_text())["seeds"] == 2
    assert "torch" in json.loads((output / "environment.json").read_text())
    names = {path.name for path in (output / "seed1" / "se").iterdir()}
    wanted = {"attention", "best", "last"}
    assert names == {*(f"{name}.safetensors" for name in wanted), "logs", "metrics.json"}


@pytest.mark.parametrize("which", ["last", "best"])
def test_evaluate(digits, which):
    _, output = digits
    found = remeasure(output, which)
    assert [each.run for each in found][:3] == ["seed0/host", "seed0/control", "seed0/se"]
    assert len(found) == 6
    assert all(each.same for each in found)


def test_the_attention_alone_brings_it_back(digits):
    _, output = digits
    fresh = build_host(read_recipe("digits").host, 10, seed=0)
    again = attn_surgery.load(fresh, output / "seed0" / "se" / "attention.safetensors")
    last = weights(output / "seed0" / "se")["last.safetensors"]
    assert all(torch.equal(value, last[key]) for key, value in again.state_dict().items())


def test_attention_alone_moves_nothing_of_the_host(tmp_path):
    stage = {"trains": "attention", "epochs": 2, "lr": 0.1, "weight_decay": 0.1, "ema": 0.5}
    recipe = tiny(tmp_path, stages=[stage], control=False)
    context = Context.of(recipe)
    start = context.fresh_host(0)
    model = operated(recipe, "cbam", 0, start)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(Run(context, "cbam", 0, model))
    host = start.state_dict().keys()
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in host)
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved
    assert not moved & host
    assert any(key.endswith("running_mean") for key in moved), "its own statistics live"


def test_the_control_of_an_attention_stage_trains_as_long(tmp_path):
    run_recipe(tiny(tmp_path))
    runs = [tmp_path / "seed0" / name / "metrics.json" for name in ("control", "cbam")]
    steps = [[row[0] for row in json.loads(path.read_text())["steps"]] for path in runs]
    assert steps[0] == steps[1]
    last = weights(tmp_path / "seed0")
    host, control = (last[f"{name}/last.safetensors"] for name in ("host", "control"))
    assert not torch.equal(host["conv1.weight"], control["conv1.weight"])


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ({"trains": ("all",)}, {"conv1", "layer1", "layer3", "fc", "attn"}),
        ({"trains": ("attention",)}, {"attn"}),
        ({"trains": ("head",)}, {"fc", "attn"}),
        ({"trains": ("layer3.*", "head")}, {"layer3", "fc", "attn"}),
        ({"trains": ("all",), "freezes": ("conv1", "layer1")}, {"layer3", "fc", "attn"}),
        (
            {"trains": ("all",), "freezes": ("layer*",), "freezes_attention": True},
            {"conv1", "fc"},
        ),
    ],
)
def test_what_trains(stage, trained):
    model = attn_surgery.apply(SmallResNet(), "se")
    choose_trained(model, Stage(**stage))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for part in ("conv1", "layer1", "layer3", "fc"):
        own = [name for name in names if name.startswith(part) and ".attn." not in name]
        assert bool(own) == (part in trained), part
    assert any(".attn." in name for name in names) == ("attn" in trained)


@pytest.mark.parametrize(
    ("stage", "batch", "live"),
    [
        ({}, 16, True),
        ({}, 15, False),
        ({"norm_stats": "live"}, 2, True),
        ({"norm_stats": "frozen"}, 64, False),
        ({"trains": ("attention",)}, 64, False),
        ({"trains": ("head",)}, 64, False),
    ],
)
def test_statistics(stage, batch, live):
    model = attn_surgery.apply(SmallResNet(), "cbam").train()
    choose_trained(model, Stage(**stage))
    keep_statistics(model, Stage(**stage), batch)
    own = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model.train()(torch.randn(4, 1, 28, 28))
    moved = {key for key, value in own.items() if not torch.equal(model.state_dict()[key], value)}
    assert any(".attn." in key for key in moved)
    assert any(".attn." not in key for key in moved) == live


@pytest.mark.parametrize("unlabelled", [False, True])
def test_distillation(tmp_path, unlabelled):
    data = within("data")
    if unlabelled:
        (tmp_path / "images").mkdir()
        for i in range(40):
            picture(i).save(tmp_path / "images" / f"{i}.png")
        data["unlabelled"] = str(tmp_path / "images")
    stage = {"epochs": 1, "distill_weight": 1e6, "distill_temperature": 2.0, "lr": 0.003}
    outcome = run_recipe(tiny(tmp_path / "out", data=data, stages=[stage], control=False))
    assert outcome is not None
    metrics = json.loads((tmp_path / "out/seed0/cbam/metrics.json").read_text())
    first = metrics["steps"][0][1]
    assert first > 0
    assert len(metrics["steps"]) == 6


def test_label_smoothing_and_cutmix(tmp_path):
    stages = [
        {"epochs": 1, "label_smoothing": 0.1, "optimizer": "sgd", "schedule": "constant"},
        {"epochs": 1, "label_smoothing": 0.1, "cutmix": 1.0, "warmup_epochs": 0.5},
    ]
    assert run_recipe(tiny(tmp_path, stages=stages, pretraining=[])) is not None


def test_mixed_precision(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for precision, folder in (("no", one), ("bf16", two)):
        outcome = run_recipe(tiny(folder, amp=precision, surgery={"attention": ["eca"]}))
        assert outcome is not None
        assert outcome.environment["precision"] == precision
        state = weights(folder)["seed0/eca/last.safetensors"]
        assert state["conv1.weight"].dtype == torch.float32
    assert remeasure(two)[-1].same
    assert remeasure(one)[-1].same


# What goes wrong


def test_a_loss_that_is_no_number(tmp_path):
    stages: list[dict[str, Any]] = [{"epochs": 1, "lr": 1e30, "optimizer": "sgd"}]
    with pytest.raises(
        SurgeryError, match=r"no numbers any more: lower lr|the loss is (nan|inf) by step"
    ):
        run_recipe(tiny(tmp_path, stages=stages))
    kept = weights(tmp_path)["seed0/host/last.safetensors"]
    assert all(torch.isfinite(value.float()).all() for value in kept.values())
    shutil.rmtree(tmp_path / "seed0" / "control")
    assert run_recipe(tiny(tmp_path, stages=[{"epochs": 1}])) is not None, "the host is kept"


def folder_recipe(tmp_path, **changes):
    data = {"name": "folder", "root": str(tmp_path / "data"), "image_size": 32, "batch_size": 4}
    return tiny(
        tmp_path / "out",
        host={
            "model": "attn_surgery.finetune.small_resnet:small_resnet",
            "options": {"channels": 3},
        },
        data={**data, **changes},
        stages=[{"epochs": 1}],
        pretraining=[],
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image(tmp_path, workers):
    root = write_folder(tmp_path / "data")
    broken = root / "train" / "class1" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    recipe = folder_recipe(tmp_path, workers=workers)
    with pytest.raises(SurgeryError, match=r"^cannot read image .*class1/2.png: "):
        run_recipe(recipe)
    picture(0).save(broken)
    assert run_recipe(recipe) is not None


def test_a_missing_class_folder(tmp_path):
    root = write_folder(tmp_path / "data", classes=3)
    for path in (root / "val" / "class1").iterdir():
        path.unlink()
    with pytest.raises(SurgeryError, match=r"a class folder has no image.*class1"):
        run_recipe(folder_recipe(tmp_path))
    (root / "val" / "class1").rmdir()
    with pytest.raises(
        SurgeryError, match=r"the class folder .*val/class1 is missing: .*train has"
    ):
        run_recipe(folder_recipe(tmp_path))
    with pytest.raises(SurgeryError, match=r"there is no folder .*test"):
        run_recipe(folder_recipe(tmp_path, val_split="test"))


def test_workers_change_nothing(tmp_path):
    write_folder(tmp_path / "data")
    run_recipe(folder_recipe(tmp_path))
    alone = weights(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "alone")
    run_recipe(folder_recipe(tmp_path, workers=2))
    for name, state in weights(tmp_path / "out").items():
        assert all(torch.equal(alone[name][key], value) for key, value in state.items()), name


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_timm_data(tmp_path):
    write_folder(tmp_path / "data")
    recipe = folder_recipe(tmp_path, name="timm/imagefolder")
    assert run_recipe(recipe) is not None


# Parts


@pytest.mark.parametrize(
    "name", ["timm/resnet10t", "torchvision/mobilenet_v3_small", "torchvision/squeezenet1_1"]
)
def test_the_head_is_fitted(name):
    model = build_host(Host(name), 7, seed=0).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    again = build_host(Host(name), 7, seed=0).eval()
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("is_initialized", [True, False])
def test_what_is_built_by_a_seed_leaves_the_accelerator_as_it_was(monkeypatch, is_initialized):
    there = Accelerator(monkeypatch, is_initialized=is_initialized)
    before = torch.get_rng_state(), there.states()
    recipe = read_recipe("digits")
    operated(recipe, "cbam", 0, build_host(recipe.host, 10, seed=0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert there.states() == before[1]
    assert there.is_initialized is is_initialized
    assert bool(there.seeds) is is_initialized, "it would be seeded as soon as somebody uses it"


def test_a_host_may_draw_on_the_accelerator_that_it_is_for(monkeypatch):
    there = Accelerator(monkeypatch, is_initialized=False)
    before, drawn = there.states(), []

    def load(*_: Any, **__: Any) -> SmallResNet:
        drawn.append(there.draw())
        return SmallResNet(classes=10)

    monkeypatch.setattr("attn_surgery.finetune.hosts.load_model", load)
    for seed in (3, 4, 3):
        build_host(Host("any"), 10, seed, there.device)
    assert drawn[0] == drawn[2] != drawn[1]
    assert there.states() == before


def test_a_head_that_fits_is_left_alone():
    model = SmallResNet(classes=10)
    head = model.fc
    fit_head(model, 10)
    assert model.fc is head


def test_one_pair_says_nothing():
    assert paired([0.9], [0.8]).low is None
    assert "is not judged: 1 of the 3 seeds" in paired([0.9], [0.8]).verdict
    assert paired([0.9, 0.91, 0.92], [0.8, 0.81, 0.821]).verdict == "beats its control"
    assert "worse" in paired([0.8, 0.81, 0.821], [0.9, 0.91, 0.92]).verdict


def test_what_is_not_judged_is_said_once():
    scores = {"se": [0.9], "control-head": [0.8], "control-norms": [0.8]}
    told = compare(scores, ["se"], ["control-head", "control-norms"])
    outcome = Outcome("accuracy", (Line("se", (0.9,), comparisons=tuple(told)),), {}, {})
    assert outcome.verdicts() == ["se is not judged: 1 of the 3 seeds that it takes at least"]


def test_evaluate_needs_an_output(tmp_path):
    with pytest.raises(SurgeryError, match="is no output of attn-surgery finetune"):
        remeasure(tmp_path)
    assert TINY["device"] == "cpu"
