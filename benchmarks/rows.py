"""Rows: what the table shows of each figure, and the bars that Knapsaq is held to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

SELF = "knapsaq"
Figures = dict[str, dict[str, list[float]]]
"""Measured values by row and system, one a round."""


@dataclass(frozen=True)
class Verdict:
    """What a bar found: the limit, what was measured, and whether it holds (``None``: nothing to compare with)."""

    bar: str
    limit: float
    value: float | None
    holds: bool | None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: Its figures' name.
        title: What it says; sizes in braces.
        better: ``more`` or ``less``; nothing where a ratio to others says nothing.
        bars: What Knapsaq is held to.
    """

    key: str
    title: str
    better: str = "less"
    bars: tuple[Callable[[Row, Medians], Verdict], ...] = ()


class Medians:
    """Medians of all figures."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def of(self, key: str, system: str = SELF) -> float | None:
        """Return a median, if it was measured."""
        values = self._figures.get(key, {}).get(system)
        return statistics.median(values) if values else None

    def ratio(self, row: Row, other: str, other_key: str | None = None) -> float | None:
        """Return how many times better Knapsaq is."""
        ours, theirs = self.of(row.key), self.of(other_key or row.key, other)
        if not ours or not theirs or not row.better:
            return None
        return ours / theirs if row.better == "more" else theirs / ours

    def others(self, row: Row, without: Iterable[str] = ()) -> list[float]:
        """Return how many times better Knapsaq is than each other system."""
        names = set(self._figures.get(row.key, {})) - {SELF, *without}
        return [ratio for name in names if (ratio := self.ratio(row, name)) is not None]


Bar = Callable[[Row, Medians], Verdict]


def _judge(bar: str, value: float | None, limit: float, *, least: bool) -> Verdict:
    holds = None if value is None else (value >= limit if least else value <= limit)
    return Verdict(bar, limit, value, holds)


def times(other: str, factor: float, key: str | None = None) -> Bar:
    """So many times better than another system, or than its figure in another row."""
    text = f"{factor:g} x {other}" + (f" ({key})" if key else "")
    return lambda row, medians: _judge(text, medians.ratio(row, other, key), factor, least=True)


def times_best(factor: float, text: str, without: Iterable[str] = ()) -> Bar:
    """So many times better than the best of the others."""
    return lambda row, medians: _judge(text, min(medians.others(row, without), default=None), factor, least=True)


def at_most(limit: float) -> Bar:
    """No more than a number."""
    return lambda row, medians: _judge(f"<= {limit:g}", medians.of(row.key), limit, least=False)


def at_least(limit: float) -> Bar:
    """No less than a number."""
    return lambda row, medians: _judge(f">= {limit:g}", medians.of(row.key), limit, least=True)


def beyond(other: str, limit: float, unit: str) -> Bar:
    """No more than another system's figure and so much more."""

    def judge(row: Row, medians: Medians) -> Verdict:
        ours, theirs = medians.of(row.key), medians.of(row.key, other)
        value = None if ours is None or theirs is None else ours - theirs
        return _judge(f"<= {other} + {limit:g} {unit}".rstrip(), value, limit, least=False)

    return judge


OTHERS = times_best(4, "4 x fastest other", without=("saq",))

ROWS = (
    Row("drain", "drain, 50 at once, jobs/s", "more", (times("saq", 10), OTHERS)),
    Row("drain_100", "drain, 100 at once, jobs/s", "more", (times("saq", 10),)),
    Row("drain_10", "drain, 10 at once, jobs/s", "more", (times("saq", 6),)),
    Row("drain_two", "drain, two workers, jobs/s", "more", (times("saq", 7),)),
    Row("worker_cpu", "worker CPU a job, us", bars=(at_most(30),)),
    Row("redis_cpu", "Redis CPU a job, us", bars=(at_most(10),)),
    Row("commands", "commands a job", bars=(at_most(2),)),
    Row("script_commands", "commands inside scripts a job"),
    Row("reads", "socket reads a job", bars=(at_most(0.1),)),
    Row("repeated", "bodies that ran too often, in all", "", (at_most(0),)),
    Row("resultless", "jobs left without a result, in all", "", (at_most(0),)),
    Row("enqueue_one", "enqueue one by one, jobs/s", "more", (times("saq", 1.4),)),
    Row("enqueue_gather", "enqueue, 100 gathered, jobs/s", "more", (times("saq", 4),)),
    Row("enqueue_many", "enqueue_many of 1,000, jobs/s", "more", (times("saq", 6, "enqueue_gather"),)),
    Row("latency_p50", "latency at 50/s, p50, ms", bars=(times_best(1, "the best of all"),)),
    Row("latency_p95", "latency at 50/s, p95, ms"),
    Row("apply", "apply() of a no-op, ms", bars=(at_most(3),)),
    Row("fan", "{fanned:,} no-ops, all results, s", bars=(times("saq", 4), times("huey", 1))),
    Row("chord", "group of {fanned:,} no-ops and its join, s", bars=(times("celery", 4), times("streaq", 1))),
    Row("chain", "chain of {chained:,}, s", bars=(times("celery", 1), times("streaq", 1))),
    Row("idle_commands", "idle: commands/s", bars=(at_most(1),)),
    Row("idle_script_commands", "idle: commands inside scripts/s"),
    Row("idle_cpu", "idle: CPU, %"),
    Row("few_schedules", "{few_schedules:,} schedules: commands/s", bars=(at_most(1),)),
    Row("few_schedules_cpu", "{few_schedules:,} schedules: CPU, %"),
    Row("many_schedules", "{many_schedules:,} schedules: commands/s", bars=(at_most(1),)),
    Row("many_schedules_cpu", "{many_schedules:,} schedules: CPU, %"),
    Row("parked_commands", "{parked:,} jobs parked: commands/s", bars=(at_most(1),)),
    Row("parked_cpu", "{parked:,} jobs parked: CPU, %"),
    Row("rate_short", "drain at 1,000 queued, jobs/s", "more"),
    Row("rate_long", "drain at {backlog:,} queued, jobs/s", "more"),
    Row("rate_kept", "{backlog:,} queued against 1,000", "", (at_least(0.95),)),
    Row("backlog_bytes", "bytes a job, {backlog:,} queued", bars=(beyond("saq", 0, ""),)),
    Row("queued_bytes", "bytes a job, {jobs:,} queued", bars=(beyond("saq", 0, ""),)),
    Row("start", "start to first body, s", bars=(beyond("saq", 0.15, "s"),)),
    Row("memory", "resident memory, MiB", bars=(beyond("saq", 10, "MiB"),)),
    Row("drain_aof", "drain, append-only file, jobs/s", "more"),
    Row("aof_loss", "loss by the append-only file, %", "", (at_most(15),)),
)
