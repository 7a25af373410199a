"""A recipe is checked before anything runs, and what is wrong is named."""

from __future__ import annotations

import json

import pytest

from attn_surgery.errors import SurgeryError
from attn_surgery.finetune.experiment.checking import check_recipe
from attn_surgery.finetune.recipe.reading import parse_recipe, read_recipe
from attn_surgery.finetune.running import run_recipe
from tests.finetuning import TINY, tiny, within, write_recipe

WRONG = {
    "seed=3": "the recipe has no key 'seed'; did you mean 'seeds'?",
    "attention=se": "the recipe has no key 'attention'; did you mean 'surgery.attention'?",
    "lr=1": "has no key 'lr'; did you mean 'stages.0.lr' or 'pretraining.0.lr'?",
    "seeds='three'": "seeds must be of type int, not 'three'",
    "seeds=0": "seeds=0 must be at least 1",
    "seeds=true": "seeds must be of type int, not True",
    "host.modle='resnet18'": r"\[host\] has no key 'modle'; did you mean 'model'?",
    "data.batch_size=1.5": "data.batch_size must be of type int, not 1.5",
    "data.channels=2": "data.channels=2 must be 1 or 3",
    "data.task=classify": "data.task='classify' is not supported; did you mean 'classification'",
    "stages.0.trian=all": r"\[stages\] has no key 'trian'; did you mean 'trains'",
    "stages.5.lr=1": "'5' is none of 0 to 1",
    "stages.0.lr=-1": "stages.0.lr=-1.0 must be at least 0",
    "stages.1.ema=1.0": "stages.1.ema=1.0 must be at least 0 and below 1",
    "stages.0.optimizer=adamv": "timm has no optimizer 'adamv'; did you mean 'adam'",
    "stages.0.schedule=cosin": "stages.0.schedule='cosin' is not supported; did you mean 'cosine'",
    "stages.0.norm_stats=alive": "norm_stats='alive' is not supported; did you mean 'live'",
    "stages.0.warmup_epochs=2": "warmup_epochs are part of epochs",
    "stages=[]": r"needs one \[\[stages\]\] at least",
    "surgery.attention=['cbma']": "did you mean 'cbam'",
    "surgery.attention=['se', 'se']": "names must be unlike",
    "surgery.attention=['control']": "names must be unlike",
    "surgery.options.se.reduction=8": "surgery.options has a table for 'se'.*none of",
    "surgery.options.cbam.ratio=8": "ratio",
    "surgery.position=middle": "position='middle' is not supported",
    "surgery.init=zero": "init='zero' is not supported",
    "sync_batchnorm=yes": "sync_batchnorm must be of type bool, not 'yes'",
    "amp=bf8": "amp='bf8' is not supported",
    "pretraining.0.distill_weight=1": "before the surgery there is no attention and no teacher",
    "data.unlabelled=here": "is for distillation: give a stage distill_weight",
    "data.batch_size=31": "mixup and cutmix need an even data.batch_size",
    "output": "'output' is no setting such as",
}


@pytest.mark.parametrize("setting", WRONG)
def test_what_is_wrong_is_named(tmp_path, setting):
    path = write_recipe(tmp_path / "tiny.toml", TINY)
    with pytest.raises(SurgeryError, match=WRONG[setting]):
        check_recipe(read_recipe(path, [setting]))


WRONG_TOGETHER = {
    "data.name=digit": "data.name='digit' is not understood; did you mean 'digits'",
    "data.name='torchvision/FashionMNST'": "has no data set 'FashionMNST'; did you mean 'FashionM",
    "data.name=torchvision/FashionMNIST": "cannot open torchvision's FashionMNIST: .*not found",
    "data.name=timm/nothing": "timm cannot open 'nothing'|there is no|has no image",
    "data.train_transform.flip=1": "data.train_transform has no key 'flip'; did you mean 'vflip'",
    "data.batch_size=256": "192 images to learn from are fewer than one step takes",
    "stages.0.trains=['layer9.*']": "stages.0: 'layer9.*' names no parameter",
    "stages.0.freezes=layer9": "stages.0: 'layer9' names no parameter",
    "stages.1.optimizer_options.momentun=1": "stages.1: optimizer 'adamw':.*momentun",
    "surgery.where=['layer9.*']": "'layer9.*' matches no block",
    "host.model=resnet5O": "unknown model 'resnet5O'",
    "host.options.depth=9": "cannot build .*depth",
    "host.checkpoint=nothing.pt": "cannot read checkpoint nothing.pt",
}


@pytest.mark.parametrize("setting", WRONG_TOGETHER)
def test_what_does_not_fit_together(tmp_path, setting):
    path = write_recipe(tmp_path / "tiny.toml", TINY)
    if setting.startswith("host.model"):
        table = {**TINY, "host": {"model": "digits"}}
        path = write_recipe(tmp_path / "tiny.toml", table)
    recipe = read_recipe(path, [setting, f"output={tmp_path / 'out'}", f"data.root={tmp_path}"])
    with pytest.raises(SurgeryError, match=WRONG_TOGETHER[setting]):
        run_recipe(recipe)
    assert not list((tmp_path / "out").rglob("*")), "something ran"


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SurgeryError, match="cannot write to output="):
        run_recipe(tiny(tmp_path / "file" / "out"))


def test_a_recipe_that_is_not_there():
    with pytest.raises(SurgeryError, match="no recipe 'digit'; did you mean 'digits'"):
        read_recipe("digit")


def test_a_file_that_is_no_toml(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[host\n")
    with pytest.raises(SurgeryError, match="cannot read the recipe"):
        read_recipe(path)


def test_a_needed_key():
    with pytest.raises(SurgeryError, match=r"\[host\] needs 'model'"):
        parse_recipe({**TINY, "host": {}})


def test_as_json_and_back(tmp_path):
    recipe = tiny(tmp_path, surgery={"attention": "se", "options": {"se": {"reduction": 8}}})
    assert parse_recipe(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_what_decides_the_weights(tmp_path):
    recipe, moved = tiny(tmp_path), tiny(tmp_path / "b", data=within("data", workers=2, root="x"))
    assert recipe.identity("cbam", 0) == moved.identity("cbam", 0)
    assert recipe.identity("cbam", 0) != recipe.identity("cbam", 1)
    assert recipe.identity("cbam", 0) != recipe.identity("control", 0)
    assert recipe.identity("cbam", 0) != tiny(tmp_path, sync_batchnorm=True).identity("cbam", 0)
    other = tiny(tmp_path, data=within("data", batch_size=16))
    assert recipe.identity("control", 0) != other.identity("control", 0)
