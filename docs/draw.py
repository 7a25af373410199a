"""Draws the package's rooms and who imports whom into docs/architecture.md.

python docs/draw.py
"""

from __future__ import annotations

import ast
from pathlib import Path

PAGE = Path(__file__).parent / "architecture.md"
PACKAGE = PAGE.parents[1] / "attn_surgery"
BEGIN, END = "<!-- made by docs/draw.py -->\n", "<!-- end -->\n"


def main() -> None:
    """Replace the drawing in the page."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + drawing() + END + rest.partition(END)[2])


def drawing() -> str:
    """Return a Mermaid flowchart: an arrow from each room to those that it builds on."""
    needs = imports()
    lines = ["```mermaid", "flowchart RL"]
    lines += [f'    {room}["{room}<br/><small>{about(room)}</small>"]' for room in needs]
    for room, others in needs.items():
        beyond = set().union(*(_reached(needs, other) for other in others))
        lines += [f"    {room} --> {other}" for other in sorted(others - beyond)]
    return "\n".join([*lines, "```\n"])


def imports() -> dict[str, set[str]]:
    """Return each room and the rooms that its files import, foundations first."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room.startswith("__") or room == "names":
            continue
        found.setdefault(room, set()).update(_imported(path) - {room, "names"})
    ordered: dict[str, set[str]] = {}
    while len(ordered) < len(found):
        ready = [room for room in found if room not in ordered and found[room] <= ordered.keys()]
        ordered |= {room: found[room] for room in ready}
    return ordered


def _imported(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[1] for name in modules if name.startswith(f"{PACKAGE.name}.")}


def about(room: str) -> str:
    """Return the first sentence that a room says of itself."""
    path = PACKAGE / room / "__init__.py"
    text = ast.get_docstring(
        ast.parse((path if path.exists() else path.parent.with_suffix(".py")).read_text())
    )
    return (
        (text or "")
        .partition("\n\n")[0]
        .replace("\n", " ")
        .rstrip(".")
        .replace("`", "")
        .replace('"', "")
    )


def _reached(needs: dict[str, set[str]], room: str) -> set[str]:
    return needs[room].union(*(_reached(needs, other) for other in needs[room]))


if __name__ == "__main__":
    main()
