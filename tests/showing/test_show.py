"""`attn_surgery.show`: what both models make of images, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import timm
import torch
import torchvision
from PIL import Image
from showing_hosts import images, known, net, scaled
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.showing import show
from attn_surgery.showing.activation_maps import share_moved
from attn_surgery.showing.transforms import default_transform, picture_of

pytest.importorskip("pytorch_grad_cam")


def photograph(folder: Path, name: str, colour: tuple[int, int, int] = (200, 40, 40)) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def small(image: Image.Image) -> Tensor:
    return to_tensor(image.resize((16, 16)))


# Both models


@pytest.mark.parametrize("name", ["se", "cbam", "gc", "adapter"])
def test_at_identity_everything_is_the_hosts(name: str) -> None:
    gallery = show(attn_surgery.apply(net(), name), images())
    assert [site.change for site in gallery.sites] == [0.0, 0.0]
    for each in gallery.images:
        assert numpy.array_equal(known(each.host.probabilities), known(each.operated.probabilities))
        assert numpy.array_equal(
            known(each.host.activation_map), known(each.operated.activation_map)
        )
        assert known(each.host.activation_map).max() > 0
        assert each.moved == 0.0
    assert "host: the model without its attention" in gallery.notes


def test_what_attention_changes_is_seen() -> None:
    x = images()
    model = scaled(0.5)
    gallery = show(model, x, classes=["a", "b", "c"])
    with torch.no_grad():
        expected, host = (
            model(x).softmax(1),
            attn_surgery.remove(copy.deepcopy(model))(x).softmax(1),
        )
    for i, each in enumerate(gallery.images):
        assert torch.tensor(known(each.operated.probabilities)).allclose(expected[i], atol=1e-6)
        assert torch.tensor(known(each.host.probabilities)).allclose(host[i], atol=1e-6)
        assert each.host.target == each.operated.target == int(host[i].argmax())
        assert each.moved > 0
    assert "a " in gallery.predicted(gallery.images[0].host, 3)


def test_the_map_is_grad_cam_by_its_definition() -> None:
    model, x = scaled(0.5), images(1)
    layer = model.get_submodule("blocks.0")
    kept: list[Any] = []
    with layer.register_forward_hook(lambda _, __, output: kept.append(output)):
        model(x)[0, 2].backward(inputs=kept)
    (maps,) = kept
    assert maps.grad is not None
    expected = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1)[0].relu()
    gallery = show(model, x, target=2, layer="blocks.0")
    numpy.testing.assert_allclose(
        known(gallery.images[0].operated.activation_map), expected.detach(), rtol=1e-4, atol=1e-8
    )
    assert gallery.layer == "blocks.0"


@pytest.mark.parametrize("method", ["GradCAMPlusPlus", "HiResCAM", "LayerCAM", "XGradCAM"])
def test_other_methods(method: str) -> None:
    (each,) = show(scaled(0.8), images(1), method=method).images
    assert known(each.host.activation_map).shape == (8, 8)


def test_a_map_that_moved_is_told_by_how_much() -> None:
    one, other = numpy.zeros((2, 2)), numpy.zeros((2, 2))
    one[0, 0] = other[1, 1] = 3.0
    assert share_moved(one, other) == 1.0
    assert share_moved(one, 7 * one) == 0.0
    assert numpy.isnan(share_moved(one, numpy.zeros((2, 2))))


def test_the_layer_is_the_last_with_space() -> None:
    assert show(scaled(1.0), images(1)).layer == "blocks"
    resnet = attn_surgery.apply(torchvision.models.resnet18(), "se", where="layer4.1")
    assert show(resnet, torch.rand(1, 3, 64, 64)).layer == "layer4"


def test_the_target_is_a_number_a_name_or_one_each() -> None:
    model, names = scaled(0.8), ["cat", "dog", "cow"]
    for target, expected in ((1, [1, 1]), ("cow", [2, 2]), (["cow", 0], [2, 0])):
        shown = show(model, images(), classes=names, target=target).images
        assert [each.host.target for each in shown] == expected
        assert [each.operated.target for each in shown] == expected


def test_a_host_that_was_trained_is_given() -> None:
    host = net()
    model = attn_surgery.apply(copy.deepcopy(host), "se")
    assert any("in attention alone" in note for note in show(model, images(), host=host).notes)
    with torch.no_grad():
        model.get_parameter("head.bias").add_(1.0)
    gallery = show(model, images(), host=host)
    assert "1 of its tensors differ" in gallery.notes[0]
    assert "'head.bias'" in gallery.notes[0]


# What is left alone


def test_the_model_is_left_as_it_is() -> None:
    model = attn_surgery.apply(net(), "cbam").train()
    model.requires_grad_(False)
    model.get_parameter("head.weight").requires_grad_(True)
    model(images())[0, 0].backward()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradient = model.get_parameter("head.weight").grad
    assert gradient is not None
    kept = gradient.clone()
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    show(model, images())
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.get_parameter("head.weight").grad is gradient
    assert torch.equal(gradient, kept)
    assert all(module.training for module in model.modules())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_no_grad_and_inference_mode_do_not_matter() -> None:
    expected = known(show(scaled(0.8), images(1)).images[0].host.activation_map)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = known(show(scaled(0.8), images(1)).images[0].host.activation_map)
        assert numpy.array_equal(found, expected)


def test_what_is_compiled_or_wrapped_is_looked_into() -> None:
    plain = show(scaled(0.8), images(1))
    compiled = attn_surgery.compile_attention(scaled(0.8), backend="eager")
    whole: Any = torch.compile(scaled(0.8), backend="eager")
    for model in (whole, compiled):
        found = show(model, images(1))
        assert numpy.array_equal(found.sites[0].channel, plain.sites[0].channel)


# Other hosts


@pytest.mark.parametrize("dims", [1, 3])
def test_of_other_dims_gates_are_shown(dims: int, tmp_path: Path) -> None:
    gallery = show(scaled(1.2, dims=dims), images(2, 8, dims))
    assert gallery.layer is None
    assert f"the images have {dims}" in gallery.notes[1]
    assert gallery.images[0].picture is None
    assert not gallery.sites[0].has_images
    assert gallery.sites[0].spread.raised == 8
    assert gallery.images[0].host.probabilities is not None
    for ending in ("png", "html", "npz"):
        gallery.save(tmp_path / f"x.{ending}")
    with pytest.raises(
        SurgeryError, match="layer='stem' is for activation maps, but there are no class"
    ):
        show(scaled(1.2, dims=dims), images(2, 8, dims), layer="stem")


def test_a_dense_model_has_gates_alone() -> None:
    gallery = show(scaled(1.2, dense=True), images())
    assert gallery.classes == ()
    assert gallery.images[0].host.probabilities is None
    assert any("returns a tensor (1, 3, 8, 8), not logits" in note for note in gallery.notes)
    assert gallery.sites[0].has_images
    assert "predictions" in str(gallery)
    with pytest.raises(SurgeryError, match="target=1 is for activation maps, but there are no"):
        show(scaled(1.2, dense=True), images(), target=1)


def test_a_detector_has_gates_alone() -> None:
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    model = attn_surgery.apply(detector, "se", existing="stack", where="backbone.features.0.6")
    gallery = show(model, torch.rand(1, 3, 96, 80))
    assert any("returns a list, not logits" in note for note in gallery.notes)
    assert gallery.sites[0].has_images


def test_logits_in_an_output_object() -> None:
    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=self.net(x))

    gallery = show(attn_surgery.apply(Wraps(), "se"), images())
    assert gallery.images[0].host.activation_map is not None
    assert gallery.classes == ("class 0", "class 1", "class 2")


def test_an_attention_that_does_not_run_is_told() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.spare = net(), net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if len(x) == 1 else self.spare(x)

    gallery = show(attn_surgery.apply(Skips(), "se"), images())
    assert [site.block for site in gallery.sites] == ["net.blocks.0", "net.blocks.1"]
    assert "spare.blocks.0.attn: left out, it ran for 0 of 2 images" in gallery.notes


# Images


def test_files_folders_and_labels(tmp_path: Path) -> None:
    photograph(tmp_path, "cats/b.png")
    photograph(tmp_path, "cats/a.jpg")
    photograph(tmp_path, "dogs/c.png", (0, 200, 0))
    (tmp_path / "notes.txt").write_text("no image")
    gallery = show(scaled(1.1), tmp_path, transform=small)
    assert [each.name for each in gallery.images] == ["cats/a.jpg", "cats/b.png", "dogs/c.png"]
    assert gallery.labels == ["cats", "cats", "dogs"]
    assert "transform: as given" in gallery.notes
    one = show(scaled(1.1), [tmp_path / "dogs/c.png"], transform=small)
    assert (one.images[0].name, one.labels) == ("c.png", [None])
    assert one.sites[0].channel.shape == (1, 8)


def test_pictures_arrays_tensors_and_names() -> None:
    red = Image.new("L", (40, 30), 90)
    mixed = {"a": red, "b": numpy.zeros((30, 40, 3), numpy.uint8), "c": images(1)[0]}
    gallery = show(scaled(1.1), mixed, transform=small, labels=[0, 1, 0])
    assert [each.name for each in gallery.images] == ["a", "b", "c"]
    assert gallery.labels == ["0", "1", "0"]
    assert gallery.images[0].picture is not None
    with pytest.raises(SurgeryError, match="labels has 2, but there are 3 images"):
        show(scaled(1.1), mixed, transform=small, labels=[0, 1])


def test_the_transform_is_the_models_own_where_it_is_known() -> None:
    photo = Image.effect_noise((300, 260), 80).convert("RGB")
    own = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    transform, whose = default_transform(own)
    assert whose == "timm's for this model"
    assert transform(photo).shape == (3, 224, 224)
    v2 = torchvision.models.ResNet50_Weights.DEFAULT.transforms()
    transform, whose = default_transform(net(), "resnet50")
    assert whose == "torchvision's for resnet50"
    assert torch.equal(transform(photo), v2(photo))
    usual, whose = default_transform(net(), "mine:net")
    assert whose == "the usual one of ImageNet"
    assert usual(photo).shape == (3, 224, 224)
    grey, _ = default_transform(nn.Conv2d(1, 8, 3))
    assert grey(photo.convert("L")).shape == (1, 224, 224)


@pytest.mark.parametrize("name", ["timm", "torchvision", "plain"])
def test_a_picture_is_what_the_model_sees(name: str) -> None:
    pixels = numpy.arange(224 * 224 * 3, dtype=numpy.uint32).reshape(224, 224, 3) % 251
    photo = Image.fromarray(pixels.astype(numpy.uint8))
    transform: Any = {
        "timm": default_transform(net())[0],
        "torchvision": torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms(
            resize_size=224
        ),
        "plain": torchvision.transforms.ToTensor(),
    }[name]
    if name == "timm":
        photo = photo.resize((256, 256), Image.Resampling.NEAREST)
    drawn = picture_of(transform(photo), transform)
    assert drawn is not None
    assert drawn.shape == (224, 224, 3)
    expected = numpy.asarray(photo)[16:240, 16:240] if name == "timm" else numpy.asarray(photo)
    if name == "plain":  # nothing is known: from black to white
        expected = (expected * (255 / expected.max())).round()
    assert numpy.abs(drawn.astype(int) - expected).max() <= 1


# Mistakes


def test_mistakes_are_told(tmp_path: Path) -> None:
    model, x = scaled(1.1), images()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()

    def refused(expected: str, *given: Any, **asked: Any) -> None:
        with pytest.raises(SurgeryError, match=expected):
            show(*given, **asked)

    refused("nothing is inserted in Net: call attn_surgery.apply", net(), x)
    refused("model must be a torch.nn.Module, not a str", "net", x)
    refused(
        "cannot read .*broken.png as an image: UnidentifiedImageError",
        model,
        tmp_path / "broken.png",
    )
    refused("cannot read .*missing.png as an image: FileNotFoundError", model, "missing.png")
    refused(
        r"cannot read image 0 as an image: .*; give an array \(H, W, 3\) of uint8, or a tensor",
        model,
        numpy.random.rand(8, 8, 3),
    )
    refused("empty has no images", model, tmp_path / "empty")
    refused("images is empty", model, [])
    refused("images is a int", model, 3)
    refused(r"shape \(2, 3\)", model, torch.zeros(2, 3))
    refused(
        r"layer='blocks.7' gives no map .* did you mean 'blocks.[01]'", model, x, layer="blocks.7"
    )
    refused("method='GradCam' is not supported; did you mean 'GradCAM'", model, x, method="GradCam")
    refused("target='lion' is none of the", model, x, target="lion")
    refused("target=3 is none of the 3 classes", model, x, target=3)
    refused("target has 1 classes, but there are 2 images", model, x, target=[0])
    refused("classes has 2 names, but the model has 3", model, x, classes=["a", "b"])
    refused(
        r"the model fails for image 0, .* \(1, 4, 9, 9\): .*transform=",
        model,
        torch.rand(1, 4, 9, 9),
    )
    refused("the host has 5 classes, and the model 3", model, x, host=net(classes=5))
    refused(
        "transform fails for image 0", model, [Image.new("RGB", (9, 9))], transform=lambda i: i.x
    )
    refused(
        r"must return a tensor \(C, H, W\)",
        model,
        [Image.new("RGB", (9, 9))],
        transform=numpy.asarray,
    )
    refused("on the meta device", copy.deepcopy(model).to("meta"), x)


def test_without_any_map_it_says_so() -> None:
    model, x = scaled(1.1), torch.rand(1, 3, 2, 2)
    with pytest.raises(SurgeryError, match=r"no module gives one map .*method=None leaves it out"):
        show(model, x)
    assert show(model, x, method=None).notes[1] == "no class activation maps: method=None"


@pytest.mark.parametrize("module", ["pytorch_grad_cam", "matplotlib", "jinja2"])
def test_packages_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str
) -> None:
    gallery = show(scaled(1.0), images(1), method=None)
    monkeypatch.setattr(importlib, "import_module", absent(module))
    acts = {
        "pytorch_grad_cam": lambda: show(scaled(1.0), images(1)),
        "matplotlib": lambda: gallery.save(tmp_path / "x.png"),
        "jinja2": lambda: gallery.save(tmp_path / "x.html"),
    }
    package = {"pytorch_grad_cam": "grad-cam"}.get(module, module)
    with pytest.raises(SurgeryError, match=rf"{package} is not installed: .*attn-surgery\[show\]"):
        acts[module]()
    assert list(tmp_path.iterdir()) == []


def absent(module: str) -> Callable[..., Any]:
    """Return an ``import_module`` that does not find one package."""
    whole = importlib.import_module

    def found(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=module)
        return whole(name, *rest)

    return found
