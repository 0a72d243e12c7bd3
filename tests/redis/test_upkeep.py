"""The duties beside the loop, each run by hand on a clock that stands still."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from saq.job import CronJob, Status
from saq.utils import now
from tests.support import left_behind, lists, store

from knapsaq import Client, Job, Queue, Registry, Settings, connect
from knapsaq.outcomes import Succeeded
from knapsaq.registry import AnyTask
from knapsaq.sweeping import UNCLAIMED_SECONDS, Sweeper
from knapsaq.testing import ManualClock
from knapsaq.upkeep import CronJobs, Rescuer

LEASE = timedelta(seconds=10)
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def clock() -> ManualClock:
    """Noon, in the past of Redis' own clock or not."""
    return ManualClock(NOON)


@pytest.fixture
async def client(settings: Settings, registry: Registry, clock: ManualClock) -> AsyncIterator[Client]:
    """A connection that goes by the clock, with an empty server behind it."""
    async with connect(settings, registry=registry, clock=clock) as client:
        await client.queue().redis.flushall()
        yield client


async def begin(queue: Queue, worker: str, clock: ManualClock) -> None:
    """Let a worker give its sign of life."""
    redis: Any = queue.redis
    await redis.zadd(queue.keys.leases, {worker: clock() + LEASE // timedelta(milliseconds=1)})


class TestRescuer:
    async def test_a_dead_workers_job_runs_again(self, queue: Queue, echo: AnyTask, clock: ManualClock) -> None:
        """A lease that ran out hands the job back, and the old claim can no longer settle."""
        job = await echo.enqueue(text="hi")
        await begin(queue, "dead", clock)
        [claim] = await queue.claim(1, worker="dead")

        clock.advance(LEASE + timedelta(milliseconds=1))
        assert await Rescuer(queue).run_once() == 1

        [again] = await queue.claim(1, worker="alive")
        assert (again.job.key, again.crashes) == (job.key, 1)
        assert not await queue.settle(claim, Succeeded("late"), worker="dead")
        assert await queue.settle(again, Succeeded("in time"), worker="alive")
        await job.refresh()
        assert job.result == "in time"
        assert await left_behind(queue) == []

    async def test_a_living_workers_jobs_are_its_own(self, queue: Queue, echo: AnyTask, clock: ManualClock) -> None:
        """Up to the last millisecond of its lease, whatever happens to the others."""
        await echo.enqueue(text="hi")
        await begin(queue, "alive", clock)
        [claim] = await queue.claim(1, worker="alive")
        clock.advance(LEASE - timedelta(milliseconds=1))
        assert await Rescuer(queue).run_once() == 0
        await begin(queue, "alive", clock)
        clock.advance(LEASE - timedelta(milliseconds=1))
        assert await Rescuer(queue).run_once() == 0
        assert await queue.settle(claim, Succeeded("done"), worker="alive")

    async def test_several_dead_workers_are_rescued_at_once(
        self, queue: Queue, echo: AnyTask, clock: ManualClock
    ) -> None:
        """All their jobs wait again, in front of those that have not run, and nothing of them is left."""
        for number in range(6):
            await echo.using(key=str(number)).enqueue(text="hi")
        for worker in ("a", "b"):
            await begin(queue, worker, clock)
            await queue.claim(2, worker=worker)
        clock.advance(LEASE)
        assert await Rescuer(queue).run_once() == 4
        found = await lists(queue)
        assert set(found["queued"][:4]) == {"0", "1", "2", "3"}
        assert found["queued"][4:] == ["4", "5"]
        assert found["active"] == []
        assert "saq:default:leases" not in await left_behind(queue)

    async def test_rescuers_that_race_hand_each_job_back_once(
        self, queue: Queue, echo: AnyTask, clock: ManualClock
    ) -> None:
        """Every worker hears of the dead one."""
        for _ in range(5):
            await echo.enqueue(text="hi")
        await begin(queue, "dead", clock)
        await queue.claim(5, worker="dead")
        clock.advance(LEASE)
        counts = await asyncio.gather(*(Rescuer(queue).run_once() for _ in range(4)))
        assert sum(counts) == 5
        assert len((await lists(queue))["queued"]) == 5

    async def test_crashes_are_counted_until_the_job_has_ended(
        self, queue: Queue, echo: AnyTask, clock: ManualClock
    ) -> None:
        """The count goes from claim to claim and leaves no trace."""
        await echo.enqueue(text="hi")
        for crashes in range(3):
            await begin(queue, "dead", clock)
            [claim] = await queue.claim(1, worker="dead")
            assert claim.crashes == crashes
            clock.advance(LEASE)
            await Rescuer(queue).run_once()
        [claim] = await queue.claim(1, worker="alive")
        assert claim.crashes == 3
        await queue.settle(claim, Succeeded("done"), worker="alive")
        assert await left_behind(queue) == []


async def taken_by_saq(queue: Queue, **fields: Any) -> Job[Any]:
    """Return a job that a plain SAQ worker has taken, with its record as that worker wrote it."""
    record = {"function": "echo", "key": "one", "queue": "default", "kwargs": {"text": "hi"}, "attempts": 1, **fields}
    await store(queue, "one", json.dumps(record).encode())
    job = await queue.dequeue()
    assert job is not None
    return job  # type: ignore[return-value]  # SAQ's own annotation


class TestSweeper:
    async def test_a_stuck_job_of_saq_that_has_attempts_left_runs_again(self, queue: Queue) -> None:
        """It is over its timeout, and none of our workers has claimed it."""
        await taken_by_saq(queue, status="active", started=now() - 60_000, timeout=10, retries=2)
        assert await Sweeper(queue).run_once() == [queue.job_id("one")]
        found = await lists(queue)
        assert (found["queued"], found["active"]) == (["one"], [])

    async def test_a_stuck_job_of_saq_without_attempts_left_is_ended(self, queue: Queue) -> None:
        """Aborted, with SAQ's word for it."""
        await taken_by_saq(queue, status="active", started=now() - 60_000, timeout=10, retries=1)
        assert await Sweeper(queue).run_once() == [queue.job_id("one")]
        job = await queue.job("one")
        assert job is not None
        assert (job.status, job.error) == (Status.ABORTED, "swept")
        assert await left_behind(queue) == []

    async def test_a_job_within_its_timeout_is_left_alone(self, queue: Queue) -> None:
        """However often the sweeper looks."""
        await taken_by_saq(queue, status="active", started=now(), timeout=600, retries=1)
        sweeper = Sweeper(queue)
        assert [await sweeper.run_once() for _ in range(3)] == [[], [], []]

    async def test_a_job_that_was_taken_and_never_started_is_put_back(self, queue: Queue, clock: ManualClock) -> None:
        """After a while; a live one is in that state for milliseconds, and SAQ's sweeper kills it there."""
        await taken_by_saq(queue, status="queued", attempts=0)
        sweeper = Sweeper(queue)
        assert await sweeper.run_once() == []
        clock.advance(UNCLAIMED_SECONDS - 1)
        assert await sweeper.run_once() == []
        clock.advance(2)
        assert await sweeper.run_once() == [queue.job_id("one")]
        assert (await lists(queue))["queued"] == ["one"]

    async def test_a_claimed_job_is_never_swept(self, queue: Queue, echo: AnyTask, clock: ManualClock) -> None:
        """Whatever its record says: its worker's lease decides, not a timer."""
        record = {"function": "echo", "key": "one", "queue": "default", "status": "active", "started": 1, "timeout": 1}
        await store(queue, "one", json.dumps(record).encode())
        await begin(queue, "alive", clock)
        [claim] = await queue.claim(1, worker="alive")
        sweeper = Sweeper(queue)
        for _ in range(3):
            assert await sweeper.run_once() == []
            clock.advance(UNCLAIMED_SECONDS)
        assert await queue.settle(claim, Succeeded("done"), worker="alive")
        await queue.redis.delete(queue.keys.leases)

    async def test_an_id_without_a_record_is_removed(self, queue: Queue) -> None:
        """Nothing can be known of it."""
        job = await taken_by_saq(queue)
        await queue.redis.delete(job.id)
        assert await Sweeper(queue).run_once() == [job.id]
        assert await left_behind(queue) == []


async def tick(ctx: dict[str, Any]) -> None:
    """Do nothing, now and then."""


class TestCronJobs:
    async def test_a_unique_one_waits_for_the_last_to_end(self, queue: Queue, clock: ManualClock) -> None:
        """On several workers there is one at a time."""
        cron: CronJob[Any] = CronJob(tick, cron="0 * * * *")
        workers = [CronJobs(queue, [cron], UTC) for _ in range(3)]

        async def look() -> list[str]:
            await asyncio.gather(*(worker.run_once() for worker in workers))
            return (await lists(queue))["incomplete"]

        assert await look() == ["cron:tick"]
        clock.advance(3601)
        [claim] = await queue.claim(5, worker="w")
        clock.advance(3600)
        assert await look() == ["cron:tick"]
        assert await queue.claim(5, worker="w") == []
        await queue.settle(claim, Succeeded(None), worker="w")
        await look()
        clock.advance(3600)
        assert len(await queue.claim(5, worker="w")) == 1

    async def test_one_that_is_not_unique_is_queued_once_for_each_due_time(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """SAQ queues a new one every second."""
        workers = [CronJobs(queue, [CronJob(tick, cron="0 * * * *", unique=False)], UTC) for _ in range(3)]
        for _ in range(2 * 60):
            clock.advance(60)
            await asyncio.gather(*(worker.run_once() for worker in workers))
        due = [int(NOON.timestamp()) + hour * 3600 for hour in (1, 2, 3)]
        assert sorted((await lists(queue))["incomplete"]) == [f"cron:tick:{moment}" for moment in due]

    async def test_its_options_are_the_jobs(self, queue: Queue) -> None:
        """And what it leaves out is as for any job."""
        given: dict[str, Any] = {"timeout": 7, "retries": 3, "ttl": 9, "heartbeat": 5, "kwargs": {"n": 1}}
        crons: list[CronJob[Any]] = [CronJob(tick, cron="0 * * * *", unique=False), CronJob(tick, "0 * * * *", **given)]
        await CronJobs(queue, crons, UTC).run_once()
        jobs = [job async for job in queue.iter_jobs()]
        found = {job.key: {name: getattr(job, name) for name in given} for job in jobs}
        assert found["cron:tick"] == given
        [rest] = [fields for key, fields in found.items() if key != "cron:tick"]
        assert rest["timeout"] == queue.settings.task_timeout
        assert rest["ttl"] == queue.settings.result_ttl
