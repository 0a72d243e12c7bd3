"""Ledger: which bodies ran, how often, when and where, in memory that all processes of a run share.

A body writes its own line and asks nobody, so counting costs every system the same (some 0.2 us) and costs Redis
nothing. A line holds when the job was sent, when its body first ran, in which process, and how often it ran.

The systems' own environments import this too: only the standard library.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

VARIABLE = "KNAPSAQ_BENCH_LEDGER"
BYTES_A_JOB = 21  # two stamps of 8, a process id of 4, a count of 1


class Ledger:
    """The lines of one run's jobs, numbered from 0.

    Args:
        path: The file behind the memory; its size says how many lines there are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.size = size = len(self._map) // BYTES_A_JOB
        view = memoryview(self._map)
        self._sent = view[: 8 * size].cast("q")
        self._ran = view[8 * size : 16 * size].cast("q")
        self._process = view[16 * size : 20 * size].cast("i")
        self._count = view[20 * size :]

    @classmethod
    def create(cls, path: Path, size: int) -> Ledger:
        """Return an empty ledger for ``size`` jobs."""
        with path.open("wb") as file:
            file.truncate(size * BYTES_A_JOB)
        return cls(path)

    def send(self, number: int) -> None:
        """Note that a job is about to be sent."""
        self._sent[number] = time.time_ns()

    def run(self, number: int) -> None:
        """Note that a job's body runs."""
        if not self._count[number]:
            self._ran[number] = time.time_ns()
            self._process[number] = os.getpid()
        self._count[number] = min(self._count[number] + 1, 255)

    @property
    def jobs(self) -> int:
        """How many jobs have run at least once."""
        return self.size - bytes(self._count).count(0)

    @property
    def bodies(self) -> int:
        """How often bodies have run in all."""
        return sum(self._count)

    def stamps(self, first: int = 0, last: int | None = None) -> list[int]:
        """Return when the bodies of jobs ``first`` to before ``last`` ran, in order of time, in nanoseconds."""
        return sorted(stamp for stamp in self._ran[first:last] if stamp)

    def all_at_work(self) -> tuple[int, int]:
        """Return the moment from which each process that ran a body was at work, and how many processes there are."""
        first: dict[int, int] = {}
        for process, stamp in zip(self._process, self._ran, strict=True):
            if stamp and stamp < first.get(process, stamp + 1):
                first[process] = stamp
        return max(first.values()), len(first)

    def latencies(self, first: int = 0) -> list[float]:
        """Return the milliseconds from sending to the body of the jobs from ``first`` on."""
        pairs = zip(self._sent[first:], self._ran[first:], strict=True)
        return [(ran - sent) / 1e6 for sent, ran in pairs if ran and sent]


def open_ledger() -> Ledger | None:
    """Return the ledger that this process was given; a process that only fills a queue has none."""
    path = os.environ.get(VARIABLE)
    return Ledger(Path(path)) if path else None
