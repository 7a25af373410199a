"""Without a gradient, and for maxima: the same numbers by fewer and cheaper steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plainly import plainly
from torch import Tensor

from attn_surgery.attention import build
from attn_surgery.attention.construction import maxima, passes

NAMES = ("se", "cam", "cbam")
SHAPES = [
    (2, 24, 7, 7),
    (3, 40, 9, 10),
    (1, 33, 5, 5),
    (12, 8, 14, 14),
    (2, 16, 45),
    (2, 6, 3, 4, 5),
]
"""Positions and channels that fill no register, batches that are few and many."""


def moved(name: str, shape: tuple[int, ...]) -> Any:
    """Build an attention in float64 that is past its start."""
    torch.manual_seed(0)
    attention = build(
        name, shape[1], spatial_dims=len(shape) - 2, options={"hidden_channels": 3}
    ).double()
    with torch.no_grad():
        for each in attention.parameters():
            each += torch.randn_like(each) / 2
    return attention


def a_map(shape: tuple[int, ...], *, channels_last: bool) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.double)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


@pytest.fixture(params=["at once", "apart"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "apart":
        monkeypatch.setattr(passes, "_LARGE", 1)
        monkeypatch.setattr(passes, "_PART", 1)
    monkeypatch.setattr(maxima, "_MANY", 1)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_without_a_gradient_the_numbers_are_those_of_plain_steps(
    name, shape, training, channels_last
):
    one, x = moved(name, shape).train(training), a_map(shape, channels_last=channels_last)
    other, before = copy.deepcopy(one), x.clone()
    with torch.no_grad():
        y, plain = one(x), plainly(other, x)
    assert y.stride() == plain.stride()
    assert torch.equal(y, plain)
    torch.testing.assert_close(list(one.buffers()), list(other.buffers()), rtol=0, atol=0)
    assert torch.equal(x, before)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_without_a_gradient_the_start_is_the_identity_bit_for_bit(name, dtype):
    attention = build(name, 24).to(dtype).eval()
    x = torch.randn(3, 24, 7, 7).to(dtype)
    x[0, 0, 0] = -0.0
    with torch.inference_mode():
        assert torch.equal(attention(x).view(torch.uint8), x.view(torch.uint8))


@pytest.mark.parametrize(
    "touched", ["channel.fc1", "channel.act", "spatial.conv", "spatial.conv.bn"]
)
def test_a_layer_that_is_hooked_sees_the_whole_batch(touched, monkeypatch):
    monkeypatch.setattr(passes, "_LARGE", 1)
    monkeypatch.setattr(passes, "_PART", 1)
    attention, seen = build("cbam", 8).eval(), []
    attention.get_submodule(touched).register_forward_hook(lambda *call: seen.append(len(call[2])))
    with torch.no_grad():
        attention(torch.randn(3, 8, 7, 7))
    assert set(seen) == {3}


SIZES = st.integers(1, 50)
SAMPLES, CHANNELS = st.integers(1, 3), st.integers(1, 140)


@given(
    shape=st.tuples(SAMPLES, CHANNELS, SIZES) | st.tuples(SAMPLES, CHANNELS, SIZES, SIZES),
    channels_last=st.booleans(),
    odd=st.sampled_from([None, float("nan"), float("inf"), -float("inf")]),
)
def test_maxima_are_those_of_torch(shape, channels_last, odd):
    x = a_map(shape, channels_last=channels_last).float()
    if odd is not None:
        x[0, 0, -1] = odd
    positions = list(range(2, x.dim()))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(maxima, "_MANY", 1)
        over_channels = maxima.maximum_over_channels(x)
        over_positions = maxima.maximum_over_positions(x)
    same = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(over_channels, x.amax(1, keepdim=True), **same)
    torch.testing.assert_close(over_positions, x.amax(positions, keepdim=True), **same)
