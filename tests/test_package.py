"""The package as it is built, installed and imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

WATCHED = """
import json, sys
import timm, torch, torchvision

events, writing = [], set("wax+")

def note(event, args):
    if event == "open" and isinstance(args[1], str) and writing & set(args[1]):
        events.append([event, str(args[0])])
    elif event.split(".")[0] in {"socket", "subprocess", "urllib", "shutil"}:
        events.append([event, str(args)])

def settings():
    return [
        torch.get_num_threads(), str(torch.get_default_dtype()), str(torch.get_default_device()),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark,
        torch.get_rng_state().sum().item(), id(torch.nn.Module.__call__),
        id(torch.nn.Module.__getattr__), id(torch.nn.Module.__setattr__), id(torch.ones),
        id(torch.nn.functional.relu), sys.getrecursionlimit(), len(sys.path_hooks),
    ]

before = settings()
sys.dont_write_bytecode = True
sys.addaudithook(note)
import attn_surgery
for name in attn_surgery.__all__:
    getattr(attn_surgery, name)
print(json.dumps({"events": events, "same": settings() == before}))
"""


def python(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_import_changes_and_touches_nothing(tmp_path: Path) -> None:
    told = json.loads(python("-c", WATCHED, cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert told == {"events": [], "same": True}


def test_metadata() -> None:
    told = metadata.metadata("attn-surgery")
    assert told["Name"] == "attn-surgery"
    assert told["License-Expression"] == "Apache-2.0"
    assert {"plot", "finetune", "detection"} <= set(told.get_all("Provides-Extra") or ())
    (command,) = metadata.entry_points(group="console_scripts", name="attn-surgery")
    assert callable(command.load())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("built")
    python("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    return folder


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def described(text: str) -> Message:
    return Parser().parsestr(text)


@pytest.mark.slow
def test_the_wheel_holds_all_of_it(built: Path) -> None:
    with zipfile.ZipFile(only(built, "*.whl")) as wheel:
        names = set(wheel.namelist())
        told = described(wheel.read(only_name(names, ".dist-info/METADATA")).decode())
    expected = {str(each.relative_to(ROOT)) for each in ROOT.glob("attn_surgery/**/*.py")}
    expected |= {f"attn_surgery/recipes/{each.name}" for each in ROOT.glob("recipes/*.toml")}
    assert expected | {"attn_surgery/py.typed"} <= names
    assert not [each for each in names if each.startswith(("tests", "benchmarks", "docs"))]
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload() == (ROOT / "README.md").read_text()


def only_name(names: set[str], end: str) -> str:
    (found,) = (each for each in names if each.endswith(end))
    return found


def checksums(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as archive:
        return {each.filename: each.CRC for each in archive.infolist()}


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    with tarfile.open(only(built, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = only(tmp_path, "attn_surgery-*")
    python("-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), ".", cwd=source)
    pairs = (only(built, "*.whl"), only(tmp_path, "*.whl"))
    first, again = (checksums(each) for each in pairs)
    assert first == again


@pytest.mark.slow
def test_the_installed_wheel_works(built: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    wheel = str(only(built, "*.whl"))
    python("-m", "pip", "install", "-q", "--no-deps", "--target", str(place), wheel, cwd=tmp_path)
    run: Any = {"cwd": tmp_path, "PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    where = python("-c", "import attn_surgery; print(attn_surgery.__file__)", **run)
    assert Path(where.strip()).is_relative_to(place)
    assert "8 sites to cut" in python("-m", "attn_surgery", "plan", "resnet18", **run)
    assert "digits" in python("-m", "attn_surgery", "finetune", "--help", **run)
