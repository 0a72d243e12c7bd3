"""Waiting: how long after it was sent a job runs, and how long a caller waits for results."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.bench import Bench
from benchmarks.ledger import Ledger
from benchmarks.measures.drains import CONCURRENCY
from benchmarks.processes import Worker
from benchmarks.systems import System

RATE = 50  # jobs a second
WARM_UP = 25  # jobs at that rate before the first that counts


@contextmanager
def ready_worker(bench: Bench, system: System, ledger: Ledger, *, schedules: int = 0) -> Iterator[Worker]:
    """Run a worker on an empty queue while the block runs; it has run job 0 of the ledger already.

    Args:
        bench: The bench.
        system: The system.
        ledger: The ledger.
        schedules: How many schedules the worker has, none of which is due soon.
    """
    bench.server.clear()
    with bench.launcher.worker(system, CONCURRENCY, ledger, schedules=schedules) as worker:
        bench.launcher.call(system, "fill", 0, 1)
        worker.wait("its first body has run", lambda: ledger.jobs == 1, bench.limit)
        yield worker


def latency(bench: Bench, system: System) -> dict[str, float]:
    """Take the time from before the enqueue in one process to the body in another, 50 jobs a second."""
    jobs = WARM_UP + round(RATE * bench.sizes.seconds)
    ledger = bench.ledger(jobs)
    with ready_worker(bench, system, ledger) as worker:
        bench.launcher.call(system, "pace", 1, jobs, RATE, ledger=ledger)
        worker.wait("every body has run", lambda: ledger.jobs == jobs, bench.limit)
    times = ledger.latencies(WARM_UP)
    bench.count(system, "latency", ledger, jobs)
    return {"latency_p50": statistics.median(times), "latency_p95": statistics.quantiles(times, n=20)[-1]}


def apply(bench: Bench, system: System) -> dict[str, float]:
    """Enqueue a no-op and wait for its result, the worker in another process."""
    ledger = bench.ledger(bench.sizes.applied)
    bench.server.clear()
    with bench.launcher.worker(system, CONCURRENCY, ledger):
        times: list[float] = bench.launcher.call(system, "apply", bench.sizes.applied, bench.sizes.seconds / 2)
    bench.count(system, "apply", ledger, len(times) + 1)
    return {"apply": statistics.median(times) * 1000}


def flow(bench: Bench, system: System) -> dict[str, float]:
    """Take a group of many no-ops with its join, and a chain, from before it is sent to its last result."""
    times, figures = bench.sizes.repeats, {}
    for kind, jobs in (("chord", bench.sizes.fanned + 1), ("chain", bench.sizes.chained)):
        ledger = bench.ledger(jobs * (times + 1))
        bench.server.clear()
        with bench.launcher.worker(system, CONCURRENCY, ledger):
            seconds: list[float] = bench.launcher.call(system, "flow", kind, jobs, times)
        bench.count(system, kind, ledger, ledger.size)
        figures[kind] = statistics.median(seconds)
    return figures


def fan(bench: Bench, system: System) -> dict[str, float]:
    """Enqueue many no-ops and wait for all results, the worker in another process."""
    size, times = bench.sizes.fanned, bench.sizes.repeats
    ledger = bench.ledger(size * (times + 1))
    bench.server.clear()
    with bench.launcher.worker(system, CONCURRENCY, ledger):
        seconds: list[float] = bench.launcher.call(system, "fan", size, times)
    bench.count(system, "fan", ledger, ledger.size)
    return {"fan": statistics.median(seconds)}
