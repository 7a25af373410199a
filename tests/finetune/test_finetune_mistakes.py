"""What people and machines do wrong is told in a line, before it costs anything."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import types
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from test_finetune_recipes import picture, write_folder
from torch import nn
from torch.utils.data import Dataset

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.data import batches
from attn_surgery.finetune.data.batches import Loading, train_batches
from attn_surgery.finetune.data.datasets import open_source
from attn_surgery.finetune.experiment import context
from attn_surgery.finetune.experiment.checking import check_together
from attn_surgery.finetune.experiment.context import Context
from attn_surgery.finetune.experiment.measuring_again import remeasure
from attn_surgery.finetune.experiment.progress import Display
from attn_surgery.finetune.hosts import build_host, fit_head, head_path
from attn_surgery.finetune.process import lock
from attn_surgery.finetune.recipe import Data, Host, Stage
from attn_surgery.finetune.recipe.reading import override, parse_recipe
from attn_surgery.finetune.running import run_recipe
from attn_surgery.finetune.small_resnet import SmallResNet
from attn_surgery.finetune.tasks.by_name import TASKS
from attn_surgery.finetune.training.trained import choose_trained, keep_statistics
from tests.finetuning import DRIVER, TINY, launched, tiny, weights, within, write_recipe

SMALL = "attn_surgery.finetune.small_resnet:small_resnet"
SHORT: dict[str, Any] = {"stages": [{"epochs": 1}], "pretraining": []}
IMAGES: dict[str, Any] = {
    "host": {"model": SMALL, "options": {"channels": 3, "width": 4}},
    **SHORT,
}


def of_folder(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "folder", "root": str(root), "image_size": 16, "batch_size": 4, **changes
    }  # fmt: skip


def images(folder: Path, count: int, shift: int = 0) -> str:
    folder.mkdir(parents=True)
    for i in range(count):
        picture(i + shift, (16, 16)).save(folder / f"{i}.png")
    return str(folder)


# A step that cannot be taken


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["data.classes=5"], "data.classes=5, but digits has 10"),
        (["data.channels=3"], "control: one step was tried, and failed: .*channels"),
        (
            ["surgery.attention=['bam']", "data.batch_size=1", "stages.1.mixup=0"],
            r"bam, stages.0: .*more than 1 value",
        ),
        (["stages.1.optimizer=adahessian"], r"control, stages.1: .*does not require grad"),
        (["data.train_transform.use_prefetcher=true"], "one step was tried, and failed: "),
        (["stages.1.distill_weight=1", "stages.1.distill_temperature=0"], "must be above 0"),
        (["stages.0.optimizer_options={weight_decay=1}"], "weight_decay is a key of the stage"),
        (["data.options={shuffle=true}"], "'digits' has none"),
        (["stages.0.freezes=['*']", "stages.0.trains='all'"], "control, stages.0: nothing to tr"),
        (["host.model=torchvision/vgg11", "host.options={}"], "it has no residual block"),
    ],
)
def test_it_is_told_before_anything_is_trained(tmp_path, settings, told):
    table = json.loads(json.dumps({**TINY, "pretraining": []}))
    for setting in settings:
        override(table, setting)
    with pytest.raises(SurgeryError, match=told):
        run_recipe(parse_recipe({**table, "output": str(tmp_path)}))
    assert not list(tmp_path.rglob("*.*"))


def test_attention_trains_where_all_of_the_host_is_frozen(tmp_path):
    stage = {"trains": "all", "freezes": "*", "epochs": 1}
    run_recipe(tiny(tmp_path, stages=[stage], control=False))
    last = weights(tmp_path / "seed0")
    host, cbam = last["host/last.safetensors"], last["cbam/last.safetensors"]
    assert all(torch.equal(host[k], cbam[k]) for k in host if "running" not in k and "num" not in k)


def test_a_value_has_no_keys():
    with pytest.raises(SurgeryError, match="'0' is a value, not a table"):
        override({"surgery": {"attention": ["se"]}}, "surgery.attention.0.x=1")


def test_paths_may_be_paths(tmp_path):
    assert parse_recipe({**TINY, "output": tmp_path}).output == str(tmp_path)


# Weights that are no numbers


@pytest.mark.parametrize("which", ["pretraining", "stages"])
def test_weights_that_are_no_numbers_are_not_kept(tmp_path, which):
    wild = {"epochs": 1, "optimizer": "sgd", "lr": 1e30, "schedule": "constant"}
    data = within("data", batch_size=192)  # a single step: its loss was still a number
    with pytest.raises(SurgeryError, match="weights are no numbers any more: lower lr"):
        run_recipe(tiny(tmp_path, data=data, **{**SHORT, which: [wild]}))
    found = [*weights(tmp_path).values()]
    assert all(value.float().isfinite().all() for state in found for value in state.values())
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_results_are_json_by_the_book(tmp_path):
    run_recipe(tiny(tmp_path, **SHORT))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)


# Images


@pytest.mark.slow
def test_corrupt_images_end_the_program_with_workers_too(tmp_path):
    root = write_folder(tmp_path / "data")
    data = of_folder(root, workers=2)
    recipe = {**TINY, **IMAGES, "data": data}
    words = [DRIVER, "command", "finetune", write_recipe(tmp_path / "r.toml", recipe)]
    words += ["--output", str(tmp_path / "out")]
    last = root / "train" / "class1" / "3.png"
    last.write_bytes(b"xx")
    done = launched(*words, timeout=100)
    assert done.returncode == 2, done.stderr
    assert "error: cannot read image" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits(tmp_path, channels):
    for split in ("train", "val"):
        for name, level in (("dark", 10_000), ("light", 50_000)):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = np.full((16, 16), level, dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / split / name / "0.png")
    host = {"model": SMALL, "options": {"channels": channels}}
    data = of_folder(tmp_path, channels=channels, batch_size=2)
    context = Context.of(tiny(tmp_path / "out", host=host, data=data, **SHORT))
    dark, light = (context.splits.val[i, 0][0].mean().item() for i in range(2))
    assert light - dark > 0.5


def test_pixels_without_a_range(tmp_path):
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "image.tiff")
    from attn_surgery.finetune.data.source import as_mode

    with Image.open(tmp_path / "image.tiff") as image, pytest.raises(SurgeryError, match="mode F"):
        as_mode(image, "L")


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("ImageFolder", {}, "would give the same images"),
        ("FakeData", {"size": 8}, "would give the same images"),
        ("CIFAR10", {"train": True}, "would give the same images"),
        ("EMNIST", {"split": "letters"}, "cannot open torchvision's EMNIST: .*not found"),
    ],
)
def test_a_data_set_without_splits(tmp_path, name, options, told):
    write_folder(tmp_path)
    with pytest.raises(SurgeryError, match=told):
        open_source(Data(f"torchvision/{name}", root=str(tmp_path), options=options), train=True)


def test_a_data_set_whose_options_tell_the_split(tmp_path):
    write_folder(tmp_path)
    data = Data("torchvision/ImageFolder", options={"root": f"{tmp_path}/{{split}}"})
    sources = [open_source(data, train=train) for train in (True, False)]
    assert [Path(s.samples.samples[0][0]).parts[-3] for s in sources] == ["train", "val"]


def test_classes_that_differ_between_the_splits(tmp_path):
    root = write_folder(tmp_path / "data", classes=3)
    for path in (root / "val" / "class0").iterdir():
        path.unlink()
    (root / "val" / "class0").rmdir()
    data = of_folder(root, name="timm/folder")
    with pytest.raises(SurgeryError, match=r"class '.*' is number \S+ of 'train' and \S+ of 'val'"):
        run_recipe(tiny(tmp_path / "out", **{**IMAGES, "data": data}))


def test_too_few_unlabelled_images(tmp_path):
    data = within("data", unlabelled=images(tmp_path / "few", 31))
    with pytest.raises(SurgeryError, match=r"data.unlabelled: 31 images are fewer"):
        run_recipe(tiny(tmp_path, data=data, stages=[{"epochs": 1, "distill_weight": 1.0}]))


# Another recipe in the same folder


def test_a_refusal_changes_nothing(tmp_path):
    run_recipe(tiny(tmp_path, **SHORT))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(SurgeryError, match=r"is of another recipe: data.image_size is 8 there"):
        run_recipe(tiny(tmp_path, data=within("data", image_size=16), **SHORT))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert all(each.same for each in remeasure(tmp_path))


def test_other_images_are_another_recipe(tmp_path):
    write_folder(tmp_path / "a")
    write_folder(tmp_path / "b", images=5)
    write_folder(tmp_path / "moved" / "a")
    recipe = tiny(tmp_path / "out", **{**IMAGES, "data": of_folder(tmp_path / "a")})
    run_recipe(recipe)
    with pytest.raises(SurgeryError, match=r"is of another recipe: contents.data.train"):
        run_recipe(tiny(tmp_path / "out", **{**IMAGES, "data": of_folder(tmp_path / "b")}))
    elsewhere = of_folder(tmp_path / "moved" / "a")
    assert run_recipe(tiny(tmp_path / "out", **{**IMAGES, "data": elsewhere})) is not None


def test_other_unlabelled_images_are_another_recipe(tmp_path):
    changes: dict[str, Any] = {"pretraining": [], "stages": [{"epochs": 1, "distill_weight": 1.0}]}
    run_recipe(tiny(tmp_path / "out", **changes))
    data = within("data", unlabelled=images(tmp_path / "more", 40))
    with pytest.raises(SurgeryError, match=r"is of another recipe: data.unlabelled is ''"):
        run_recipe(tiny(tmp_path / "out", data=data, **changes))


def test_another_plan_or_checkpoint_is_another_recipe(tmp_path):
    plan, checkpoint = tmp_path / "plan.json", tmp_path / "host.pt"
    host = build_host(Host(SMALL, options={"width": 4}), 10, 0)
    attn_surgery.plan(host, "se").save(plan)
    torch.save(host.state_dict(), checkpoint)
    changes = {
        "host": {"model": SMALL, "options": {"width": 4}, "checkpoint": str(checkpoint)},
        "surgery": {"attention": [str(plan)]},
        **SHORT,
    }
    run_recipe(tiny(tmp_path / "out", **changes))
    assert all(each.same for each in remeasure(tmp_path / "out"))
    attn_surgery.plan(host, "eca").save(plan)
    with pytest.raises(SurgeryError, match=r"is of another recipe: contents\..*plan.json"):
        run_recipe(tiny(tmp_path / "out", **changes))
    attn_surgery.plan(host, "se").save(plan)
    torch.save(build_host(Host(SMALL, options={"width": 4}), 10, 1).state_dict(), checkpoint)
    with pytest.raises(SurgeryError, match=r"is of another recipe: contents.host.checkpoint"):
        run_recipe(tiny(tmp_path / "out", **changes))


def test_a_full_disk_at_the_first_line_of_the_logs(tmp_path, monkeypatch):
    import torch.utils.tensorboard

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", full)
    with pytest.raises(SurgeryError, match=r"cannot write to .*logs: .*No space left"):
        Display("run", 10, 0, tmp_path / "logs")


# Surgery with options of its own


def test_one_of_the_attentions_replaces(tmp_path):
    surgery = {"attention": ["eca"], "options": {"eca": {"existing": "replace"}}}
    host = {"model": "timm/seresnet18", "options": {"in_chans": 1}}
    less = {"pretraining": [], "stages": [{"epochs": 1, "lr": 0.01}], "control": False}
    data = within("data", image_size=32, limit=64)
    run_recipe(tiny(tmp_path, host=host, surgery=surgery, data=data, **less))
    fresh = build_host(Host("timm/seresnet18", options={"in_chans": 1}), 10, seed=7)
    attn_surgery.load(fresh, tmp_path / "seed0/eca/attention.safetensors")
    last = weights(tmp_path)["seed0/eca/last.safetensors"]
    assert all(torch.equal(value, last[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize(
    "stages", [[{"trains": "attention"}], [{"lr": 0.01}, {"distill_weight": 1.0}]]
)
def test_a_head_that_knows_nothing_teaches_nothing(tmp_path, stages):
    host = {"model": SMALL, "options": {"width": 4, "classes": 16}}
    with pytest.raises(SurgeryError, match=r"the head is new.*\[\[pretraining\]\] with trains = "):
        run_recipe(tiny(tmp_path, host=host, pretraining=[], stages=stages))
    assert run_recipe(tiny(tmp_path, host=host, pretraining=[], stages=[{"lr": 0.01}]))


def test_what_can_be_fetched_again_is_not_kept_with_the_attention(tmp_path):
    checkpoint = tmp_path / "host.pt"
    host = {"model": SMALL, "options": {"width": 4}, "checkpoint": str(checkpoint)}
    torch.save(build_host(Host(SMALL, options={"width": 4}), 0, 0).state_dict(), checkpoint)
    stages = [{"trains": "attention", "epochs": 1, "lr": 0.01}]
    recipe = tiny(tmp_path / "out", host=host, pretraining=[], stages=stages)
    run_recipe(recipe)
    fresh = build_host(recipe.host, 10, seed=7)
    attn_surgery.load(fresh, tmp_path / "out/seed0/cbam/attention.safetensors")
    kept = weights(tmp_path / "out")
    last = kept["seed0/cbam/last.safetensors"]
    assert all(torch.equal(value, last[key]) for key, value in fresh.state_dict().items())
    assert "fc.weight" not in kept["seed0/cbam/attention.safetensors"]

    elsewhere = checkpoint.rename(tmp_path / "moved.pt")
    host = {**host, "checkpoint": str(elsewhere)}
    run_recipe(tiny(tmp_path / "out", host=host, pretraining=[], stages=stages))


# Where and with whom


def test_a_score_from_another_machine_accuses_nobody(tmp_path):
    run_recipe(tiny(tmp_path))
    path = tmp_path / "seed0/host/metrics.json"
    told = json.loads(path.read_text())
    told["score"]["accuracy"] += 1 / 96  # one image, as another device may have it
    path.write_text(json.dumps(told))
    shutil.rmtree(tmp_path / "seed0/cbam")
    outcome = run_recipe(tiny(tmp_path))
    assert outcome is not None
    assert outcome.lines[2].at_insertion[0] == pytest.approx(told["score"]["accuracy"] - 1 / 96)


def test_two_runs_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)
    alone = Accelerator(cpu=True)
    with lock.alone_in(tmp_path, alone):
        with pytest.raises(SurgeryError, match="another run is at work in output="):
            run_recipe(tiny(tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == [".lock"], "it wrote something"
    assert run_recipe(tiny(tmp_path)) is not None


@pytest.mark.sampled(2)
@pytest.mark.parametrize("file", ["metrics.json", "last.safetensors"])
def test_a_file_of_a_finished_run_that_is_lost(tmp_path, file):
    run_recipe(tiny(tmp_path))
    path = tmp_path / "seed0/host" / file
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(SurgeryError, match=rf"{file}: .*; remove .* to run( it)? again"):
        run_recipe(tiny(tmp_path))


@pytest.mark.parametrize("first", [True, False])
def test_one_process_of_a_machine_downloads(monkeypatch, first):
    asked = []
    monkeypatch.setattr(context, "open_data", lambda data, *_: asked.append(data.download))
    accelerator: Any = types.SimpleNamespace(
        is_local_main_process=first, local_main_process_first=contextlib.nullcontext
    )
    context._opened(Data(download=True), nn.Identity(), TASKS["classification"], accelerator)
    assert asked == [first]


def test_fewer_images_than_processes(tmp_path):
    own = Context.of(tiny(tmp_path, data=within("data", val_limit=1)))
    host = own.fresh_host(0)
    with pytest.raises(SurgeryError, match="1 images to measure on, for 2 processes"):
        check_together(own.recipe, host, host, own.splits, 2)


FULL = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", FULL)
def test_too_little_memory(tmp_path, monkeypatch, error):
    def full(_):
        raise error

    monkeypatch.setattr("attn_surgery.finetune.experiment.experiment.train", full)
    with pytest.raises(SurgeryError, match=r"out of memory on cpu: lower data.batch_size"):
        run_recipe(tiny(tmp_path))


def test_two_images_are_no_batch_that_could_be_smaller(tmp_path, monkeypatch):
    def full(*_):
        raise FULL[0]

    monkeypatch.setattr("attn_surgery.finetune.experiment.dry_run.make_optimizer", full)
    with pytest.raises(SurgeryError, match=r"one step was tried, and failed: OutOfMemoryError"):
        run_recipe(tiny(tmp_path))


def test_another_failure_is_not_said_to_be_of_memory(tmp_path, monkeypatch):
    def broken(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("attn_surgery.finetune.experiment.experiment.train", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_recipe(tiny(tmp_path))


class Dying(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, place):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies():
    with pytest.raises(SurgeryError, match=r"DataLoader worker .*data.workers = 0"):
        list(train_batches(Dying(), Loading(2, workers=1), seed=0))


def test_an_order_is_drawn_on_the_cpu_whatever_the_default_device_is(monkeypatch):
    monkeypatch.setattr(batches, "loaded", lambda _, __, parts: parts)
    data = Data("digits", channels=1, limit=20)
    found = []
    for place in ("cpu", "meta"):
        with torch.device(place):
            source = open_source(data, train=True)
            found.append((source.samples.indices, train_batches(Dying(), Loading(2), seed=0)))
    assert found[0] == found[1]


def test_timm_data_hides_no_corrupt_image(tmp_path):
    root = write_folder(tmp_path / "data")
    (root / "train/class0/1.png").write_bytes(b"no picture")
    source = open_source(of_folder_data(root), train=True)
    read = [source.samples[i][0].size for i in (0, 2)]
    assert read == [(48, 40)] * 2
    with pytest.raises(PIL.UnidentifiedImageError):
        source.samples[1]


def of_folder_data(root: Path) -> Data:
    return Data("timm/folder", root=str(root), train_split="train", val_split="val")


# Hosts with modules of their own


class Fixed(nn.Module):
    """A small network whose first convolution its author does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallResNet(width=4)
        self.net.conv1.requires_grad_(False)

    def forward(self, x):
        return self.net(x)


