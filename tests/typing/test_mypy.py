from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tasks_are_typed_for_those_who_call_them() -> None:
    """Right calls have precise types, wrong ones are errors: mypy reads the files beside this one, strictly."""
    files = ["tests/typing/right_calls.py", "tests/typing/wrong_calls.py", "tests/typing/routes.py"]
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", *files]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    assert checked.returncode == 0, checked.stdout + checked.stderr
