"""An attention file: safetensors, whose metadata hold the surgery and the host's fingerprint.

Nothing in it is code, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as safetensors_tensors
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from attn_surgery.errors import SurgeryError
from attn_surgery.host import write_whole
from attn_surgery.planning import Plan
from attn_surgery.surgery.fingerprint import check_same, digest, text_digest

FORMAT = "attn_surgery 1"


@dataclass(frozen=True)
class Content:
    """What a file says of itself."""

    surgeries: list[tuple[Plan, str]]
    host_forms: dict[str, str]
    """Every tensor of the host -> its dtype and shape."""
    host_digests: dict[str, str]
    """Every tensor of the host that is not in the file -> the hash of its numbers."""
    digests: dict[str, str]
    """Every tensor in the file -> the hash of its numbers."""

    def to_json(self) -> str:
        """Return it as JSON."""
        plans = [{"init": init, "plan": plan.to_dict()} for plan, init in self.surgeries]
        return json.dumps({**vars(self), "surgeries": plans})

    @classmethod
    def from_json(cls, text: str) -> Content:
        """Return that of which ``text`` is the `to_json`."""
        data = json.loads(text)
        plans = [(Plan.from_dict(each["plan"]), each["init"]) for each in data.pop("surgeries")]
        return cls(plans, **data)


def write(path: Path, content: Content, tensors: Mapping[str, Tensor]) -> None:
    """Write an attention file whole, or leave what is there.

    Raises:
        SurgeryError: It cannot be written.
    """
    text = content.to_json()
    metadata = {"format": FORMAT, "content": text, "digest": text_digest(text)}
    compact = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
    write_whole(path, safetensors_bytes(compact, metadata))


def read(path: Path) -> tuple[Content, dict[str, Tensor]]:
    """Return what an attention file says of itself, and its tensors.

    Raises:
        SurgeryError: It is none, or not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors_tensors(path.read_bytes())
    except OSError as error:
        raise SurgeryError(f"cannot read attention file {path}: {error}") from error
    except SafetensorError as error:
        raise SurgeryError(
            f"cannot read attention file {path}: it is no safetensors file, or not a whole one "
            f"({error}); give what attn_surgery.save wrote"
        ) from error
    if metadata.get("format") != FORMAT:
        raise SurgeryError(f"{path} was not written by attn_surgery.save")
    text = metadata.get("content", "")
    if text_digest(text) != metadata.get("digest"):
        raise SurgeryError(f"{path} was altered: its description does not have the hash it had")
    content = Content.from_json(text)
    digests = {key: digest(value) for key, value in tensors.items()}
    check_same(f"{path} was altered", digests, content.digests)
    return content, tensors
