"""Parametrizations: torch derives a class for a parametrized module, and so does surgery."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from probing import calls
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import attn_surgery


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Scaled(nn.Module):
    """A block with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in "ab")
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.gamma * self.b(torch.relu(self.a(x)))


class Looped(nn.Module):
    """Blocks of a vocoder: pairs of convolutions in a loop (Kong et al. 2020, section 2.2)."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [[nn.Conv2d(8, 8, 3, padding=1) for _ in "ab"] for _ in range(2)]
        self.one, self.two = (nn.ModuleList(each) for each in zip(*pairs, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for one, two in zip(self.one, self.two, strict=True):
            x = two(functional.leaky_relu(one(functional.leaky_relu(x)))) + x
        return x


def halve(module: nn.Module, name: str) -> None:
    parametrize.register_parametrization(module, name, Halved())


def whole(module: nn.Module, name: str) -> None:
    parametrize.remove_parametrizations(module, name)


HOSTS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a block's own": (Scaled, "", "gamma"),
    "its last convolution": (Scaled, "b", "weight"),
    "in a loop": (Looped, "two.1", "weight"),
}


@pytest.fixture(params=HOSTS)
def host(request: Any) -> tuple[nn.Module, nn.Module, str]:
    """Return a host, the module of it that is parametrized, and which of its parameters."""
    make, path, name = HOSTS[request.param]
    made = make().eval()
    return made, made.get_submodule(path), name


@pytest.mark.parametrize("last", ["surgery", "parametrization"])
@pytest.mark.parametrize("first", ["surgery", "parametrization"])
def test_each_goes_in_any_order(host: Any, first: str, last: str) -> None:
    model, module, name = host
    x, classes = torch.randn(2, 8, 6, 6), [type(each) for each in model.modules()]
    expected = model(x)
    if first == "surgery":
        attn_surgery.apply(model, "se")
    halve(module, name)
    halved = model(x)
    assert not torch.equal(halved, expected)
    if first == "parametrization":
        attn_surgery.apply(model, "se")
        assert torch.equal(model(x), halved)
    assert calls(model, x) == len(attn_surgery.inserted(model)) > 0
    if last == "surgery":
        whole(module, name)
        assert calls(model, x) == len(attn_surgery.inserted(model))
    attn_surgery.remove(model)
    assert torch.equal(model(x), halved)
    if last == "parametrization":
        whole(module, name)
    assert torch.equal(model(x), halved)
    assert [type(each) for each in model.modules()] == classes


@pytest.mark.parametrize("when", ["before", "after"])
def test_copies_are_their_own(host: Any, when: str) -> None:
    model, module, name = host
    x = torch.randn(2, 8, 6, 6)
    if when == "before":
        halve(module, name)
    known = type(module)
    attn_surgery.apply(model, "se")
    if when == "after":
        halve(module, name)
    before = model(x)
    for each in attn_surgery.inserted(model).values():
        for parameter in each.parameters():
            nn.init.normal_(parameter)
    expected, copied = model(x), copy.deepcopy(model)
    assert not torch.equal(expected, before)
    assert torch.equal(copied(x), expected)
    attn_surgery.remove(model)
    assert torch.equal(copied(x), expected)
    if when == "before":
        assert type(module) is known
    with pytest.raises(RuntimeError, match="state_dict"):  # as torch does
        pickle.dumps(copied)


def test_a_change_keeps_the_parametrization() -> None:
    host, x = Scaled().eval(), torch.randn(2, 8, 6, 6)
    attn_surgery.apply(host, "se")
    halve(host, "gamma")
    host.scale = 0.0
    assert torch.equal(host(x), x)
    assert parametrize.is_parametrized(host, "gamma")
    assert torch.equal(host.gamma, torch.full((8, 1, 1), 0.5))
    assert calls(host, x) == 1


def test_the_class_comes_back_after_a_change() -> None:
    host = Scaled().eval()
    halve(host, "gamma")
    known = type(host)
    attn_surgery.apply(host, "se")
    host.scale = 2.0
    attn_surgery.remove(host)
    assert type(host) is known


def test_more_than_one_attention(host: Any) -> None:
    model, module, name = host
    x = torch.randn(2, 8, 6, 6)
    halve(module, name)
    known, expected = type(module), model(x)
    attn_surgery.apply(model, "se")
    attn_surgery.apply(model, "cbam", existing="stack")
    assert calls(model, x) == len(attn_surgery.inserted(model)) > 1
    assert torch.equal(model(x), expected)
    attn_surgery.remove(model)
    assert torch.equal(model(x), expected)
    assert type(module) is known


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_normed_weights_in_a_loop(norm: Any) -> None:
    host, x = Looped().eval(), torch.randn(2, 8, 6, 6)
    for each in (*host.one, *host.two):
        norm(each)
    expected = host(x)
    assert len(attn_surgery.plan(host, "se").sites) == 2
    attn_surgery.apply(host, "se")
    assert torch.equal(host(x), expected)
    assert calls(host, x) == 2
