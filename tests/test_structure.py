"""The package's layers: each module imports only from those before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import attn_surgery

ROOT = Path(attn_surgery.__file__).parent

LAYERS = [
    "errors",
    "compiling",
    "attention.options",
    "attention.batches",
    "attention.gate",
    "attention.identity",
    "attention.registry",
    "attention.building",
    "attention.se",
    "attention.cbam",
    "attention.bam",
    "attention.scse",
    "attention.simam",
    "attention.triplet",
    "attention.srm",
    "attention.gct",
    "attention.sge",
    "attention.library",
    "attention",
    "counting",
    "files",
    "inputs",
    "traces",
    "preserve",
    "bytecode",
    "returning",
    "entry",
    "interception",
    "proxies",
    "patterns",
    "convolutions",
    "factories",
    "tracer",
    "tracing",
    "operations",
    "forms",
    "arranging",
    "views",
    "forming",
    "flow",
    "additions",
    "shortcuts",
    "residual",
    "gates",
    "placing",
    "positions",
    "existing",
    "fidelity",
    "finder",
    "inserting",
    "sources",
    "expressions",
    "rewrite",
    "former",
    "former_self",
    "listening",
    "operated",
    "graph_module",
    "transaction",
    "sites",
    "origin",
    "choosing",
    "checks",
    "request",
    "forwards",
    "methods",
    "planning",
    "editing",
    "surgery",
    "models",
    "fingerprint",
    "saving",
    "prices",
    "assumed",
    "workload",
    "saved",
    "timing",
    "conditions",
    "latency",
    "rows",
    "tables",
    "results",
    "formats",
    "plotting",
    "costs",
    "listing",
    "reporting",
    "finetune.groups",
    "finetune.losses",
    "finetune.lite0",
    "arguments",
    "report_command",
    "finetune.extras",
    "finetune.recipe",
    "finetune.reading",
    "finetune.small_resnet",
    "finetune.hosts",
    "finetune.randomness",
    "finetune.sources",
    "finetune.data",
    "finetune.tasks",
    "finetune.dense",
    "finetune.kinds",
    "finetune.processes",
    "finetune.holding",
    "finetune.training",
    "finetune.checkpoints",
    "finetune.signals",
    "finetune.display",
    "finetune.environment",
    "finetune.evaluation",
    "finetune.checking",
    "finetune.contents",
    "finetune.lab",
    "finetune.variants",
    "finetune.rehearsal",
    "finetune.run",
    "finetune.loop",
    "finetune.experiment",
    "finetune.outcome",
    "finetune.publishing",
    "finetune.lock",
    "finetune.running",
    "finetune.remeasuring",
    "finetune",
    "finetune.command",
    "cli",
    "",
    "__main__",
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative: {path.name}"
            continue
        found |= {name for name in names if name.partition(".")[0] == "attn_surgery"}
    return {name.removeprefix("attn_surgery").lstrip(".") for name in found}


def test_every_file_has_its_place():
    assert sorted(FILES) == sorted(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_imports_only_from_those_before_it(name):
    before = LAYERS[: LAYERS.index(name)]
    assert imports_of(FILES[name]) <= set(before)


@pytest.mark.parametrize("name", LAYERS)
def test_files_are_small(name):
    assert len(FILES[name].read_text().splitlines()) <= 350
