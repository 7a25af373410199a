"""What a model is fed: shapes, several tensors, callables, and guesses."""

import argparse

import pytest
import torch
from torch import nn

from attn_surgery.errors import SurgeryError
from attn_surgery.host.inputs import Input, as_input, guess_input, parse_input
from tests.pretended import Accelerator


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("3x800x800", ((3, 800, 800),)),
        ("1x64x64x64", ((1, 64, 64, 64),)),
        ("3x16x112x112", ((3, 16, 112, 112),)),
        ("2x100", ((2, 100),)),
        ("3x520x960,3x520x960", ((3, 520, 960), (3, 520, 960))),
    ],
)
def test_shapes_are_read(text, shapes):
    given = parse_input(text)
    assert given.shapes == shapes
    assert str(given) == text
    assert [tuple(each.shape) for each in given.build(batch=2)[0]] == [(2, *s) for s in shapes]


@pytest.mark.parametrize("text", ["", "3", "x", "3x", "3x0x8", "3xtwo", "3x8x8,", "-3x8", "os:sep"])
def test_words_that_are_no_input(text):
    with pytest.raises(SurgeryError, match=r"no shape|not a callable"):
        parse_input(text)


def test_build_on_a_device():
    given = Input(((3, 4), (2, 5)))
    state = torch.get_rng_state()
    args, kwargs = given.build(2, "cpu", torch.float16)
    assert [(tuple(each.shape), each.dtype) for each in args] == [
        ((2, 3, 4), torch.float16),
        ((2, 2, 5), torch.float16),
    ]
    assert kwargs == {}
    assert torch.equal(torch.get_rng_state(), state)
    again, _ = given.build(2, "cpu", torch.float16)
    assert all(torch.equal(a, b) for a, b in zip(args, again, strict=True))


def test_the_numbers_are_those_of_a_seed():
    given = Input(((3, 4), (2, 5)))
    drawn = torch.Generator().manual_seed(0)
    expected = [torch.randn(2, 3, 4, generator=drawn), torch.randn(2, 2, 5, generator=drawn)]
    for dtype in (None, torch.float16, torch.float64):
        args, _ = given.build(2, "cpu", dtype)
        for arg, each in zip(args, expected, strict=True):
            assert torch.equal(arg, each.to(dtype or torch.float32))


def test_the_default_device_is_not_asked_where():
    given = Input(((3, 4),))
    with torch.device("meta"):
        args, _ = given.build(2, "cpu")
    assert torch.equal(args[0], given.build(2, "cpu")[0][0])


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_batch_is_drawn_where_it_goes(monkeypatch, kind):
    """Host memory may be smaller than the device's, and what is tried is the device's."""
    there = Accelerator(monkeypatch, kind, is_initialized=False)
    before, asked = there.states(), []

    def randn(shape, *, dtype, device):
        asked.append((shape, dtype, device.type, there.draw()))
        return torch.empty(shape, dtype=dtype, device="meta")

    monkeypatch.setattr(torch, "randn", randn)
    for _ in range(2):
        args, _ = Input(((3, 4),)).build(10**9, kind, torch.bfloat16)
        assert args[0].dtype is torch.bfloat16
    assert asked[0][:3] == ((10**9, 3, 4), torch.bfloat16, kind)
    assert asked[0] == asked[1], "the same numbers"
    assert there.states() == before


def test_batches_of_what_a_callable_makes():
    made = {
        "images": [torch.zeros(3, 4), torch.zeros(3, 5)],
        "ids": torch.arange(3)[None],
        "nested": {"mask": torch.ones(1, 2)},
        "scale": 2.0,
    }
    args, kwargs = Input(make=lambda: made).build(2, "meta", torch.float16)
    assert args == ()
    assert [tuple(each.shape) for each in kwargs["images"]] == [(3, 4), (3, 5)] * 2
    assert (kwargs["images"][0].dtype, kwargs["ids"].dtype) == (torch.float16, torch.int64)
    assert tuple(kwargs["ids"].shape) == (2, 3)
    assert tuple(kwargs["nested"]["mask"].shape) == (2, 2)
    assert kwargs["nested"]["mask"].is_meta
    assert kwargs["scale"] == 2.0


def test_the_same_shape_for_every_required_argument():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 4, 3)

        def forward(self, first, second, third=None, *others, **options):
            return first

    assert guess_input(Net()).shapes == ((2, 224), (2, 224))


def test_an_input_is_passed_through():
    given = Input(((3, 4),))
    assert as_input(given, nn.Identity()) is given
    assert as_input([(3, 4), (1, 2)], nn.Identity()).to_json() == [[3, 4], [1, 2]]
    assert as_input(torch.Size([3, 4]), nn.Identity()) == given
    assert as_input(argparse.Namespace, nn.Identity()).to_json() == "Namespace"
