"""What was tried, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from compatibility.hosts import Host
from compatibility.trial import Trial

ALONE = "the host alone"
HOST_CANNOT = "host: "
LONGEST = 200


@dataclass
class Cells:
    """The outcomes: host -> use -> attention -> "" (it works) or why not; and the versions."""

    outcomes: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Cells:
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self), indent=1, sort_keys=True) + "\n")

    def has(self, host: str, use: str) -> bool:
        return use in self.outcomes.get(host, {})

    def put(self, host: str, use: str, found: dict[str, str], versions: dict[str, str]) -> None:
        self.outcomes.setdefault(host, {})[use] = found
        self.versions = versions

    def summary(self, host: str, use: str) -> str:
        """Return what came of a use of a host, in a word or with the first reason."""
        found = self.outcomes[host][use]
        reasons = [why for why in found.values() if why]
        if not reasons:
            return "works"
        failed = [name for name, why in found.items() if why]
        return f"{', '.join(failed) if len(failed) < len(found) else 'all'}: {reasons[0]}"


def tried(
    host: Host, use: Callable[[Trial], None], attentions: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Try a use of the host alone, and then with each attention; yield what came of it."""
    trial, why = _trial(host, host.made(), use, None)
    yield ALONE, why
    if why:
        return
    for attention in attentions:
        try:
            model = host.operated(attention)
        except Exception as error:
            yield attention, _told(error)
        else:
            yield attention, _trial(host, model, use, trial.error)[1]


def _trial(
    host: Host, model: nn.Module, use: Callable[[Trial], None], host_error: float | None
) -> tuple[Trial, str]:
    trial = Trial(model, host.inputs(), host.inputs(3, 2), host_error)
    try:
        use(trial)
    except Exception as error:
        return trial, _told(error)
    return trial, ""


def _told(error: Exception) -> str:
    """Return an error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
