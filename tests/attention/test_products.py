"""Small convolutions in other ways than torch's own: the same numbers but for rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plainly import plainly
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from attn_surgery.attention import build
from attn_surgery.attention.construction import few_channels, pointwise
from attn_surgery.attention.construction.few_channels import convolved
from attn_surgery.attention.construction.pointwise import PointwiseConv2d, mlp_of_pools

TOUCHED: dict[str, Callable[[Any], object]] = {
    "strided": lambda conv: setattr(conv, "stride", (1, 2)),
    "dilated": lambda conv: (
        setattr(conv, "dilation", (2, 2)),
        setattr(conv, "padding", (6, 6)),
    ),
    "circular": lambda conv: conv.__init__(2, 1, 7, padding=3, padding_mode="circular"),
    "padded by name": lambda conv: conv.__init__(2, 1, 7, padding="same"),
    "padded unevenly": lambda conv: setattr(conv, "padding", (3, 2)),
    "padded less": lambda conv: setattr(conv, "padding", (2, 2)),
    "of two outputs": lambda conv: conv.__init__(2, 2, 7, padding=3),
    "in groups": lambda conv: conv.__init__(2, 2, 7, padding=3, groups=2),
    "hooked": lambda conv: conv.register_forward_hook(lambda *call: call[2] + 1),
    "parametrized": lambda conv: parametrize.register_parametrization(
        conv, "weight", nn.Identity()
    ),
    "of its own": lambda conv: setattr(conv, "forward", lambda x: 2 * nn.Conv2d.forward(conv, x)),
}


class Seen(TorchDispatchMode):
    """Notes which convolutions are run."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._slow_conv2d_forward.default:
            self.ways.append("product")
        elif func is torch.ops.aten.convolution.default:
            self.ways.append("rows" if args[3] != [1, 1] else "plain")
        return func(*args, **(kwargs or {}))


def layers(*, bias: bool = False, norm: bool = True, kernel: int = 7) -> Any:
    torch.manual_seed(0)
    made: list[Any] = [nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=bias)]
    if norm:
        made.append(nn.BatchNorm2d(1))
        nn.init.normal_(made[1].weight)
    return nn.Sequential(*made)


def a_map(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((1, 2, 7, 7), "product"),
        ((8, 2, 14, 14), "product"),
        ((8, 2, 28, 28), "rows"),
        ((3, 2, 56, 31), "rows"),
        ((3, 2, 61, 56), "plain"),  # 61 rows are no multiple
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_ways_and_their_numbers(shape, way, training, layout):
    ours = layers().train(training).to(memory_format=layout)
    x = a_map(*shape).contiguous(memory_format=layout)
    theirs = copy.deepcopy(ours)
    with Seen() as seen, torch.no_grad():
        y = convolved(x, ours)
    assert seen.ways == [way]
    close(y, theirs(x))
    close(list(ours.buffers()), list(theirs.buffers()))


@given(
    samples=st.integers(1, 4),
    height=st.integers(1, 70),
    width=st.integers(1, 40),
    kernel=st.sampled_from([1, 3, 5, 7]),
    bias=st.booleans(),
)
def test_any_size_with_gradients(samples, height, width, kernel, bias):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_channels, "_TINY", 1 << 9)
        ours = layers(bias=bias, norm=False, kernel=kernel)
        theirs, x = copy.deepcopy(ours).double(), a_map(samples, 2, height, width)
        mine, other = x.clone().requires_grad_(), x.double().requires_grad_()
        y, expected = convolved(mine, ours), theirs(other)
    close(y.double(), expected)
    found = torch.autograd.grad(y.square().mean(), [mine, *ours.parameters()])
    right = torch.autograd.grad(expected.square().mean(), [other, *theirs.parameters()])
    for a, b in zip(found, right, strict=True):
        close(a.double(), b)


@pytest.mark.parametrize("shape", [(1, 2, 14, 14), (8, 2, 28, 28)], ids=str)
def test_second_derivatives(shape):
    found = []
    for kind in (convolved, lambda x, of: of(x)):
        of, x = layers(norm=False), a_map(*shape).requires_grad_()
        (first,) = torch.autograd.grad(kind(x, of).pow(3).mean(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, of[0].weight]))
    close(*found)


