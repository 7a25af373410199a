"""The attention alone: what is written comes back bit for bit, and what is wrong is named."""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.attention.construction import registry
from attn_surgery.host import files
from attn_surgery.host.load import load_model
from attn_surgery.surgery.operated import Operated


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return torchvision.models.resnet18().state_dict()


@pytest.fixture
def fresh(weights):
    def make() -> nn.Module:
        host = torchvision.models.resnet18()
        host.load_state_dict(weights)
        return host.eval()

    return make


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, parameters=None) -> nn.Module:
    """Move what may move, by a step of SGD in training mode."""
    parameters = parameters or [
        p for each in attn_surgery.inserted(model).values() for p in each.parameters()
    ]
    model.train()
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    model(X).square().mean().backward()
    optimizer.step()
    return model.eval()


def moved_alone(model: nn.Module) -> nn.Module:
    """Change the attention and nothing else."""
    with torch.no_grad():
        for each in attn_surgery.inserted(model).values():
            for tensor in each.state_dict().values():
                if tensor.is_floating_point():
                    tensor += torch.rand(tensor.shape)
    return model


SURGERIES = {
    "cbam": [("cbam", {})],
    "options": [("se", {"where": "layer4.*", "reduction": 8, "bias": False})],
    "pre": [("se", {"position": "pre"})],
    "mixed": [({"layer1.*": "se", "*": ("cbam", {"pools": ["avg", "lse"]})}, {})],
    "paper": [("sam", {"init": "paper"})],
    "two, one on the other": [("se", {}), ("cbam", {"existing": "stack", "position": "mid"})],
    "output": [("se", {"position": "output", "where": ["layer1", "conv1"]})],
}


@pytest.mark.parametrize("name", SURGERIES)
def test_round_trip(fresh, tmp_path, name):
    model = fresh()
    for attention, options in SURGERIES[name]:
        attn_surgery.apply(model, attention, **options)
    moved_alone(model)
    attn_surgery.save(model, tmp_path / "attention.safetensors")
    again = attn_surgery.load(fresh(), tmp_path / "attention.safetensors")
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*states(again, model), strict=True))
    assert torch.equal(again(X), model(X))
    assert not torch.equal(again(X), fresh()(X))


def states(*models: nn.Module) -> list[list[torch.Tensor]]:
    return [list(model.state_dict().values()) for model in models]


def test_only_the_attention_is_written(fresh, tmp_path):
    model = attn_surgery.apply(fresh(), "se")
    attn_surgery.save(model, tmp_path / "se")
    with safe_open(tmp_path / "se", "pt") as file:
        assert all(".attn." in key for key in file.keys())  # noqa: SIM118
        size = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    assert size == 11_778_592 - 11_689_512


def test_files_from_when_alpha_had_another_shape(fresh, tmp_path):
    """It was of shape (), which FSDP2 does not take."""
    model = attn_surgery.apply(fresh(), "eca")
    attentions = attn_surgery.inserted(model).values()
    for number, each in enumerate(attentions, 1):
        each.alpha = nn.Parameter(torch.tensor(number / 10))
    path = tmp_path / "eca.safetensors"
    attn_surgery.save(model, path)
    for loaded in (
        attn_surgery.load(fresh(), path),
        attn_surgery.switch(attn_surgery.apply(fresh(), "eca"), path),
        attn_surgery.switch(model, path),
    ):
        assert torch.equal(loaded(X), model(X))
    now = attn_surgery.apply(fresh(), "eca")
    now.load_state_dict(model.state_dict())
    assert torch.equal(now(X), model(X))
    model.load_state_dict(now.state_dict())
    assert {each.alpha.shape for each in attentions} == {torch.Size()}


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v3_small", "timm/seresnet18"])
def test_replaced_attention(tmp_path, name):
    host = load_model(name, device=None).eval()
    model = attn_surgery.apply(copy.deepcopy(host), "cbam", existing="replace")
    moved_alone(model)
    attn_surgery.save(model, tmp_path / "cbam")
    again = attn_surgery.load(copy.deepcopy(host), tmp_path / "cbam")
    assert torch.equal(again(X), model(X))
    assert torch.equal(attn_surgery.remove(again)(X), host(X))


