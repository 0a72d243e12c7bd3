"""Programs that a test runs as processes of their own, and waiting for what they do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeVar

import pytest

T = TypeVar("T")

BIN = Path(sys.executable).parent
PATIENCE = 30.0
"""Seconds after which what a test waits for will not come; far more than it takes."""


def eventually(what: str, look: Callable[[], T | None], *, within: float = PATIENCE, why: Callable[[], str] = str) -> T:
    """Look until there is something to see, and return it; ``why`` gives what may tell why there was nothing."""
    deadline = time.monotonic() + within
    pause = Event()
    while time.monotonic() < deadline:
        if found := look():
            return found
        pause.wait(0.02)
    pytest.fail(f"waited {within:g} s in vain until {what}\n{why()}")


class Seen(NamedTuple):
    """A process as the system lists it."""

    parent: int
    state: str
    command: list[str]


def processes() -> dict[int, Seen]:
    """Return all processes by their id; small Linux systems have no ``ps``, macOS has no ``/proc``."""
    found: dict[int, Seen] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            found[int(folder.name)] = Seen(int(parent), state, (folder / "cmdline").read_text().split("\0"))
    if found:
        return found
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,state=,args="], capture_output=True, text=True, check=True)  # noqa: S607
    for line in listed.stdout.splitlines():
        pid, parent, state, *command = line.split()
        found[int(pid)] = Seen(int(parent), state, command)
    return found


def is_running(pid: int) -> bool:
    """Tell whether a process runs; a zombie, which nobody has asked for its exit code, does not."""
    seen = processes().get(pid)
    return seen is not None and not seen.state.startswith("Z")


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [child for child, seen in processes().items() if seen.parent == pid]


@dataclass
class Program:
    """A running process whose output goes to a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def output(self) -> str:
        """Return what it has written."""
        return self.log.read_text(errors="replace")

    def says(self, text: str, times: int = 1) -> None:
        """Wait until it has written a text."""

        def look() -> bool:
            found = self.output().count(text) >= times
            assert found or self.process.poll() is None, self.output()
            return found

        eventually(f"it says {text!r}", look, why=self.output)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def ends(self, within: float = PATIENCE) -> int:
        """Wait until it has ended and return its exit code."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {within:g} s:\n{self.output()}")


@contextlib.contextmanager
def running(command: Sequence[str], env: Mapping[str, str], folder: Path) -> Iterator[Program]:
    """Run a command in a folder; whatever is left of it and its children is killed at the end of the block."""
    log = folder / f"{Path(command[0]).name}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            list(command), env=dict(env), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield Program(process, log)
    finally:
        for pid in (*children_of(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def clean_environment(**extra: str) -> dict[str, str]:
    """Return this process' environment without settings of the developer's, and with ``extra``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KNAPSAQ_", "LITESTAR_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **extra}
