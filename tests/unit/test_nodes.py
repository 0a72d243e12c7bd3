from __future__ import annotations

import json
from typing import Any

import pytest

from knapsaq.nodes import MARK, TOLD_CHARACTERS, Place, node_key, place_of, told


def test_a_nodes_key_says_of_which_workflow_it_is() -> None:
    """There and back; and the id of its job shows it to scripts."""
    key = node_key("mail:abc", 17)
    assert place_of(key) == Place("mail:abc", 17)
    assert MARK in f"saq:job:mail:{key}"


@pytest.mark.parametrize(
    "key",
    ["", "abc", "flow:", "flow:a", "flow:a:1", "flow:a:b:", "flow:a:b:x", "flow:a:b:c:1", "flow:a:b:²", "cron:a:b:1"],
)
def test_other_keys_are_of_no_workflow(key: str) -> None:
    """Whatever somebody calls his jobs."""
    assert place_of(key) is None


@pytest.mark.parametrize(
    ("end", "state", "value"),
    [
        (("complete", {"a": [2**60 + 1]}, None), "d", {"a": [2**60 + 1]}),
        (("complete", None, None), "d", None),
        (("complete", None, "it cannot be stored"), "f", "it cannot be stored"),
        (("failed", None, "Traceback"), "f", "Traceback"),
        (("failed", None, None), "f", ""),
        (("aborted", None, "enough"), "a", "enough"),
        (("aborting", None, "half \ud800"), "f", "half \\ud800"),
    ],
)
def test_what_a_workflow_keeps_of_an_end(end: tuple[str, Any, str | None], state: str, value: object) -> None:
    """The result as it is, or the error; a result that could not be stored is none."""
    found, text = told(*end)
    assert (found, json.loads(text)) == (state, value)


def test_a_long_error_keeps_its_end() -> None:
    """Where the cause stands; the whole of it is in the job."""
    _, text = told("failed", None, "x" * 5000 + "ValueError: bad")
    kept = json.loads(text)
    assert kept.startswith("...x")
    assert kept.endswith("ValueError: bad")
    assert len(kept) == TOLD_CHARACTERS + 3
