"""Plain SAQ and Knapsaq on one queue: producers, workers, and what SAQ's workers leave behind when they die."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import saq
from saq.job import Status
from saq.queue.base import JobError
from saq.queue.redis import RedisQueue
from saq.utils import now
from tests.support import ended, eventually, left_behind, lists, store, working

from knapsaq import Client, Job, Queue, Registry, Settings, connect
from knapsaq.sweeping import UNCLAIMED_SECONDS, Sweeper
from knapsaq.testing import ManualClock

SAQS_WORKER = "0195-of-saq"
LONG = UNCLAIMED_SECONDS + 1


@pytest.fixture
async def plain(queue: Queue) -> AsyncIterator[RedisQueue]:
    """SAQ's own queue on the same server, under the same name."""
    plain = RedisQueue(queue.redis, "default")
    yield plain
    await plain._pubsub.close()


@pytest.fixture(autouse=True)
def tasks(registry: Registry) -> None:
    """The tasks of these tests."""

    @registry.task
    async def add(a: int, b: int) -> int:
        return a + b

    @registry.task
    async def fail(reason: str) -> None:
        raise LookupError(reason)


@pytest.fixture(autouse=True)
def runs(registry: Registry) -> list[int]:
    """The attempts of the task ``note``."""
    runs: list[int] = []

    @registry.task
    async def note(ctx: dict[str, Any]) -> None:
        runs.append(ctx["job"].attempts)

    return runs


@asynccontextmanager
async def saq_working(queue: Any, *functions: Any, **options: Any) -> AsyncIterator[saq.Worker[Any]]:
    """Run SAQ's own worker while the block runs."""
    worker: saq.Worker[Any] = saq.Worker(queue, functions, shutdown_grace_period_s=0, dequeue_timeout=0.2, **options)
    worker.SIGNALS = []
    running = asyncio.create_task(worker.start())
    try:
        yield worker
    finally:
        worker.event.set()
        await running


class TestProducers:
    async def test_a_job_of_saqs_queue_runs_on_our_worker(self, queue: Queue, plain: RedisQueue) -> None:
        """And SAQ's own objects see its state and its result."""
        job = await plain.enqueue("add", a=1, b=2)
        assert job is not None
        async with working(queue):
            await job.refresh(10)
        assert (job.status, job.result, job.attempts) == (Status.COMPLETE, 3, 1)
        again = await plain.job(job.key)
        assert again is not None
        assert again.to_dict() == job.to_dict()

    async def test_a_delayed_job_of_saqs_queue_runs_when_it_is_due(self, queue: Queue, plain: RedisQueue) -> None:
        """It tells nobody of its due time; the worker looks now and then."""
        async with working(queue):
            job = await plain.enqueue("add", a=1, b=2, scheduled=1)
            assert job is not None
            await job.refresh(15)
        assert job.result == 3

    async def test_a_scheduled_job_that_saqs_queue_retries_runs_once_on_ours(
        self, queue: Queue, plain: RedisQueue, runs: list[int]
    ) -> None:
        """SAQ queues it and leaves its due time, so that its id is in the queue twice."""
        await plain.enqueue("note", scheduled=int(time.time()) - 5, retries=3)
        await plain.schedule()
        job = await plain.dequeue(timeout=1)
        assert job is not None
        await job.retry("again")
        async with working(queue, concurrency=1):
            await job.refresh(10)
            await queue.apply("add", a=1, b=2)
        assert runs == [1]
        assert await left_behind(queue) == []

    async def test_saqs_apply_and_map_get_our_results(self, queue: Queue, plain: RedisQueue) -> None:
        """The producer need not change."""
        async with working(queue):
            assert await plain.apply("add", a=1, b=2, poll_interval=0.01) == 3
            assert await plain.map("add", [{"a": 1, "b": 2}, {"a": 3, "b": 4}], poll_interval=0.01) == [3, 7]
            with pytest.raises(JobError, match="no luck"):
                await plain.apply("fail", reason="no luck", poll_interval=0.01)

    async def test_saqs_abort_ends_a_job_that_waits_for_our_worker(self, queue: Queue, plain: RedisQueue) -> None:
        """It does not run."""
        job = await plain.enqueue("add", a=1, b=2)
        assert job is not None
        await job.abort("enough")
        async with working(queue):
            last = await queue.enqueue("add", a=1, b=2)
            await ended(last)
        await job.refresh()
        assert (job.status, job.attempts) == (Status.ABORTED, 0)

    async def test_saqs_info_shows_our_worker_and_jobs(
        self, queue: Queue, plain: RedisQueue, registry: Registry
    ) -> None:
        """What its page shows."""
        begun, let_go = asyncio.Event(), asyncio.Event()

        @registry.task
        async def held() -> None:
            begun.set()
            await let_go.wait()

        async with working(queue, metadata={"host": "here"}) as worker:
            running = await held.enqueue()
            delayed = await queue.enqueue("add", a=1, b=2, scheduled=4_000_000_000)
            await begun.wait()
            await eventually(lambda: self._announced(plain))
            info = await plain.info(jobs=True)
            let_go.set()
            await ended(running)
        assert delayed is not None
        assert info["workers"][worker.id]["metadata"] == {"host": "here"}
        assert (info["queued"], info["active"], info["scheduled"]) == (0, 1, 1)
        assert {job["key"] for job in info["jobs"]} == {running.key, delayed.key}

    async def _announced(self, plain: RedisQueue) -> bool:
        return bool((await plain.info())["workers"])


