"""What the README shows runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torchvision

from attn_surgery.cli.parser import parse
from attn_surgery.finetune.experiment.checking import check_recipe
from attn_surgery.finetune.recipe.reading import parse_recipe, shipped, tomllib

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python(tmp_path, monkeypatch, index):
    monkeypatch.chdir(tmp_path)
    names = {name: torchvision.models.resnet18() for name in ("host", "net", "another")}
    exec("import attn_surgery\n" + blocks("python")[index], names)


@pytest.mark.parametrize("block", blocks("toml"))
def test_recipes(block):
    check_recipe(parse_recipe(tomllib.loads(block)))


def test_commands_are_understood():
    """Commands and options exist; what they do is tested elsewhere."""
    text = "\n".join(blocks("(?:sh|console)"))
    commands = re.findall(r"(?:^|/|\$ )attn-surgery (\w.*)$", text, re.MULTILINE)
    assert {each.split()[0] for each in commands} == {"plan", "report", "finetune", "evaluate"}
    for each in commands:
        parse(shlex.split(each, comments=True))  # exits where it cannot


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_recipe_is_named():
    assert all(f"`{name}`" in README for name in shipped())


def cells(row: str) -> list[str]:
    """Return what is in a row of a table, whatever its style."""
    return [cell for cell in re.split(r"\s*\|\s*|\s{2,}", row) if cell]


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "efficientnet_lite0_transfer"])
def test_the_tables_are_those_that_were_measured(name):
    measured = (ROOT / f"recipes/results/{name}.md").read_text().split("\n\n")[0].splitlines()
    shown = [cells(row) for row in README.splitlines()]
    for row in measured[2:]:
        assert cells(row) in shown


def test_nothing_is_left_to_be_filled_in():
    assert not re.findall(r"@[A-Z_]+@", README)
