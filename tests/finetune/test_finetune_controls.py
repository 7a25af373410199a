"""Controls: each is trained as the attention is, but for what trains, and compared with it."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

import attn_surgery
from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment.checking import check_recipe
from attn_surgery.finetune.experiment.measuring_again import remeasure
from attn_surgery.finetune.experiment.run import Run
from attn_surgery.finetune.hosts import build_host
from attn_surgery.finetune.process import checkpoints
from attn_surgery.finetune.recipe import CONTROLS, attention_of, is_control, variant_of
from attn_surgery.finetune.recipe.reading import parse_recipe
from attn_surgery.finetune.results.comparison import compare, comparison_table, holm, p_value
from attn_surgery.finetune.results.outcome import gather
from attn_surgery.finetune.running import run_recipe
from attn_surgery.finetune.small_resnet import SmallResNet
from tests.finetuning import TINY, tiny, weights, within

ALL = ["same", "head", "norms", "scale", "full"]
VARIANTS = [variant_of(each) for each in ALL]
FROZEN: dict[str, Any] = {
    "surgery": {"attention": ["se"]},
    "pretraining": [],
    "stages": [{"trains": ["head", "attention", "norms"], "epochs": 2, "lr": 0.01}],
}


def metrics(folder: Path, variant: str) -> dict[str, Any]:
    return json.loads((folder / "seed0" / variant / "metrics.json").read_text())


def moved(folder: Path, variant: str) -> set[str]:
    """Return the tensors of the host that a variant changed."""
    kept = weights(folder / "seed0")
    host, own = kept["host/last.safetensors"], kept[f"{variant}/last.safetensors"]
    return {key for key, value in host.items() if not torch.equal(value, own[key])}


def affine() -> set[str]:
    norms = [path for path, each in SmallResNet().named_modules() if hasattr(each, "running_var")]
    return {f"{path}.{name}" for path in norms for name in ("weight", "bias")}


HEAD = {"fc.weight", "fc.bias"}


class TestRecipe:
    def test_what_was_meant_is_meant(self, tmp_path):
        assert tiny(tmp_path).control_variants == ("control",)
        assert tiny(tmp_path, control=True).variants == ("control", "cbam")
        assert tiny(tmp_path, control=False, controls=ALL).variants == ("cbam",)
        assert tiny(tmp_path, controls=ALL).variants == (*VARIANTS, "cbam")
        assert tiny(tmp_path, controls="head").variants == ("control-head", "cbam")
        assert set(CONTROLS) == set(ALL)

    def test_what_decides_the_weights_of_those_there_were(self, tmp_path):
        old, new = tiny(tmp_path), tiny(tmp_path, controls=ALL, budget="seconds")
        for variant in ("host", "cbam"):
            assert old.identity(variant, 0) == new.identity(variant, 0)
        assert old.identity("control", 0) == tiny(tmp_path, controls=ALL).identity("control", 0)
        assert "head_lr_scale" not in json.dumps(old.identity("cbam", 0))
        faster = [{**TINY["stages"][0], "head_lr_scale": 2.0}, TINY["stages"][1]]
        assert tiny(tmp_path, stages=faster).identity("cbam", 0) != old.identity("cbam", 0)

    def test_seconds_are_those_of_the_attentions(self, tmp_path):
        steps, seconds = (tiny(tmp_path, budget=each) for each in ("steps", "seconds"))
        both = tiny(tmp_path, budget="seconds", surgery={"attention": ["cbam", "se"]})
        assert len({str(each.identity("control", 0)) for each in (steps, seconds, both)}) == 3
        assert both.training_order == ("cbam", "se", "control")
        assert steps.training_order == ("control", "cbam")

    def test_each_goes_through_the_stages(self, tmp_path):
        recipe = tiny(tmp_path, controls=ALL, stages=[{"trains": "attention", "freezes": "conv1"}])
        trained = {}
        for variant in recipe.variants:
            ((place, stage),) = recipe.stages_of(variant)
            assert place == "stages.0"
            assert (
                dataclasses.replace(stage, trains=("attention",), freezes=("conv1",))
                == dict(recipe.stages_of("cbam"))["stages.0"]
            )
            trained[variant] = (stage.trains, stage.freezes)
        assert trained == {
            "control": (("attention",), ("conv1",)),
            "control-head": (("head",), ()),
            "control-norms": (("head", "norms"), ()),
            "control-scale": (("attention",), ("conv1",)),
            "control-full": (("all",), ()),
            "cbam": (("attention",), ("conv1",)),
        }

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"controls": ["haed"]}, "controls='haed' is not supported; did you mean 'head'"),
            ({"controls": ["head", "head"]}, "names must be unlike"),
            ({"budget": "minutes"}, "budget='minutes' is not supported"),
            ({"budget": "seconds", "surgery": {"attention": []}}, "and there is none"),
            ({"surgery": {"attention": ["control-head"]}}, "names must be unlike"),
            ({"surgery": {"options": {"scale": {"shift": False}}}}, "none of surgery.attention"),
            (
                {"controls": ["scale"], "surgery": {"options": {"scale": {"ratio": 1}}}},
                "'scale' has no option 'ratio'",
            ),
            (
                {"controls": ["head"], "data": within("data", task="segmentation")},
                "'head' trains the head of a classification",
            ),
            ({"stages": [{"head_lr_scale": -1}]}, "head_lr_scale=-1.0 must be at least 0"),
        ],
    )
    def test_mistakes(self, tmp_path, changes, told):
        with pytest.raises(SurgeryError, match=told):
            check_recipe(parse_recipe({**TINY, "output": str(tmp_path), **changes}))

    def test_a_constant_gate_at_other_sites(self, tmp_path):
        own = {"attention": ["se"], "options": {"se": {"where": "layer3.*"}}}
        told = "the control 'scale' has 3 sites, and se 1, which are not the same"
        with pytest.raises(SurgeryError, match=told):
            run_recipe(tiny(tmp_path, controls=["scale"], surgery=own))
        assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    output = tmp_path_factory.mktemp("frozen")
    outcome = run_recipe(tiny(output, controls=ALL, **FROZEN))
    assert outcome is not None
    return outcome, output


class TestFrozenHost:
    def test_what_each_trains(self, frozen):
        _, output = frozen
        norms = affine()
        assert moved(output, "control-head") == HEAD
        for variant in ("control", "control-norms", "control-scale", "se"):
            assert moved(output, variant) == HEAD | norms, variant
        assert {"conv1.weight", "bn1.running_mean"} <= moved(output, "control-full")
        gate = weights(output / "seed0/control-scale")["last.safetensors"]
        assert (gate["layer1.0.attn.scale"] != 1).all()

    def test_all_take_as_many_steps(self, frozen):
        outcome, output = frozen
        for variant in (*VARIANTS, "se"):
            told = metrics(output, variant)
            assert told["taken"] == [12]
            assert len(told["steps"]) == 12
            assert len(told["history"]) == 2
            assert 0 < sum(told["training_s"]) < told["seconds"]
        assert all(line.steps == 12 for line in outcome.lines[1:])

    def test_same_and_norms_are_one_here(self, frozen):
        """Without attention, these stages train head and norms: what the control ``norms`` does."""
        _, output = frozen
        kept = weights(output / "seed0")
        same, norms = (kept[f"{each}/last.safetensors"] for each in ("control", "control-norms"))
        assert all(map(torch.equal, same.values(), norms.values()))

    def test_the_table(self, frozen):
        outcome, output = frozen
        lines = {line.variant: line for line in outcome.lines}
        assert list(lines) == ["host", *VARIANTS, "se"]
        head = 10 * 16 + 10
        norms = sum(SmallResNet(width=4).get_parameter(name).numel() for name in affine())
        everything = sum(p.numel() for p in SmallResNet(channels=1, width=4).parameters())
        assert {name: line.trained_params for name, line in lines.items()} == {
            "host": None,
            "control": head + norms,
            "control-head": head,
            "control-norms": head + norms,
            "control-scale": head + norms + (4 + 8 + 16),
            "control-full": everything,
            "se": head + norms + lines["se"].costs.params,
        }
        assert lines["control-scale"].costs.params == 4 + 8 + 16
        for name in ("control-scale", "se"):
            path = output / "seed0" / name / "attention.safetensors"
            assert lines[name].file_bytes == path.stat().st_size
        assert lines["control-full"].file_bytes is None
        assert [each.control for each in lines["se"].comparisons] == VARIANTS
        assert not any(lines[name].comparisons for name in VARIANTS)
        assert all(line.step_s > 0 for line in outcome.lines[1:])

    def test_the_files(self, frozen):
        _, output = frozen
        told = json.loads((output / "result.json").read_text())
        se = told["lines"][-1]
        assert [each["control"] for each in se["comparisons"]] == VARIANTS
        assert se["difference"] == se["comparisons"][0]["difference"]
        text = (output / "result.md").read_text()
        assert "| se          | control-norms | 1 " in text
        assert "control-scale after" in text
        rows = list(csv.DictReader((output / "result.csv").read_text().splitlines()))
        means = {row["variant"]: float(row["mean"]) for row in rows}
        for control in VARIANTS:
            column = "difference" + control.removeprefix("control").replace("-", "_")
            assert float(rows[-1][column]) == pytest.approx(means["se"] - means[control])

    def test_evaluate(self, frozen):
        _, output = frozen
        found = remeasure(output)
        assert [each.run for each in found] == [f"seed0/{x}" for x in ("host", *VARIANTS, "se")]
        assert all(each.same for each in found)


def with_weights(folder: Path, **changes: Any) -> Any:
    """Return a recipe whose host has weights that anyone can fetch."""
    host = {**TINY["host"], "checkpoint": str(folder / "host.pt")}
    torch.manual_seed(1)
    torch.save(SmallResNet(channels=1, width=4).state_dict(), host["checkpoint"])
    return tiny(folder / "out", host=host, control=False, **{**FROZEN, **changes})


def small_host_with_weights(**options: Any) -> SmallResNet:
    """Build a host that brings its weights, as other people's functions do."""
    torch.manual_seed(1)
    return SmallResNet(channels=1, width=4, **options)