class TestSaqsWorker:
    async def test_it_runs_jobs_of_our_queue(self, queue: Queue) -> None:
        """With our object in its hands: taken, marked, finished."""

        async def add(ctx: dict[str, Any], *, a: int, b: int) -> int:
            assert ctx["job"].queue is queue
            return a + b

        job = await queue.enqueue("add", a=1, b=2)
        assert job is not None
        async with saq_working(queue, ("add", add)):
            assert await job.wait(10) == 3
        assert await left_behind(queue) == []

    async def test_its_retries_and_failures_are_ours(self, queue: Queue) -> None:
        """A job that fails there is run again, then failed, as its record says."""
        attempts: list[int] = []

        async def fail(ctx: dict[str, Any], *, reason: str) -> None:
            attempts.append(ctx["job"].attempts)
            raise LookupError(reason)

        job = await queue.enqueue("fail", reason="no luck", retries=2)
        async with saq_working(queue, ("fail", fail)):
            await ended(job)
        assert job is not None
        assert (job.status, attempts) == (Status.FAILED, [1, 2])
        assert await left_behind(queue) == []

    async def test_our_abort_reaches_its_jobs(self, queue: Queue) -> None:
        """It looks at the record now and then."""
        inside = asyncio.Event()

        async def wait(ctx: dict[str, Any]) -> None:
            inside.set()
            await asyncio.Event().wait()

        own = Queue(queue.redis, "default", settings=queue.settings)
        job = await own.enqueue("wait")
        assert job is not None
        async with saq_working(own, ("wait", wait), timers={"abort": 0.01}):
            await inside.wait()
            await job.refresh()
            await job.abort("enough")
            await ended(job)
        assert (job.status, job.error) == (Status.ABORTED, "enough")

    async def test_both_workers_share_a_queue(self, queue: Queue, plain: RedisQueue) -> None:
        """In a deployment that is under way, each job runs once, wherever."""
        runs: list[int] = []

        async def add(ctx: dict[str, Any], *, a: int, b: int) -> int:
            runs.append(a)
            return a + b

        async with working(queue, [], registry=Registry()) as ours:
            ours.functions["add"] = add
            async with saq_working(plain, ("add", add)):
                jobs = await asyncio.gather(*(queue.enqueue("add", a=n, b=0) for n in range(100)))
                await ended(*jobs)
        assert sorted(runs) == list(range(100))
        assert [job.result for job in jobs if job] == list(range(100))
        assert await left_behind(queue) == []


