"""Which sites of a recipe's host are worth an attention."""

import itertools
import json

import pytest
import torch
from finetuning import tiny
from test_finetune_recipes import ON_CPU, write_voc

import attn_surgery
from attn_surgery.cli import main
from attn_surgery.errors import SurgeryError
from attn_surgery.finetune import read_recipe, run_recipe, suggest_for, suggesting
from attn_surgery.finetune.hosts import build_host
from attn_surgery.host import read_weights

STAGES = [{"trains": ["head", "attention"], "epochs": 1, "lr": 0.01}]


def recipe_in(folder, **changes):
    return tiny(folder, stages=STAGES, controls=["head"], **changes)


def test_the_host_and_its_head_are_those_of_the_recipe(tmp_path):
    recipe = recipe_in(tmp_path)
    first = suggest_for(recipe, batches=3)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("last.safetensors")}
    assert {path.parent.name for path in kept} == {"host", "control-head"}
    again = suggest_for(recipe, batches=3)
    assert again == first
    run_recipe(recipe)
    assert {path: path.read_bytes() for path in kept} == kept
    alone = tmp_path / "alone"
    run_recipe(recipe_in(alone))
    for path, content in kept.items():
        assert (alone / path.relative_to(tmp_path)).read_bytes() == content


def test_scores_are_those_of_the_host_with_its_head(tmp_path, monkeypatch):
    """Taken again by hand, from what lies in the folder."""
    seen = []

    def kept(host, batches, loss, *words, **asked):
        seen.extend(batches)
        return attn_surgery.suggest(host, seen, loss, *words, **asked)

    monkeypatch.setattr(suggesting, "suggest", kept)
    recipe = recipe_in(tmp_path, surgery={"attention": ["se"]})
    (found,) = suggest_for(recipe, batches=4).values()
    host = build_host(recipe.host, 10, 0).eval()
    host.load_state_dict(read_weights(tmp_path / "seed0" / "control-head" / "last.safetensors"))

    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    again = attn_surgery.suggest(host, seen, loss, "se")
    assert not any(torch.equal(a[0], b[0]) for a, b in itertools.combinations(seen, 2))
    assert [each.score for each in again.scores] == [each.score for each in found.scores]
    assert sum(each.score for each in found.scores) > 0


def test_more_batches_than_an_epoch_has(tmp_path):
    (found,) = suggest_for(recipe_in(tmp_path), batches=9).values()  # 192 images are 6
    assert found.batches == 9


def test_each_attention_of_the_recipe(tmp_path):
    surgery = {"attention": ["se", "eca"], "where": ["layer*"], "options": {"se": {"reduction": 2}}}
    found = suggest_for(recipe_in(tmp_path, surgery=surgery), batches=2, budget={"sites": 1})
    assert list(found) == ["se", "eca"]
    assert [len(each.plan.sites) for each in found.values()] == [1, 1]
    assert {each.options["reduction"] for each in found["se"].plan.assignments} == {2}


def test_a_host_that_learned_elsewhere(tmp_path):
    found = suggest_for(recipe_in(tmp_path, pretraining=[]), batches=2)
    assert len(found["cbam"].scores) == 3


@pytest.mark.slow
def test_dense_tasks_have_no_head_to_train(tmp_path):
    changes = [
        "data.batch_size=2", "data.image_size=33", "stages.0.epochs=1", "stages.0.warmup_epochs=0",
        "host.pretrained=false", "data.download=false", "surgery.where=[\"backbone.layer4.*\"]",
        "surgery.attention=[\"se\"]", f"data.root={write_voc(tmp_path / 'voc')}",
        f"output={tmp_path / 'runs'}", *ON_CPU,
    ]  # fmt: skip
    (found,) = suggest_for(read_recipe("segmentation_deeplab", changes), batches=3).values()
    assert len(found.scores) == 3
    assert sum(each.score for each in found.scores) > 0
    assert {path.parent.name for path in tmp_path.rglob("last.safetensors")} == {"host"}


@pytest.fixture
def file(tmp_path):
    """The recipe as a TOML file."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""
output = "{tmp_path / "runs"}"
seeds = 1
device = "cpu"
threads = 1
[host]
model = "attn_surgery.finetune.small_resnet:small_resnet"
options = {{ width = 4 }}
[data]
name = "digits"
channels = 1
image_size = 8
batch_size = 32
limit = 192
val_limit = 96
[[pretraining]]
lr = 0.01
[[stages]]
trains = ["head", "attention"]
lr = 0.01
"""
    )
    return path


def test_the_command(file, tmp_path, capsys):
    saved = tmp_path / "plan.json"
    words = ["suggest", str(file), "--batches", "6", "--budget", "sites=2", "--output", str(saved)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("cbam\n    block ")
    assert "2 of 3 sites (x) hold " in out
    plan = attn_surgery.Plan.load(saved)
    host = build_host(tiny(tmp_path).host, 10, 0)
    attn_surgery.apply(host, plan)
    assert len(attn_surgery.inserted(host)) == 2
    assert main([*words, "--json", "--attention", "se"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["se"]
    assert len(told["se"]["scores"]) == 3


def test_the_plan_is_an_attention_of_the_recipe(file, tmp_path, capsys):
    saved = tmp_path / "plan.json"
    words = [str(file), "--set", "report_seconds=0"]
    assert main(["suggest", *words, "--budget", "sites=1", "--output", str(saved)]) == 0
    assert main(["finetune", *words, f'surgery.attention=["{saved}"]']) == 0
    assert "plan.json after" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "sites"], "is no option such as"),
        (["--budget", "blocks=3"], "budget='blocks' is not supported"),
        (["--batches", "1"], "batches has 1, and noise is told"),
        (
            ["--output", "x.json", "--set", 'surgery.attention=["se", "cbam"]'],
            "--output saves one plan, but the recipe has 2 attentions; choose one with --attention",
        ),
        (["--attention", "sebam"], "sebam"),
    ],
)
def test_mistakes(file, capsys, words, message):
    try:
        status = main(["suggest", str(file), *words])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_what_cannot_be_done_is_refused_before_anything_trains(tmp_path):
    with pytest.raises(SurgeryError, match="budget='blocks' is not supported"):
        suggest_for(recipe_in(tmp_path), budget={"blocks": 3})
    assert not list(tmp_path.rglob("*.safetensors"))
