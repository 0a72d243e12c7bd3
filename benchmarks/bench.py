"""Bench: what every measure works with, and the books of which jobs really ran."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ledger import Ledger
from benchmarks.processes import Launcher, MeasureError
from benchmarks.server import Monitor, Server
from benchmarks.systems import System


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        jobs: Jobs a drain.
        seconds: How long latency and an idle worker are watched.
        backlog: Jobs of the long queue.
        applied: Calls of ``apply()`` at most.
        fanned: Jobs whose results are awaited together.
        repeats: Times that short measures are repeated within a round.
        few_schedules: Schedules of an idle worker.
        many_schedules: The same, as many as one may have.
        parked: Jobs that wait for a rate limit beside an idle worker.
    """

    jobs: int = 20_000
    seconds: float = 10
    backlog: int = 500_000
    applied: int = 200
    fanned: int = 1_000
    chained: int = 100
    repeats: int = 3
    few_schedules: int = 100
    many_schedules: int = 10_000
    parked: int = 100_000


QUICK = Sizes(
    jobs=2_000, seconds=2, backlog=20_000, applied=20, fanned=200, repeats=1, many_schedules=1_000, parked=2_000
)


@dataclass
class Bench:
    """The server, the processes, and what is written down beside the figures."""

    server: Server
    launcher: Launcher
    sizes: Sizes
    folder: Path
    counts: list[dict[str, Any]] = field(default_factory=list)
    queued: list[dict[str, Any]] = field(default_factory=list)
    monitors: dict[str, Monitor] = field(default_factory=dict)
    _ledgers: int = 0

    @property
    def limit(self) -> float:
        """Seconds after which something has hung."""
        return self.launcher.limit

    def ledger(self, jobs: int) -> Ledger:
        """Return a new ledger."""
        self._ledgers += 1
        return Ledger.create(self.folder / f"ledger-{self._ledgers}", jobs)

    def count(self, system: System, measure: str, ledger: Ledger, jobs: int, results: int | None = None) -> None:
        """Write down what ran, and what has a result.

        Raises:
            MeasureError: A job did not run.
        """
        ran, bodies = ledger.jobs, ledger.bodies
        ledger.path.unlink()
        self.counts.append(
            {"system": system.name, "measure": measure, "jobs": jobs, "ran": ran, "bodies": bodies, "results": results}
        )
        if ran != jobs:
            raise MeasureError(f"{system.name}, {measure}: of {jobs} jobs {ran} ran")

    def faults(self, system: System) -> dict[str, float]:
        """Return how many bodies ran too often and how many jobs have no result, in all measures of a system."""
        counts = [count for count in self.counts if count["system"] == system.name]
        without = sum(count["jobs"] - count["results"] for count in counts if count["results"] is not None)
        return {"repeated": sum(count["bodies"] - count["ran"] for count in counts), "resultless": without}
