"""Whether `attn_surgery.suggest` tells which sites are worth an attention.

    python benchmarks/suggest.py --root data

A host learns Fashion-MNIST, and then, frozen, images of five kinds, as in the recipe
``mixed_domains``; measured is what attention at one site alone gains over the head alone, for each
site, on training images that nobody learns from. Then plans of half the sites: the suggested one,
others that one might choose without asking, and random ones. Every variant is a run of the training
loop, from the same start with the same seed, kept in ``runs/suggest`` and gone on with.

The table is ``benchmarks/results/suggest.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr
from tabulate import tabulate

from attn_surgery import Plan, Suggestion, choosing
from attn_surgery.finetune import Recipe, read_recipe, run_recipe, suggest_for
from attn_surgery.finetune.hosts import build_host
from attn_surgery.host.files import write_whole
from attn_surgery.suggesting.budget import admitted
from attn_surgery.suggesting.suggest import only
from attn_surgery.surgery import plan

HOSTS: dict[str, tuple[str, ...]] = {
    "small_resnet": (
        "host.model=attn_surgery.finetune.small_resnet:small_resnet",
        "host.options={n=3, width=16, stem_stride=2}",
    ),
    "mobilenetv2_035": (
        "host.model=timm/mobilenetv2_035",
        "host.options={in_chans=1, output_stride=16}",
    ),
}
ATTENTIONS = ("se", "cbam")
REDUCTION = 4
RANDOM_PLANS = 3
RESULTS = Path(__file__).parent / "results"


def recipe_of(host: str, root: str, seeds: int) -> Recipe:
    """Return the recipe for a host, without attention so far."""
    return read_recipe(
        "mixed_domains",
        [
            *HOSTS[host],
            'controls=["head"]',
            f"data.root={root}",
            "data.limit=15000",
            "data.held_out=2500",
            "data.views=2",
            "pretraining.0.epochs=4",
            "stages.0.epochs=2",
            f"seeds={seeds}",
            "threads=1",
            "report_seconds=0",
            "note=",
        ],
    )


def plans_of(suggestion: Suggestion, whole: Plan, host: Any, attention: str) -> dict[str, Plan]:
    """Return every plan that is tried, by name."""
    half = len(whole.sites) // 2
    numbers = range(len(whole.sites))
    found = {f"site {i}": some(whole, [i]) for i in numbers}
    found["every site"] = whole
    found["suggested half"] = suggestion.plan
    found["suggested for half of the parameters"] = some(whole, for_half_of_the_params(suggestion))
    found["first half"] = some(whole, numbers[:half])
    found["last half"] = some(whole, numbers[-half:])
    last = plan(host, attention, where=choosing.last_of_stage(), reduction=REDUCTION)
    found["last of stage"] = last
    halves = list(itertools.combinations(numbers, half))
    for i, drawn in enumerate(random.Random(0).sample(halves, RANDOM_PLANS)):
        found[f"random half {i}"] = some(whole, drawn)
    return found


def for_half_of_the_params(suggestion: Suggestion) -> list[int]:
    """Return the sites that are suggested where they may have half of all parameters."""
    params = [each.params for each in suggestion.scores]
    scores = [each.score for each in suggestion.scores]
    return admitted(scores, {"params": params}, {"params": sum(params) / 2})


def some(whole: Plan, numbers: Iterable[int]) -> Plan:
    return only(whole, sorted(numbers), "left out")


def validated(host: str, attention: str, root: str, seeds: int) -> dict[str, Any]:
    """Train every plan, and tell what it gained beside what was promised."""
    recipe = recipe_of(host, root, seeds)
    folder = Path("runs", "suggest", host)
    options = {attention: {"reduction": REDUCTION}}
    surgery = dataclasses.replace(recipe.surgery, attention=(attention,), options=options)
    recipe = dataclasses.replace(recipe, output=str(folder), surgery=surgery)
    built = build_host(recipe.host, 10, 0)
    whole = plan(built, attention, reduction=REDUCTION)
    suggestion = suggest_for(recipe, budget={"sites": len(whole.sites) // 2})[attention]
    plans = plans_of(suggestion, whole, built, attention)
    files = {}
    for name, each in plans.items():
        told = f"{name} {digest(each)}" if name.startswith("suggested") else name
        file = folder / "plans" / attention / f"{told.replace(' ', '_')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        each.save(file)
        files[name] = str(file)
    surgery = dataclasses.replace(surgery, attention=tuple(files.values()), options={})
    outcome = run_recipe(dataclasses.replace(recipe, surgery=surgery))
    assert outcome is not None
    scores = {line.variant: 100 * line.mean for line in outcome.lines}
    gains = {name: scores[file] - scores["control-head"] for name, file in files.items()}
    promised = [each.score for each in suggestion.scores]
    measured = [gains[f"site {i}"] for i in range(len(promised))]
    return {
        "host": host,
        "attention": attention,
        "seeds": seeds,
        "head": scores["control-head"],
        "sites": [each.site.block for each in suggestion.scores],
        "promised": promised,
        "measured": measured,
        "params": [each.params for each in suggestion.scores],
        "rank_correlation": correlation(promised, measured),
        "of_params": correlation([each.params for each in suggestion.scores], measured),
        "of_place": correlation(range(len(measured)), measured),
        "plans": {
            name: {
                "sites": len(each.sites),
                "params": params(each, suggestion),
                "gain": gains[name],
            }
            for name, each in plans.items()
            if not name.startswith("site ")
        },
        "environment": dict(outcome.environment),
    }


def digest(each: Plan) -> str:
    """Tell a plan from others: what is suggested is not always the same."""
    return "_".join(site.block for site in each.sites)


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation."""
    found: Any = spearmanr(a, b)
    return float(found.statistic)


