"""``attn-surgery explain``, and the word by which an error names what it says."""

from __future__ import annotations

import pytest

from attn_surgery.cli import main
from attn_surgery.cli.refusals import anchor_of, refusals


@pytest.mark.parametrize("anchor", list(refusals()))
def test_a_message_is_found_by_its_own_words(anchor):
    for spelled in refusals()[anchor].messages:
        found = anchor_of(spelled.replace("…", "name"))
        assert found == anchor or letters(found) >= sum(map(str.isalpha, spelled))


def letters(anchor: str) -> int:
    """Return how many a section's message has ; 8 without an anchor."""
    messages = refusals()[anchor].messages if anchor else ()
    return max((sum(map(str.isalpha, each)) for each in messages), default=8)


@pytest.mark.parametrize(
    ("words", "anchor"),
    [
        (["plan", "resnet18", "--attention", "cbma"], "unknown-attention"),
        (["plan", "resnet18", "--where", "layre4.*"], "where"),
        (["plan", "no-such-model"], "unknown-model"),
        (["plan", "resnet18", "--input", "3x64x64"], ""),
    ],
    ids=" ".join,
)
def test_an_error_names_the_section(words, anchor, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    named = f"[{anchor}]" if anchor else ""
    assert error.startswith(f"attn-surgery: error{named}: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["linear"],
        ["the branch is linear: no residual function"],
        "the branch is linear: no residual function".split(),
    ],
    ids=len,
)
def test_a_refusal_is_explained(words, capsys):
    assert main(["explain", *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("linear\n\n  the branch is linear: no residual function\n\n")
    assert "re-parameterisation" in said


def test_without_words_all_are_listed(capsys):
    assert main(["explain"]) == 0
    assert capsys.readouterr().out.split() == list(refusals())


def test_an_unknown_word_is_answered_by_the_nearest(capsys):
    assert main(["explain", "lineer"]) == 2
    assert "did you mean 'linear'?" in capsys.readouterr().err
