"""Golden plans of every torchvision and timm architecture, one line of JSON per model.

    python -m tests.zoo              # all of them: tests/golden/torchvision.json and timm.json
    python -m tests.zoo 'timm/res*'  # only these lines

The second form keeps the other lines as they are. Both print what planning cost. Everything is
planned with ``existing="stack"``, on the meta device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

import attn_surgery
from attn_surgery.host.load import load_model
from attn_surgery.planning.sites import Plan, Site

GOLDEN = Path(__file__).with_name("golden")
LIBRARIES = {
    "torchvision": torchvision.__version__.partition("+")[0],  # 0.29.1+cpu
    "timm": timm.__version__,
}
RECORDED_WITH = {"torchvision": "0.29.1", "timm": "1.0.31"}

Entry = dict[str, list[dict[str, Any]]]


def names() -> list[str]:
    """Return every architecture as ``torchvision/X`` or ``timm/X``, sorted within a library."""
    return [
        *(f"torchvision/{each}" for each in sorted(torchvision.models.list_models())),
        *(f"timm/{each}" for each in sorted(timm.list_models())),
    ]


def family(name: str) -> str:
    """Return the Python module that defines the model's builder."""
    library, _, arch = name.partition("/")
    if library == "timm":
        return timm.model_entrypoint(arch).__module__
    return torchvision.models.get_model_builder(arch).__module__


SLOW_TO_BUILD = {"torchvision/regnet_y_128gf"}  # it reads numbers back: 9 s on the CPU


def first_of_families(step: int = 1) -> set[str]:
    """Return the first model of every so many-th family."""
    known = sorted((name for name in names() if name not in SLOW_TO_BUILD), key=family)
    first = [next(members) for _, members in groupby(known, family)]
    return set(first[::step])


def build(name: str) -> nn.Module:
    """Build the model on the meta device, deaf to what its library warns about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model(name)


def planned(model: nn.Module) -> Entry:
    """Return the entry of the model's plan."""
    return entry(attn_surgery.plan(model, existing="stack"))


def entry(plan: Plan) -> Entry:
    """Return a plan as plain data, sites that differ in their block alone put together."""
    return {"sites": _groups(plan.sites), "skipped": _groups(plan.skipped)}


def _groups(sites: Iterable[Site]) -> list[dict[str, Any]]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for site in sites:
        # the path of the host itself is empty
        groups.setdefault(_shared(site), []).append(site.block or ".")
    return [
        {
            **{field: value for field, value in zip(_FIELDS, shared, strict=True) if value},
            "count": len(blocks),
            "blocks": " ".join(blocks),
        }
        for shared, blocks in groups.items()
    ]


_FIELDS = ("type", "after", "channels", "dims", "method", "existing", "reason")


def _shared(site: Site) -> tuple[object, ...]:
    return (
        site.block_type,
        site.after,
        site.channels,
        site.spatial_dims,
        site.method,
        site.existing,
        site.reason,
    )


def count(found: Entry) -> int:
    """Return how many sites are to be cut."""
    return sum(group["count"] for group in found["sites"])


def read(library: str) -> dict[str, Entry]:
    """Return the golden entries of one library, by the model's full name."""
    path = GOLDEN / f"{library}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(library: str, entries: dict[str, Entry]) -> None:
    """Write the golden entries of one library, one line per model."""
    lines = [f"{json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries)]
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"{library}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Regenerate the golden files, or the lines whose names match."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=main.__doc__)
    parser.add_argument("patterns", nargs="*", default=["*"], help="fnmatch over full names")
    patterns = parser.parse_args(argv).patterns
    if LIBRARIES != RECORDED_WITH:
        print(f"note: recording with {LIBRARIES}, the tests expect {RECORDED_WITH}")
    torch.set_num_threads(1)
    installed = names()
    entries = {name: found for lib in LIBRARIES for name, found in read(lib).items()}
    entries = {name: entries[name] for name in installed if name in entries}
    seconds: dict[str, float] = {}
    for name in installed:
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            model = build(name)
            start = time.process_time()
            entries[name] = planned(model)
            seconds[name] = time.process_time() - start
    for library in LIBRARIES:
        found = {name: each for name, each in entries.items() if name.startswith(f"{library}/")}
        write(library, found)
    _print_costs(seconds)


def _print_costs(seconds: dict[str, float]) -> None:
    if not seconds:
        print("no model of that name")
        return
    worst = sorted(seconds, key=seconds.__getitem__, reverse=True)[:5]
    print(f"planned {len(seconds)} models, CPU seconds of plan alone, one thread:")
    print(f"  median {statistics.median(seconds.values()):.2f}, total {sum(seconds.values()):.0f}")
    print("  worst " + ", ".join(f"{seconds[name]:.2f} ({name})" for name in worst))


if __name__ == "__main__":
    main()
