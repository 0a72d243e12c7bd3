"""Drains: a queue is filled, then worker processes of their own empty it, every result stored."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.processes import MeasureError, Worker
from benchmarks.server import Monitor
from benchmarks.systems import System

CONCURRENCY = 50
FIRST_LOOK = 0.0005  # seconds between two looks for the first body


@dataclass(frozen=True)
class Drain:
    """What one drain was like; all but the rate, the commands and the memory is for one job."""

    rate: float
    worker_cpu: float
    redis_cpu: float
    commands: Counter[str]
    reads: float
    memory: float
    queued_bytes: float


def drain(bench: Bench, system: System) -> dict[str, float]:
    """Drain with one worker process, and what that costs."""
    jobs = bench.sizes.jobs
    monitor = bench.monitors.get(system.name)
    if monitor is None:  # the first time only: which commands come from scripts does not change
        monitor = bench.monitors[system.name] = Monitor(bench.server)
        _run(bench, system, "drain, watched", jobs=jobs, monitor=monitor)
    done = _run(bench, system, "drain", jobs=jobs)
    top, inner = monitor.split(done.commands)
    return {
        "drain": done.rate,
        "worker_cpu": done.worker_cpu,
        "redis_cpu": done.redis_cpu,
        "commands": top / jobs,
        "script_commands": inner / jobs,
        "reads": done.reads,
        "memory": done.memory,
        "queued_bytes": done.queued_bytes,
    }


def drain_of_100(bench: Bench, system: System) -> dict[str, float]:
    """Drain with 100 jobs at once."""
    return {"drain_100": _run(bench, system, "drain-100", jobs=bench.sizes.jobs, concurrency=100).rate}


def drain_of_10(bench: Bench, system: System) -> dict[str, float]:
    """Drain with 10 jobs at once."""
    return {"drain_10": _run(bench, system, "drain-10", jobs=bench.sizes.jobs, concurrency=10).rate}


def drain_of_two(bench: Bench, system: System) -> dict[str, float]:
    """Drain with two worker processes."""
    return {"drain_two": _run(bench, system, "drain-two", jobs=2 * bench.sizes.jobs, workers=2).rate}


def drain_on_disk(bench: Bench, system: System) -> dict[str, float]:
    """Drain without and with the append-only file, one after the other."""
    without = _run(bench, system, "aof off", jobs=bench.sizes.jobs).rate
    with bench.server.append_only():
        having = _run(bench, system, "aof on", jobs=bench.sizes.jobs).rate
    return {"drain_aof": having, "aof_loss": 100 * (1 - having / without)}


def _run(
    bench: Bench,
    system: System,
    measure: str,
    *,
    jobs: int,
    concurrency: int = CONCURRENCY,
    workers: int = 1,
    monitor: Monitor | None = None,
) -> Drain:
    """Fill the queue, have it emptied, and compare before and after.

    The clock starts when every worker is at work, a worker's processor time with the first body, and what the server
    counts with the start of the workers.
    """
    server, ledger = bench.server, bench.ledger(jobs)
    server.clear()
    empty = server.memory()
    bench.launcher.call(system, "fill", 0, jobs)
    queued_bytes = (server.memory() - empty) / jobs
    before = server.counters()
    with monitor or contextlib.nullcontext(), contextlib.ExitStack() as stack:
        held = workers > 1
        team = [
            stack.enter_context(bench.launcher.worker(system, concurrency, ledger, held=held)) for _ in range(workers)
        ]
        for worker in team if held else ():
            worker.release()
        team[0].wait("the first body runs", lambda: ledger.jobs > 0, bench.limit, FIRST_LOOK)
        ran, cpu = ledger.jobs, _cpu(team)
        team[0].wait("every body has run", lambda: ledger.jobs == jobs, bench.limit)
        team[0].wait("no job is left", lambda: server.left(system.left) == 0, bench.limit)
        ended, cpu, after = time.time_ns(), _cpu(team) - cpu, server.counters()
        memory = sum(worker.memory() for worker in team)
    begun, processes = ledger.all_at_work()
    if processes < workers:
        raise MeasureError(f"{system.name}, {measure}: one of {workers} workers got no job")
    counted = sum(stamp >= begun for stamp in ledger.stamps())
    bench.count(system, measure, ledger, jobs, server.results(system.results, system.mark))
    return Drain(
        rate=counted / (ended - begun) * 1e9,
        worker_cpu=cpu / max(jobs - ran, 1) * 1e6,
        redis_cpu=(after.cpu - before.cpu) / jobs * 1e6,
        commands=after.commands - before.commands,
        reads=(after.reads - before.reads) / jobs,
        memory=memory,
        queued_bytes=queued_bytes,
    )


def _cpu(team: list[Worker]) -> float:
    return sum(worker.cpu() for worker in team)
