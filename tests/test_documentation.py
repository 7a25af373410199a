"""What the README and the pages show runs as it stands, and what they say is so."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import attn_surgery
from attn_surgery import cli
from attn_surgery.attention.construction import registry
from attn_surgery.cli.parser import parse
from attn_surgery.finetune.experiment.checking import check_recipe
from attn_surgery.finetune.recipe.reading import parse_recipe, shipped, tomllib
from docs import explained, keys

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
PHOTOGRAPHS = "photographs"
"""A folder that the pages speak of as one of yours."""


@cache
def text(page: str) -> str:
    return PAGES[page].read_text()


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """Return the blocks of code of a page in a language, each with the line before its first."""
    found = re.finditer(rf"^```{language}\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)
    return [(text(page)[: each.start(1)].count("\n"), each[1]) for each in found]


def all_blocks(language: str) -> list[str]:
    return [block for page in PAGES for _, block in blocks(page, language)]


def test_every_language_is_known_here():
    found = {each for page in PAGES for each in re.findall(r"^```(.+)$", text(page), re.MULTILINE)}
    shown = {"text", "mermaid", "{toctree}", "{eval-rst}"}
    assert found == {"python", "sh", "console", "toml", *shown}


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Go to a folder with photographs in it, and forget what is registered there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    (tmp_path / PHOTOGRAPHS).mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).random((48, 64, 3))
        matplotlib.image.imsave(tmp_path / PHOTOGRAPHS / f"{number}.png", pixels)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python(page):
    """The blocks of a page run one after the other, as a reader would run them."""
    names: dict[str, object] = {}
    for line, block in blocks(page, "python"):
        _need_what_is_imported(block)
        exec(compile("\n" * line + block, PAGES[page], "exec"), names)


def _need_what_is_imported(block: str) -> None:
    for name in ("segmentation_models_pytorch", "transformers"):
        if re.search(rf"^(import|from) {name}\b", block, re.MULTILINE):
            pytest.importorskip(name, reason=f"the page needs {name}, which is not installed")


@pytest.mark.parametrize("block", all_blocks("toml"))
def test_recipes(block):
    check_recipe(parse_recipe(tomllib.loads(block)))


def test_commands_are_understood():
    """Commands and options exist; what they do is tested elsewhere."""
    found = "\n".join(all_blocks("(?:sh|console)"))
    commands = re.findall(r"(?:^|/|\$ )attn-surgery (\w.*)$", found, re.MULTILINE)
    known = {"plan", "report", "finetune", "suggest", "evaluate", "show", "explain"}
    assert {each.split()[0] for each in commands} == known
    for each in commands:
        parse(shlex.split(each, comments=True))  # exits where it cannot


@pytest.mark.parametrize("block", all_blocks("console"))
def test_what_commands_print(block, capsys):
    command, _, shown = block.partition("\n")
    words = shlex.split(command.removeprefix("$ attn-surgery "))
    assert cli.main(words) == 0
    assert capsys.readouterr().out.rstrip() == shown.rstrip()


# What the pages say


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        path, _, anchor = link.partition("#")
        if path.startswith("https:"):
            continue
        target = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@cache
def anchors(page: Path) -> set[str]:
    """Return what the headings of a page are called in links."""
    outside = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_readme_is_short_and_has_one_picture():
    assert len(text("README").splitlines()) <= 200
    assert len(re.findall(r"!\[", text("README"))) == 1


def test_every_recipe_is_named():
    assert all(f"`{name}`" in text("recipes") for name in shipped())


def test_every_key_of_a_recipe_is_explained():
    """After a change: ``python docs/keys.py``."""
    assert keys.tables() in text("recipes")


def test_every_public_name_is_in_the_reference():
    named = set(re.findall(r"^\.\. auto\w+:: (?:\w+\.)*(\w+)$", text("api"), re.MULTILINE))
    public = {*attn_surgery.__all__, *attn_surgery.choosing.__all__, *attn_surgery.finetune.__all__}
    assert public - named == {"choosing", "finetune"}


def test_every_attention_has_a_row():
    rows = re.findall(r"^\| `(\w+)` \| .*(?:arXiv|PMLR)", text("attentions"), re.MULTILINE)
    assert sorted(rows) == attn_surgery.available()


def cells(row: str) -> list[str]:
    """Return what is in a row of a table, whatever its style."""
    return [cell for cell in re.split(r"\s*\|\s*|\s{2,}", row) if cell]


def shown(page: str) -> list[list[str]]:
    return [cells(row) for row in text(page).splitlines()]


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("digits", "recipes"),
        ("fashion_mnist", "results"),
        ("digits_domains", "results"),
        ("efficientnet_lite0_transfer", "results"),
    ],
)
def test_the_tables_are_those_that_were_measured(name, page):
    measured = (ROOT / f"recipes/results/{name}.md").read_text().split("\n\n")[0].splitlines()
    for row in measured[2:]:
        assert cells(row) in shown(page)


def test_the_table_of_plans_is_the_one_that_was_measured():
    measured = json.loads((ROOT / "benchmarks/results/suggest.json").read_text())
    cases = [measured[f"{a} in {host}"] for a, host in _CASES]
    for (attention, host), case in zip(_CASES, cases, strict=True):
        whole = case["plans"]["every site"]
        row = [_HOSTS[host], attention, f"{case['head']:.2f}", f"+{whole['gain']:.2f}"]
        assert [*row, f"{whole['params']:,}"] in shown("choosing")
    for plan in set(cases[0]["plans"]) - {"every site"}:
        shares = [
            each["plans"][plan]["gain"] / each["plans"]["every site"]["gain"] for each in cases
        ]
        assert [plan, *(f"{100 * share:.0f}" for share in shares)] in shown("choosing")


_CASES = [("se", "small_resnet"), ("cbam", "small_resnet"), ("se", "mobilenetv2_035")]
_HOSTS = {"small_resnet": "small ResNet", "mobilenetv2_035": "small MobileNetV2"}


# The refusals


def test_refusals_are_those_that_are_raised():
    known = {_bare(each) for each in strings("attn_surgery")}
    for each in listed():
        assert any(_bare(each) in one for one in known), each


@pytest.mark.parametrize("room", ["host", "planning", "surgery", "attention"])
def test_every_refusal_is_listed(room):
    named = {_bare(each) for each in listed()}
    assert {_bare(each) for each in raised(f"attn_surgery/{room}")} <= named


def test_every_reason_of_the_finder_is_listed():
    tree = ast.parse((ROOT / "attn_surgery/finding/refusals.py").read_text())
    returned = [written(node.value) for node in ast.walk(tree) if isinstance(node, ast.Return)]
    reasons = {_bare(each) for each in returned if " " in each}
    assert len(reasons) > 8
    assert reasons <= {_bare(each) for each in listed()}


def listed() -> list[str]:
    """Return the messages of the page."""
    return explained.MESSAGE.findall(text("refusals"))


def test_the_command_line_explains_what_the_page_says():
    """After a change: ``python docs/explained.py``."""
    assert explained.TOLD.read_text("utf-8") == explained.told()


def raised(folder: str) -> Iterator[str]:
    """Yield the messages that are spelled where an error is raised, … for what is filled in."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "SurgeryError":
                message = written(node.args[0] if node.args else None)
                if re.search("[a-z]", message):
                    yield message


def strings(folder: str) -> Iterator[str]:
    for path in (ROOT / folder).rglob("*.py"):
        yield from filter(None, map(written, ast.walk(ast.parse(path.read_text()))))


def written(node: ast.AST | None) -> str:
    """Return a string as it is written, with … for what is filled in; "" for another node."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = node.values if isinstance(node, ast.JoinedStr) else []
    return "".join(written(each) or "…" for each in parts)


def _bare(message: str) -> str:
    return re.sub(r"…+", "…", message)


def test_nothing_is_left_to_be_filled_in():
    assert not [page for page in PAGES if re.search(r"@[A-Z_]+@", text(page))]
