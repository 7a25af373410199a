"""One host, many files: after each switch the model is, bit for bit, what a fresh load makes."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.host.load import load_model

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        f = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(x + f)


class Net(nn.Module):
    """Small, with a block that is held twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.last = nn.Conv2d(3, 8, 1), Block(8), Block(8)
        self.again = self.last
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.last(self.first(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def mobilenet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_model("torchvision/mobilenet_v3_small", device=None).eval()


def moved(tensors: list[Tensor], seed: int) -> None:
    random_numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in tensors:
            if each.is_floating_point():
                each.add_(torch.rand(each.shape, generator=random_numbers))


def attention_tensors(model: nn.Module) -> list[Tensor]:
    attentions = attn_surgery.inserted(model).values()
    return [tensor for each in attentions for tensor in each.state_dict().values()]


SURGERIES: list[tuple[Any, dict[str, Any]]] = [
    ("cbam", {}),
    ("se", {"reduction": 4}),
    ("se", {"reduction": 8}),
    ("bam", {}),
    ("cbam", {"where": "first"}),
    ("scale", {"position": "pre"}),
]
HOSTS = [None, "norms", "head", ["norms", "head"], "all"]


def trained(make: Callable[[], nn.Module], number: int, host: Any, **asked: Any) -> nn.Module:
    """Return a model whose attention and what ``host`` selects have other numbers."""
    attention, options = SURGERIES[number]
    model = attn_surgery.apply(make(), attention, **options, **asked)
    moved(attention_tensors(model), number)
    chosen = {
        None: [],
        "norms": [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)],
        "head": [model.get_submodule("fc")] if host else [],
    }
    words = [host] if host is None or isinstance(host, str) else host
    for word in words:
        modules = [model] if word == "all" else chosen[word]
        moved([tensor for each in modules for tensor in each.state_dict().values()], number + 10)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the files of every surgery, and for the first ones with every part of the host."""
    folder = tmp_path_factory.mktemp("files")
    asked = [(i, host) for i in range(2) for host in HOSTS] + [(i, None) for i in range(2, 6)]
    for number, (surgery, host) in enumerate(asked):
        attn_surgery.save(trained(net, surgery, host), folder / str(number), host=host)
    return [folder / str(number) for number in range(len(asked))]


def is_as_loaded(model: nn.Module, path: Path, make: Callable[[], nn.Module] = net) -> bool:
    expected = attn_surgery.load(make(), path)
    expected.train(model.training)
    seen, known = model.state_dict(), expected.state_dict()
    assert list(seen) == list(known)
    assert [type(each) for each in model.modules()] == [type(each) for each in expected.modules()]
    with torch.no_grad():
        assert torch.equal(model.eval()(X), expected.eval()(X))
    return all(torch.equal(seen[key], known[key]) for key in known)


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_files(files: list[Path], seed: int) -> None:
    drawn, model = random.Random(seed), net()
    for _ in range(12):
        path = drawn.choice(files)
        assert attn_surgery.switch(model, path) is model
        assert is_as_loaded(model, path)
        moved(attention_tensors(model), 99)  # what is inserted may have been trained on


def test_what_was_never_loaded(files: list[Path]) -> None:
    """Where the attention comes from ``apply``, the host as it is counts as the host."""
    model = attn_surgery.apply(net(), "cbam")
    for path in (files[1], files[0], files[7], files[2]):
        attn_surgery.switch(model, path)
        assert is_as_loaded(model, path)


def test_the_same_surgery_keeps_every_object(files: list[Path]) -> None:
    model = attn_surgery.load(net(), files[0])
    modules, parameters = list(model.modules()), list(model.parameters())
    buffers = list(model.buffers())
    for path in (files[1], files[3], files[0]):
        attn_surgery.switch(model, path)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))


def test_the_host_after_a_thousand_switches(files: list[Path]) -> None:
    model = attn_surgery.load(net(), files[0])
    for number in range(1000):
        attn_surgery.switch(model, files[number % 4])
    attn_surgery.switch(model, files[0])  # which brings nothing of the host
    kept, host = attn_surgery.remove(model).state_dict(), net().state_dict()
    assert list(kept) == list(host)
    assert all(torch.equal(kept[key], host[key]) for key in host)


@pytest.mark.parametrize("around", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_on_by_itself(files: list[Path], around: Callable[[Any], nn.Module]) -> None:
    model = attn_surgery.load(net(), files[3])
    other = around(model)
    attn_surgery.switch(other, files[0])
    assert is_as_loaded(other, files[0])
    assert is_as_loaded(model, files[3])


@pytest.mark.parametrize("around", [nn.DataParallel, torch.compile])
def test_what_is_wrapped_around_it(files: list[Path], around: Callable[[Any], nn.Module]) -> None:
    model = attn_surgery.load(net(), files[2])
    wrapped = around(model)
    for path in (files[0], files[1], files[6]):
        assert attn_surgery.switch(wrapped, path) is wrapped
        assert is_as_loaded(model, path)


def test_what_took_the_place_of_an_attention(tmp_path: Path) -> None:
    for number in range(2):
        model = attn_surgery.apply(mobilenet(), "cbam", existing="replace")
        moved(attention_tensors(model), number)
        attn_surgery.save(model, tmp_path / str(number))
    model = attn_surgery.load(mobilenet(), tmp_path / "0")
    for number in (1, 0, 1):
        attn_surgery.switch(model, tmp_path / str(number))
        assert is_as_loaded(model, tmp_path / str(number), mobilenet)
    with torch.no_grad():
        assert torch.equal(attn_surgery.remove(model)(X), mobilenet()(X))


def refused(model: nn.Module, path: Path, message: str) -> None:
    before = copy.deepcopy(model.state_dict())
    modules = list(model.modules())
    with pytest.raises(SurgeryError, match=message):
        attn_surgery.switch(model, path)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("number", [0, 1, 5, 10])
def test_a_host_that_was_trained_since(files: list[Path], number: int) -> None:
    model = attn_surgery.load(net(), files[0])
    with torch.no_grad():
        model.get_parameter("stem.weight").add_(1)
    refused(model, files[number], r"other weights: 1 tensors differ, 'stem.weight'")
    attn_surgery.switch(model, files[4])  # which brings the whole host
    assert is_as_loaded(model, files[4])


def test_a_file_of_another_host(files: list[Path], tmp_path: Path) -> None:
    other = attn_surgery.apply(torchvision.models.resnet18(), "cbam")
    attn_surgery.save(other, tmp_path / "other")
    refused(attn_surgery.load(net(), files[1]), tmp_path / "other", "made for another host")
    refused(attn_surgery.apply(net(), "se"), tmp_path / "other", "made for another host")


def test_a_file_that_is_not_whole(files: list[Path], tmp_path: Path) -> None:
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    (tmp_path / "flipped").write_bytes(content)
    refused(attn_surgery.load(net(), files[0]), tmp_path / "flipped", "altered")


def test_a_failure_on_the_way_leaves_the_numbers(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attn_surgery.load(net(), files[0])
    last = list(attn_surgery.inserted(model).values())[-1]

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(last, "load_state_dict", interrupt)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        attn_surgery.switch(model, files[1])
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    monkeypatch.undo()
    attn_surgery.switch(model, files[1])
    assert is_as_loaded(model, files[1])
