"""Thousands of random residual networks: no miss, no false hit, the identity bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from generated import Recipe, recipes, spellings
from generated_layers import TrueSite, gated, true_sites
from hypothesis import HealthCheck, given, settings
from torch import Tensor, fx, nn

import attn_surgery
from attn_surgery import Site

OFTEN = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
VERY_OFTEN = settings(OFTEN, max_examples=5000, derandomize=False)
OPTIONS: dict[str, Any] = {"reduction": 2, "existing": "stack"}
LOGIT = 0.4
GATE = 2 * torch.sigmoid(torch.tensor(LOGIT))


@settings(OFTEN)
@given(recipes())
def test_generated(recipe: Recipe):
    check(recipe)


@pytest.mark.slow
@settings(VERY_OFTEN)
@given(recipes())
def test_many_generated(recipe: Recipe):
    check(recipe)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", spellings())
def test_each_spelling(name: str) -> None:
    """Whatever is drawn, and whatever is not."""
    for recipe in spellings()[name]:
        check(recipe)


def check(recipe: Recipe) -> None:
    truth, host, source = truth_of(recipe), recipe.build(), recipe.source()
    found = check_plan(recipe, host, truth)
    if not found:
        return
    before, contents = attributes(host), contents_of(host)
    attn_surgery.apply(host, "se", **OPTIONS)
    check_same(recipe, source, host)
    check_contents(host, contents)
    refused = [source.get_submodule(site.block) for site in truth if site not in found]
    operated = Operated(recipe, source, host, refused)
    operated.check_gates(len(found))
    operated.check_after_surgery()
    attn_surgery.remove(host)
    assert attributes(host) == before
    check_contents(host, contents)
    check_same(recipe, source, host)


# No miss, no false hit


def truth_of(recipe: Recipe) -> list[TrueSite]:
    """Return the true sites; a ``GraphModule`` holds them all itself, and its calls are flat."""
    sites = true_sites(recipe.source().eval(), *recipe.inputs())
    if recipe.host == "fx":
        return [TrueSite("", None, site.channels, site.spatial_dims) for site in sites]
    return list(dict.fromkeys(sites))


def check_plan(recipe: Recipe, host: nn.Module, truth: list[TrueSite]) -> list[TrueSite]:
    """Hold the plan against the truth, and return the true sites that are to be cut."""
    plan = attn_surgery.plan(host, "se", **OPTIONS)
    left, found, missed = list(plan.sites), [], []
    for true in sorted(truth, key=lambda site: site.after is None):
        match = next((site for site in left if _is_same(site, true)), None)
        if match is not None:
            left.remove(match)
            found.append(true)
        elif not true.doubtful:
            missed.append(true)
    assert (missed, left) == ([], []), f"missed, false: {(missed, left)}\n{plan}"
    if not recipe.holds_attention:
        assert [site.existing for site in plan.sites] == [None] * len(plan.sites), plan
    return found


def _is_same(site: Site, true: TrueSite) -> bool:
    if (site.channels, site.spatial_dims) != (true.channels, true.spatial_dims):
        return False
    return true.after in (None, site.after) and site.block == true.block


# The identity, bit for bit


def check_same(recipe: Recipe, source: nn.Module, host: nn.Module) -> None:
    for training in recipe.modes():
        assert_same(observe(source, recipe, training), observe(host, recipe, training))


def observe(model: nn.Module, recipe: Recipe, training: bool) -> dict[str, Tensor]:
    """Run ``model`` and return its output and all that the pass left behind."""
    torch.manual_seed(2)
    with torch.no_grad():
        out = model.train(training)(*recipe.inputs())
    out = out["features"] if isinstance(out, dict) else out
    state = {name: each.clone() for name, each in model.state_dict().items()}
    return {"the output": out, "the random state": torch.get_rng_state(), **state}


def assert_same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    for name in expected.keys() & found.keys():
        assert torch.equal(expected[name], found[name]), name


CHANGES = {"training", "calls", "_graph", "_code", "_lineno_map", "_prologue_start"}
"""What a pass may change, and what a ``GraphModule`` makes anew from an equal graph."""


def attributes(model: nn.Module) -> dict[str, Any]:
    """Return the class and the attributes of every module, but for CHANGES."""
    code = {"code": model.code} if isinstance(model, fx.GraphModule) else {}
    return code | {
        path: (id(module), type(module), _identities(vars(module)))
        for path, module in model.named_modules()
    }


def _identities(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _identities(value) if isinstance(value, dict) else id(value)
        for name, value in values.items()
        if name not in CHANGES
    }


# The branch is scaled, and nothing else


@dataclass
class Operated:
    """A host with attention in it, and the source that its gates are held against."""

    recipe: Recipe
    source: nn.Module
    host: nn.Module
    refused: list[nn.Module]
    """The blocks of the source that the plan left out."""

    def check_gates(self, sites: int) -> None:
        """Compare constant gates at the sites with the source's own ends scaled by hand."""
        inserted = attn_surgery.inserted(self.host)
        assert len(inserted) == sites
        for attention in inserted.values():
            nn.init.constant_(attention.get_parameter("fc2.bias"), LOGIT)
        self.check(self.recipe.modes())

    def check(self, modes: tuple[bool, ...]) -> None:
        """Compare the host with the source, gated."""
        for training in modes:
            assert_same(self.expected(training), observe(self.host, self.recipe, training))

    def expected(self, training: bool) -> dict[str, Tensor]:
        with gated(GATE, self.refused):
            return observe(self.source, self.recipe, training)

    def operated(self) -> dict[str, nn.Module]:
        """Return the modules that were operated on, by their paths, each once."""
        paths = [path.rpartition(".")[0] for path in attn_surgery.inserted(self.host)]
        return {path: self.host.get_submodule(path) for path in dict.fromkeys(paths)}

    def containers(self) -> list[str]:
        """Return the paths of containers that were operated on, or that hold what was."""
        paths = [each for path in self.operated() for each in (path, path.rpartition(".")[0])]
        found = {self.host.get_submodule(path): path for path in reversed(paths)}
        return [path for module, path in found.items() if isinstance(module, CONTAINERS)]

    def is_attended(self, module: nn.Module) -> bool:
        """Tell whether there is attention in a module, which would go with it."""
        return bool(attn_surgery.inserted(module))

    def check_after_surgery(self) -> None:
        """Whatever is done to the operated host, its gated function stays what it is."""
        recipe = self.recipe
        if recipe.again and attn_surgery.plan(self.host, "se", **OPTIONS).sites:
            attn_surgery.apply(self.host, "se", **OPTIONS)
            self.check(recipe.mode())
        if recipe.touched:
            self.check_touched()
        if recipe.copied and recipe.is_copied_whole:
            self.check_copy()
        if recipe.changed:
            self.check_changed(recipe.changed)

    def check_touched(self) -> None:
        """Set what the operated modules have to what it is."""
        attentions = set(attn_surgery.inserted(self.host).values())
        for module in self.operated().values():
            own = [name for name in vars(module) if not name.startswith("_")]
            children = [name for name, child in module.named_children() if child not in attentions]
            parameters = [name for name, _ in module.named_parameters(recurse=False)]
            for name in (*own[:3], *children[:2], *children[-1:], *parameters[:1]):
                if name not in ("training", "forward"):
                    setattr(module, name, getattr(module, name))
        self.check(self.recipe.mode())

    def check_copy(self) -> None:
        """A copy is the model, and the model is what it was."""
        copied = _saved if self.recipe.copied == "save" and _can_be_saved(self.source) else _copied
        twin = copied(self.host)
        for training in self.recipe.mode():
            expected = self.expected(training)
            assert_same(expected, observe(twin, self.recipe, training))
            assert_same(expected, observe(self.host, self.recipe, training))
        assert [*attn_surgery.inserted(twin)] == [*attn_surgery.inserted(self.host)]

    def check_changed(self, change: str) -> None:
        """Change containers that were operated on as one does any others, and undo it again."""
        sites = len(self.ends())
        for path in self.containers():
            block, twin = self.host.get_submodule(path), self.source.get_submodule(path)
            first = next(block.named_children())
            takes_away = change in ("delete", "replace")
            if takes_away and (self.is_attended(first[1]) or self.ends_after(path, first[0])):
                continue
            undo_twin = changed(twin, change)
            if undo_twin is None:
                continue
            if len(self.ends()) == sites:
                undo = changed(block, change)
                assert undo is not None
                assert _kinds(block) == _kinds(twin)
                self.check(self.recipe.mode())
                undo()
            undo_twin()
            assert _kinds(block) == _kinds(twin)
            self.check(self.recipe.mode())

    def ends_after(self, path: str, name: str) -> bool:
        """Tell whether this child of a block makes the end of its branch."""
        return any((site.block, site.after) == (path, name) for site in self.ends())

    def ends(self) -> list[TrueSite]:
        """Return the ends that the source passes now; none where it cannot run."""
        mode = self.source.training
        try:
            return true_sites(self.source.eval(), *self.recipe.inputs())
        except Exception:
            return []
        finally:
            self.source.train(mode)