@pytest.mark.parametrize("host", ["all", ["norms", "head", "conv1.weight", "layer*.conv?.weight"]])
def test_a_host_that_was_trained_too(fresh, tmp_path, host):
    model = attn_surgery.apply(fresh(), "se")
    trained(model, list(model.parameters()))
    attn_surgery.save(model, tmp_path / "se", host="norms")
    with pytest.raises(SurgeryError, match=r"other weights: \d+ tensors differ, 'conv1.weight'"):
        attn_surgery.load(fresh(), tmp_path / "se")
    extra = ["layer?.0.downsample.0.weight"] if isinstance(host, list) else []
    attn_surgery.save(model, tmp_path / "se", host=[*host, *extra] if extra else host)
    again = attn_surgery.load(fresh(), tmp_path / "se")
    assert all(torch.equal(a, b) for a, b in zip(*states(again, model), strict=True))


def test_training_the_attention_alone_with_live_norms(fresh, tmp_path):
    model = trained(attn_surgery.apply(fresh(), "cbam"))
    attn_surgery.save(model, tmp_path / "cbam", host="norms")
    assert torch.equal(attn_surgery.load(fresh(), tmp_path / "cbam")(X), model(X))


def test_another_dtype(fresh, tmp_path):
    model = moved_alone(attn_surgery.apply(fresh().bfloat16(), "cbam"))
    attn_surgery.save(model, tmp_path / "cbam")
    again = attn_surgery.load(fresh().bfloat16(), tmp_path / "cbam")
    assert torch.equal(again(X.bfloat16()), model(X.bfloat16()))
    with pytest.raises(SurgeryError, match=r"another host.*\(float32 64x3x7x7, not bfloat16"):
        attn_surgery.load(fresh(), tmp_path / "cbam")


# What is wrong


@pytest.fixture
def saved(fresh, tmp_path):
    path = tmp_path / "attention.safetensors"
    attn_surgery.save(moved_alone(attn_surgery.apply(fresh(), "se", where="layer4.*")), path)
    return path


def refused(host: nn.Module, path, message: str) -> None:
    before = {key: value.clone() for key, value in host.state_dict().items()}
    types = [type(module) for module in host.modules()]
    with pytest.raises(SurgeryError, match=message):
        attn_surgery.load(host, path)
    assert [type(module) for module in host.modules()] == types
    after = host.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def rewritten(path, tensors=None, **metadata):
    """Write the file again with other tensors or metadata."""
    with safe_open(path, "pt") as file:
        old = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        words = file.metadata()
    save_file(old if tensors is None else tensors(old), path, {**words, **metadata})


def test_another_architecture(saved):
    host = torchvision.models.resnet34()
    refused(host, saved, r"made for another host: too much: layer1.2.bn1.bias, .* and \d+ more")
    refused(torchvision.models.resnet18(num_classes=10), saved, "fc.bias .float32 10, not float32")


def test_other_weights(saved):
    refused(torchvision.models.resnet18().eval(), saved, "host with other weights")


def test_a_host_with_attention(saved, fresh):
    refused(attn_surgery.apply(fresh(), "se"), saved, "holds attention already")


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file(saved, fresh, length):
    saved.write_bytes(saved.read_bytes()[:length])
    refused(fresh(), saved, "cannot read")


def test_a_flipped_bit(saved, fresh):
    content = bytearray(saved.read_bytes())
    content[-10] ^= 1
    saved.write_bytes(content)
    refused(fresh(), saved, "was altered: different: layer4")


def test_missing_and_surplus_tensors(saved, fresh):
    rewritten(saved, lambda old: {k: v for k, v in old.items() if k != "layer4.0.attn.fc1.bias"})
    refused(fresh(), saved, "was altered: missing: layer4.0.attn.fc1.bias")
    rewritten(saved, lambda old: {**old, "layer4.9.weight": torch.ones(1)})
    refused(fresh(), saved, "too much: layer4.9.weight")


def test_an_altered_description(saved, fresh):
    with safe_open(saved, "pt") as file:
        content = file.metadata()["content"]
    rewritten(saved, content=content.replace('"layer4.0"', '"layer3.0"'))
    refused(fresh(), saved, "its description does not have the hash")


def test_a_file_of_something_else(tmp_path, fresh):
    save_file({"a": torch.ones(1)}, tmp_path / "a")
    refused(fresh(), tmp_path / "a", "was not written by attn_surgery.save")
    refused(fresh(), tmp_path / "nothing", "cannot read")


