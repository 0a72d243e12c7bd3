"""Resting: what a worker with nothing to do costs, whatever waits, and how soon a new one runs its first job."""

from __future__ import annotations

import statistics
import time

from benchmarks.bench import Bench
from benchmarks.measures.drains import CONCURRENCY
from benchmarks.measures.waiting import ready_worker
from benchmarks.processes import Worker
from benchmarks.server import Monitor
from benchmarks.systems import System

SETTLE = 1.0  # seconds from the last job until the worker counts as idle


def idle(bench: Bench, system: System) -> dict[str, float]:
    """Watch a worker with an empty queue."""
    ledger = bench.ledger(1)
    with ready_worker(bench, system, ledger) as worker:
        commands, inner, cpu = _watched(bench, worker)
    bench.count(system, "idle", ledger, 1)
    return {"idle_commands": commands, "idle_script_commands": inner, "idle_cpu": cpu}


def scheduled(bench: Bench, system: System) -> dict[str, float]:
    """Watch a worker with an empty queue that has many schedules, none of which is due soon."""
    figures = {}
    for key, number in (("few", bench.sizes.few_schedules), ("many", bench.sizes.many_schedules)):
        ledger = bench.ledger(1)
        with ready_worker(bench, system, ledger, schedules=number) as worker:
            figures[f"{key}_schedules"], _, figures[f"{key}_schedules_cpu"] = _watched(bench, worker)
        bench.count(system, f"schedules, {number}", ledger, 1)
    return figures


def parked(bench: Bench, system: System) -> dict[str, float]:
    """Watch a worker beside many jobs that wait for a rate limit; the first of them has run."""
    ledger = bench.ledger(2)
    with ready_worker(bench, system, ledger) as worker:
        bench.launcher.call(system, "park", 1, bench.sizes.parked + 2)
        worker.wait("all are parked", lambda: bench.server.left((("LLEN", "saq:bench:queued"),)) == 0, bench.limit)
        commands, _, cpu = _watched(bench, worker)
    bench.count(system, "parked", ledger, 2)
    return {"parked_commands": commands, "parked_cpu": cpu}


def _watched(bench: Bench, worker: Worker) -> tuple[float, float, float]:
    """Return what an idle worker costs: commands a second, those inside scripts, and percent of a processor."""
    seconds = bench.sizes.seconds
    time.sleep(SETTLE)
    cpu = worker.cpu()
    with Monitor(bench.server) as monitor:
        time.sleep(seconds)
    cpu = worker.cpu() - cpu
    return monitor.top.total() / seconds, monitor.inner.total() / seconds, 100 * cpu / seconds


def start(bench: Bench, system: System) -> dict[str, float]:
    """Take the time from the start of a worker's process to the body of a job that waits."""
    return {"start": statistics.median(_start(bench, system) for _ in range(bench.sizes.repeats))}


def _start(bench: Bench, system: System) -> float:
    ledger = bench.ledger(1)
    bench.server.clear()
    bench.launcher.call(system, "fill", 0, 1)
    started = time.time_ns()
    with bench.launcher.worker(system, CONCURRENCY, ledger) as worker:
        worker.wait("its first body has run", lambda: ledger.jobs == 1, bench.limit)
    [stamp] = ledger.stamps()
    bench.count(system, "start", ledger, 1)
    return (stamp - started) / 1e9
