"""Every architecture of torchvision and timm gives the plan that the golden files hold."""

from __future__ import annotations

import pytest
import zoo

import attn_surgery

GOLDEN = {library: zoo.read(library) for library in zoo.LIBRARIES}
KNOWN = {
    library: version == zoo.RECORDED_WITH[library] for library, version in zoo.LIBRARIES.items()
}
INSTALLED = [name for name in zoo.names() if KNOWN[name.partition("/")[0]]]


def golden(name: str) -> zoo.Entry:
    return GOLDEN[name.partition("/")[0]][name]


FAST = zoo.first_of_families() & set(INSTALLED)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow, id=name)
        for name in INSTALLED
    ],
)
def test_plan_is_the_golden_one(name: str):
    assert zoo.planned(zoo.build(name)) == golden(name)


@pytest.mark.parametrize("library", zoo.LIBRARIES)
def test_golden_holds_the_installed_models(library: str):
    if not KNOWN[library]:
        pytest.skip(f"recorded with {zoo.RECORDED_WITH[library]}, not {zoo.LIBRARIES[library]}")
    installed = [name for name in zoo.names() if name.startswith(f"{library}/")]
    assert sorted(GOLDEN[library]) == installed


def test_every_family_is_in_the_fast_run():
    assert {zoo.family(name) for name in FAST} == {zoo.family(name) for name in INSTALLED}


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("torchvision/resnet18", 8),
        ("torchvision/resnet34", 16),
        ("torchvision/resnet50", 16),
        ("torchvision/resnet101", 33),
        ("torchvision/resnet152", 50),
        ("torchvision/fasterrcnn_resnet50_fpn", 16),
        ("torchvision/mobilenet_v2", 10),
        ("torchvision/vgg16", 0),
        ("torchvision/vgg11_bn", 0),
        ("torchvision/densenet121", 0),
    ],
)
def test_numbers_of_sites_that_papers_imply(name: str, sites: int):
    assert len(attn_surgery.plan(zoo.build(name)).sites) == sites


@pytest.mark.skipif(not KNOWN["torchvision"], reason="the golden file is of another version")
def test_no_vgg_or_densenet_has_a_site():
    plain = [
        name for name in INSTALLED if name.startswith(("torchvision/vgg", "torchvision/dense"))
    ]
    assert len(plain) == 12
    assert sum(zoo.count(golden(name)) for name in plain) == 0


def test_an_entry_tells_everything_but_the_order():
    plan = attn_surgery.plan(zoo.build("torchvision/mobilenet_v3_small"), existing="stack")
    found = zoo.entry(plan)
    blocks = [block for group in found["sites"] for block in group["blocks"].split()]
    assert sorted(blocks) == sorted(site.block for site in plan.sites)
    assert zoo.count(found) == len(plan.sites)
    assert found["sites"][0]["type"] == "InvertedResidual"
    assert {group["existing"] for group in found["sites"] if "existing" in group} == {"block.2"}
