"""``docs/saq-faults.md`` against the tests that it names."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs/saq-faults.md").read_text()
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if re.match(r"\| [\d-]+ \|", line)
]
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


def test_every_fault_is_decided_once() -> None:
    """The 54, and the one that has no number."""
    assert sorted(row[0] for row in ROWS) == sorted(["-", *map(str, range(1, 55))])
    assert {row[2] for row in ROWS} == {"fixed", "by design", "not ours"}


def test_every_fault_that_is_fixed_names_a_test() -> None:
    """Without one, nobody would notice its return."""
    assert [row[0] for row in ROWS if row[2] == "fixed" and "::test_" not in row[4]] == []


def test_every_test_that_is_named_exists() -> None:
    """And no test of this folder that runs on both sides is left out."""
    assert [
        f"{path}::{name}" for path, name in NAMED if not re.search(rf"def {name}\(", (TESTS / path).read_text())
    ] == []
    on_both_sides = {
        name
        for path in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"async def (test_\w+)\([^)]*\bsaq_or_ours\b", path.read_text())
    }
    assert on_both_sides - {name for _, name in NAMED} == set()
