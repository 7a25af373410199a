"""What may change an outcome: the measured recipes, each time with one thing changed.

    python -m benchmarks.trials [RECIPE[/TRIAL] ...]

A trial begins with the hosts of the recipe's own run, in ``runs/RECIPE``, and shares its control
where that is the same. What came of all trials is in ``recipes/results/trials.json`` and
``trials.md``. All of them take some five hours on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from attn_surgery.errors import SurgeryError, nearest
from attn_surgery.finetune.experiment.run import METRICS, folder_of
from attn_surgery.finetune.process.checkpoints import read_json, write_json
from attn_surgery.finetune.recipe import CONTROL, HOST, Recipe
from attn_surgery.finetune.recipe.reading import read_recipe
from attn_surgery.finetune.results.comparison import Difference, interval, paired
from attn_surgery.finetune.running import run_recipe
from attn_surgery.host.files import write_whole

RESULTS = Path(__file__).parents[1] / "recipes" / "results"
USUAL = ("threads=1", "report_seconds=0")
CBAM = 'surgery.attention=["cbam"]'
OF_RECIPE = 5
DISTILLED = ("stages.0.distill_weight=1.0", "stages.0.distill_temperature=4.0")
_SMALL = "attention_lr_scale=5, weight_decay=0.05, warmup_epochs=0.25"
_LITE0 = "attention_lr_scale=10, weight_decay=0.05, warmup_epochs=0.25, norm_stats='frozen'"

TRIALS: dict[str, dict[str, tuple[str, ...]]] = {
    "fashion_mnist": {
        "post": ('surgery.position="post"', CBAM),
        "scale20": ("seeds=8", "stages.0.attention_lr_scale=20", CBAM),
        "distilled": (*DISTILLED, CBAM),
        "warmup": (
            "stages=["
            f"{{trains='attention', epochs=1, lr=1e-3, {_SMALL}}}, "
            f"{{epochs=2, lr=1e-3, {_SMALL}}}]",
            CBAM,
        ),
        "longer": ("seeds=8", "stages.0.epochs=6", CBAM),
    },
    "efficientnet_lite0_transfer": {
        "scale50": (
            "seeds=10",
            "stages.0.attention_lr_scale=50",
            'surgery.attention=["cbam", "se"]',
        ),
        "post": ('surgery.position="post"', CBAM),
        "distilled": (*DISTILLED, CBAM),
        "warmup": (
            "stages=["
            f"{{trains='attention', epochs=1, lr=3e-4, {_LITE0}}}, "
            f"{{epochs=1, lr=3e-4, {_LITE0}}}]",
            CBAM,
        ),
        "longer": ("stages.0.epochs=6", CBAM),
        "live": ("stages.0.norm_stats=live", CBAM),
    },
}
"""For each recipe and trial, what is set in the recipe."""


def recipe_of(name: str, trial: str) -> Recipe:
    """Return the recipe of a trial."""
    recipe = read_recipe(name, [*USUAL, *TRIALS[name][trial]])
    return dataclasses.replace(recipe, output=f"runs/{name}-{trial}")


def share(own: Recipe, recipe: Recipe) -> None:
    """Copy runs that are the same in a recipe and a trial of it."""
    for seed in recipe.seed_numbers:
        for variant in (HOST, *recipe.variants):
            source, target = (folder_of(each, variant, seed) for each in (own, recipe))
            same = own.identity(variant, seed) == recipe.identity(variant, seed)
            if same and (source / METRICS).is_file() and not target.exists():
                partial = shutil.copytree(source, target.with_name(f"{variant}.partial"))
                partial.rename(target)


def run(name: str, trial: str) -> dict[str, Any]:
    """Run a trial, or what is left of it; return what came of it."""
    recipe = recipe_of(name, trial)
    share(read_recipe(name, USUAL), recipe)
    outcome = run_recipe(recipe)
    assert outcome is not None, "one process"
    told = json.loads(json.dumps(outcome.to_dict()))
    lines = [{k: v for k, v in line.items() if k != "costs"} for line in told["lines"]]
    settings = list(TRIALS[name][trial])
    return {"set": settings, "lines": lines, "environment": told["runs"][-1]["environment"]}


def report(trials: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of trials, and what a reader has to know."""
    count = sum(len(told["lines"]) - 2 for told in trials.values())
    return (
        f"{_table(trials)}\n\n"
        f"Each verdict is of its own 95 % interval, uncorrected for {count} comparisons: one in "
        "twenty errs by chance. Where there are more seeds than the recipe has, the others alone:"
        "\n\n" + "".join(f"- {line}\n" for line in _added(trials))
    )


def _added(trials: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Tell of the seeds that the recipe has not."""
    for name, told in trials.items():
        scores = {line["variant"]: line["scores"][OF_RECIPE:] for line in told["lines"]}
        for variant in [each for each in scores if scores[each] and each not in {HOST, CONTROL}]:
            fresh = paired(scores[variant], scores[CONTROL])
            yield f"{name}, {variant}: {interval(fresh)}: {fresh.verdict}"


def _table(trials: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, "; ".join(told["set"]), *_row(line, told["lines"])]
        for name, told in trials.items()
        for line in told["lines"]
        if line["variant"] not in {HOST, CONTROL}
    ]
    heads = [
        "trial",
        "set",
        "attention",
        "seeds",
        "host before (%)",
        "control after (%)",
        "after (%)",
    ]
    return tabulate(
        rows,
        [*heads, "to control (95 %)", "verdict", "gates from 1 (%)"],
        "github",
        disable_numparse=True,
    )


def _row(line: Mapping[str, Any], lines: list[Mapping[str, Any]]) -> list[str]:
    means = {each["variant"]: f"{100 * each['mean']:.2f}" for each in lines}
    told, moved = Difference(**line["difference"]), line["gates"].values()
    return [
        line["variant"],
        str(told.pairs),
        means[HOST],
        means[CONTROL],
        means[line["variant"]],
        interval(told),
        told.verdict,
        f"{100 * min(moved):.1f} to {100 * max(moved):.1f}",
    ]


def main() -> None:
    known = [f"{name}/{trial}" for name, trials in TRIALS.items() for trial in trials]
    parser = argparse.ArgumentParser(description="Try what may change an outcome.")
    parser.add_argument("trials", nargs="*", default=known, metavar="RECIPE[/TRIAL]")
    asked = parser.parse_args().trials
    for each in asked:
        if each not in {*known, *TRIALS}:
            raise SurgeryError(f"there is no trial {each!r}{nearest(each, known)}")
    path = RESULTS / "trials.json"
    for each in known:
        if each in asked or each.partition("/")[0] in asked:
            told = run(*each.split("/"))
            seen = read_json(path) if path.exists() else {}
            seen = {key: value for key, value in {**seen, each: told}.items() if key in known}
            write_json(path, {key: seen[key] for key in known if key in seen})
            write_whole(RESULTS / "trials.md", report(read_json(path)).encode())


if __name__ == "__main__":
    main()