def test_a_pickle_is_not_opened(tmp_path, fresh):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    torch.save({"trap": Trap()}, tmp_path / "trap")
    refused(fresh(), tmp_path / "trap", "is no safetensors file.* what attn_surgery.save wrote")


def test_nothing_to_save(fresh, tmp_path):
    with pytest.raises(SurgeryError, match="no attention to be saved"):
        attn_surgery.save(fresh(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_callable_has_no_name_for_a_file(fresh, tmp_path):
    model = attn_surgery.apply(fresh(), lambda channels: nn.Conv2d(channels, channels, 1))
    with pytest.raises(SurgeryError, match=r"not registered.*register"):
        attn_surgery.save(model, tmp_path / "a")


def test_a_registered_one_has(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @attn_surgery.register("mine")
    def mine(channels, kernel_size=3):
        return nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)

    model = moved_alone(attn_surgery.apply(fresh(), "mine", kernel_size=5))
    attn_surgery.save(model, tmp_path / "a")
    assert torch.equal(attn_surgery.load(fresh(), tmp_path / "a")(X), model(X))
    registry._entries.pop("mine")
    refused(
        fresh(), tmp_path / "a", "'mine' .* is not registered, .* or import the module that does"
    )


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch 2.11's own use, by its first compiling
def test_what_is_compiled(saved, fresh, tmp_path):
    compiled: Any = torch.compile
    model, file = attn_surgery.load(fresh(), saved), tmp_path / "compiled.safetensors"
    attn_surgery.save(compiled(model), file, host="head")
    again = attn_surgery.load(fresh(), file)
    assert torch.equal(again(X), model(X))
    with pytest.raises(SurgeryError, match="compiled"):
        attn_surgery.load(compiled(fresh()), file)


@pytest.mark.parametrize("around", [nn.Sequential, lambda host: nn.Sequential(nn.ReLU(), host)])
def test_a_host_within_another_model(saved, fresh, tmp_path, around):
    model, file = around(attn_surgery.load(fresh(), saved)), tmp_path / "file"
    with pytest.raises(SurgeryError, match=r"was inserted into .*: the host is part of another"):
        attn_surgery.save(model, file)
    assert not file.exists()


def test_a_host_that_was_converted_since(fresh, tmp_path):
    model, file = attn_surgery.apply(fresh(), "cbam"), tmp_path / "file"
    moved_alone(model)
    attn_surgery.save(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)), file)
    assert torch.equal(attn_surgery.load(fresh(), file)(X), model(X))


def test_surgery_on_what_is_wrapped(fresh, tmp_path):
    wrapped, file = attn_surgery.apply(nn.DataParallel(fresh()), "se"), tmp_path / "file"
    attn_surgery.save(wrapped, file)
    again = attn_surgery.load(nn.DataParallel(fresh()), file)
    assert again.state_dict().keys() == wrapped.state_dict().keys()


def test_a_selection_of_nothing(fresh, tmp_path):
    with pytest.raises(SurgeryError, match="host='norm' selects no tensor"):
        attn_surgery.save(attn_surgery.apply(fresh(), "se"), tmp_path / "a", host="norm")


def test_a_failure_while_loading_leaves_the_host(saved, fresh, monkeypatch):
    class BrokenError(Exception):
        pass

    def broken(*args, **kwargs):
        raise BrokenError

    host = fresh()
    monkeypatch.setattr(nn.Module, "load_state_dict", broken)
    with pytest.raises(BrokenError):
        attn_surgery.load(host, saved)
    monkeypatch.undo()
    assert attn_surgery.inserted(host) == {}
    assert torch.equal(host(X), fresh()(X))


