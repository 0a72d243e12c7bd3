"""Programs written for SAQ, and SAQ's own objects, on our queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import saq
from saq.job import Job as SaqJob
from saq.job import Status
from saq.queue.base import JobError
from saq.queue.redis import RedisQueue
from tests.redis.conftest import Gate
from tests.support import ended, eventually, left_behind, lists, working

from knapsaq import Client, Queue, Registry


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

    async def test_saqs_info_shows_our_worker_and_jobs(self, queue: Queue, plain: RedisQueue, gate: Gate) -> None:
        """What its page shows."""
        async with working(queue, metadata={"host": "here"}) as worker:
            running = await queue.enqueue("held")
            delayed = await queue.enqueue("add", a=1, b=2, scheduled=4_000_000_000)
            await gate.entered()
            await eventually(lambda: self._announced(plain))
            info = await plain.info(jobs=True)
            gate.open()
            await ended(running)
        assert delayed is not None
        assert running is not None
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


class TestMethods:
    """Every public method of SAQ's queue and job, on our objects."""

    async def test_apply_and_map(self, queue: Queue) -> None:
        """Results in order; errors raised or returned; a time limit."""
        async with working(queue):
            assert await queue.apply("add", a=1, b=2) == 3
            assert await queue.map("add", [{"a": 1}, {"a": 3}], b=2) == [3, 5]
            with pytest.raises(JobError, match="no luck"):
                await queue.apply("fail", reason="no luck")
            mixed = await queue.map("fail", [{"reason": "a"}], return_exceptions=True)
            assert isinstance(mixed[0], JobError)
        with pytest.raises(TimeoutError):
            await queue.apply("add", a=1, b=2, timeout=0.05)

    async def test_apply_answers_as_soon_as_the_job_has_ended(self, queue: Queue) -> None:
        """SAQ's sleeps half a second more, and times out on a job that is done."""
        async with working(queue):
            assert await queue.apply("add", a=1, b=2, timeout=0.4, poll_interval=0.5) == 3

    async def test_job_jobs_and_iter_jobs(self, queue: Queue) -> None:
        """One, several with gaps, all of some states."""
        for key in ("a", "b"):
            await queue.enqueue("add", key=key, a=1, b=2)
        b = await queue.job("b")
        assert b is not None
        await b.abort("enough")

        assert await queue.job("none") is None
        assert [job and job.key for job in await queue.jobs(["b", "none", "a"])] == ["b", None, "a"]
        assert {job.key async for job in queue.iter_jobs()} == {"a", "b"}
        assert [job.key async for job in queue.iter_jobs(statuses=[Status.QUEUED])] == ["a"]
        assert await queue.jobs([]) == []

    async def test_info_and_count(self, queue: Queue) -> None:
        """The numbers of the page."""
        for number in range(3):
            await queue.enqueue("add", a=1, b=2, scheduled=4_000_000_000 if number == 2 else 0)
        await queue.claim(1, worker="w")
        assert [await queue.count(kind) for kind in ("queued", "active", "incomplete")] == [1, 1, 3]
        info = await queue.info(jobs=True)
        assert (info["name"], info["queued"], info["active"], info["scheduled"]) == ("default", 1, 1, 1)
        assert len(info["jobs"]) == 3

    async def test_finish_and_retry_by_hand(self, queue: Queue) -> None:
        """A program may end a job itself, and queue it again."""
        job = await queue.enqueue("add", key="one", a=1, b=2)
        assert job is not None
        await job.finish(Status.COMPLETE, result=42)
        await job.refresh()
        assert (job.status, job.result) == (Status.COMPLETE, 42)
        await job.retry("again")
        async with working(queue):
            await ended(job)
        assert job.result == 3

    async def test_listen_hears_every_change(self, queue: Queue) -> None:
        """Until the callback has heard enough."""
        heard: list[Status] = []
        job = await queue.enqueue("add", key="one", a=1, b=2)
        assert job is not None

        def callback(key: str, status: Status) -> bool:
            assert key == "one"
            heard.append(status)
            return status is Status.COMPLETE

        listening = asyncio.create_task(queue.listen(["one"], callback, timeout=10))
        await eventually(lambda: self._subscribed(queue))
        async with working(queue):
            await listening
        assert heard[-1] is Status.COMPLETE
        await queue._pubsub.close()

    async def _subscribed(self, queue: Queue) -> bool:
        return bool(await queue.redis.pubsub_numpat())

    async def test_sweep_puts_back_what_a_dead_saq_worker_left(self, queue: Queue) -> None:
        """SAQ's own method, for who calls it."""
        await queue.enqueue("add", key="one", a=1, b=2, retries=2, timeout=1)
        job = await queue.dequeue()
        assert job is not None
        await job.update(status=Status.ACTIVE, started=1)
        assert await queue.sweep(lock=1, abort=0.01) == [job.id]
        assert (await lists(queue))["queued"] == ["one"]
        async with working(queue):
            await ended(await queue.job("one"))
        again = await queue.job("one")
        assert again is not None
        assert again.result == 3

    async def test_sweep_leaves_a_job_alone_that_a_saq_worker_has_just_taken(self, queue: Queue) -> None:
        """SAQ's sweep takes it for stuck: it then runs twice, or is ended while it runs."""
        job = await queue.enqueue("add", key="one", a=1, b=2)
        assert job is not None
        assert await queue.dequeue() == job
        assert await queue.sweep() == []
        await job.update(status=Status.ACTIVE)
        assert (await lists(queue))["active"] == ["one"]

    async def test_saqs_sweep_stays_away_while_our_worker_lives(self, queue: Queue, plain: RedisQueue) -> None:
        """It takes a job that has just been claimed for stuck, and would end it."""
        async with working(queue):
            job = await queue.enqueue("add", a=1, b=2)
            await ended(job)
            assert await plain.sweep() == []
            assert await plain.schedule() == []

    async def test_before_enqueue_hooks_see_and_change_each_job(self, queue: Queue) -> None:
        """Until they are taken away."""
        seen: list[str] = []

        async def hook(job: SaqJob) -> None:
            seen.append(job.function)
            job.meta["traced"] = True

        queue.register_before_enqueue(hook)
        first = await queue.enqueue("add", a=1, b=2)
        queue.unregister_before_enqueue(hook)
        second = await queue.enqueue("add", a=1, b=2)
        assert first is not None
        assert second is not None
        assert seen == ["add"]
        found = await queue.jobs([first.key, second.key])
        assert [job.meta for job in found if job] == [{"traced": True}, {}]

    async def test_job_enqueue_refresh_and_update(self, queue: Queue) -> None:
        """The methods of a job that was built by hand."""
        job = SaqJob(function="add", kwargs={"a": 1, "b": 2}, key="one")
        await job.enqueue(queue)
        same = SaqJob(function="add", kwargs={"a": 5, "b": 5}, key="one")
        await same.enqueue(queue)
        assert same.kwargs == {"a": 1, "b": 2}
        await job.update(meta={"step": 1})
        await same.refresh()
        assert same.meta == {"step": 1}

    async def test_a_queue_knows_its_server(self, queue: Queue, client: Client) -> None:
        """And closes its connections when it is told to."""
        assert await queue.version() >= (6, 2)
        own = Queue.from_url(client.settings.broker_url, settings=client.settings)
        await own.connect()
        assert await own.count("queued") == 0
        await own.disconnect()
