"""A gallery as text, data, arrays and a sheet."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from showing_hosts import images, known, net, scaled

import attn_surgery
from attn_surgery import Gallery, SurgeryError
from attn_surgery.showing.colours import ABOVE, BELOW, over_activation, over_gates
from attn_surgery.showing.sheet import drawn

pytest.importorskip("pytorch_grad_cam")


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return attn_surgery.show(
        scaled(1.25), images(3, 32), labels="aba", classes=["cat", "dog", "$cow$"], name="net"
    )


def test_text_and_data(gallery: Gallery) -> None:
    text = str(gallery)
    assert "blocks.0" in text
    assert "1.250 to 1.250" in text
    assert "class activation maps: GradCAM of 'blocks', of the host's most probable class" in text
    data = json.loads(json.dumps(gallery.to_dict(), allow_nan=False))
    assert [site["raised"] for site in data["sites"]] == [8, 8]
    assert data["sites"][0]["contrast"]["share"] is None
    assert data["images"][1]["label"] == "b"
    best = data["images"][0]["host"]
    assert sum(each["probability"] for each in best) == pytest.approx(1)
    assert best[0]["class"] in gallery.classes


def test_arrays(gallery: Gallery, tmp_path: Path) -> None:
    gallery.save(tmp_path / "arrays.npz")
    with numpy.load(tmp_path / "arrays.npz", allow_pickle=False) as file:
        found = dict(file)
    shapes = {name: each.shape for name, each in found.items()}
    assert shapes["channel/blocks.0.attn"] == (3, 8)
    assert shapes["position/blocks.1.attn"] == (3, 16, 16)
    assert shapes["change/blocks.1.attn"] == (3,)
    assert shapes["activation_map/host"] == shapes["activation_map/operated"] == (3, 16, 16)
    assert shapes["probabilities/host"] == (3, 3)
    assert shapes["picture"] == (3, 32, 32, 3)
    assert found["labels"].tolist() == ["a", "b", "a"]
    numpy.testing.assert_allclose(found["channel/blocks.0.attn"], 1.25, rtol=1e-6)
    shown = gallery.images[2]
    assert numpy.array_equal(
        found["activation_map/operated"][2], known(shown.operated.activation_map)
    )
    assert found["target/host"].tolist() == [each.host.target for each in gallery.images]


def test_arrays_of_several_sizes(tmp_path: Path) -> None:
    several = [torch.rand(3, 16, 16), torch.rand(3, 24, 16)]
    attn_surgery.show(scaled(1.0), several).save(tmp_path / "arrays.npz")
    with numpy.load(tmp_path / "arrays.npz") as file:
        assert file["position/blocks.0.attn/1"].shape == (12, 8)
        assert file["activation_map/host/0"].shape == (8, 8)


def test_other_endings_are_refused(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"cannot save .*sheet.bmp: end it in .png"):
        gallery.save(tmp_path / "sheet.bmp")


# Colours


def test_a_map_near_1_looks_like_it() -> None:
    picture = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(numpy.uint8)
    grey = over_gates(picture, numpy.ones((8, 8)))
    assert (grey == grey[..., :1]).all()
    near = over_gates(picture, 1 + numpy.linspace(-0.01, 0.01, 64).reshape(8, 8))
    assert numpy.abs(near.astype(int) - grey).max() <= 5


@pytest.mark.parametrize(("gate", "colour"), [(0.5, BELOW), (1.5, ABOVE)])
def test_the_scale_is_the_same_for_every_map(gate: float, colour: tuple[int, int, int]) -> None:
    picture = numpy.full((12, 12, 3), 100, numpy.uint8)
    grey = round(64 + 100 * (216 - 64) / 255)
    full = over_gates(picture, numpy.full((2, 2), gate))
    assert numpy.abs(full[0, 0] - (0.1 * grey + 0.9 * numpy.array(colour))).max() <= 1
    half = over_gates(picture, numpy.array([[1.0, (1 + gate) / 2]]))
    assert (half[0, 0] == grey).all()
    assert numpy.abs(half[0, -1] - (0.55 * grey + 0.45 * numpy.array(colour))).max() <= 1
    beyond = over_gates(picture, numpy.full((2, 2), gate + (gate - 1)))
    striped = (beyond == 255).all(-1)
    assert 0.2 < striped.mean() < 0.5
    assert (beyond[~striped] == full[0, 0]).all()


def test_cells_stand_where_they_are_in_the_map() -> None:
    picture = numpy.full((6, 8, 3), 100, numpy.uint8)
    gates = numpy.ones((3, 4))
    gates[2, 1] = 1.4
    coloured = numpy.ptp(over_gates(picture, gates), -1) > 0
    assert coloured[4:, 2:4].all()
    assert coloured.sum() == 4
    gates[2, 1] = numpy.nan
    assert (numpy.ptp(over_gates(picture, gates), -1) > 0).sum() == 4


def test_activation_is_drawn_on_the_scale_that_is_given() -> None:
    picture = numpy.full((8, 8, 3), 100, numpy.uint8)
    activation = numpy.full((2, 2), 2.0)
    assert (
        over_activation(picture, activation, 4.0) == over_activation(picture, activation / 2, 2.0)
    ).all()
    assert (
        over_activation(picture, activation, 2.0) != over_activation(picture, activation, 4.0)
    ).any()
    assert (
        over_activation(picture, 0 * activation, 0.0)
        == over_activation(picture, 0 * activation, 1.0)
    ).all()


# The sheet


def texts(figure: Any) -> list[str]:
    return [each.get_text() for each in figure.texts]


def test_the_sheet_has_the_numbers_beside_the_colours(gallery: Gallery) -> None:
    figure = drawn(gallery)
    found = texts(figure)
    assert found.count("1.250 to 1.250") == 3 * 2 + 2
    assert found.count("25.00") == 2
    assert any("map moved" in each for each in found)
    pictures = [each.images[0].get_array() for each in figure.axes if each.images]
    assert len(pictures) == 2 + 3 * (3 + 2)
    expected = over_gates(
        known(gallery.images[0].picture), known(gallery.sites[0].gates[0].position)
    )
    assert any(numpy.array_equal(each, expected) for each in pictures)
    dots = figure.axes[-1]
    assert dots.get_xlim() == (0.48, 1.52)
    places = numpy.concatenate(
        [each.get_offsets() for each in dots.collections if len(each.get_offsets())]
    )
    numpy.testing.assert_allclose(places[:, 0], 1.25, rtol=1e-5)


def test_nothing_on_the_sheet_lies_on_something_else(gallery: Gallery) -> None:
    figure = drawn(gallery)
    figure.draw_without_rendering()
    boxes = [each.get_window_extent() for each in figure.texts]
    boxes += [each.get_window_extent() for each in figure.axes]
    width, height = figure.canvas.get_width_height()
    for i, one in enumerate(boxes):
        assert 0 <= one.x0 < one.x1 <= width
        assert 0 <= one.y0 < one.y1 <= height
        for other in boxes[:i]:
            wide = min(one.x1, other.x1) - max(one.x0, other.x0)
            high = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(wide, high) < 1.5, (i, boxes.index(other))


def test_clipped_channels_are_marked_at_the_edge() -> None:
    figure = drawn(attn_surgery.show(scaled(3.0), images(1), method=None))
    clipped = [each for each in figure.axes[-1].collections if len(each.get_offsets()) == 8]
    assert {float(place) for each in clipped for place in each.get_offsets()[:, 0]} == {1.5}
    assert "3.000 (#0)" in texts(figure)


def test_the_sheet_as_a_file(gallery: Gallery, tmp_path: Path) -> None:
    gallery.save(tmp_path / "sheet.png")
    image = Image.open(io.BytesIO((tmp_path / "sheet.png").read_bytes()))
    assert image.size == tuple(int(100 * side) for side in drawn(gallery).get_size_inches())


def test_more_images_than_fit_are_told() -> None:
    figure = drawn(attn_surgery.show(attn_surgery.apply(net(), "se"), images(13), method=None))
    assert "12 of 13 images; the numbers below are those of all" in texts(figure)