def test_a_failure_while_writing_leaves_the_old_file(saved, fresh, monkeypatch):
    def full(_):
        raise OSError("No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SurgeryError, match="No space left"):
        attn_surgery.save(attn_surgery.apply(fresh(), "cbam"), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_the_description_is_json_and_holds_the_plan(saved):
    with safe_open(saved, "pt") as file:
        content = json.loads(file.metadata()["content"])
    (surgery,) = content["surgeries"]
    assert surgery["init"] == "identity"
    assert [site["block"] for site in surgery["plan"]["sites"]] == ["layer4.0", "layer4.1"]


# A module in two places: one object, and two names in a state dict


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.b(self.norm(self.a(x)).relu())


class Deciding(Residual):
    """Cannot be rewritten: the attention goes to a child."""

    def forward(self, x):
        return x + self.b(self.norm(self.a(x)).relu()) if x.sum() == x.sum() else x


class Decoder(nn.Module):
    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder = encoder  # only to read its widths
        self.out = head

    def forward(self, x):
        return self.out(x.mean((2, 3)))


class Net(nn.Module):
    """An encoder in three places, a block that runs twice, a tied weight, a head in two places."""

    def __init__(self, block: type[nn.Module] = Residual):
        super().__init__()
        head = nn.Linear(8, 8)
        block_of_both = block(8)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), block(8), block_of_both, block_of_both
        )
        self.decoder = Decoder(self.encoder, head)
        self.parts = nn.ModuleList([self.encoder, self.decoder])
        self.again = nn.Linear(8, 8, bias=False)
        self.again.weight = head.weight

    def forward(self, x):
        return self.again(self.decoder(self.encoder(x)))


class Listed(nn.Module):
    """Lists its blocks' children before the blocks themselves."""

    def __init__(self):
        super().__init__()
        block = Residual(3)
        self.norms = nn.ModuleList([block.norm])
        self.convolutions = nn.ModuleList([block.a, block.b])
        self.block = block

    def forward(self, x):
        return self.block(x)


def twice(model: nn.Module, path, host, make) -> nn.Module:
    """Save, and load into another one like it, which has the same numbers only where it must."""
    attn_surgery.save(model, path, host=host)
    again = make()
    if host is None:
        again.load_state_dict(attn_surgery.remove(copy.deepcopy(model)).state_dict())
    return attn_surgery.load(again, path)