def params(each: Plan, suggestion: Suggestion) -> int:
    """Return what a plan adds."""
    return sum(score.params for score in suggestion.scores if is_in(each, score.site.block))


def is_in(each: Plan, block: str) -> bool:
    """Tell whether a plan cuts a block."""
    return any(site.block == block for site in each.sites)


def written(results: Iterable[Mapping[str, Any]]) -> str:
    """Return what is published of all results."""
    parts = ["# Which sites matter: what was suggested, and what training gained", ""]
    for each in results:
        parts += [*_one(each), ""]
    return "\n".join(parts)


def _one(result: Mapping[str, Any]) -> list[str]:
    sites = zip(
        result["sites"], result["params"], result["promised"], result["measured"], strict=True
    )
    rows = [[block, f"{own:,}", f"{p:.4f}", f"{g:+.2f}"] for block, own, p, g in sites]
    whole = result["plans"]["every site"]["gain"]
    plans = [
        [name, each["sites"], f"{each['params']:,}", f"{each['gain']:+.2f}", share(each, whole)]
        for name, each in result["plans"].items()
    ]
    return [
        f"## {result['attention']} in {result['host']}",
        "",
        f"Head alone: {result['head']:.2f} %. Spearman's rank correlation of the gain of single "
        f"sites with the score: **{result['rank_correlation']:.2f}**; with the parameters added: "
        f"{result['of_params']:.2f}; with the place in the host: {result['of_place']:.2f}. Seeds: "
        f"{result['seeds']}.",
        "",
        tabulate(rows, ["site", "params", "score", "gain (points)"], "github"),
        "",
        tabulate(
            plans, ["plan", "sites", "params", "gain (points)", "of every site's (%)"], "github"
        ),
    ]


def share(one: Mapping[str, Any], whole: float) -> str:
    return f"{100 * one['gain'] / whole:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Tell whether suggest predicts.")
    parser.add_argument("--root", default="data", help="where Fashion-MNIST lies")
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--attention", nargs="+", default=list(ATTENTIONS))
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    kept = RESULTS / "suggest.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for host in arguments.hosts:
        for attention in arguments.attention:
            name = f"{attention} in {host}"
            results[name] = validated(host, attention, arguments.root, arguments.seeds)
            write_whole(kept, json.dumps(results, indent=2).encode() + b"\n")
            write_whole(RESULTS / "suggest.md", written(results.values()).encode() + b"\n")
            print(*_one(results[name]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