@pytest.mark.parametrize(
    ("trains", "kept"),
    [
        (["head", "attention"], HEAD),
        (["head", "attention", "norms"], HEAD | affine()),
        (["attention"], set()),
    ],
)
def test_the_file_holds_what_training_changed(tmp_path, trains, kept):
    """An attention file of a frozen host is small, and brings back all."""
    recipe = with_weights(tmp_path, stages=[{"trains": trains, "epochs": 1, "lr": 0.01}])
    run_recipe(recipe)
    path = tmp_path / "out/seed0/se/attention.safetensors"
    file = weights(path.parent)["attention.safetensors"]
    assert {key for key in file if ".attn." not in key} == kept
    again = attn_surgery.load(build_host(recipe.host, 10, seed=0), path)
    last = weights(path.parent)["last.safetensors"]
    assert all(torch.equal(value, last[key]) for key, value in again.state_dict().items())


def test_the_file_of_a_host_that_brings_its_weights(tmp_path):
    host = {"model": f"{__name__}:small_host_with_weights"}
    run_recipe(tiny(tmp_path, **{**FROZEN, "host": host}, control=False))
    file = weights(tmp_path / "seed0/se")["attention.safetensors"]
    assert {key for key in file if ".attn." not in key} == HEAD | affine()


def test_the_file_of_a_host_that_began_at_random_holds_that(tmp_path):
    run_recipe(tiny(tmp_path, **FROZEN, control=False))
    file = weights(tmp_path / "seed0/se")["attention.safetensors"]
    assert {"conv1.weight", "layer3.0.conv2.weight"} <= file.keys()
    assert "bn1.running_mean" not in file
    fresh = build_host(tiny(tmp_path).host, 10, seed=0)
    again = attn_surgery.load(fresh, tmp_path / "seed0/se/attention.safetensors")
    last = weights(tmp_path / "seed0/se")["last.safetensors"]
    assert all(torch.equal(value, last[key]) for key, value in again.state_dict().items())