def _copied(host: nn.Module) -> nn.Module:
    return copy.deepcopy(host)


def _saved(host: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(host, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _can_be_saved(source: nn.Module) -> bool:
    try:
        _saved(source)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):
        return False  # lambdas, methods patched on the instance, parametrizations
    return True


# Containers stay what they are


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def contents_of(model: nn.Module) -> dict[str, Any]:
    """Return what every container tells of itself, by its path."""
    return {
        path: (len(module), list(map(_identity, module)))
        for path, module in model.named_modules()
        if isinstance(module, CONTAINERS)
    }


def check_contents(host: nn.Module, contents: dict[str, Any]) -> None:
    found = contents_of(host)
    for path, expected in contents.items():
        assert found[path] == expected, path


def _identity(item: Any) -> Any:
    return item if isinstance(item, str) else id(item)


def _kinds(block: Any) -> list[str]:
    """Return the classes of what a container holds, in order."""
    items = block.items() if isinstance(block, nn.ModuleDict) else enumerate(block)
    return [f"{name}: {type(item).__name__}" for name, item in items]


class Negated(nn.Module):
    """Commutes with a gate, bit for bit."""

    def forward(self, x: Any) -> Any:
        return -x


def changed(block: Any, change: str) -> Callable[[], Any] | None:
    """Change a container, and return how to undo it; None where it has no such change."""
    if isinstance(block, nn.ModuleDict):
        return _changed_dict(block, change)
    if change == "append":
        block.append(Negated())
        return lambda: block.__delitem__(-1)
    if change == "insert":
        block.insert(0, Negated())
        return lambda: block.__delitem__(0)
    former = block[0]
    if change == "replace":
        block[0] = Negated()
        return lambda: block.__setitem__(0, former)
    del block[0]
    return lambda: block.insert(0, former)


def _changed_dict(block: nn.ModuleDict, change: str) -> Callable[[], Any] | None:
    if change == "append":
        block["more"] = Negated()
        return lambda: block.__delitem__("more")
    if change == "replace":
        name = next(iter(block))
        former = block[name]
        block[name] = Negated()
        return lambda: block.__setitem__(name, former)
    return None
