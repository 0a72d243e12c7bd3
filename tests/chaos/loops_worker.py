"""The worker process of ``worker.py`` with tasks for faults of payloads, loops and clocks; called in the same way.

Beyond the settings, ``KNAPSAQ_CHAOS_CLOCK`` sets its wall clock wrong by so many seconds, and SIGUSR1 by another hour;
``KNAPSAQ_CHAOS_CRON`` fires a job each second and sweeps each second; ``KNAPSAQ_CHAOS_NEW`` gives it the task that
older workers do not know; ``KNAPSAQ_CHAOS_STALE`` makes it the one that is going to lose its jobs.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import worker
from saq.job import CronJob
from worker import enter

from knapsaq import Context, Discard, Retry, Settings, connect, task
from knapsaq.supervisor import _loop_factory
from knapsaq.worker import Worker

true_time = time.time
HOUR = 3600.0


def option(name: str) -> str | None:
    """Return what the process was told beyond its settings."""
    return os.environ.get(f"KNAPSAQ_CHAOS_{name}")


async def opened(gate: str) -> None:
    """Wait until the test makes a file beside the ledger."""
    while not Path(sys.argv[1]).with_name(gate).exists():  # noqa: ASYNC110 - the test is another process
        await asyncio.sleep(0.01)


@task
async def due(number: int, at: float) -> int:
    """Tell by how many milliseconds this is late, then leave the line that counts."""
    enter(f"late:{number}:{(true_time() - at) * 1000:.0f}")
    enter(number)
    return number


@task(retries=1)
async def again(ctx: Context, number: int, after: float) -> int:
    """Ask for a second attempt; tell by how many milliseconds it is late, and leave the line that counts."""
    asked = Path(sys.argv[1]).with_name(f"asked-{number}")
    if not ctx.retries:
        asked.write_text(str(true_time() + after))
        raise Retry(after)
    enter(f"late:{number}:{(true_time() - float(asked.read_text())) * 1000:.0f}")
    enter(number)
    return number


@task
async def relay(ctx: Context, number: int, delay: float) -> int:
    """Enqueue a delayed job by this process' clock."""
    await due.using(delay=delay, key=str(number)).enqueue(number, true_time() + delay)
    return number


@task
async def pulse(ctx: Context, number: int, seconds: float) -> int:
    """Take a while and give a sign of life now and then."""
    enter(f"begun:{number}:{os.getpid()}:{true_time()}")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(0.1)
        await ctx.job.update()
    enter(number)
    return number


@task(retries=3)
async def swallow(number: int, text: str) -> int:
    """Take much, and tell the most memory that this process has had so far, in MB."""
    enter(f"peak:{peak()}:{len(text)}")
    enter(number)
    return number


@task(retries=3)
async def greet(number: int, greeting: str = "hello", names: tuple[str, ...] = ()) -> int:
    """Take arguments that an older version did not have, with defaults."""
    enter(f"began:greet:{greeting}:{len(names)}")
    enter(number)
    return number


@task(retries=3)
async def ship(order: int, address: str) -> str:
    """Take one that an older version did not have, without a default."""
    enter("began:ship")
    return f"{order} to {address}"


@task(retries=3)
async def cut(length: int) -> int:
    """Take as a number what an older version took as text."""
    enter("began:cut")
    return length


@task(retries=3)
async def contest(ctx: Context, gate: str, ending: str) -> str:
    """Where the worker has lost the job, try to write over what the other one writes."""
    enter(f"began:{gate}:{ending}")
    if option("STALE") is None:
        await opened(gate)
        return "fresh"
    with suppress(asyncio.CancelledError):
        await opened("resumed")
    enter(f"stale:{gate}:{ending}")
    await ctx.job.update(progress=0.5, meta={"stale": True})
    if ending == "retry":
        raise Retry(after=0)
    if ending == "discard":
        raise Discard("stale")
    if ending == "fail":
        raise LookupError("stale")
    return "stale"


@task
async def fire(ctx: Context) -> None:
    """Tell the slot, and by how many milliseconds this is late."""
    slot = ctx.job.scheduled
    enter(f"slot:{slot}:{(true_time() - slot) * 1000:.0f}")


def peak() -> int:
    """Return the most memory that this process has had so far, in MB."""
    try:
        # The system's other figure counts what the process that started this one has had.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) // 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20  # macOS


async def work_by_the_second() -> None:
    """Work until SIGTERM, with SAQ's cron jobs and timers."""
    async with connect(Settings(_env_file=None)) as client:
        crons = [CronJob(fire.function, "* * * * * *", unique=False)]
        await Worker(client.queue(), cron_jobs=crons, timers={"sweep": 1}).start()


def main() -> int:
    """Work until SIGTERM."""
    off = [float(option("CLOCK") or 0)]
    time.time = lambda: true_time() + sum(off)
    signal.signal(signal.SIGUSR1, lambda *_: off.append(HOUR))
    if option("NEW"):

        @task
        async def newcomer(number: int) -> int:
            enter(number)
            return number

    if option("CRON"):
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(work_by_the_second())
        return 0
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
