"""The picture of a plan: all of it is there, in order, legible, and in every format."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torchvision
from torch import nn

import attn_surgery
from attn_surgery import Plan, Site, SurgeryError
from attn_surgery.planning import Assignment
from attn_surgery.reporting import draw_plan
from attn_surgery.reporting.drawing import Costs, blocks_of, picture
from attn_surgery.reporting.drawing.blocks import Block
from attn_surgery.reporting.drawing.looks import LOOKS
from attn_surgery.reporting.drawing.shapes import Group, Picture, Rect, Text

SVG = "{http://www.w3.org/2000/svg}"


def site(block: str, **more: Any) -> Site:
    about = {"block_type": "Block", "after": "bn2", "channels": 8, "method": "rewrite"}
    return Site(**{"block": block, "spatial_dims": 2, "existing": None, **about, **more})


def skipped(block: str, reason: str = "not selected by where", **more: Any) -> Site:
    return site(block, method="", reason=reason, **more)


def plan_of(cut: list[Site], others: list[Site] | None = None, attention: str = "se") -> Plan:
    return Plan(tuple(cut), tuple(others or ()), (Assignment(attention),) * len(cut))


def paths(blocks: list[Block]) -> list[str]:
    return [block.title for block in blocks]


# Blocks


@pytest.mark.parametrize(
    ("cut", "others", "expected"),
    [
        ("a.0 a.2 b.1", "a.1 b.0", "a.0 a.1 a.2 b.0 b.1"),
        ("a.9 a.11", "a.10 a.12", "a.9 a.10 a.11 a.12"),
        ("stem.0 blocks.0", "blocks.1 stem.1", "stem.0 stem.1 blocks.0 blocks.1"),
        ("net.a1.0 net.a2.0", "top net.a1.1", "net.a1.0 net.a1.1 net.a2.0 top"),
        ("", "b a", "a b"),
    ],
)
def test_skipped_blocks_stand_where_they_run(cut: str, others: str, expected: str) -> None:
    plan = plan_of(list(map(site, cut.split())), list(map(skipped, others.split())))
    assert paths(blocks_of(plan)) == expected.split()


def test_the_order_of_the_host_decides_where_paths_say_nothing() -> None:
    plan = plan_of([site("down"), site("up")], [skipped("bottom"), skipped("zenith")])
    order = ["", "down", "bottom", "zenith", "up"]
    assert paths(blocks_of(plan, order=order)) == ["down", "bottom", "zenith", "up"]


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("layer3.5", "layer3"),
        ("features.1.0", "features.1"),
        ("backbone.body.layer2.1", "backbone.body.layer2"),
        ("blocks.0.layers.1.layers.conv", "blocks.0.layers"),
        ("features.stage1.unit2", "features.stage1"),
        ("backbone.fpn", "backbone"),
        ("stem", ""),
        ("", ""),
    ],
)
def test_stages(path: str, stage: str) -> None:
    assert [block.stage for block in blocks_of(plan_of([site(path)]))] == [stage]


def test_alike_blocks_are_folded() -> None:
    plan = plan_of([site(f"a.{i}") for i in range(6)], [skipped("b.0"), skipped("b.1")])
    costs = {f"a.{i}": 10 + 5 * (i > 3) for i in range(6)}
    folded = blocks_of(plan, costs, fold=True)
    assert paths(folded) == ["a.0 to a.3", "a.4 to a.5", "b.0 to b.1"]
    assert [len(each.paths) for each in folded] == [4, 2, 2]
    assert len(blocks_of(plan, costs)) == 8


def test_a_block_with_several_sites_is_one() -> None:
    plan = plan_of([site("a", after="x")], [skipped("a", after="y", channels=16)])
    (block,) = blocks_of(plan)
    assert block.is_cut
    assert (block.afters, block.channels) == (["x"], [8])
    assert block.reasons == ["not selected by where"]


# Layout


LONG_NAMES = plan_of(
    [
        site(".".join(["a_stage_of_a_long_name"] * 6) + ".0", block_type="TypesWithLongNames" * 9),
        site("model.encoder.a_very_long_stage_name_that_ends.blocks.12.conv", after="a_long_name"),
        *(site(f"features.{i}", existing="block.squeeze_and_excitation") for i in range(3)),
    ],
    [skipped(f"features.{i}", f"reason {i}, " * 40) for i in range(3, 9)],
    attention="an_attention_with_options",
)
MANY = plan_of([site(f"layer{i % 4}.{i}", channels=4096) for i in range(130)])


def drawn(plan: Plan, cost: int | None = 123_456_789) -> Picture:
    costs = None
    if cost is not None:
        by_block = {each.block: cost for each in plan.sites}
        costs = Costs("params", by_block, sum(by_block.values()))
    return picture("net", blocks_of(plan, costs and costs.by_block), costs)


@pytest.mark.parametrize("cost", [None, 123_456_789, -5, 0])
@pytest.mark.parametrize("plan", [LONG_NAMES, MANY, plan_of([])], ids=["long", "many", "none"])
def test_everything_is_within_its_box_and_the_page(plan: Plan, cost: int | None) -> None:
    page = drawn(plan, cost)
    boxes = [frame_of(group) for group in page.groups if group.title]
    assert len(boxes) == len({each.block for each in (*plan.sites, *plan.skipped)})
    for a, b in itertools.combinations(boxes, 2):
        assert not overlap(a, b)
    for group in page.groups:
        inside = frame_of(group) if group.title else Rect(0, 0, page.width, page.height, "")
        for shape in group.shapes:
            if isinstance(shape, Text) and LOOKS[shape.look].is_monospaced:
                end = shape.x + LOOKS[shape.look].letter * len(shape.text)
                assert inside.x <= shape.x
                assert end <= inside.x + inside.width + 0.01
                assert inside.y <= shape.y <= inside.y + inside.height
            if isinstance(shape, Rect) and not shape.look.startswith("behind"):
                assert shape.width >= 0
                assert shape.x + shape.width <= inside.x + inside.width + 0.01
                assert shape.y + shape.height <= inside.y + inside.height + 0.01


def frame_of(group: Group) -> Rect:
    return next(s for s in group.shapes if isinstance(s, Rect) and s.look in {"cut", "skipped"})


def overlap(a: Rect, b: Rect) -> bool:
    across = a.x < b.x + b.width and b.x < a.x + a.width
    return across and a.y < b.y + b.height and b.y < a.y + a.height


def test_bars_are_as_long_as_costs() -> None:
    plan = plan_of([site(f"a.{i}") for i in range(3)])
    costs = Costs("params", {"a.0": 100, "a.1": 50, "a.2": 0}, 150)
    page = picture("net", blocks_of(plan, costs.by_block), costs)
    bars = [s for g in page.groups if g.title for s in g.shapes if s.look == "bar"]
    assert len(bars) == 2
    assert isinstance(bars[0], Rect)
    assert isinstance(bars[1], Rect)
    assert bars[0].width == pytest.approx(2 * bars[1].width)


# Files


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v3_large().eval()


@pytest.fixture(scope="module")
def svg(mobilenet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("drawings") / "plan.svg"
    plan = attn_surgery.plan(mobilenet, "se", where=lambda each: each.block != "features.9")
    draw_plan(plan, path, host=mobilenet, name="mobilenet")
    return path.read_text()


def hovers(svg: str) -> dict[str, str]:
    """Return what is said on hover, by block."""
    groups = ElementTree.fromstring(svg).iter(f"{SVG}g")
    titles = [title.text or "" for group in groups for title in group.findall(f"{SVG}title")]
    return {title.split(" ")[0]: title for title in titles}


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_all_blocks_are_there_in_forward_order(svg: str) -> None:
    numbers = [1, 3, 5, 6, 8, 9, 10, 12, 14, 15]
    assert list(hovers(svg)) == [f"features.{i}" for i in numbers]


def test_what_is_said_on_hover(svg: str, mobilenet: nn.Module) -> None:
    said = hovers(svg)
    costs = attn_surgery.report(mobilenet, "se", latency=False, per_site=True).per_site
    added = next(each.params for each in costs if each.block == "features.8")
    assert said["features.8"].splitlines() == [
        "features.8 (InvertedResidual)",
        "after block · 80 ch",
        "se after block, by rewrite",
        f"+{added:,} params",
    ]
    assert "holds attention already: block.2" in said["features.12"]
    assert "skipped: holds an attention already" in said["features.12"]
    assert said["features.9"].endswith("skipped: not selected by where")


def test_what_can_be_read_without_a_pointer(svg: str) -> None:
    said = texts(svg)
    assert said[1].startswith("4 of 10 blocks get attention; 5 hold attention already; +")
    assert said.count("+ se") == 4
    assert said.count("◆ block.2") == 5
    assert "skipped (1)" in said
    assert "skipped (2)" in said
    (first,) = [i for i, text in enumerate(said) if text.startswith("holds an attention already")]
    assert said[first - 1] == "(1)"
    assert said[first + 1] == "features.5, features.6, features.12, features.14, features.15"


def test_marks_differ_by_more_than_colour(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    looks = {
        title.split(" ")[0]: {each.get("class") for each in group.findall(f"{SVG}rect")}
        for group in root.iter(f"{SVG}g")
        for title in [group.findtext(f"{SVG}title", "")]
        if title
    }
    assert "p-cut" in looks["features.8"]
    assert "p-held-rim" not in looks["features.8"]
    assert {"p-skipped", "p-held-rim"} <= looks["features.12"]
    assert looks["features.9"] == {"p-skipped"}
    assert LOOKS["skipped"].dashes
    assert not LOOKS["skipped"].fill


def test_a_screen_reader_is_told(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    about = {each.get("id"): each.text or "" for each in root if each.get("id")}
    told = [about[name] for name in root.get("aria-labelledby", "").split()]
    assert told[0] == "mobilenet + se"
    assert told[1].startswith("4 of 10 blocks get attention")
    assert "prefers-color-scheme:dark" in svg


def test_the_host_is_left_alone(mobilenet: nn.Module, svg: str) -> None:
    another = torchvision.models.mobilenet_v3_large()
    assert mobilenet.state_dict().keys() == another.state_dict().keys()
    assert attn_surgery.inserted(mobilenet) == {}


def test_a_page_has_the_same_as_a_table(mobilenet: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    draw_plan(attn_surgery.plan(mobilenet, "se"), path, host=mobilenet, cost="macs")
    page = path.read_text()
    assert page.startswith("<!DOCTYPE html>")
    text = page[page.index("<table>") : page.index("</table>")].replace(" scope=col", "")
    table = ElementTree.fromstring(f"{text}</table>")
    head, *rows = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    assert head == [
        *("block", "type", "after", "channels", "attention", "added", "there already"),
        "skipped because",
    ]
    assert len(rows) == 10
    macs = attn_surgery.report(mobilenet, "se", latency=False, per_site=True).per_site[0].macs
    assert rows[0][:5] == ["features.1", "InvertedResidual", "block", "16", "se"]
    assert rows[0][5:] == [f"+{macs:,} MACs", "", ""]
    assert rows[2][6] == "block.2"
    assert "holds an attention" in rows[2][7]
    assert "<svg" in page


@pytest.mark.parametrize(
    ("cost", "attribute", "unit"),
    [
        ("params", "params", "params"),
        ("macs", "macs", "MACs"),
        ("elementwise", "elementwise_ops", "ops"),
        ("moved", "bytes_moved", "bytes moved"),
    ],
)
def test_each_cost_is_the_reports(tmp_path: Path, cost: str, attribute: str, unit: str) -> None:
    host = torchvision.models.resnet18().eval()
    path = tmp_path / "plan.svg"
    draw_plan(attn_surgery.plan(host, "se"), path, host=host, cost=cost, input_size=(3, 64, 64))
    before, after = attn_surgery.report(host, "se", latency=False, input_size=(3, 64, 64)).rows
    total = Costs(cost).text(getattr(after, attribute) - getattr(before, attribute))
    said = texts(path.read_text())
    assert f"8 of 8 blocks get attention; {total} in all" in said
    assert total.endswith(f" {unit}")
    assert any("3x64x64" in text for text in said) == (cost != "params")


def test_swapped_attention_may_cost_less(mobilenet: nn.Module, tmp_path: Path) -> None:
    plan = attn_surgery.plan(mobilenet, "eca", existing="replace", where="features.4")
    path = tmp_path / "plan.svg"
    draw_plan(plan, path, host=mobilenet)
    assert "+ eca for block.2" in texts(path.read_text())
    assert "\n-3," in hovers(path.read_text())["features.4"]


def test_png(mobilenet: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "plan.PNG"
    draw_plan(attn_surgery.plan(mobilenet, "se"), path, host=mobilenet)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert width == 2128
    assert 700 < height < 2000


def test_a_plan_alone_has_no_costs(tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    draw_plan(plan_of([site("layer1.0")], [skipped("layer1.1", "<no> & way \x1b[0m")]), path)
    svg = path.read_text()
    assert "params" not in svg
    assert "skipped: <no> & way �[0m" in hovers(svg)["layer1.1"]
    assert texts(svg)[0] == "plan + se"


def test_no_block_at_all(tmp_path: Path) -> None:
    host = nn.Sequential(nn.Conv2d(3, 8, 3))
    draw_plan(attn_surgery.plan(host), tmp_path / "plan.svg", host=host)
    assert "no residual block was found" in texts((tmp_path / "plan.svg").read_text())


def test_costs_that_cannot_be_counted_are_told_of(tmp_path: Path) -> None:
    host = torchvision.models.resnet18().eval()
    path = tmp_path / "plan.svg"
    draw_plan(attn_surgery.plan(host, "se"), path, host=host, input_size=(5, 64, 64))
    said = texts(path.read_text())
    assert any(text.startswith("what it costs is not known: not counted") for text in said)
    assert said.count("+ se") == 8


def test_long_plans_are_folded(tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    for number, fold, boxes in ((48, None, 48), (49, None, 1), (49, False, 49), (9, True, 1)):
        draw_plan(plan_of([site(f"a.{i}") for i in range(number)]), path, fold=fold)
        assert len(hovers(path.read_text())) == boxes


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("plan.pdf", {}, "cannot draw to .*plan.pdf: end it in one of .svg, .png, .html"),
        ("plan", {}, "end it in one of"),
        ("nowhere/plan.svg", {}, "there is no folder"),
        ("plan.svg", {"cost": "time"}, "cost='time' is not supported"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        draw_plan(MANY, tmp_path / name, **more)
    assert list(tmp_path.iterdir()) == []


def test_png_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SurgeryError, match=r"a picture needs matplotlib: pip install"):
        draw_plan(MANY, tmp_path / "plan.png")
    draw_plan(MANY, tmp_path / "plan.svg")


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "plan.svg").mkdir()
    with pytest.raises(SurgeryError, match=r"cannot write .*plan.svg"):
        draw_plan(MANY, tmp_path / "plan.svg")
