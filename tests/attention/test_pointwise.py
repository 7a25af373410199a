"""The layers of a gate: convolutions to everybody, products of matrices to the processor."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_lean import moved
from torch import Tensor, fx, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from attn_surgery.attention import SE, build
from attn_surgery.attention.construction import CONV, ChannelGate, pointwise
from attn_surgery.attention.construction.pointwise import POINTWISE, PointwiseConv2d

POSITIONS = st.integers(1, 3)
CALLED = {
    "hook": lambda layer: layer.register_forward_hook(lambda *_: None),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "forward of its own": lambda layer: setattr(layer, "forward", layer.forward),
    "parametrized": lambda layer: parametrize.register_parametrization(
        layer, "weight", nn.Identity()
    ),
    "pruned": lambda layer: prune.identity(layer, "weight"),
    "compiled": lambda layer: layer.compile(backend="eager"),
}


def of_gate(name: str, dims: int) -> Any:
    """Build an attention with such a gate, past its start."""
    return moved(name, (3, 24, *[4] * dims)).float()


@given(
    samples=st.integers(0, 3),
    channels=st.integers(1, 9),
    outward=st.integers(1, 9),
    size=POSITIONS.flatmap(lambda dims: st.lists(POSITIONS, min_size=dims, max_size=dims)),
    bias=st.booleans(),
)
def test_it_is_the_convolution(samples, channels, outward, size, bias):
    torch.manual_seed(1)
    ours = POINTWISE[len(size)](channels, outward, 1, bias=bias).double()
    torch.manual_seed(1)
    theirs = CONV[len(size)](channels, outward, 1, bias=bias).double()
    assert isinstance(ours, type(theirs))
    x = torch.randn(samples, channels, *size, dtype=torch.double, requires_grad=True)
    y, expected = ours(x), theirs(x)
    close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(y, expected)
    if samples:
        mine = torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])
        others = torch.autograd.grad(expected.square().sum(), [x, *theirs.parameters()])
        close(mine, others)


@pytest.mark.parametrize("which", ["fc1", "act", "fc2"])
@pytest.mark.parametrize("touch", CALLED.values(), ids=CALLED)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", ["se", "cam"])
def test_called_or_not_the_numbers_are_the_same(name, dims, touch, which):
    if which == "act" and touch in (CALLED["parametrized"], CALLED["pruned"]):
        pytest.skip("an activation has no weight")
    attention, x = of_gate(name, dims), torch.randn(3, 24, *[4] * dims)
    other = copy.deepcopy(attention)
    touch(other.get_submodule(which))
    with torch.no_grad():
        torch.testing.assert_close(attention(x), other(x))
        attention, other, x = attention.double(), other.double(), x.double()
        assert torch.equal(attention(x), other(x))


@pytest.mark.parametrize("which", ["fc1", "act", "fc2"])
def test_a_layer_that_is_hooked_is_called(which):
    attention, seen = of_gate("cam", 2), []
    attention.get_submodule(which).register_forward_hook(lambda *call: seen.append(call[2].shape))
    attention(torch.randn(3, 24, 4, 4))
    assert len(seen) == 1
    assert seen[0][0] == 3, "one row a sample, as those ask who sort gradients by sample"


def test_a_hook_on_all_modules_sees_the_layers():
    attention, seen = of_gate("se", 2), []
    handle = nn.modules.module.register_module_forward_hook(lambda *call: seen.append(call[0]))
    try:
        attention(torch.randn(3, 24, 4, 4))
    finally:
        handle.remove()
    assert {attention.fc1, attention.act, attention.fc2} <= set(seen)


class Bounded(SE):
    """Somebody's own gate."""

    def mlp(self, pooled: Tensor) -> Tensor:
        return super().mlp(pooled).clamp(-1, 1)


def of_its_class(monkeypatch: pytest.MonkeyPatch) -> SE:
    return Bounded(24)


