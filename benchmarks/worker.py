"""The worker process of a drain: empties the queue and prints what it did as JSON."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time

import uvloop

from benchmarks.systems import open_system

LOOK = 0.002  # seconds between two looks at the queue once all bodies have run


async def drain(name: str, url: str, jobs: int, concurrency: int) -> dict[str, float]:
    """Run a worker until ``jobs`` jobs have ended, from the first body on."""
    ran = 0
    started = started_cpu = 0.0
    bodies_ran, done = asyncio.Event(), asyncio.Event()

    def body() -> None:
        nonlocal ran, started, started_cpu
        if not ran:
            started, started_cpu = time.perf_counter(), time.process_time()
        ran += 1
        if ran == jobs:
            bodies_ran.set()

    async with open_system(name, url, body) as system:
        working = asyncio.create_task(system.work(concurrency, done))
        await bodies_ran.wait()
        while await system.left():  # noqa: ASYNC110 - SAQ tells nobody when its last job has ended
            await asyncio.sleep(LOOK)
        seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        done.set()
        await working
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"jobs_per_s": jobs / seconds, "cpu_us": cpu / jobs * 1e6, "ran": ran, "memory_mib": memory}


if __name__ == "__main__":
    system_name, broker_url, job_count, slots = sys.argv[1:]
    print(json.dumps(uvloop.run(drain(system_name, broker_url, int(job_count), int(slots)))))  # noqa: T201
