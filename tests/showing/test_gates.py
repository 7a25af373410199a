"""What is measured of an attention, by what goes in and what comes out."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from showing_hosts import images, net, scaled
from torch import Tensor, nn

import attn_surgery
from attn_surgery.showing.gates import Gate, metered
from attn_surgery.showing.numbers import by_class, contrast_of, spread_of


def gate_of(attention: nn.Module, *maps: Tensor) -> Gate:
    with metered({"attn": attention}) as gates, torch.no_grad():
        for each in maps:
            attention(each)
    return gates()["attn"]


class Gains(nn.Module):
    """Multiplies by a tensor."""

    def __init__(self, gains: Tensor):
        super().__init__()
        self.gains = gains

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gains


def test_the_gate_of_a_gate_is_that_gate() -> None:
    maps = torch.randn(1, 4, 5, 6)
    channel, position = torch.rand(1, 4, 1, 1) + 0.5, torch.rand(1, 1, 5, 6) + 0.5
    by_channel, by_position = gate_of(Gains(channel), maps), gate_of(Gains(position), maps)
    numpy.testing.assert_allclose(by_channel.channel, channel.flatten(), rtol=1e-6)
    assert by_position.position is not None
    numpy.testing.assert_allclose(by_position.position, position[0, 0], rtol=1e-6)


def test_the_gate_is_the_least_squares_gain() -> None:
    maps = torch.randn(1, 3, 7, 7)
    attention = nn.Conv2d(3, 3, 3, padding=1)
    found = gate_of(attention, maps)
    with torch.no_grad():
        out = attention(maps)
    for channel in range(3):
        solved = torch.linalg.lstsq(maps[0, channel].reshape(-1, 1), out[0, channel].reshape(-1, 1))
        assert found.channel[channel] == pytest.approx(solved.solution.item(), abs=1e-5)
    assert found.change == pytest.approx(((out - maps).norm() / maps.norm()).item(), rel=1e-5)


def test_what_is_added_across_the_map_is_change_and_no_gain() -> None:
    maps = torch.tensor([1.0, -1.0]).repeat(8).reshape(1, 1, 4, 4)

    class Adds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.5

    found = gate_of(Adds(), maps)
    assert found.channel[0] == 1.0
    assert found.change == pytest.approx(0.5)


def test_where_nothing_goes_in_there_is_no_gate() -> None:
    maps = torch.randn(1, 2, 3, 3)
    maps[:, 1] = 0
    maps[:, :, 0, 0] = 0
    found = gate_of(nn.Identity(), maps)
    assert found.channel[0] == 1.0
    assert math.isnan(found.channel[1])
    assert found.position is not None
    assert math.isnan(found.position[0, 0])
    assert numpy.nanmin(found.position) == 1.0
    assert math.isnan(gate_of(nn.Identity(), torch.zeros(1, 2, 3, 3)).change)


def test_an_attention_may_work_in_place() -> None:
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    found = gate_of(Doubles(), torch.randn(1, 2, 3, 3))
    assert found.channel.tolist() == [2.0, 2.0]


def test_several_calls_count_together_and_the_first_is_the_map() -> None:
    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    found = gate_of(Squares(), torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 4, 4), 3.0))
    assert found.channel[0] == pytest.approx((4 * 1 + 16 * 27) / (4 * 1 + 16 * 9))
    assert found.position is not None
    assert found.position.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_maps_that_are_not_one_image_have_channels_only() -> None:
    found = gate_of(nn.Identity(), torch.randn(6, 2, 3, 3))
    assert found.position is None
    assert found.channel.tolist() == [1.0, 1.0]


# every attention

NAMES = [name for name in attn_surgery.available() if name != "ge"]
"""timm's GE is refused."""


@pytest.mark.parametrize("name", NAMES)
def test_every_attention_is_the_identity_first_and_seen_when_it_is_not(name: str) -> None:
    torch.manual_seed(0)
    model = attn_surgery.apply(net(channels=32), name, where="blocks.0")
    asked: dict[str, Any] = {"method": None}
    (site,) = attn_surgery.show(model, images(1), **asked).sites
    assert (site.block, site.attention, site.change) == ("blocks.0", name, 0.0)
    assert (site.channel == 1).all()
    assert site.position_range == (1.0, 1.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in attn_surgery.inserted(model)["blocks.0.attn"].parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    (moved,) = attn_surgery.show(model, images(1), **asked).sites
    assert moved.change > 1e-4
    assert numpy.isfinite(moved.channel).all()


# numbers


def test_numbers_say_how_many_channels_are_raised_and_silenced() -> None:
    gates = numpy.array([[1.0, 1.1, 0.9, 0.05, math.nan], [1.0, 1.1, 0.9, 0.05, math.nan]])
    found = spread_of(gates)
    assert (found.channels, found.dead) == (5, 1)
    assert (found.raised, found.damped, found.silenced, found.clipped) == (1, 2, 1, 1)
    assert (found.farthest, found.farthest_gate) == (3, pytest.approx(0.05))
    assert found.distance == pytest.approx((0 + 0.1 + 0.1 + 0.95) / 4)


def test_a_site_without_any_gate_has_no_numbers() -> None:
    found = spread_of(numpy.full((2, 3), math.nan))
    assert (found.dead, found.farthest) == (3, -1)


def test_classes_are_told_apart_by_the_channel_that_differs() -> None:
    gates = numpy.array([[1.0, 1.0], [1.0, 1.5], [1.0, 1.1], [9.0, 9.0]])
    labels = ["a", "b", "a", None]
    assert by_class(gates, labels)["a"].tolist() == [1.0, 1.05]
    found = contrast_of(gates, labels)
    assert found is not None
    assert (found.channel, found.low, found.high) == (1, ("a", 1.05), ("b", 1.5))
    between = 2 * (1.05 - 1.2) ** 2 + (1.5 - 1.2) ** 2
    total = (1.0 - 1.2) ** 2 + (1.5 - 1.2) ** 2 + (1.1 - 1.2) ** 2
    assert found.share == pytest.approx(between / total)
    assert contrast_of(gates, ["a", "a", "a", None]) is None


def test_a_scale_is_found_by_the_whole_way() -> None:
    gallery = attn_surgery.show(scaled(1.25), images())
    for site in gallery.sites:
        numpy.testing.assert_allclose(site.channel, 1.25, rtol=1e-6)
        assert site.change == pytest.approx(0.25, rel=1e-5)
        assert site.spread.raised == site.spread.channels == 8
