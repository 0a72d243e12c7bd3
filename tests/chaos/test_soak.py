"""Many jobs, without any fault and with all of them at random."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError
from tests.chaos.faults import cut_connections, dismiss, forget_scripts, pause, restart_server
from tests.chaos.site import PATIENCE, Site, audit, conserved, hire_two, nothing_open, pour, producing, sized, watched
from tests.support import eventually

from knapsaq import BrokerError, Queue
from knapsaq.claims import CRASH_LIMIT

WORKERS = 3
CONCURRENCY = 20
SECONDS = sized(0.04, 0.02)
BACKLOG = sized(500, 2000)
"""So many jobs wait at most, as each look at them reads them all."""


async def pour_slowly(queue: Queue, numbers: range) -> set[str]:
    """Enqueue jobs as fast as they are done, and look all the time whether they are conserved."""
    accepted: set[str] = set()
    for start in range(numbers.start, numbers.stop, 100):
        await eventually(lambda: has_room(queue), within=PATIENCE)
        accepted |= await pour(queue, range(start, start + 100), seconds=SECONDS, spread=0.5, group=100)
    return accepted


async def has_room(queue: Queue) -> bool:
    """Whether the queue is short; not while the server is away."""
    with suppress(RedisError, BrokerError, OSError):
        await conserved(queue)
        return await queue.count("incomplete") < BACKLOG
    return False


async def make_fault(site: Site, queue: Queue, fault: str) -> None:
    """Make one of ``FAULTS``; for a worker that goes, another one comes first."""
    victim = random.choice([worker for worker in site.workers if worker.poll() is None])  # noqa: S311 - no secret
    match fault:
        case "kill":
            await hire_one(site, queue)
            victim.kill()
        case "dismiss":
            await hire_one(site, queue)
            await dismiss(victim)
        case "restart":
            await restart_server(site)
        case "cut":
            await cut_connections(queue.redis)
        case "forget":
            await forget_scripts(queue.redis)
        case "pause":
            await pause(queue.redis, 0.3)


async def hire_one(site: Site, queue: Queue) -> None:
    """Start a worker and wait until it works: one that finds no server when it starts does not stay."""
    redis: Any = queue.redis
    known = set(await redis.zrange(queue.keys.leases, 0, -1))
    site.hire(concurrency=CONCURRENCY)

    async def works() -> bool:
        return not known.issuperset(await redis.zrange(queue.keys.leases, 0, -1))

    await eventually(works, within=PATIENCE)


FAULTS = ("kill", "dismiss", "restart", "cut", "forget", "pause")


class TestSoak:
    async def test_without_faults_nothing_runs_twice(self, site: Site) -> None:
        """Two workers that share a queue never share a job."""
        jobs = sized(1500, 6000)
        async with producing(site) as queue:
            await hire_two(site, queue, concurrency=CONCURRENCY, lease=10)
            accepted = await pour(queue, range(jobs), group=100)
            assert len(accepted) == jobs
            await audit(site, queue, accepted, doubles=0)

    async def test_workers_that_are_killed_again_and_again_lose_nothing(self, site: Site) -> None:
        """One is killed about every two seconds: none lost, and no more doubles than jobs that were running."""
        jobs, every = sized((2000, 0.2), (100_000, 1.4))
        assert len(await self.soak(site, jobs, ("kill",), every)) == jobs

    async def test_all_faults_at_random_lose_nothing(self, site: Site) -> None:
        """Workers and server killed, workers told to go, connections cut, scripts forgotten, in any order."""
        jobs, every = sized((2000, 0.2), (50_000, 1.0))
        await self.soak(site, jobs, FAULTS, every)

    async def soak(self, site: Site, jobs: int, faults: tuple[str, ...], every: float) -> set[str]:
        """Make faults for as long as jobs are enqueued, audit, and return those that were accepted."""
        made: list[str] = []
        async with producing(site) as queue, producing(site) as operator:
            for _ in range(WORKERS):
                await hire_one(site, operator)
            pouring = asyncio.create_task(pour_slowly(queue, range(jobs)))
            while not pouring.done() or len(made) < len(FAULTS):
                made.append(random.choice(faults))  # noqa: S311
                await make_fault(site, operator, made[-1])
                await asyncio.sleep(every)
            accepted = await pouring
            await watched(queue, lambda: nothing_open(queue))
            # By bad luck a job is in the hands of three that are killed, which is how poison looks.
            letters = await queue.dead()
            assert {len(letter.history) for letter in letters} <= {CRASH_LIMIT}
            dead = {letter.key for letter in letters}
            assert await queue.discard(*dead) == len(dead)
            doubled = await audit(site, queue, accepted, doubles=made.count("kill") * CONCURRENCY, dead=dead)
        site.figures.append(f"{jobs} jobs, {len(made)} faults: {doubled} doubled")
        return accepted