def of_the_instance(monkeypatch: pytest.MonkeyPatch) -> SE:
    attention = SE(24)
    attention.mlp = types.MethodType(Bounded.mlp, Bounded(24))
    return attention


def of_all_gates(monkeypatch: pytest.MonkeyPatch) -> SE:
    monkeypatch.setattr(ChannelGate, "mlp", lambda self, pooled: torch.ones_like(pooled))
    return SE(24)


@pytest.mark.parametrize("kind", [of_its_class, of_the_instance, of_all_gates])
def test_an_mlp_of_its_own_is_called(kind, monkeypatch):
    attention, x = kind(monkeypatch), torch.randn(3, 24, 4, 4)
    owner = getattr(attention.mlp, "__self__", attention)
    nn.init.constant_(owner.fc2.bias, 5.0)
    torch.testing.assert_close(attention(x), x * (2 * torch.ones(()).sigmoid()))


class Strip(SE):
    """Pools rows alone."""

    def gate(self, x: Tensor) -> Tensor:
        return self.gate_of([x.mean(-1, keepdim=True)])


def test_a_gate_of_several_positions():
    attention, x = Strip(24), torch.randn(3, 24, 4, 5)
    nn.init.normal_(attention.fc2.weight)
    rows = x.mean(-1, keepdim=True)
    expected = x * 2 * F.conv2d(attention.fc1(rows).relu(), attention.fc2.weight).sigmoid()
    torch.testing.assert_close(attention(x), expected)
    torch.testing.assert_close(attention(x[0]), expected[0])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_layer_takes_a_map_that_is_alone(dims):
    layer, x = POINTWISE[dims](5, 3, 1), torch.randn(5, *[5] * dims)
    assert torch.equal(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("shape", [(24, 4), (2, 24, 3, 4, 5)], ids=str)
def test_other_maps_are_refused_as_a_convolution_refuses_them(shape):
    with pytest.raises(RuntimeError, match="3 or 4 dimensions"):
        build("se", 24)(torch.randn(shape))
    with pytest.raises(RuntimeError, match="3 or 4 dimensions"):
        PointwiseConv2d(24, 2, 1)(torch.randn(shape))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("se", {}),
        ("cam", {}),
        ("cam", {"pools": ["max"]}),
        ("cbam", {}),
        ("cbam", {"pools": ["avg"]}),
        ("scse", {}),
    ],
)
def test_a_gate_that_is_nearly_shut_stays_so_in_int8(name, options):
    torch.manual_seed(0)
    attention = build(name, 8, options=options).eval()
    for path, layer in attention.named_modules():
        if path.endswith("fc2"):
            nn.init.constant_(cast("Any", layer).bias, -3.0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), attention, nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(4, 3, 9, 9)
    prepared = quantize_fx.prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    difference = quantize_fx.convert_fx(prepared)(x) - model(x)
    assert difference.norm() < 0.03 * model(x).norm()


class Rescaled(nn.Conv2d):
    """Somebody's own layer."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("kind", [nn.Conv2d, Rescaled])
def test_a_layer_that_was_exchanged_is_called(kind: type[nn.Conv2d]):
    """Convolutions are what earlier versions had; what was pickled then goes on."""
    attention, x = of_gate("se", 2), torch.randn(3, 24, 4, 4)
    other = copy.deepcopy(attention)
    other.fc2 = kind(3, 24, 1)
    other.fc2.load_state_dict(attention.fc2.state_dict())
    hidden = F.relu(attention.fc1(x.mean((2, 3), keepdim=True)))
    expected = x * (2 * other.fc2(hidden).sigmoid())
    torch.testing.assert_close(other(x), expected)
    assert torch.allclose(other(x), attention(x), atol=1e-5) is (kind is nn.Conv2d)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("grad", [False, True])
def test_what_stands_before_a_parameter_is_used(name, grad):
    attention, x = of_gate("se", 2), torch.randn(1, 24, 4, 4)
    value = torch.randn_like(getattr(attention.fc2, name))
    expected = copy.deepcopy(attention)
    expected.fc2.load_state_dict({**expected.fc2.state_dict(), name: value})
    vars(attention.fc2)[name] = value  # as FSDP does
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(attention(x), expected(x))


class Shared(SE):
    """Another's first layer."""

    owner: list[SE]

    @property
    def fc1(self) -> Any:
        return self.owner[0].fc1