class TestShared:
    @pytest.mark.parametrize("host", [None, "all", ["all", "norms"], "*"])
    @pytest.mark.parametrize("attention", ["se", "cbam", "simam"])
    @pytest.mark.parametrize("block", [Residual, Deciding])
    def test_round_trip(self, tmp_path, host, attention, block):
        model = attn_surgery.apply(Net(block), attention).eval()
        assert len(attn_surgery.inserted(model)) == 2
        trained(model, list(model.parameters()))
        again = twice(model, tmp_path / "file", host, lambda: Net(block)).eval()
        assert list(again.state_dict()) == list(model.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(*states(again, model), strict=True))
        assert torch.equal(again(X), model(X))

    def test_each_attention_is_written_once(self, tmp_path):
        model = attn_surgery.apply(Net(), "se")
        attn_surgery.save(model, tmp_path / "se")
        with safe_open(tmp_path / "se", "pt") as file:
            assert {key.rpartition(".attn.")[0] for key in file.keys()} == {  # noqa: SIM118
                "encoder.1",
                "encoder.2",
            }

    @pytest.mark.parametrize(
        ("host", "changed"),
        [
            ("norms", ["encoder.1.norm.weight"]),
            ("head", ["again.weight", "decoder.out.bias"]),
            ("decoder.*", ["encoder.0.weight", "again.weight"]),
            (["again.weight", "parts.0.2.b.*"], ["decoder.out.weight", "encoder.3.b.bias"]),
        ],
    )
    def test_a_part_of_the_host_by_one_of_its_names(self, tmp_path, host, changed):
        plain, path = Net(), tmp_path / "file"
        model = attn_surgery.apply(copy.deepcopy(plain), "cbam").eval()
        with torch.no_grad():
            for key in changed:
                model.get_parameter(key).add_(1)
        attn_surgery.save(model, path)
        with pytest.raises(SurgeryError, match="other weights"):
            attn_surgery.load(copy.deepcopy(plain), path)
        attn_surgery.save(model, path, host=host)
        again = attn_surgery.load(copy.deepcopy(plain), path).eval()
        assert torch.equal(again(X), model(X))

    def test_tied_attentions(self, tmp_path):
        model = attn_surgery.apply(Net(), "se").eval()
        first, second = (cast(Any, each) for each in attn_surgery.inserted(model).values())
        second.fc1.weight = first.fc1.weight
        moved_alone(model)
        again = twice(model, tmp_path / "file", None, Net).eval()
        assert torch.equal(again(X), model(X))

    @pytest.mark.parametrize("position", ["standard", "mid", "post"])
    def test_children_that_are_listed_before_their_block(self, tmp_path, position):
        model = moved_alone(attn_surgery.apply(Listed(), "se", position=position)).eval()
        for host in (None, "all"):
            again = twice(model, tmp_path / "file", host, Listed).eval()
            assert torch.equal(again(X), model(X))

    def test_a_list_that_was_made_after_the_surgery(self, tmp_path):
        class Later(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = Residual(3)

            def forward(self, x):
                return self.block(x)

        model = attn_surgery.apply(Later(), "se")
        model.attentions = nn.ModuleList(attn_surgery.inserted(model).values())
        with pytest.raises(SurgeryError, match=r"made for another host: missing: attentions\.0"):
            twice(model, tmp_path / "file", "all", Later)

    @pytest.mark.parametrize("host", ["all", "norms"])
    def test_a_file_with_the_attention_by_every_name(self, tmp_path, host, monkeypatch):
        """As earlier versions wrote them, and refused to load them."""

        def parted(operated):
            prefixes = tuple(f"{path}." for path in operated.attentions)
            state = operated.model.state_dict()
            own = {key: value for key, value in state.items() if key.startswith(prefixes)}
            return own, {}, {key: value for key, value in state.items() if key not in own}

        plain = Net()
        model = moved_alone(attn_surgery.apply(copy.deepcopy(plain), "cbam")).eval()
        with monkeypatch.context() as patched:
            patched.setattr(Operated, "_parted", property(parted))
            attn_surgery.save(model, tmp_path / "file", host=host)
        with safe_open(tmp_path / "file", "pt") as file:
            assert any(key.startswith("parts.0.1.attn") for key in file.keys())  # noqa: SIM118
        again = attn_surgery.load(copy.deepcopy(plain), tmp_path / "file").eval()
        assert torch.equal(again(X), model(X))


class TestWrapped:
    def test_in_data_parallel(self, saved, fresh, tmp_path):
        model = attn_surgery.load(fresh(), saved)
        compiled: Any = torch.compile
        for around in (nn.DataParallel, lambda m: compiled(nn.DataParallel(compiled(m)))):
            attn_surgery.save(around(model), tmp_path / "file", host="head")
            assert (tmp_path / "file").read_bytes() != saved.read_bytes()
            again = attn_surgery.load(fresh(), tmp_path / "file")
            assert torch.equal(again(X), model(X))

    @pytest.mark.parametrize("name", ["a host that is the block", "a host with a child called so"])
    def test_a_wrapper_is_told_from_a_host(self, tmp_path, name):
        def make() -> nn.Module:
            return Residual(3) if "block" in name else nn.DataParallel(Residual(3)).cpu()

        model = moved_alone(attn_surgery.apply(make(), "se")).eval()
        attn_surgery.save(nn.DataParallel(model), tmp_path / "file", host="all")
        again = attn_surgery.load(make(), tmp_path / "file").eval()
        assert again.state_dict().keys() == model.state_dict().keys()
        assert torch.equal(again(X), model(X))

    def test_a_block_within_another_model(self, tmp_path):
        model = nn.Sequential(nn.ReLU(), attn_surgery.apply(Residual(3), "se"))
        with pytest.raises(SurgeryError, match=r"into '\(the host\)': the host is part of another"):
            attn_surgery.save(model, tmp_path / "file")

    def test_inserted_and_remove(self, fresh):
        model = attn_surgery.apply(fresh(), "se", where="layer4.*")
        wrapped = nn.DataParallel(model)
        assert list(attn_surgery.inserted(wrapped)) == [
            "module.layer4.0.attn",
            "module.layer4.1.attn",
        ]
        assert attn_surgery.remove(wrapped) is wrapped
        assert attn_surgery.inserted(model) == {}
        assert torch.equal(wrapped(X), fresh()(X))


def test_a_child_without_a_truth(tmp_path):
    class Unsized(nn.Conv2d):
        def __len__(self):
            raise TypeError("has no length")

    model = Residual(3)
    model.extra = Unsized(3, 3, 3, padding=1)
    assert attn_surgery.inserted(model) == {}
    attn_surgery.save(attn_surgery.apply(model, "se"), tmp_path / "file")
    assert attn_surgery.inserted(attn_surgery.remove(model)) == {}
