"""Hosts of which no deep copy can be had, or none that is like them: every verb does without."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hosts_with_attention as hosts
import pytest
import torch
from test_undisturbed import makeup
from torch import Tensor, nn
from torch.nn import functional

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.surgery import attention_file, loading
from attn_surgery.surgery.fingerprint import digest
from attn_surgery.surgery.operated import Operated

C = 8
X = torch.randn(2, C, 6, 6, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    conv: type[nn.Conv2d] = nn.Conv2d

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = (self.conv(C, C, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c2(torch.relu(self.c1(x)))


class Keeps(Block):
    """Keeps a map of the last step."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


class Collects(Block):
    """Keeps maps by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.c1.register_forward_hook(lambda module, args, output: self.kept.append(output))


class WeightNorm(Block):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = map(torch.nn.utils.weight_norm, (self.c1, self.c2))  # type: ignore[assignment]


class SpectralNorm(Block):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = map(torch.nn.utils.spectral_norm, (self.c1, self.c2))  # type: ignore[assignment]


class Holds(Block):
    """Holds a lock, a generator and a module of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.draws = threading.Lock(), iter([])
        self.functions = torch
        self.numbers = (each for each in range(3))


class Closure(Block):
    """Can be copied, but the copy's branch runs the convolutions of the original."""

    def __init__(self) -> None:
        super().__init__()
        c1, c2 = self.c1, self.c2
        self.branch = lambda x: c2(torch.relu(c1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Standardized(nn.Conv2d):
    """A convolution of the host's own, with a lock, which keeps what it made in a list."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lock, self.made = threading.Lock(), []

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        y = functional.conv2d(input, weight, self.bias, self.stride, self.padding)
        self.made = [y]
        return y


class OwnConvolutions(Block):
    conv = Standardized


KINDS = [Keeps, Collects, WeightNorm, SpectralNorm, Holds, Closure, OwnConvolutions]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


def trained(kind: Callable[[], nn.Module]) -> nn.Module:
    """Return a host that was operated on, after a step of its attention."""
    model = attn_surgery.apply(nn.Sequential(kind(), kind()), "se")
    parameters = [p for each in attn_surgery.inserted(model).values() for p in each.parameters()]
    model(X).square().mean().backward()
    torch.optim.SGD(parameters, 0.1).step()
    return model


def fresh(kind: Callable[[], nn.Module], like: nn.Module) -> nn.Module:
    """Return a host as the other's was before its surgery, after a step that left its traces."""
    host = nn.Sequential(kind(), kind())
    host(X).mean().backward()
    state = {key: each for key, each in like.state_dict().items() if ".attn." not in key}
    host.load_state_dict(state)
    return host


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_goes_round(kind: type[nn.Module], tmp_path: Path) -> None:
    models = [trained(kind) for _ in range(2)]
    models[1].load_state_dict(fresh(kind, models[0]).state_dict(), strict=False)
    for number, model in enumerate(models):
        attn_surgery.save(model.eval(), tmp_path / str(number))
    expected = [model(X) for model in models]
    assert not torch.equal(*expected)
    loaded = attn_surgery.load(fresh(kind, models[0]).eval(), tmp_path / "0")
    assert torch.equal(loaded(X), expected[0])
    for model in (loaded, models[0], fresh(kind, models[0]).eval()):
        assert torch.equal(attn_surgery.switch(model, tmp_path / "1")(X), expected[1])
        assert torch.equal(attn_surgery.switch(model, tmp_path / "0")(X), expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_leaves_it(kind: type[nn.Module], tmp_path: Path) -> None:
    model = trained(kind)
    attn_surgery.save(model, tmp_path / "file")
    other = nn.Sequential(kind(), kind())
    other(X).mean().backward()
    before = makeup(other)
    for verb in (attn_surgery.load, attn_surgery.switch):
        with pytest.raises(SurgeryError, match="host with other weights"):
            verb(other, tmp_path / "file")
        assert makeup(other) == before


def test_trying_a_convolution_leaves_it() -> None:
    host = OwnConvolutions()
    host(X).mean().backward()
    before, made = makeup(host), [each.made for each in convolutions(host)]
    held, kept = [list(vars(each).items()) for each in host.modules()], [each[0] for each in made]
    (site,) = attn_surgery.plan(host, "se").sites
    assert site.after == "c2"
    assert makeup(host) == before
    for module, attributes in zip(host.modules(), held, strict=True):
        now = vars(module).items()
        assert all(a[1] is b[1] for a, b in zip(now, attributes, strict=True))
    assert all(a is b[0] for a, b in zip(kept, made, strict=True))


def convolutions(host: nn.Module) -> list[Standardized]:
    return [each for each in host.modules() if isinstance(each, Standardized)]


# A load that fails after the surgery


def altered(
    path: Path, change: Callable[[attention_file.Content, dict[str, Tensor]], None]
) -> None:
    """Write a file anew, with another content that agrees with itself."""
    content, tensors = attention_file.read(path)
    change(content, tensors)
    content.digests.clear()
    content.digests.update({key: digest(each) for key, each in tensors.items()})
    attention_file.write(path, content, tensors)


def without_one(content: attention_file.Content, tensors: dict[str, Tensor]) -> None:
    del tensors["0.attn.fc1.weight"]


def with_one_of_another_shape(content: attention_file.Content, tensors: dict[str, Tensor]) -> None:
    tensors["0.attn.fc1.bias"] = torch.ones(3)


def with_a_second_surgery(content: attention_file.Content, tensors: dict[str, Tensor]) -> None:
    init = content.surgeries[0][1]
    other = nn.Sequential(nn.Identity(), nn.Sequential(Closure()))
    content.surgeries.append((attn_surgery.plan(other, "se"), init))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_one, "does not hold what its surgery needs: missing: 0.attn.fc1.weight"),
        (with_one_of_another_shape, r"needs: different: 0.attn.fc1.bias \(float32 3, not"),
        (with_a_second_surgery, "made for another host: it has a site in '1.0'"),
    ],
)
@pytest.mark.parametrize("verb", [attn_surgery.load, attn_surgery.switch])
def test_what_is_refused_after_the_surgery(
    verb: Any, change: Any, message: str, tmp_path: Path
) -> None:
    model = trained(Closure)
    attn_surgery.save(model, tmp_path / "file", host="*.c1.*")
    altered(tmp_path / "file", change)
    host = fresh(Closure, model)
    before, numbers = makeup(host), copy.deepcopy(host.state_dict())
    with pytest.raises(SurgeryError, match=message):
        verb(host, tmp_path / "file")
    assert makeup(host) == before
    assert attn_surgery.inserted(host) == {}
    assert all(torch.equal(each, numbers[key]) for key, each in host.state_dict().items())