def test_the_file_of_what_trained_in_full_holds_all(tmp_path):
    run_recipe(with_weights(tmp_path, stages=[{"epochs": 1, "freezes": "conv1"}]))
    file = weights(tmp_path / "out/seed0/se")["attention.safetensors"]
    assert "conv1.weight" in file


def test_a_new_head_is_not_left_new(tmp_path):
    host = {**TINY["host"], "options": {"width": 4, "classes": 7}}
    stages = [{"trains": ["attention", "norms"]}]
    with pytest.raises(SurgeryError, match="the head is new"):
        run_recipe(tiny(tmp_path, **{**FROZEN, "host": host, "stages": stages}))


# Time


def with_clock(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Let each step take so many seconds: a half, or what is given for a variant."""

    def count(run: Run, progress: Any, _: Any) -> None:
        progress.training_s[progress.stage] += seconds.get(run.variant, 0.5)

    monkeypatch.setattr(Run, "count_time", count)


SECONDS: dict[str, Any] = {
    "budget": "seconds",
    "controls": ["head", "scale", "same"],
    "surgery": {"attention": ["se", "cbam"]},
}


def test_controls_train_as_long_as_the_slowest_attention(tmp_path, monkeypatch):
    with_clock(monkeypatch, se=1.0, cbam=2.0)
    outcome = run_recipe(tiny(tmp_path, **SECONDS))
    assert outcome is not None
    assert [line.variant for line in outcome.lines][1:] == [
        "control-head", "control-scale", "control", "se", "cbam",
    ]  # fmt: skip
    # 6 and 3 steps of the stages, of 2 seconds with cbam; a half each without
    for variant, taken in {"se": [6, 3], "cbam": [6, 3], "control": [24, 12]}.items():
        assert metrics(tmp_path, variant)["taken"] == taken
    told = metrics(tmp_path, "control-head")
    assert told["training_s"] == metrics(tmp_path, "cbam")["training_s"] == [12.0, 6.0]
    assert len(told["history"]) == 4 + 4
    assert [step for step, *_ in told["steps"]] == list(range(1, 37))


def test_schedules_follow_the_seconds(tmp_path, monkeypatch):
    with_clock(monkeypatch, se=1.0)
    stage = {"epochs": 2, "lr": 0.01, "schedule": "cosine"}
    recipe = tiny(tmp_path, **{**SECONDS, "surgery": {"attention": ["se"]}}, stages=[stage])
    run_recipe(recipe)
    rates = {
        name: [rate for *_, rate in metrics(tmp_path, name)["steps"]] for name in ("se", "control")
    }
    assert len(rates["control"]) == 2 * len(rates["se"])
    assert rates["control"][1::2] == rates["se"]
    assert rates["control"][::2] == [0.01, *rates["se"][:-1]]


def test_real_seconds(tmp_path):
    run_recipe(tiny(tmp_path, **{**SECONDS, "controls": ["head"]}, log_every=2))
    attention = max(sum(metrics(tmp_path, name)["training_s"]) for name in ("se", "cbam"))
    told = metrics(tmp_path, "control-head")
    assert attention <= sum(told["training_s"]) < 1.5 * attention
    assert sum(told["taken"]) > 9 / 2


def test_attention_that_was_not_timed(tmp_path):
    run_recipe(tiny(tmp_path, control=False))
    path = tmp_path / "seed0/cbam/metrics.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in told.items() if k not in {"taken", "training_s"}}))
    with pytest.raises(SurgeryError, match="cbam, seed 0: its training was not timed"):
        run_recipe(tiny(tmp_path, budget="seconds"))
    outcome = run_recipe(tiny(tmp_path))
    assert outcome is not None
    assert outcome.lines[-1].step_s is None


# Interruption


ONE_EPOCH = {**FROZEN, "stages": [{**FROZEN["stages"][0], "epochs": 1}]}


@pytest.mark.parametrize(
    ("budget", "controls"),
    [
        ("steps", ["head", "scale"]),
        pytest.param("seconds", ["norms", "scale"], marks=pytest.mark.slow),
    ],
)
def test_a_machine_that_goes_again_and_again(tmp_path, monkeypatch, budget, controls):
    """The process dies after every fifth checkpoint, amid the epochs of controls as well."""
    with_clock(monkeypatch, se=1.0)
    variants = [*map(variant_of, controls), "se"]
    changes = {**ONE_EPOCH, "controls": controls, "budget": budget}
    run_recipe(tiny(tmp_path / "undisturbed", **changes))
    real, died_in, turns = checkpoints.write_whole, [], itertools.count(1)

    def dying(path: Path, content: bytes) -> None:
        real(path, content)
        if path.name == "checkpoint.pt" and next(turns) % 5 == 0:
            died_in.append(path.parent.name)
            raise ConnectionAbortedError("as if the machine had gone")

    monkeypatch.setattr(checkpoints, "write_whole", dying)
    recipe = tiny(tmp_path / "out", **changes)
    for _ in range(60):
        try:
            run_recipe(recipe)
            break
        except ConnectionAbortedError:
            pass
    assert set(variants) <= set(died_in)
    seen, expected = weights(tmp_path / "out"), weights(tmp_path / "undisturbed")
    assert seen.keys() == expected.keys()
    for name, state in expected.items():
        assert all(torch.equal(seen[name][key], value) for key, value in state.items()), name
    for variant in variants:
        again, once = (metrics(tmp_path / each, variant) for each in ("out", "undisturbed"))
        assert again["taken"] == once["taken"]
        assert again["steps"] == once["steps"]


def test_a_machine_that_goes_as_the_time_is_up(tmp_path, monkeypatch):
    """No step is taken any more then, but what was reached is measured."""
    with_clock(monkeypatch, se=1.25)
    save, left = Run.save, [1]

    def dying(run: Run, training: Any, progress: Any) -> None:
        save(run, training, progress)
        spent = run.variant == "control-head" and run.budget(progress.stage).is_spent(progress)
        if spent and progress.update and left.pop():
            raise ConnectionAbortedError("as if the machine had gone")

    monkeypatch.setattr(Run, "save", dying)
    recipe = tiny(tmp_path, **ONE_EPOCH, controls=["head"], budget="seconds")
    with pytest.raises(ConnectionAbortedError):
        run_recipe(recipe)
    monkeypatch.setattr(Run, "save", save)
    run_recipe(recipe)
    told = metrics(tmp_path, "control-head")
    assert told["taken"] == [15]  # 6 steps of 1.25 seconds, a half each
    assert len(told["history"]) == 3


def test_controls_are_added_to_what_is_there(tmp_path):
    run_recipe(tiny(tmp_path, **FROZEN))
    before = weights(tmp_path)
    outcome = run_recipe(tiny(tmp_path, controls=["same", "head"], **FROZEN))
    assert outcome is not None
    after = weights(tmp_path)
    assert all(
        torch.equal(after[name][key], value)
        for name, state in before.items()
        for key, value in state.items()
    )
    assert len(after) > len(before)


# What is concluded


def test_p_is_that_of_the_paired_t_test():
    a, b = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).tolist()
    assert p_value(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert p_value(a[:1], b[:1]) is None
    assert p_value([0.5, 0.75], [0.25, 0.5]) == 0.0
    assert p_value(a, a) == 1.0


def test_holm_by_hand():
    # the smallest times 4, the next times 3, ...; none below the one before, none above 1
    assert holm([0.5, 0.01, 0.02, 0.4]) == pytest.approx([0.8, 0.04, 0.06, 0.8])
    assert holm([0.012, 0.011]) == pytest.approx([0.022, 0.022])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_verdict_of_several_is_by_the_corrected_p():
    base = [0.80, 0.81, 0.79, 0.80]
    scores = {
        "control": base,
        "control-head": [x - 0.1 + e for x, e in zip(base, (0.001, -0.001, 0, 0), strict=True)],
        "se": [x + e for x, e in zip(base, (0.010, 0.003, 0.012, 0.006), strict=True)],
    }
    (alone,) = compare(scores, ["se"], ["control"])
    assert alone.p is not None
    assert alone.p == alone.holm
    assert alone.p < 0.05
    assert str(alone) == "se beats its control"
    cbam = {**scores, "cbam": base[::-1]}
    told = compare(cbam, ["se", "cbam"], ["control", "control-head"])
    assert [each.comparisons for each in told] == [4] * 4
    assert str(told[0]).startswith("se is not told from control: p = 0.0")
    assert str(told[0]).endswith("corrected for 4 comparisons")
    assert str(told[1]) == "se beats control-head"
    assert str(told[2]) == "cbam does not beat its control: the interval holds 0"
    few = compare({name: own[:2] for name, own in scores.items()}, ["se"], ["control-head"])
    assert "is not judged: 2 of the 3 seeds" in str(few[0])
    assert "p (Holm, of 4)" in comparison_table(told, "simple")


def test_one_seed_is_no_test():
    (one,) = compare({"se": [0.9], "control": [0.8]}, ["se"], ["control"])
    head = comparison_table([one], "simple").splitlines()[0]
    assert head.split()[-2:] == ["p", "(Holm)"]


def test_runs_from_before_there_was_time(tmp_path):
    results = [
        {
            "identity": {"variant": variant, "seed": seed},
            "score": {"accuracy": 0.9 + 0.01 * seed},
            "at_insertion": {"accuracy": 0.9},
            "best": 0.9,
            "gates": {},
            "history": [],
        }
        for seed in range(3)
        for variant in ("host", "control", "se")
    ]
    outcome = gather(results, "accuracy", {}, {}, {})
    assert [line.step_s for line in outcome.lines] == [None] * 3
    assert "se does not beat its control" in str(outcome)
    assert "to control (95 %)" in outcome.table()


def test_every_variant_is_known_for_what_it_is():
    assert [attention_of(each) for each in (*VARIANTS, "se", "scale", "host")] == [
        None, None, None, "scale", None, "se", "scale", None,
    ]  # fmt: skip
    assert all(map(is_control, VARIANTS))
    assert not is_control("scale")
