"""Worker processes that are killed: their jobs run again, soon, once, and wherever there is a worker."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.chaos.site import CONCURRENCY, PATIENCE, Site, audit, freeze, pour, producing, sized, staffed, watched
from tests.support import eventually

from knapsaq import Queue
from knapsaq.redis import scripts

RESCUE = 2.0
"""Seconds beyond the lease in which a dead worker's jobs are back."""
SLACK = sized(3.0, 0.0)
"""Seconds for a busy machine to start a process and to look."""
SLOTS = 20


async def running(queue: Queue) -> int:
    """Return how many jobs are claimed."""
    redis: Any = queue.redis
    return int(await redis.llen(queue.keys.active))


async def all_run(queue: Queue, jobs: int) -> None:
    """Wait until so many jobs are claimed."""
    await eventually(lambda: has_claimed(queue, jobs), within=PATIENCE)


async def has_claimed(queue: Queue, jobs: int) -> bool:
    """Whether so many jobs are claimed."""
    return await running(queue) == jobs


async def on_their_way(site: Site, queue: Queue) -> int:
    """Return how many jobs have had their effect, while Redis does not know their outcome."""
    redis: Any = queue.redis
    keys = [queue.job_id(number) for number in site.entries()]
    return sum(score is not None for score in await redis.zmscore(queue.keys.incomplete, keys))


class TestKilledWorkers:
    @pytest.mark.parametrize("lease", sized((1.0,), (10.0, 3.0)))
    async def test_every_job_of_a_killed_worker_runs_again(self, site: Site, lease: float) -> None:
        """SIGKILL at 40 % of the load and another worker at once: all is done in lease + 2 s, and little is doubled.

        Only jobs that had their effect and whose outcome was on its way may be doubled.
        """
        jobs = sized(400, 2000)
        async with producing(site) as queue:
            accepted = await pour(queue, range(jobs), seconds=0.02, spread=0.5, group=100)
            victim = site.hire(concurrency=SLOTS, lease=lease)
            await eventually(lambda: len(site.entries()) >= jobs * 0.4, within=PATIENCE)
            await freeze(victim)  # so that it can be counted what is on its way
            unsettled = await on_their_way(site, queue)
            assert unsettled <= SLOTS
            victim.kill()
            killed = time.monotonic()
            site.hire(concurrency=SLOTS, lease=lease)
            await watched(queue, lambda: has_ended(site, accepted))
            took = time.monotonic() - killed
            doubled = await audit(site, queue, accepted, doubles=unsettled)
        figure = f"lease {lease:g} s: all done after {took:.2f} s, {doubled} doubled of {unsettled} on their way"
        site.figures.append(figure)
        assert took <= lease + RESCUE + SLACK

    async def test_jobs_of_a_killed_worker_run_again_though_nothing_else_is_to_do(self, site: Site) -> None:
        """SIGKILL while the queue is empty and the only other worker idle: nothing but time passes until it helps."""
        lease = sized(1.0, 10.0)
        async with producing(site) as queue:
            victim = site.hire(lease=lease)
            accepted = await pour(queue, range(CONCURRENCY), task="held")
            await all_run(queue, CONCURRENCY)
            site.hire(lease=lease)
            await staffed(queue, 2)
            victim.kill()
            killed = time.monotonic()
            site.open_gate()
            await watched(queue, lambda: has_ended(site, accepted))
            took = time.monotonic() - killed
            await audit(site, queue, accepted, doubles=0)
        site.figures.append(f"lease {lease:g} s: all done after {took:.2f} s")
        assert took <= lease + RESCUE + SLACK

    async def test_a_thousand_orphans_wait_again_at_once(self, site: Site) -> None:
        """SIGKILL of all workers: the one that comes later puts all jobs back, and Redis is hardly held up."""
        workers, each, lease = sized((3, 40, 1.0), (5, 200, 10.0))
        async with producing(site) as queue:
            redis: Any = queue.redis
            for _ in range(workers):
                site.hire(concurrency=each, lease=lease)
            accepted = await pour(queue, range(workers * each), task="held", group=100)
            await all_run(queue, workers * each)
            await redis.config_set("slowlog-max-len", 100_000)
            await redis.config_set("slowlog-log-slower-than", 0)
            for worker in site.workers:
                worker.kill()
            killed = time.monotonic()
            site.hire(concurrency=1, lease=lease)
            await watched(queue, lambda: has_claimed(queue, 1))
            took = time.monotonic() - killed
            calls = await redis.slowlog_get(100_000)
            await redis.config_set("slowlog-log-slower-than", -1)
            spent = [call["duration"] for call in calls if scripts.rescue.sha.encode() in call["command"]]
            site.open_gate()
            site.hire(concurrency=each, lease=lease)
            await audit(site, queue, accepted, doubles=0)
        site.figures.append(
            f"{workers * each} orphans: back after {took:.2f} s, rescued in {sum(spent)} us of {len(spent)} calls"
        )
        assert took <= lease + RESCUE + 1 + SLACK
        assert spent
        assert sum(spent) <= 50_000

    async def test_a_job_outlives_two_dead_workers(self, site: Site) -> None:
        """Two crashes are no proof against a job: it runs a third time, and no attempt was spent."""
        async with producing(site) as queue:
            accepted = await pour(queue, range(1), task="held")
            for _ in range(2):
                victim = site.hire(lease=1.0)
                await eventually(lambda: victim.pid in [beginning.pid for beginning in site.begun()])  # noqa: B023
                victim.kill()
                await asyncio.to_thread(victim.wait)
            site.open_gate()
            site.hire(lease=1.0)
            await watched(queue, lambda: has_ended(site, accepted))
            [job] = await queue.jobs(accepted)
            assert job is not None
            assert job.attempts == 1
            await audit(site, queue, accepted, doubles=0)


async def has_ended(site: Site, numbers: set[str]) -> bool:
    """Whether all these jobs have had their effect."""
    return numbers <= site.entries().keys()
