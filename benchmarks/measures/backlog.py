"""Backlog: whether a long queue drains as fast as a short one, and what a queued job weighs there."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.measures.drains import CONCURRENCY
from benchmarks.measures.waiting import ready_worker
from benchmarks.systems import System

SHORT = 1_000  # jobs of the short queue
FILLS = 12  # times that it is filled; the first is not counted
EDGE = SHORT // 10  # jobs at its beginning and end that are not timed
SKIPPED = 2_000  # jobs of the long queue that a new worker runs before it is timed
TIMED = 20_000
LOOK = 0.01


def backlog(bench: Bench, system: System) -> dict[str, float]:
    """Take the rate in a queue of 1,000 and in the first 20,000 of a long one."""
    short = _short_queue(bench, system)
    long, weight = _long_queue(bench, system)
    return {"rate_short": short, "rate_long": long, "rate_kept": long / short, "backlog_bytes": weight}


def _short_queue(bench: Bench, system: System) -> float:
    """Fill the queue while a warm worker is halted, let it go, and do so again and again."""
    ledger = bench.ledger(1 + FILLS * SHORT)
    nanoseconds = 0
    with ready_worker(bench, system, ledger) as worker:
        for first in range(1, ledger.size, SHORT):
            last = first + SHORT
            with worker.halted():
                bench.launcher.call(system, "fill", first, last)
            worker.wait("every body has run", lambda last=last: ledger.jobs == last, bench.limit)
            worker.wait("no job is left", lambda: bench.server.left(system.left) == 0, bench.limit)
            stamps = ledger.stamps(first, last)
            nanoseconds += stamps[-EDGE] - stamps[EDGE] if first > 1 else 0
    bench.count(system, "backlog, short", ledger, ledger.size)
    return (FILLS - 1) * (SHORT - 2 * EDGE) / nanoseconds * 1e9


def _long_queue(bench: Bench, system: System) -> tuple[float, float]:
    """Return the rate at the head of a long queue, and the bytes of each job in it."""
    jobs = bench.sizes.backlog
    skipped, timed = min(SKIPPED, jobs // 10), min(TIMED, jobs // 2)
    ledger = bench.ledger(jobs)
    bench.server.clear()
    empty = bench.server.memory()
    bench.launcher.call(system, "fill", 0, jobs)
    weight = (bench.server.memory() - empty) / jobs
    with bench.launcher.worker(system, CONCURRENCY, ledger) as worker:
        worker.wait("enough bodies have run", lambda: ledger.jobs >= skipped + timed, bench.limit, LOOK)
    stamps = ledger.stamps()
    ledger.path.unlink()
    return timed / (stamps[skipped + timed - 1] - stamps[skipped - 1]) * 1e9, weight