def test_what_does_not_train_in_the_host_stays_as_it_is(tmp_path):
    host = {"model": f"{__name__}:Fixed"}
    stages = [{"trains": "net.fc", "lr": 0.1}, {"trains": ["head", "net.l*"]}, {"lr": 0.1}]
    run_recipe(tiny(tmp_path, host=host, stages=stages))
    first = build_host(Host(host["model"]), 10, 0).state_dict()
    for name in ("host", "control", "cbam"):
        last = weights(tmp_path / "seed0" / name)["last.safetensors"]
        assert torch.equal(last["net.conv1.weight"], first["net.conv1.weight"])
        assert not torch.equal(last["net.fc.weight"], first["net.fc.weight"])
    with pytest.raises(SurgeryError, match=r"stages.0: 'net.conv1' names no parameter"):
        run_recipe(tiny(tmp_path / "x", host=host, stages=[{"trains": "net.conv1"}]))


class Centred(nn.Module):
    """A norm of somebody's own: a running mean under a name of its own."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        if self.training:
            mean = x.detach().mean((0, 2, 3))[:, None, None]
            self.centre = 0.9 * self.centre + 0.1 * mean
        return (x - self.centre) * self.scale


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.utils.parametrizations.spectral_norm(
            nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.norm = Centred(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn(self.conv2(torch.relu(self.norm(self.conv1(x))))))


class HeadFirst(nn.Module):
    """Its head is registered first, and is called last."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 10)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.block = Block(8)
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.mix(self.block(torch.relu(self.plain(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


def test_attention_alone_moves_no_buffer_of_any_kind(tmp_path):
    host = {"model": f"{__name__}:HeadFirst"}
    stages = [{"trains": "attention", "epochs": 1, "lr": 0.05}]
    run_recipe(tiny(tmp_path, host=host, stages=stages, control=False))
    last = weights(tmp_path / "seed0")
    start, after = last["host/last.safetensors"], last["cbam/last.safetensors"]
    assert {"block.norm.centre", "block.conv1.parametrizations.weight.0._u"} <= set(start)
    assert [key for key in start if not torch.equal(start[key], after[key])] == []
    assert start["block.norm.centre"].any(), "pretraining moved it"


def test_the_head_is_what_is_called_last():
    model = HeadFirst()
    assert head_path(model) == "fc"
    fit_head(model, 3)
    assert model.fc.out_features == 3
    assert model.mix.out_channels == 8


@pytest.mark.parametrize(
    ("stage", "live"),
    [
        ({}, True),
        ({"trains": ("stem",)}, True),
        ({"trains": ("attention", "head")}, True),
        ({"trains": ("block",)}, True),
        ({"trains": ("attention",)}, False),
        ({"trains": ("attention", "attention")}, False),
    ],
)
def test_norms_without_weights_follow_what_is_around(stage, live):
    model = attn_surgery.apply(HeadFirst(), "se")
    choose_trained(model, Stage(**stage))
    keep_statistics(model, Stage(**stage), 64)
    model.train()(torch.randn(4, 1, 8, 8))
    seen = model.get_buffer("plain.num_batches_tracked")
    assert (seen.item() > 0) == live


def test_the_average_of_a_stage_is_what_the_next_begins_with(tmp_path):
    still = {"epochs": 1, "lr": 0.0, "optimizer": "sgd", "norm_stats": "frozen"}
    stages = [{"epochs": 2, "lr": 0.05, "ema": 0.9}, still]
    run_recipe(tiny(tmp_path, stages=stages, surgery={"attention": ["se"]}))
    for name in ("control", "se"):
        history = json.loads((tmp_path / "seed0" / name / "metrics.json").read_text())["history"]
        assert history[2]["loss"] == pytest.approx(history[1]["loss"], rel=1e-5)
