"""Up to a hub and down again, by way of a stand-in for it on this machine."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import attn_surgery
from attn_surgery import SurgeryError

huggingface_hub: Any = pytest.importorskip("huggingface_hub")
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NAME = "somebody/cats"


class Hub:
    """Keeps the files of every commit, as far as the client asks."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.address = ""

    def commit(self, lines: list[dict[str, Any]]) -> str:
        """Keep what the lines of a commit hold, and return its hash."""
        before = self.files[self.commits[-1]] if self.commits else {}
        added = {
            each["value"]["path"]: base64.b64decode(each["value"]["content"])
            for each in lines
            if each["key"] == "file"
        }
        name = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        self.files[name] = {**before, **added}
        self.commits.append(name)
        return name


def answering(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Be silent."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                self.answer({"url": f"{hub.address}/{NAME}"})
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                regular = {"uploadMode": "regular", "shouldIgnore": False}
                self.answer({"files": [{"path": each["path"], **regular} for each in asked]})
            elif "/commit/" in self.path:
                name = hub.commit([json.loads(line) for line in body.splitlines()])
                url = f"{hub.address}/{NAME}/commit/{name}"
                self.answer({"commitUrl": url, "commitOid": name, "success": True})
            else:
                self.answer({"valid": True})

        def do_GET(self) -> None:
            self.send_file(with_body=True)

        def do_HEAD(self) -> None:
            self.send_file(with_body=False)

        def send_file(self, *, with_body: bool) -> None:
            *_, revision, file = self.path.split("?")[0].split("/")
            revision = hub.commits[-1] if revision == "main" and hub.commits else revision
            data = hub.files.get(revision, {}).get(file)
            if not self.path.startswith(f"/{NAME}/resolve/") or data is None:
                self.answer({"error": "there is none"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            tag = hashlib.sha1(data).hexdigest()
            headers = {"ETag": f'"{tag}"', "X-Repo-Commit": revision}
            self.answer(data if with_body else b"", 200, headers, length=len(data))

        def answer(
            self,
            content: object,
            status: int = 200,
            headers: dict[str, str] | None = None,
            length: int | None = None,
        ) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    made = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), answering(made))
    made.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    constants = importlib.import_module("huggingface_hub.constants")
    template = f"{made.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", made.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_nobodys")
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def host() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18(num_classes=4).eval()


def operated(value: float = 0.3) -> nn.Module:
    model = attn_surgery.apply(host(), "se", where="layer4.*")
    for each in attn_surgery.inserted(model).values():
        for parameter in each.parameters():
            nn.init.constant_(parameter, value)
    return model


def test_there_and_back(hub: Hub) -> None:
    model = operated()
    address = attn_surgery.push_to_hub(model, NAME, host_name="torchvision/resnet18")
    assert address == f"{hub.address}/{NAME}"
    assert set(hub.files[hub.commits[-1]]) == {"attention.safetensors", "README.md"}
    loaded = attn_surgery.load(host(), f"hf-hub:{NAME}")
    assert torch.equal(loaded(X), model(X))


def test_a_revision_and_a_switch(hub: Hub) -> None:
    first, second = operated(0.3), operated(-0.2)
    for each in (first, second):
        attn_surgery.push_to_hub(each, NAME)
    loaded = attn_surgery.load(host(), f"hf-hub:{NAME}@{hub.commits[0]}")
    assert torch.equal(loaded(X), first(X))
    assert attn_surgery.switch(loaded, f"hf-hub:{NAME}") is loaded
    assert torch.equal(loaded(X), second(X))


def test_the_card(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "result.md").write_text("| variant | accuracy |\n|---|---|\n| se after | 91 |\n")
    attn_surgery.push_to_hub(
        operated(),
        NAME,
        host="head",
        host_name="torchvision/resnet18",
        data="10,000 photographs of cats.",
        results=tmp_path,
        license="apache-2.0",
        private=True,
    )
    assert "private" in json.dumps(hub.created[0])
    card = hub.files[hub.commits[-1]]["README.md"].decode()
    metadata = huggingface_hub.ModelCard(card).data
    told = metadata.to_dict()
    assert (told["library_name"], told["license"]) == ("attn_surgery", "apache-2.0")
    assert metadata.tags == ["attn_surgery", "attention", "se"]
    for said in (
        "se in 2 places of torchvision/resnet18",
        f'attn_surgery.load(host, "hf-hub:{NAME}")',
        "layer4.0 to layer4.1",
        "init: identity",
        "2 tensors of the host among them",
        "10,000 photographs of cats.",
        "| se after | 91 |",
    ):
        assert said in card
    model = operated()
    attn_surgery.push_to_hub(model, NAME)
    assert "and none of the host" in hub.files[hub.commits[-1]]["README.md"].decode()


@pytest.mark.parametrize("name", ["somebody/dogs", f"{NAME}@nowhere", "no name/at all/", ""])
def test_what_is_not_there(hub: Hub, name: str) -> None:
    attn_surgery.push_to_hub(operated(), NAME)
    model = host()
    with pytest.raises(SurgeryError, match=r"cannot fetch hf-hub:.*attention\.safetensors"):
        attn_surgery.load(model, f"hf-hub:{name}")
    assert not attn_surgery.inserted(model)


def test_what_cannot_be_pushed(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="no attention to be saved"):
        attn_surgery.push_to_hub(host(), NAME)
    with pytest.raises(SurgeryError, match="cannot read results"):
        attn_surgery.push_to_hub(operated(), NAME, results=tmp_path / "nothing.md")
    with pytest.raises(SurgeryError, match="cannot push to 'a/b/c'"):
        attn_surgery.push_to_hub(operated(), "a/b/c")
    assert not hub.commits


def test_what_was_altered_is_refused(hub: Hub) -> None:
    attn_surgery.push_to_hub(operated(), NAME)
    files = hub.files[hub.commits[-1]]
    files["attention.safetensors"] = files["attention.safetensors"][:-1] + b"?"
    with pytest.raises(SurgeryError, match="was altered"):
        attn_surgery.load(host(), f"hf-hub:{NAME}")
