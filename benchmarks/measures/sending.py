"""Sending: how many jobs a second one process enqueues, in each way that a system has."""

from __future__ import annotations

from benchmarks.adapters.__main__ import WARM_UP
from benchmarks.bench import Bench
from benchmarks.processes import MeasureError
from benchmarks.systems import System


def enqueue(bench: Bench, system: System) -> dict[str, float]:
    """Enqueue one by one, a hundred at a time, and a thousand a call."""
    return {f"enqueue_{way}": _rate(bench, system, way) for way in system.ways}


def _rate(bench: Bench, system: System, way: str) -> float:
    jobs = bench.sizes.jobs if way == "many" else bench.sizes.jobs // 2
    bench.server.clear()
    seconds: float = bench.launcher.call(system, "send", way, jobs)
    queued = bench.server.left(system.queued or system.left) - WARM_UP
    bench.queued.append({"system": system.name, "measure": f"enqueue {way}", "jobs": jobs, "queued": queued})
    if queued != jobs:
        raise MeasureError(f"{system.name}, enqueue {way}: of {jobs} jobs {queued} were queued")
    return jobs / seconds
