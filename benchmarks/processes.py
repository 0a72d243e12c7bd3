"""Processes: a system's own process for filling, sending and working, and what it costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from benchmarks.ledger import VARIABLE, Ledger
from benchmarks.systems import System

ROOT = Path(__file__).parents[1]
STOP_LIMIT = 5.0
LOOK = 0.002  # seconds between two looks at what a worker has done
PROC = Path("/proc")
TICK = os.sysconf("SC_CLK_TCK")


class MeasureError(Exception):
    """A measure cannot be taken: a system's process failed, hung, or ran other jobs than it was given."""


class Launcher:
    """Starts a system's processes, each in the environment that the system lives in.

    Args:
        pythons: The interpreter of each system.
        url: The server.
        limit: Seconds after which a process has hung.
    """

    def __init__(self, pythons: dict[str, Path], url: str, limit: float) -> None:
        self._pythons, self._url, self.limit = pythons, url, limit

    def call(self, system: System, verb: str, *arguments: object, ledger: Ledger | None = None) -> Any:
        """Run one verb of a system's adapter to its end and return what it printed, which is JSON."""
        command = self._command(system, verb, *arguments)
        try:
            done = subprocess.run(  # noqa: S603 - our own arguments
                command, cwd=ROOT, env=_environment(ledger), capture_output=True, text=True, check=True,
                timeout=self.limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise MeasureError(f"{system.name} {verb} did not end within {self.limit:g} s") from None
        except subprocess.CalledProcessError as error:
            raise MeasureError(f"{system.name} {verb} failed:\n{error.stderr.strip()[-2000:]}") from None
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None

    @contextlib.contextmanager
    def worker(
        self, system: System, concurrency: int, ledger: Ledger, *, held: bool = False, schedules: int = 0
    ) -> Iterator[Worker]:
        """Run a worker while the block runs; a held one has imported everything and waits for ``release()``.

        Args:
            system: The system.
            concurrency: How many jobs it runs at once.
            ledger: The ledger.
            held: Whether it waits.
            schedules: How many schedules it has, none of which is due soon.
        """
        words = [*(["held"] if held else []), *([f"schedules={schedules}"] if schedules else [])]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(  # noqa: S603 - our own arguments
                self._command(system, "work", concurrency, *words),
                cwd=ROOT,
                env=_environment(ledger),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            worker = Worker(system.name, process, log)
            try:
                if held:
                    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                yield worker
            finally:
                worker.stop()

    def _command(self, system: System, verb: str, *arguments: object) -> list[str]:
        python = os.fspath(self._pythons[system.name])
        return [python, "-m", "benchmarks.adapters", system.name, verb, self._url, *(f"{word}" for word in arguments)]


class Worker:
    """A running worker: its process, with all that it started."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._name, self._process, self._log = name, process, log

    def wait(self, what: str, look: Callable[[], bool], limit: float, every: float = LOOK) -> None:
        """Look until something is true.

        Raises:
            MeasureError: The worker has ended, or it takes longer than ``limit`` seconds.
        """
        deadline = time.monotonic() + limit
        while not look():
            if self._process.poll() is not None:
                raise MeasureError(f"the worker of {self._name} has ended:\n{self._said()}")
            if time.monotonic() > deadline:
                raise MeasureError(f"{self._name}: waited {limit:g} s in vain until {what}; it said:\n{self._said()}")
            time.sleep(every)

    def cpu(self) -> float:
        """Return the seconds of processor time used so far."""
        return sum(_cpu(folder) for folder in self._family())

    def memory(self) -> float:
        """Return the resident MiB now; what its processes share counts once for each."""
        pages = sum(int((folder / "statm").read_text().split()[1]) for folder in self._family())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def release(self) -> None:
        """Let a held worker go."""
        os.killpg(self._process.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def halted(self) -> Iterator[None]:
        """Stop its processes where they are while the block runs."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self.release()

    def stop(self) -> None:
        """Stop it, by force if it does not stop by itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_LIMIT)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:].decode(errors="replace").strip() or "nothing"

    def _family(self) -> Iterator[Path]:
        """The /proc folders of the process and of what it started, which share its session."""
        for folder in PROC.glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == self._process.pid:
                    yield folder


def _cpu(folder: Path) -> float:
    try:  # to the nanosecond, where the kernel keeps it
        return sum(int(task.read_text().split()[0]) for task in folder.glob("task/*/schedstat")) / 1e9 or _ticks(folder)
    except OSError:
        return _ticks(folder)


def _ticks(folder: Path) -> float:
    return sum(int(word) for word in (folder / "stat").read_text().rpartition(")")[2].split()[11:13]) / TICK


def _environment(ledger: Ledger | None) -> dict[str, str]:
    """The environment of a system's process: nothing of the machine's settings of Knapsaq."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KNAPSAQ_", "PYTHON"))}
    return {**kept, "PYTHONWARNINGS": "ignore", **({VARIABLE: os.fspath(ledger.path)} if ledger else {})}
