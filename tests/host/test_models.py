"""Names to models: which library answers, on which device, and every way in which it can fail."""

import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from attn_surgery.errors import SurgeryError
from attn_surgery.host.load import load_model

OWN_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

class Reader(Net):
    def __init__(self):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]

class Nested:
    net = Net

def fails():
    raise RuntimeError("no data\\nset today")

def returns_no_module():
    return 3

NUMBER = 3
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A module of the user's in the current directory; the name by which to import it."""
    module = f"own_code_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(OWN_CODE)
    monkeypatch.chdir(tmp_path)
    yield module
    sys.modules.pop(module, None)


def devices(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


NAMES = {
    "resnet18": timm.models.ResNet,
    "resnet18.a1_in1k": timm.models.ResNet,
    "timm/resnet18": timm.models.ResNet,
    "torchvision/resnet18": torchvision.models.ResNet,
    "fcn_resnet50": torchvision.models.segmentation.FCN,
    "torchvision/googlenet": torchvision.models.GoogLeNet,
    "torchvision/inception_v3": torchvision.models.Inception3,
    "torchvision/quantized_resnet18": torchvision.models.quantization.QuantizableResNet,
    "torchvision/quantized_googlenet": torchvision.models.quantization.QuantizableGoogLeNet,
    "torchvision/ssdlite320_mobilenet_v3_large": torchvision.models.detection.ssd.SSD,
    "torchvision/fasterrcnn_resnet50_fpn": torchvision.models.detection.FasterRCNN,
    "torchvision/raft_small": torchvision.models.optical_flow.RAFT,
    "torchvision/r3d_18": torchvision.models.video.VideoResNet,
    # reads numbers back in its constructor, so that the meta device cannot build it
    "torchvision/regnet_x_400mf": torchvision.models.RegNet,
}


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    model = load_model(name)
    assert type(model) is NAMES[name]
    assert devices(model) == {"meta"}
    assert model.training


def test_real_numbers_on_request():
    model = load_model("torchvision/squeezenet1_1", device=None)
    assert devices(model) == {"cpu"}


@pytest.mark.parametrize("attribute", ["Net", "Reader", "Nested.net"])
def test_own_code(own_code, attribute):
    path = list(sys.path)
    model = load_model(f"{own_code}:{attribute}")
    assert type(model).__module__ == own_code
    assert devices(model) == {"meta"}
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "unknown model 'resnet5O'; did you mean 'resnet50'?"),
        ("qqqqqqqqqqqqqqqq", "unknown model 'qqqqqqqqqqqqqqqq'"),
        ("", "unknown model ''"),
        ("timm/resnet5O", "unknown timm model 'resnet5O'; did you mean 'resnet50'?"),
        ("timm/hf-hub:timm/resnet18", "unknown timm model 'hf-hub:timm/resnet18'"),
        ("torchvision/resnet5O", "unknown torchvision model 'resnet5O'; did you mean 'resnet50'?"),
        ("torchvision/", "unknown torchvision model ''"),
        ("no_such_package:net", "cannot import 'no_such_package:net': ModuleNotFoundError"),
        (":net", "cannot import ':net': ValueError"),
        ("resnet18.no_such_tag", "cannot build 'resnet18.no_such_tag': RuntimeError"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(SurgeryError) as raised:
        load_model(name)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("missing", "cannot import '{name}': AttributeError"),
        ("fails", "cannot build '{name}': RuntimeError: no data set today"),
        ("returns_no_module", "'{name}' returned a int, not a torch.nn.Module"),
        ("NUMBER", "'{name}' is a int, not a callable"),
    ],
)
def test_own_code_that_fails(own_code, attribute, message):
    name = f"{own_code}:{attribute}"
    with pytest.raises(SurgeryError) as raised:
        load_model(name)
    assert str(raised.value).startswith(message.format(name=name))
    assert "\n" not in str(raised.value)


# Weights


