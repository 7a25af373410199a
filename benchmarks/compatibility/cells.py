"""What was tried, and what came of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
        path.write_text(self._text + "\n")

    @property
    def sorted(self) -> Cells:
        """The same as it is read: in the order of the names."""
        return Cells(**json.loads(self._text))

    @property
    def _text(self) -> str:
        return json.dumps(vars(self), indent=1, sort_keys=True)

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
    host: Host, uses: Mapping[str, Callable[[Trial], None]], attentions: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """Try uses of the host alone, and then with each attention.

    What several uses write down alike, as ONNX, is written once: they are given the same trial.

    Yields:
        Use, attention (or "the host alone"), and what came of it: "" or why not.
    """
    able, errors = dict(uses), {}
    for name in (ALONE, *attentions):
        try:
            model = host.made() if name == ALONE else host.operated(name)
        except Exception as error:
            yield from ((use, name, _told(error)) for use in able)
            continue
        trial = Trial(model, host.inputs(), host.inputs(3, 2))
        for use, run in [*able.items()]:
            trial.host_error = errors.get(use)
            why = _why_not(trial, run)
            yield use, name, why
            if name == ALONE:
                errors[use] = trial.error
                if why:
                    del able[use]


def _why_not(trial: Trial, use: Callable[[Trial], None]) -> str:
    try:
        use(trial)
    except Exception as error:
        return _told(error)
    return ""


def _told(error: Exception) -> str:
    """Return what was behind an error, in one line."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
