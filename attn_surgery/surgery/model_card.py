"""What a hub shows of an attention file: the host, the surgery, the data, the scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from attn_surgery.surgery.attention_file import read
from attn_surgery.surgery.operated import Operated


@dataclass(frozen=True)
class Told:
    """What only the one who trained it knows; "" is "nothing is said".

    Attributes:
        name: The repository.
        host: What the host is.
        data: What was trained on.
        results: The scores, in Markdown.
        license: The licence.
    """

    name: str
    host: str
    data: str
    results: str
    license: str | None


def model_card(model: nn.Module, path: Path, told: Told) -> str:
    """Return the card, in Markdown with the hub's metadata.

    Args:
        model: A host that was operated on.
        path: Its attention file.
        told: What has to be told.
    """
    content, tensors = read(path)
    operated = Operated.within(model)
    host = told.host or type(operated.model).__name__
    attentions = [str(a) for plan, _ in content.surgeries for a in plan.assignments]
    kinds = ", ".join(dict.fromkeys(attentions))
    brought = len(tensors) - len(operated.own)
    with_host = (
        f", {brought} tensors of the host among them" if brought else ", and none of the host"
    )
    parts = [
        _metadata(told, [attention.partition("(")[0] for attention in attentions]),
        f"# {told.name.rpartition('/')[2]}",
        f"{kinds} in {len(attentions)} places of {host}, put there by "
        "[attn_surgery](https://pypi.org/project/attn-surgery/).",
        "## Use",
        f"```python\nimport attn_surgery\n\nhost = ...  # {host}, with its weights\n"
        f'attn_surgery.load(host, "hf-hub:{told.name}")\n```',
        "`load` checks that the host is the one that it was trained with, tensor by tensor.",
        "## Host",
        f"{host}: {type(operated.model).__name__}, {len(content.host_forms)} tensors.",
        "## Surgery",
        *(f"```text\n{plan}\n```\n\ninit: {init}" for plan, init in content.surgeries),
        "## File",
        f"{path.stat().st_size:,} bytes: {len(tensors)} tensors{with_host}. No code.",
        "## Data",
        told.data or "Nothing is said.",
        "## Results",
        told.results or "Nothing is said. A gain is one beside a control of equal budget alone.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(told: Told, names: list[str]) -> str:
    """Return the hub's head; a JSON value is YAML, too."""
    tags = ["attn_surgery", "attention", *dict.fromkeys(names)]
    lines = ["---", "library_name: attn_surgery", f"tags: {json.dumps(tags)}"]
    if told.license is not None:
        lines.append(f"license: {json.dumps(told.license)}")
    return "\n".join([*lines, "---"])