@pytest.mark.parametrize("shape", [(1, 2, 14, 14), (8, 2, 28, 28)], ids=str)
@pytest.mark.parametrize("touch", TOUCHED.values(), ids=TOUCHED)
def test_a_convolution_that_was_touched_is_called(touch, shape):
    ours, x = layers(norm=False).eval(), a_map(*shape)
    touch(ours[0])
    with Seen() as seen:
        y = convolved(x, ours)
    assert "product" not in seen.ways
    assert torch.equal(y, ours(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_go_torchs_way(dtype):
    ours, x = layers().eval().to(dtype), a_map(1, 2, 14, 14).to(dtype)
    assert torch.equal(convolved(x, ours), ours(x))


def test_norms_that_were_touched_are_called():
    x, found = a_map(1, 2, 14, 14), []
    for touch in (
        lambda norm: norm.register_forward_hook(lambda *_: found.append(1)),
        lambda norm: norm.train(),
        lambda norm: setattr(norm, "running_mean", None) or setattr(norm, "running_var", None),
    ):
        ours = layers().eval()
        touch(ours[1])
        theirs = copy.deepcopy(ours)
        close(convolved(x, ours), theirs(x))
        close(list(ours.buffers()), list(theirs.buffers()))
    assert len(found) == 2


def test_layers_that_are_no_sequence_are_called():
    conv, x = nn.Conv2d(2, 1, 3), a_map(1, 2, 14, 14)
    assert torch.equal(convolved(x, conv), conv(x))


# A gate's layers


@pytest.mark.parametrize("pools", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_an_mlp_of_few_numbers(pools, samples, bias, monkeypatch):
    torch.manual_seed(0)
    fc1, fc2 = PointwiseConv2d(24, 3, 1, bias=bias), PointwiseConv2d(3, 24, 1, bias=bias)
    maps = [torch.randn(samples, 24, 1, 1, requires_grad=True) for _ in range(pools)]
    leaves, found = [*maps, *fc1.parameters(), *fc2.parameters()], []
    for few in (1 << 14, 0):
        monkeypatch.setattr(pointwise, "_FEW", few)
        with Seen() as seen:
            logits = mlp_of_pools(maps, fc1, nn.ReLU(), fc2, ordinary=True)
        assert seen.ways == (["product"] * 2 if few or samples == pools == 1 else [])
        assert logits is not None
        found.append((logits, torch.autograd.grad(logits.square().sum(), leaves)))
    assert found[0][0].shape == maps[0].shape
    close(*found)


def test_an_mlp_of_which_more_is_not_known_is_multiplied():
    fc1, fc2 = PointwiseConv2d(24, 3, 1), PointwiseConv2d(3, 24, 1)
    with Seen() as seen:
        mlp_of_pools([torch.randn(1, 24, 1, 1)], fc1, nn.ReLU(), fc2)
    assert seen.ways == []


# The attentions


@pytest.mark.parametrize("shape", [(1, 24, 7, 7), (2, 8, 64, 64), (8, 16, 30, 30)], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["se", "cam", "cbam"])
def test_numbers_and_gradients_are_those_of_plain_steps(name, shape, training):
    torch.manual_seed(0)
    ours = build(name, shape[1], options={"hidden_channels": 3}).train(training)
    with torch.no_grad():
        for each in ours.parameters():
            each += torch.randn_like(each) / 2
    theirs, x = copy.deepcopy(ours), a_map(*shape)
    with torch.no_grad():
        close(copy.deepcopy(ours)(x), plainly(copy.deepcopy(theirs), x))
    found = []
    for attention, run in ((ours, nn.Module.__call__), (theirs, plainly)):
        leaf = x.clone().requires_grad_()
        y = run(attention, leaf)
        grads = torch.autograd.grad(y.square().mean(), [leaf, *attention.parameters()])
        found.append((y, grads, list(attention.buffers())))
    close(*found)