async def taken(queue: Queue, **fields: Any) -> Job[Any]:
    """Return a job that a plain SAQ worker runs."""
    record = {
        "function": "note",
        "key": "one",
        "queue": "default",
        "status": "active",
        "attempts": 1,
        "started": now(),
        "worker_id": SAQS_WORKER,
        **fields,
    }
    await store(queue, "one", json.dumps(record).encode())
    await queue.dequeue()
    job = await queue.job("one")
    assert job is not None
    return job


async def announce(queue: Queue) -> None:
    """Let the SAQ worker tell of itself, as it does every ten seconds."""
    await RedisQueue(queue.redis).worker_info(SAQS_WORKER, queue_key="default", ttl=60)


class TestSweeper:
    @pytest.fixture
    async def client(self, settings: Settings, registry: Registry, clock: ManualClock) -> AsyncIterator[Client]:
        """A connection that goes by the clock, with an empty server behind it."""
        async with connect(settings, registry=registry, clock=clock) as client:
            await client.queue().redis.flushall()
            yield client

    @pytest.mark.parametrize("timeout", [10, 0])
    async def test_a_saq_worker_that_dies_costs_its_jobs_no_attempt(
        self, queue: Queue, clock: ManualClock, runs: list[int], timeout: int
    ) -> None:
        """Faults 2 and 5 in a mixed fleet: SAQ ends such a job, or keeps it active for ever."""
        job = await taken(queue, timeout=timeout, started=now() - 60_000)
        sweeper = Sweeper(queue)
        assert await sweeper.run_once() == []
        clock.advance(LONG)
        assert await sweeper.run_once() == [job.id]
        assert set((await lists(queue))["queued"]) == {"one"}
        async with working(queue):
            await ended(job)
        assert (job.status, runs) == (Status.COMPLETE, [1])
        assert await left_behind(queue) == []

    async def test_a_job_of_a_living_saq_worker_is_left_to_it(self, queue: Queue, clock: ManualClock) -> None:
        """For as long as its worker tells of itself and its time is not up."""
        await taken(queue, timeout=600)
        await announce(queue)
        sweeper = Sweeper(queue)
        for _ in range(3):
            assert await sweeper.run_once() == []
            clock.advance(LONG)
        assert (await lists(queue))["active"] == ["one"]

    async def test_an_overdue_job_is_first_left_to_the_worker_that_ends_it(
        self, queue: Queue, clock: ManualClock
    ) -> None:
        """Fault 5: at exactly its timeout, sweep and worker would both end it."""
        job = await taken(queue, timeout=10, started=now() - 11_000)
        await announce(queue)
        sweeper = Sweeper(queue)
        assert await sweeper.run_once() == []
        clock.advance(LONG)
        assert await sweeper.run_once() == [job.id]
        await job.refresh()
        assert (job.status, job.error) == (Status.ABORTED, "swept")

    async def test_a_job_that_goes_on_is_in_no_doubt(self, queue: Queue, clock: ManualClock) -> None:
        """Its record changes: somebody runs it, whatever the list of workers says."""
        job = await taken(queue, timeout=600)
        sweeper = Sweeper(queue)
        for step in range(3):
            assert await sweeper.run_once() == []
            clock.advance(LONG)
            await job.update(meta={"step": step})
        assert (await lists(queue))["active"] == ["one"]

    async def test_a_record_under_another_jobs_id_is_put_back_to_be_buried(self, queue: Queue) -> None:
        """Nothing is done to the job that it names."""
        other = await queue.enqueue("note", key="other", scheduled=4_000_000_000)
        assert other is not None
        job = await taken(queue, key="other")
        await store(queue, "one", json.dumps(job.to_dict()).encode())
        assert await Sweeper(queue).run_once() == [queue.job_id("one")]
        assert set((await lists(queue))["queued"]) == {"one"}
        async with working(queue):
            await eventually(lambda: queue.count("dead"))
        assert (await lists(queue))["incomplete"] == ["other"]
