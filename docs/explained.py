"""Writes what ``attn-surgery explain`` says, from docs/refusals.md.

python docs/explained.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "refusals.md"
TOLD = Path(__file__).parents[1] / "attn_surgery/cli/refusals.json"
MESSAGE = re.compile(r"^(?:<br>)?`([^`]+ [^`]+)`(?:$|, and)", re.MULTILINE)


def main() -> None:
    """Replace the file."""
    TOLD.write_text(told(), encoding="utf-8")


def told() -> str:
    """Return the page's sections as data: anchor, messages, what is said of them."""
    return json.dumps([*sections()], indent=1, ensure_ascii=False) + "\n"


def sections() -> Iterator[dict[str, Any]]:
    """Yield each section that has an anchor."""
    for anchor, body in re.findall(
        r"^### ([\w-]+)\n(.*?)(?=^##|\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        lines = [line for line in body.splitlines() if not MESSAGE.match(line)]
        yield {
            "anchor": anchor,
            "messages": MESSAGE.findall(body),
            "text": "\n".join(lines).strip(),
        }


if __name__ == "__main__":
    main()
