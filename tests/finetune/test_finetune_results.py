"""The results that are committed are of the recipes as they stand, and add up."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

import attn_surgery
from attn_surgery.finetune.experiment.checking import check_recipe
from attn_surgery.finetune.recipe import CONTROL, HOST
from attn_surgery.finetune.recipe.reading import read_recipe, shipped
from attn_surgery.finetune.results import publishing
from attn_surgery.finetune.results.comparison import paired
from attn_surgery.finetune.results.outcome import Costs
from attn_surgery.finetune.results.publishing import costs_of
from attn_surgery.finetune.running import run_recipe
from attn_surgery.finetune.tasks.units import unit_of
from benchmarks.trials import TRIALS, recipe_of, report, share
from tests.finetuning import tiny, weights

RESULTS = Path(attn_surgery.__file__).parents[1] / "recipes" / "results"
MEASURED = [
    "context",
    "digits",
    "digits_domains",
    "efficientnet_lite0_transfer",
    "fashion_mnist",
    "lite0_adapter",
    "mixed_domains",
    "mixed_domains_norms",
    "segmentation_small",
]
FRESH: dict[str, set[str]] = {
    "digits_domains": set(),
    "mixed_domains": {"cbam beats control-norms"},
    "mixed_domains_norms": set(),
    "segmentation_small": set(),
}
"""What was run again with fresh seeds, and the verdicts that did not come again."""


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def without(table: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key not in keys}


def test_what_is_not_measured_says_so():
    assert [name for name in shipped() if not read_recipe(name).note] == MEASURED
    for name in set(shipped()) - set(MEASURED):
        assert read_recipe(name).note == "not measured"
        assert not list(RESULTS.glob(f"{name}.*"))


@pytest.mark.parametrize("name", MEASURED)
def test_it_is_the_recipe_that_was_run(name):
    recipe = read_recipe(name)
    assert recipe.seeds >= 3
    assert recipe.control
    expected = [
        recipe.identity(variant, seed)
        for seed in range(recipe.seeds)
        for variant in (HOST, *recipe.variants)
    ]
    seen = [without(run["identity"], "contents") for run in result(name)["runs"]]
    assert seen == json.loads(json.dumps(expected))


@pytest.mark.parametrize("name", MEASURED)
def test_the_lines_are_those_of_the_runs(name):
    told = result(name)
    lines = {line["variant"]: line for line in told["lines"]}
    for variant, line in lines.items():
        runs = [run for run in told["runs"] if run["identity"]["variant"] == variant]
        assert line["scores"] == [run["score"][told["score"]] for run in runs]
        assert line["mean"] == pytest.approx(statistics.fmean(line["scores"]))
        if variant == HOST:
            continue
        assert line["at_insertion"] == lines[HOST]["scores"], "the host, to the last image"
        if variant.startswith(CONTROL):
            continue
        assert line["costs"]["latency_ratio"] > 0
        alone = [{"control": CONTROL, "difference": line["difference"]}]
        for each in line.get("comparisons") or alone:  # one control, in what is older
            expected = paired(line["scores"], lines[each["control"]]["scores"])
            assert each["difference"] == pytest.approx(vars(expected))  # scipy's last digits


@pytest.mark.parametrize("name", MEASURED)
def test_the_table_is_that_of_the_numbers(name):
    table = (RESULTS / f"{name}.md").read_text()
    told = result(name)
    for line in told["lines"]:
        assert f"| {unit_of(told['score']).write(line['mean'])} " in table


@pytest.mark.parametrize(("name", "unconfirmed"), FRESH.items())
def test_fresh_seeds_confirm_it(name, unconfirmed):
    """The same recipe but for its seeds, none of which was seen, comes to the same verdicts."""
    first, fresh = result(name), result(f"{name}_fresh")
    changed = {"first_seed", "seeds", "output", "threads"}
    assert without(first["recipe"], *changed) == without(fresh["recipe"], *changed)
    seeds = [{run["identity"]["seed"] for run in each["runs"]} for each in (first, fresh)]
    assert len(seeds[0]) >= 8
    assert len(seeds[1]) >= (4 if unconfirmed else 8)
    assert seeds[0].isdisjoint(seeds[1])
    assert set(first["verdicts"]) - set(fresh["verdicts"]) == unconfirmed


# The trials

NAMES = [(name, trial) for name, trials in TRIALS.items() for trial in trials]


@pytest.mark.parametrize(("name", "trial"), NAMES)
def test_a_trial_changes_what_it_says(name, trial):
    recipe, own = recipe_of(name, trial), read_recipe(name)
    check_recipe(recipe)
    assert recipe.seeds >= own.seeds
    assert recipe.identity(HOST, 0) == own.identity(HOST, 0), "the same start"
    assert recipe.identity("cbam", 0) != own.identity("cbam", 0)


def test_the_trials_that_are_committed():
    told = json.loads((RESULTS / "trials.json").read_text())
    assert list(told) == [f"{name}/{trial}" for name, trial in NAMES]
    for each, (name, trial) in zip(told.values(), NAMES, strict=True):
        assert each["set"] == list(TRIALS[name][trial])
        lines = {line["variant"]: line for line in each["lines"]}
        recipe = recipe_of(name, trial)
        assert list(lines) == [HOST, *recipe.variants]
        hosts = {line["variant"]: line for line in result(name)["lines"]}[HOST]["scores"]
        for variant, line in lines.items():
            assert len(line["scores"]) == recipe.seeds
            if variant == HOST:
                assert line["scores"][: len(hosts)] == hosts, "the hosts of the recipe's own run"
            elif variant != CONTROL:
                expected = paired(line["scores"], lines[CONTROL]["scores"])
                assert line["difference"] == pytest.approx(vars(expected))
    assert (RESULTS / "trials.md").read_text() == report(told)


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_what_the_costs_come_to_does_not_take_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "report", full)
    outcome = run_recipe(tiny(tmp_path))
    assert outcome is not None
    _, control, attention = outcome.lines
    assert attention.scores
    assert attention.costs == Costs(
        error="the costs are not known: OutOfMemoryError: CUDA out of memory. Tried to allocate "
        "2.00 GiB"
    )
    assert not control.costs.error
    assert f"cbam: {attention.costs.error}" in (tmp_path / "result.md").read_text()
    assert json.loads((tmp_path / "result.json").read_text())["lines"][2]["scores"]


def test_a_host_that_cannot_be_built_once_more():
    costs = costs_of(read_recipe("digits"), full, (1, 8, 8), torch.device("cpu"))
    assert "OutOfMemoryError" in costs["cbam"].error


def test_what_is_the_same_is_shared(tmp_path):
    own = tiny(tmp_path / "own", surgery={"attention": ["se"]})
    run_recipe(own)
    moved = tiny(tmp_path / "moved", surgery={"attention": ["se"], "position": "post"})
    longer = tiny(tmp_path / "longer", stages=[{"epochs": 2}])
    for recipe, shared in ((moved, {"host", "control"}), (longer, {"host"})):
        share(own, recipe)
        assert {path.name for path in (tmp_path / recipe.output / "seed0").iterdir()} == shared
    expected = weights(tmp_path / "own/seed0")
    run_recipe(moved)
    again = weights(tmp_path / "moved/seed0")
    for name in ("host/last.safetensors", "control/last.safetensors"):
        assert all(map(torch.equal, again[name].values(), expected[name].values()))
