"""The page: two tables, and the reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from compatibility.cells import HOST_CANNOT, Cells

WORKS, CANNOT, NOT_TRIED = "+", "host", ""
BEGINNING = 100
"""Characters by which reasons are told apart."""


def page(cells: Cells, uses: Mapping[str, str], all_in: str, of: int, broken: Sequence[str]) -> str:
    """Return the page in Markdown.

    Args:
        cells: What was tried.
        uses: The uses, each with its description.
        all_in: The host in which every attention was tried.
        of: How many hosts there are to be tried.
        broken: The attentions that cannot be built.
    """
    reasons: list[str] = []
    done = [use for use in uses if any(use in each for each in cells.outcomes.values())]
    everywhere = _attentions_of_most(cells, all_in)
    hosts = [
        [host, *(_cell(found.get(use), everywhere, reasons) for use in done)]
        for host, found in cells.outcomes.items()
    ]
    rows = [
        [attention, *(_cell(cells.outcomes[all_in].get(use), [attention], reasons) for use in done)]
        for attention in _all(cells, all_in)
    ] or [["not tried yet"]]
    versions = ", ".join(f"{name} {number}" for name, number in cells.versions.items())
    parts = [
        "# Where operated models can go",
        f"Made by `python benchmarks/matrix.py` with {versions}: {len(hosts)} of {of} hosts.",
        "Each host was operated on, then given to what people do with networks. "
        "What goes before what: [limits](limits.md), [trainers](trainers.md).",
        f"`{WORKS}`: it works with {', '.join(everywhere)}, those of them that take such maps, "
        "and gives what eager mode gives. "
        f"`{CANNOT}`: the host alone cannot. A number: what fails, below. Empty: not tried.",
        tabulate(hosts, ["host", *done], "pipe", disable_numparse=True),
        f"## Every attention, in {all_in}",
        *(f"But {each}, which the installed timm cannot build." for each in broken),
        tabulate(rows, ["attention", *done], "pipe", disable_numparse=True),
        "## What is tried",
        "\n".join(f"- **{use}**: {_first_line(uses[use])}" for use in done),
        "## What fails",
        "\n".join(f"{i}. `{why}`" for i, why in enumerate(reasons, 1)) or "Nothing.",
        "## What the host alone cannot",
        _hosts_cannot(cells, done),
    ]
    return "\n\n".join(parts) + "\n"


def _attentions_of_most(cells: Cells, all_in: str) -> list[str]:
    others = (found for host, found in cells.outcomes.items() if host != all_in)
    return next((list(next(iter(found.values()))) for found in others), [])


def _all(cells: Cells, all_in: str) -> list[str]:
    return list(next(iter(cells.outcomes.get(all_in, {}).values()), {}))


def _cell(found: Mapping[str, str] | None, attentions: Sequence[str], reasons: list[str]) -> str:
    if found is None:
        return NOT_TRIED
    why = {name: found[name] for name in attentions if found.get(name)}
    if not why:
        return WORKS
    if all(each.startswith(HOST_CANNOT) for each in why.values()):
        return CANNOT
    numbers = [_number(f"{name}: {each}", reasons) for name, each in why.items()]
    return ", ".join(map(str, numbers))


def _number(why: str, reasons: list[str]) -> int:
    if why not in reasons:
        reasons.append(why)
    return reasons.index(why) + 1


def _hosts_cannot(cells: Cells, uses: Sequence[str]) -> str:
    """Return a line for each use and reason, as reasons begin: their ends name layers of hosts."""
    hosts: dict[tuple[str, str], list[str]] = {}
    for use in uses:
        for host, found in cells.outcomes.items():
            why = next((w for w in found.get(use, {}).values() if w.startswith(HOST_CANNOT)), "")
            if why:
                reason = why.removeprefix(HOST_CANNOT)[:BEGINNING].replace("\\n", " ")
                hosts.setdefault((use, reason), []).append(host)
    lines = [f"- {use}: `{why}` ({', '.join(of)})" for (use, why), of in hosts.items()]
    return "\n".join(lines) or "Nothing."


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".")
