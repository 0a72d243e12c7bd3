"""Schedules, delays and leases while workers die, stand still, or have wrong clocks."""

from __future__ import annotations

import asyncio
import signal
import time
from statistics import median
from typing import Any

from tests.chaos.site import (
    CONCURRENCY,
    PATIENCE,
    ROOT,
    TIMEOUT,
    Site,
    audit,
    nothing_open,
    producing,
    sized,
    staffed,
    watched,
)
from tests.support import eventually

from knapsaq import Job, Queue

LOOPS = ROOT / "tests/chaos/loops_worker.py"
HOUR = 3600
ROUNDING_MS = 1
LATE_MS = sized(5000, 1500)
"""How late a scheduled job may be with two of three workers gone; the short form runs beside other things."""
PROMPT_MS = sized(1000, 50)
"""The median lateness that delayed jobs may have."""
DUE_AT_ONCE = 1000


class TestSchedule:
    async def test_each_second_fires_once_though_workers_die_and_stand_still(self, site: Site) -> None:
        """Three workers, one killed, one stopped for a while: as many fires as seconds, none double, none much late."""
        async with producing(site) as queue:
            workers = [site.hire(program=LOOPS, chaos_cron=1) for _ in range(3)]
            await staffed(queue, 3)
            await fired(site, sized(1, 60))
            await mid_second()
            workers[0].kill()
            await fired(site, sized(2, 100))
            await mid_second()
            workers[1].send_signal(signal.SIGSTOP)
            await fired(site, sized(4, 105))
            await mid_second()
            workers[1].send_signal(signal.SIGCONT)
            await fired(site, sized(5, 180))
            found = slots(site)
            first, last = min(found), max(found)
            assert sorted(found) == list(range(first, last + 1)), "missed, or double"
            lateness = [milliseconds for late in found.values() for milliseconds in late]
            assert len(lateness) == len(found)
            assert min(lateness) >= -ROUNDING_MS
            assert max(lateness) <= LATE_MS
            # The slots that wait already outlive those who have queued them.
            site.hire(program=LOOPS)
            await staffed(queue, 3)
            for worker in workers[1:]:
                worker.terminate()
            await audit(site, queue, set(), doubles=0)


async def fired(site: Site, seconds: int) -> None:
    """Wait until so many slots have fired since the first one."""

    def far_enough() -> bool:
        found = slots(site)
        return bool(found) and max(found) - min(found) >= seconds

    await eventually(far_enough, within=PATIENCE + seconds)


async def mid_second() -> None:
    """Wait for the middle of a second: no job runs then whose worker would take it along."""
    await eventually(lambda: 0.4 < time.time() % 1 < 0.6)


def slots(site: Site) -> dict[int, list[int]]:
    """Return by how many milliseconds the jobs of each slot were late."""
    found: dict[int, list[int]] = {}
    for line in site.lines():
        if line.startswith("slot:"):
            _, slot, late = line.split(":")
            found.setdefault(int(slot), []).append(int(late))
    return found


def lateness(site: Site) -> dict[int, list[int]]:
    """Return by how many milliseconds the jobs of each number were late."""
    found: dict[int, list[int]] = {}
    for line in site.lines():
        if line.startswith("late:"):
            _, number, late = line.split(":")
            found.setdefault(int(number), []).append(int(late))
    return found


class TestWrongClocks:
    async def test_workers_with_wrong_clocks_keep_their_leases_and_run_nothing_early(self, site: Site) -> None:
        """An hour off, or jumping by one: no job is taken from a worker that lives, no delay is cut short."""
        async with producing(site) as queue:
            for offset in (0, HOUR, -HOUR):
                site.hire(program=LOOPS, lease=1, chaos_clock=offset)
            jumping = site.hire(program=LOOPS, lease=1)
            await staffed(queue, 4)
            # As many as there are slots, so that each worker has its share.
            long = await self._enqueue(queue, "pulse", range(4 * CONCURRENCY), seconds=sized(2.0, 12.0))
            at = int(time.time()) + sized(2, 5)
            fixed = await self._enqueue(queue, "due", range(100, 120), scheduled=at, at=at)
            retried = await self._enqueue(queue, "again", range(200, 220), after=1.0, retries=2)
            relayed = {str(number) for number in range(300, 320)}
            for number in relayed:
                assert await queue.enqueue("relay", key=f"relay-{number}", number=int(number), delay=1.0)
            await eventually(lambda: len(site.begun()) == len(long), within=PATIENCE)
            jumping.send_signal(signal.SIGUSR1)
            everything = long | fixed | retried | relayed
            await eventually(lambda: everything <= site.entries().keys(), within=PATIENCE)
            assert len(site.begun()) == len(long), "a living worker lost a job"
            assert len({begun.pid for begun in site.begun()}) == 4
            found = lateness(site)
            assert len(found) == len(fixed | retried | relayed)
            assert min(late for lates in found.values() for late in lates) >= -ROUNDING_MS, "early"
            await audit(site, queue, everything, doubles=0)
            assert not [line for line in site.said() if "has died" in line]

    async def _enqueue(self, queue: Queue, task: str, numbers: range, **arguments: Any) -> set[str]:
        for number in numbers:
            assert await queue.enqueue(task, key=str(number), number=number, timeout=TIMEOUT, **arguments)
        return {str(number) for number in numbers}


class TestDelayed:
    async def test_delayed_jobs_outlive_the_worker_that_was_there_when_they_came(self, site: Site) -> None:
        """Killed before they are due: another one runs each once, none early, half of them with next to no delay."""
        async with producing(site) as queue:
            victim = site.hire(program=LOOPS, concurrency=20)
            await staffed(queue, 1)
            began, spread = time.time() + sized(1.5, 5.0), sized(1.0, 25.0)
            accepted = set()
            for number in range(100):
                at = began + spread * number / 100
                job = Job("due", key=str(number), kwargs={"number": number, "at": at}, scheduled=at)  # type: ignore[arg-type]
                assert await queue.enqueue(job)
                accepted.add(job.key)
            victim.kill()
            site.hire(program=LOOPS, concurrency=20)
            await watched(queue, lambda: nothing_open(queue), within=PATIENCE + spread)
            found = lateness(site)
            assert [len(lates) for lates in found.values()] == [1] * 100
            assert min(late for lates in found.values() for late in lates) >= -ROUNDING_MS
            assert median(late for lates in found.values() for late in lates) <= PROMPT_MS
            await audit(site, queue, accepted, doubles=0)

    async def test_thousands_of_jobs_that_are_due_at_once_come_in_batches(self, site: Site) -> None:
        """No call moves more than a thousand, so that none keeps the server busy for long; each job runs once."""
        async with producing(site) as queue:
            numbers = range(sized(1200, 10_000))
            at = int(time.time()) + sized(2, 10)
            accepted = await self._enqueue(queue, numbers, at)
            await eventually(lambda: time.time() > at + 0.1)
            # A call that claims nothing promotes what is due all the same.
            assert await queue.claim(0, worker="nobody") == []
            assert await queue.count("queued") == DUE_AT_ONCE
            for _ in range(2):
                site.hire(program=LOOPS, concurrency=50)
            await watched(queue, lambda: nothing_open(queue))
            assert [len(lates) for lates in lateness(site).values()] == [1] * len(numbers)
            await audit(site, queue, accepted, doubles=0)

    async def _enqueue(self, queue: Queue, numbers: range, at: int) -> set[str]:
        jobs = (
            queue.enqueue("due", key=str(number), scheduled=at, kwargs={"number": number, "at": at})
            for number in numbers
        )
        return {job.key for job in await asyncio.gather(*jobs) if job}
