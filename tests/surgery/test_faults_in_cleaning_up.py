"""An exception at the very lines that set something for a while, or put it back."""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from test_faults import (
    HOSTS,
    PACKAGE,
    Traced,
    around,
    everything,
    is_same,
    made,
    output,
    prepared,
    tensors,
)
from torch import nn

import attn_surgery

Place = tuple[str, int]

READ_CALL, READ_ATTRIBUTE = nn.Module.__call__, nn.Module.__getattr__


def lines_for_a_while() -> set[Place]:
    """Return the lines of all context managers, and of the functions in them."""
    found: set[Place] = set()
    for path in Path(PACKAGE).rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("finetune", "reporting", "suggesting", "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and _is_context_manager(node):
                inside = (each for part in node.body for each in ast.walk(part))
                found |= {(str(path), each.lineno) for each in inside if isinstance(each, ast.stmt)}
                found |= {
                    (str(path), handler.lineno)
                    for part in node.body
                    for handler in ast.walk(part)
                    if isinstance(handler, ast.ExceptHandler)
                }
    return found


def _is_context_manager(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(each).endswith("contextmanager") for each in node.decorator_list)


PLACES = lines_for_a_while()


class Passing(Traced):
    """Counts how often each of the lines is run, and raises before one of them, the n-th time."""

    def __init__(self, at: Place | None = None, turn: int = 0):
        self.passed: Counter[Place] = Counter()
        self.at, self.turn = at, turn

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        place = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and place in PLACES:
            self.passed[place] += 1
            if place == self.at and self.passed[place] == self.turn:
                raise KeyboardInterrupt
        return self._step


def begun(verb: str, name: str, folder: Path) -> tuple[nn.Module, Callable[..., Any]]:
    if verb == "plan":
        return made(name), partial(attn_surgery.plan, attention="cbam", **HOSTS[name][1])
    return prepared(verb, name, folder)


def planned(name: str) -> str:
    return str(attn_surgery.plan(made(name), "se"))


def try_every_line(verb: str, name: str, folder: Path, most: int = 0) -> int:
    """Raise at each of the lines, the first time and the last; return at how many."""
    kept = begun(verb, name, folder)[0]  # its class is found again as long as it lives
    begun(verb, name, folder)[1](kept)
    host, act = begun(verb, name, folder)
    passing = Passing()
    assert passing.run(partial(act, host)) is None
    expected = planned(name)
    tries = sorted({(place, turn) for place, n in passing.passed.items() for turn in (1, n)})
    if most:
        tries = random.Random(f"{verb} {name}").sample(tries, min(most, len(tries)))
    for place, turn in tries:
        host, act = begun(verb, name, folder)
        returned = output(host)
        was, numbers, other = everything(host), tensors(host), around()
        raised = Passing(place, turn).run(partial(act, host))
        said = f"{verb}, {name}: {Path(place[0]).name}:{place[1]}, time {turn}: {raised!r}"
        raised = None  # with its frames go what they held
        assert (nn.Module.__call__, nn.Module.__getattr__) == (READ_CALL, READ_ATTRIBUTE), said
        assert is_same(around(), other), said
        assert is_same(everything(host), was), said
        assert all(torch.equal(each, numbers[key]) for key, each in tensors(host).items()), said
        assert torch.equal(output(host), returned), said
        assert planned(name) == expected, said
    return len(tries)


VERBS = ("plan", "apply", "apply again", "load")
"""`remove` sets nothing for a while."""
NAMES = ("rewrite", "attach", "listening", "writing", "sequential", "swap", "instead")


@pytest.mark.parametrize(("verb", "name"), [("plan", "rewrite"), ("apply again", "instead")])
def test_a_fault_while_something_is_set_for_a_while(verb, name, tmp_path):
    assert try_every_line(verb, name, tmp_path, most=60) > 40


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "name"), list(product(VERBS, NAMES)))
def test_a_fault_at_every_line_that_sets_something_for_a_while(verb, name, tmp_path):
    assert try_every_line(verb, name, tmp_path) > 40