def test_the_host_is_planned_once_for_a_surgery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, repeated = trained(Block), []
    attn_surgery.save(model, tmp_path / "file")
    real = loading.repeat
    monkeypatch.setattr(loading, "repeat", lambda *all: (repeated.append(all), real(*all)))
    host = attn_surgery.load(fresh(Block, model), tmp_path / "file")
    assert [each[0] for each in repeated] == [host]


# What the host was, without taking the attention out


def twice_replaced(model: nn.Module, first: str = "se", second: str = "cbam") -> nn.Module:
    for attention in (first, second):
        attn_surgery.apply(model, attention, existing="replace")
    return model


def listed(model: nn.Module) -> nn.Module:
    """List the attentions, and a block, once more."""
    attn_surgery.apply(model, "se", existing="replace")
    model.attentions = nn.ModuleList(attn_surgery.inserted(model).values())
    model.last = model.get_submodule("body.1")
    return model


OPERATIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "inserted": lambda model: attn_surgery.apply(model, "cbam", existing="stack"),
    "replaced": lambda model: attn_surgery.apply(model, "cbam", existing="replace"),
    "replaced by its like": lambda model: attn_surgery.apply(model, "se", existing="replace"),
    "replaced twice": twice_replaced,
    "stacked, then replaced": lambda model: twice_replaced(
        attn_surgery.apply(model, "eca", existing="stack")
    ),
    "replaced, then moved": lambda model: twice_replaced(model).double(),
    "at two places": listed,
    "not at all": lambda model: model,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "block",
    [hosts.OwnModule, hosts.ChildGate, hosts.InSequential, hosts.TwoAttentions, hosts.LayerScale],
)
def test_what_was_before_is_what_remove_gives_back(operation: str, block: Any) -> None:
    model = OPERATIONS[operation](hosts.Net(block))
    model.again = model.body  # pyright: ignore[reportAttributeAccessIssue]
    seen = Operated(model).before
    expected = attn_surgery.remove(copy.deepcopy(model)).state_dict()
    assert sorted(seen) == sorted(expected)
    assert all(torch.equal(seen[key], each) for key, each in expected.items())
    assert {each.dtype for each in seen.values()} == {each.dtype for each in expected.values()}


def test_an_attention_of_the_same_names_in_the_place_of_another(tmp_path: Path) -> None:
    """Its ``fc1.weight`` is not the host's, which comes back."""
    host = hosts.Net(hosts.OwnModule).eval()
    host.again = host.body  # pyright: ignore[reportAttributeAccessIssue]
    model = attn_surgery.apply(copy.deepcopy(host), "se", existing="replace")
    assert Operated(model).own.keys() & host.state_dict().keys()
    attn_surgery.save(model, tmp_path / "file")
    for each in (model, attn_surgery.load(copy.deepcopy(host), tmp_path / "file")):
        attn_surgery.switch(each, tmp_path / "file")
        attn_surgery.switch(each, tmp_path / "file")
        known = attn_surgery.remove(each).state_dict()
        assert all(torch.equal(known[key], value) for key, value in host.state_dict().items())


def test_a_graph_module_with_a_child_that_it_does_not_call(tmp_path: Path) -> None:
    def make() -> torch.fx.GraphModule:
        traced = torch.fx.symbolic_trace(nn.Sequential(Block()))
        traced.add_module("spare", nn.Linear(2, 2))
        return traced

    model = attn_surgery.apply(make(), "se")
    attn_surgery.save(model, tmp_path / "file", host="all")
    again = attn_surgery.load(make(), tmp_path / "file")
    assert torch.equal(again(X), model(X))
