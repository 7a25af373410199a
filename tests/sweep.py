"""Models of other people's collections, each planned, cut with three attentions, and restored.

    python -m tests.sweep pytorchcv
    python -m tests.sweep spandrel
    python -m tests.sweep transformers

By hand: the first two are no dependencies. Of pytorchcv it takes the smallest model of each family,
of spandrel every architecture that builds from its defaults. Those of transformers, which are
large, are on the meta device, and are planned only, as all are with ``--plan``.

A model passes if its output is the same bit for bit with the attention in it, if a deep copy and a
pickle of it are equal to it after its gates have moved, and if it is what it was when the attention
is out again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import inspect
import pickle
import pkgutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import attn_surgery
from attn_surgery import SurgeryError
from attn_surgery.host.inputs import Input, guess_input

ATTENTIONS = ("se", "cbam", "eca")
LARGEST = 60_000_000
"""Parameters of the largest model that is run."""
SIDE = 64
"""Of the maps for models that do not know their size: restorers of images take any."""

Named = tuple[str, Callable[[], nn.Module]]


def pytorchcv() -> Iterator[Named]:
    """Yield the smallest model of each family, by the file that builds it."""
    provider: Any = importlib.import_module("pytorchcv.model_provider")
    families: dict[str, dict[str, Callable[..., nn.Module]]] = {}
    for name, build in provider._models.items():
        families.setdefault(build.__module__.rpartition(".")[2], {})[name] = build
    for family, builds in sorted(families.items()):

        def smallest(builds: dict[str, Callable[..., nn.Module]] = builds) -> nn.Module:
            with torch.device("meta"):
                sizes = {name: _size(build) for name, build in builds.items()}
            return builds[min(sizes, key=lambda name: sizes[name])]()

        yield family, smallest


def _size(build: Callable[..., nn.Module]) -> float:
    try:
        return sum(parameter.numel() for parameter in build().parameters())
    except Exception:
        return float("inf")


def spandrel() -> Iterator[Named]:
    """Yield each architecture that builds from its defaults."""
    home: Any = importlib.import_module("spandrel.architectures")
    for found in pkgutil.walk_packages(home.__path__, f"{home.__name__}."):
        if ".__arch" not in found.name:
            continue
        try:
            module = importlib.import_module(found.name)
        except Exception:
            continue
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, nn.Module) and kind.__module__ == module.__name__:
                yield f"{found.name.split('.')[2]}.{name}", kind


def transformers() -> Iterator[Named]:
    """Yield the models for images, videos and sound that build from their defaults."""
    foreign: Any = importlib.import_module("tests.foreign")
    for name in foreign.names():
        if name not in foreign.UNBUILT:
            yield name, functools.partial(foreign.build, name)


COLLECTIONS = {"pytorchcv": pytorchcv, "spandrel": spandrel, "transformers": transformers}


def swept(
    build: Callable[[], nn.Module], reasons: Counter[str], *, is_only_planned: bool
) -> tuple[str, Counter[str]]:
    """Try one model, and count for what reasons its sites are skipped.

    Returns:
        What came of it, and how many sites there are by each method, and skipped for want of one.
    """
    methods: Counter[str] = Counter()
    torch.manual_seed(0)
    try:
        model = build().eval()
        is_large = sum(parameter.numel() for parameter in model.parameters()) > LARGEST
        if is_large and not is_only_planned:
            return "too large to be run", methods
    except Exception as error:
        return f"not built: {type(error).__name__}", methods
    plan = attn_surgery.plan(model, "se", existing="stack")
    methods.update(site.method for site in plan.sites)
    reasons.update(site.reason for site in plan.skipped)
    methods["none"] += sum("cannot be rewritten" in site.reason for site in plan.skipped)
    if not plan.sites or is_only_planned:
        return "planned" if plan.sites else "no site", methods
    try:
        args, kwargs = _inputs(model)
        run = lambda host: _tensors(host(*args, **kwargs))  # noqa: E731
        with torch.no_grad():
            before = run(model)
    except Exception as error:
        return f"not run: {type(error).__name__}: {error}".splitlines()[0][:100], methods
    for attention in ATTENTIONS:
        with torch.no_grad():
            failed = _failure(model, attention, run, before)
        if failed:
            return f"FAILED with {attention}: {failed}", methods
    return "passed", methods


def _inputs(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a model takes: pytorchcv's know their size, others get small maps."""
    size = getattr(model, "in_size", None)
    if isinstance(size, tuple):
        return (torch.randn(1, getattr(model, "in_channels", 3), *size),), {}
    shapes = guess_input(model).shapes
    small = tuple((each[0], *[min(SIDE, side) for side in each[1:]]) for each in shapes)
    return Input(small).build(1, "cpu", torch.float32)


def _is_pickled(model: nn.Module) -> bool:
    try:
        pickle.dumps(model)
    except Exception:
        return False
    return True


def _failure(model: nn.Module, attention: str, run: Callable[..., Any], before: Any) -> str:
    is_pickled = _is_pickled(model)
    try:
        attn_surgery.apply(model, attention, existing="stack")
    except SurgeryError as error:
        return f"apply: {error}"[:200]
    if not _same(run(model), before):
        return "the output is another"
    for each in attn_surgery.inserted(model).values():
        for parameter in each.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    moved = run(model)
    if not _same(run(copy.deepcopy(model)), moved):
        return "a deep copy is another"
    if is_pickled and not _same(run(pickle.loads(pickle.dumps(model))), moved):
        return "a pickle is another"
    attn_surgery.remove(model)
    return "" if _same(run(model), before) else "removed, the output is another"


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [each for one in value for each in _tensors(one)]
        if isinstance(value, (list, tuple))
        else []
    )


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def main() -> None:
    """Try all models of a collection, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("collection", choices=COLLECTIONS)
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--plan", action="store_true", help="plan, and cut nothing")
    given = parser.parse_args()
    is_only_planned = given.plan or given.collection == "transformers"
    warnings.simplefilter("ignore")
    outcomes: Counter[str] = Counter()
    methods: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for name, build in COLLECTIONS[given.collection]():
        if given.only not in name:
            continue
        start = time.perf_counter()
        try:
            outcome, found = swept(build, reasons, is_only_planned=is_only_planned)
        except Exception as error:
            outcome, found = f"FAILED: {type(error).__name__}: {error}".splitlines()[0], Counter()
        outcomes[outcome.partition(":")[0]] += 1
        methods += found
        print(f"{name:40} {outcome} {dict(found)} {time.perf_counter() - start:.1f} s", flush=True)
    print(f"\n{dict(outcomes)}\nsites by method: {dict(methods)}\nskipped:")
    for reason, count in reasons.most_common():
        print(f"{count:6} {reason}")


if __name__ == "__main__":
    main()
