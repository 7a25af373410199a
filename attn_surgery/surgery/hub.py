"""Attention files on the Hugging Face hub: ``hf-hub:NAME`` in place of a path, and upwards."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from attn_surgery.errors import SurgeryError, one_line
from attn_surgery.surgery.model_card import Told, model_card
from attn_surgery.surgery.saving import save

PREFIX = "hf-hub:"
"""As in timm's names."""
FILE = "attention.safetensors"


def local_path(path: str | Path) -> Path:
    """Return where a file is, fetched before where ``path`` names one on the hub.

    Raises:
        SurgeryError: It cannot be fetched.

    Example:
        >>> local_path("folder/attention.safetensors").name
        'attention.safetensors'
    """
    if not str(path).startswith(PREFIX):
        return Path(path)
    name, _, revision = str(path).removeprefix(PREFIX).partition("@")
    try:
        return Path(_api().hf_hub_download(name, FILE, revision=revision or None))
    except Exception as error:  # of the network, of the hub, of the name
        raise SurgeryError(
            f"cannot fetch {path}: {one_line(error)}; what is there has to hold {FILE!r}, as "
            "push_to_hub writes it, and what is private needs 'hf auth login'"
        ) from error


def push_to_hub(
    model: nn.Module,
    name: str,
    *,
    host: str | Sequence[str] | None = None,
    host_name: str = "",
    data: str = "",
    results: str | Path | None = None,
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Attention, by attn_surgery",
) -> str:
    """Put what `save` writes on the Hugging Face hub, with a card that says what it is.

    ``attn_surgery.load(host, "hf-hub:NAME")`` and ``switch`` fetch it. The file holds no code.

    Args:
        model: As for `save`.
        name: Of the repository, ``"user/name"``; it is made if there is none.
        host: Which tensors of the host to write as well, as for `save`.
        host_name: What the host is, for the card, as ``"timm/resnet50.a1_in1k"``: who loads the
            file needs the same one, weights included.
        data: What it was trained on, for the card; Markdown.
        results: The output folder of a recipe, or a Markdown file, whose results the card shows:
            the scores beside each control.
        license: The licence, for the card, as ``"apache-2.0"``.
        private: Whether a repository that is made is private.
        revision: The branch; by default the main one.
        token: By default the one of ``hf auth login``.
        commit_message: What the commit says.

    Returns:
        The address of the repository.

    Raises:
        SurgeryError: As of `save`; the results cannot be read; or the hub refuses.
    """
    told = Told(name, host_name, data, _read(results), license)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        save(model, path, host=host)
        Path(folder, "README.md").write_text(model_card(model, path, told), encoding="utf-8")
        api = _api(token)
        try:
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=name,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        except Exception as error:  # of the network, of the hub, of the name
            raise SurgeryError(
                f"cannot push to {name!r}: {one_line(error)}; 'hf auth login', or token=, says who "
                "you are, and the name is 'user/name'"
            ) from error
    return str(address)


def _read(results: str | Path | None) -> str:
    if results is None:
        return ""
    path = Path(results)
    path = path / "result.md" if path.is_dir() else path
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SurgeryError(f"cannot read results from {path}: {one_line(error)}") from error


def _api(token: str | None = None) -> Any:
    from huggingface_hub import HfApi  # it takes a while, and few need it

    return HfApi(token=token, library_name="attn_surgery")