def test_pretrained_asks_timm_for_its_weights(monkeypatch):
    asked = []

    def create_model(*args, **kwargs):
        asked.append((args, kwargs))
        return nn.Linear(1, 1)

    monkeypatch.setattr(timm, "create_model", create_model)
    assert devices(load_model("resnet18.a1_in1k", pretrained=True)) == {"cpu"}
    assert asked == [(("resnet18.a1_in1k",), {"pretrained": True})]


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet18", {}),
        ("googlenet", {}),
        ("fcn_resnet50", {"weights_backbone": None}),
        ("quantized_resnet18", {"quantize": False}),
    ],
)
def test_pretrained_asks_torchvision_for_its_weights(monkeypatch, arch, options):
    asked = []

    def get_model(*args, **kwargs):
        asked.append((args, kwargs))
        return nn.Linear(1, 1)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    assert devices(load_model(f"torchvision/{arch}", pretrained=True)) == {"cpu"}
    assert asked == [((arch,), {"weights": "DEFAULT", **options})]


def test_failed_download_is_one_line(monkeypatch):
    def create_model(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(SurgeryError, match=r"^cannot build 'resnet18': OSError: no route to host$"):
        load_model("resnet18", pretrained=True)


def test_own_code_has_no_pretrained_weights(own_code):
    with pytest.raises(SurgeryError, match="from a checkpoint file"):
        load_model(f"{own_code}:Net", pretrained=True)


def net_state() -> dict[str, torch.Tensor]:
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "conv.bias": torch.randn(4),
        "bn.weight": torch.randn(4),
        "bn.bias": torch.randn(4),
        "bn.running_mean": torch.randn(4),
        "bn.running_var": torch.rand(4),
        "bn.num_batches_tracked": torch.tensor(7),
    }


WRAPPERS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "args": ["x"]},
    "both": lambda state: {"model": {"state_dict": state}},
    "parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_checkpoint(own_code, tmp_path, wrapper):
    state = net_state()
    torch.save(WRAPPERS[wrapper](state), tmp_path / "net.pth")
    loaded = load_model(f"{own_code}:Net", checkpoint=tmp_path / "net.pth").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_safetensors_checkpoint(own_code, tmp_path):
    state = net_state()
    save_file(state, tmp_path / "net.safetensors")
    name = f"{own_code}:Net"
    loaded = load_model(name, checkpoint=str(tmp_path / "net.safetensors")).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def without(state: dict, key: str) -> dict:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without(net_state(), "bn.bias"), r"1 keys are missing \(first: 'bn.bias'\)$"),
        (net_state() | {"fc": torch.ones(1)}, r"1 keys are unexpected \(first: 'fc'\)$"),
        (without(net_state(), "bn.bias") | {"fc": torch.ones(1)}, "missing .* unexpected"),
        (net_state() | {"bn.bias": torch.ones(5)}, "size mismatch for bn.bias"),
        # PyTorch supplies num_batches_tracked to state dicts that are too old to have it.
        ({}, "6 keys are missing"),
        ([1, 2], "holds a list, not a state dict"),
        (nn.Linear(1, 1), "cannot read checkpoint .* nothing else is unpickled$"),
    ],
)
def test_checkpoint_that_does_not_fit(own_code, tmp_path, content, message):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(SurgeryError, match=message) as raised:
        load_model(f"{own_code}:Net", checkpoint=tmp_path / "net.pth")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["missing.pt", "missing.safetensors", "text.pt", "."])
def test_unreadable_checkpoint(own_code, tmp_path, file):
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(SurgeryError, match=r"^cannot read checkpoint ") as raised:
        load_model(f"{own_code}:Net", checkpoint=Path(file))
    assert "\n" not in str(raised.value)


# The whole zoo

ZOO = [f"torchvision/{arch}" for arch in torchvision.models.list_models()]
ZOO += [f"timm/{arch}" for arch in timm.list_models()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_zoo(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(name)
    assert devices(model) == {"meta"}