def test_a_layer_that_is_computed_is_used():
    owner, x = SE(24, hidden_channels=3), torch.randn(1, 24, 4, 4)
    attention, expected = of_gate("se", 2), of_gate("se", 2)
    attention.__class__, attention.owner = Shared, [owner]
    expected.fc1 = owner.fc1
    with torch.no_grad():
        assert torch.equal(attention(x), expected(x))


class Asked(SE):
    """Answers for itself what its activation is."""

    def __getattr__(self, name: str) -> Any:
        return F.gelu if name == "act" else super().__getattr__(name)


def replaced_by_a_function(attention: Any) -> None:
    del attention.act
    attention.act = F.gelu


def hidden_by_an_attribute(attention: Any) -> None:
    vars(attention)["act"] = F.gelu


def hidden_by_the_class(attention: Any) -> None:
    attention.__class__ = Asked


@pytest.mark.parametrize(
    "change", [replaced_by_a_function, hidden_by_an_attribute, hidden_by_the_class]
)
def test_an_activation_that_is_no_child_is_used(change):
    attention, expected, x = of_gate("se", 2), of_gate("se", 2), torch.randn(1, 24, 4, 4)
    change(attention)
    expected.act = nn.GELU()
    with torch.no_grad():
        assert torch.equal(attention(x), expected(x))


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize("name", ["se", "cam"])
def test_pools_that_were_exchanged_for_none(name, samples):
    attention, x = of_gate(name, 2), torch.randn(samples, 24, 40, 40)
    attention.pools = ["none"]
    gate = 2 * attention.fc2(attention.fc1(x).relu()).sigmoid()
    torch.testing.assert_close(attention(x), x * gate)


class Halved(SE):
    """Somebody's own factors."""

    def gate_of(self, pools: list[Tensor]) -> Tensor:
        return super().gate_of(pools) / 2


def test_factors_of_its_own_are_used():
    attention, x = Halved(24), torch.randn(1, 24, 4, 4)
    assert torch.equal(attention(x), x / 2)


class OfItsOwn(nn.Module):
    """Attends to what it keeps, and not to what it gets."""

    kept: Tensor

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention
        self.register_buffer("kept", torch.randn(1, 24, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.kept)


@pytest.mark.parametrize("name", ["se", "cam"])
def test_fx_sees_the_parameters_behind_a_map_that_is_no_proxy(name):
    model = OfItsOwn(of_gate(name, 2))
    traced, x = fx.symbolic_trace(model), torch.randn(1, 24, 4, 4)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    torch.testing.assert_close(traced(x), model(x))


def test_without_a_squeeze_it_is_a_convolution_of_a_large_map():
    attention = build("se", 8, options={"pool": "none"})
    assert type(attention.fc1) is type(attention.fc2) is nn.Conv2d


def test_nothing_is_called_where_nobody_looks(monkeypatch):
    def refuse(*_: Any) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(pointwise._Pointwise, "forward", refuse)
    build("cbam", 24)(torch.randn(3, 24, 4, 4))


@pytest.mark.parametrize("name", ["se", "cbam"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_a_tracer_has_nothing_to_warn_of(name):
    attention, x = of_gate(name, 2).eval(), torch.randn(2, 24, 4, 4)
    traced: Any = torch.jit.trace(attention, x, check_trace=False)
    torch.testing.assert_close(traced(x), attention(x), rtol=1e-4, atol=1e-4)
