"""Jobs that are ended on purpose: waiting, delayed, running in a coroutine or a thread, and those that have ended."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from saq.job import Status
from tests.redis.conftest import Gate
from tests.support import ended, eventually, left_behind, lists, working

from knapsaq import Context, Job, JobRevokedError, OptionError, Queue, Registry
from knapsaq.registry import AnyTask


async def running(queue: Queue, job: Job[Any]) -> bool:
    """Whether Redis has the job as active."""
    stored = await queue.job(job.key)
    return stored is not None and stored.status is Status.ACTIVE


class Thread:
    """A function in a thread, held there, and what it hears."""

    def __init__(self) -> None:
        self.inside, self.let_go = threading.Event(), threading.Event()
        self.heard: list[bool] = []

    def wait_for_the_end(self, ctx: Context) -> str:
        """Work until told to end, and clean up."""
        self.inside.set()
        while not ctx.is_aborted():
            if self.let_go.wait(0.005):
                return "finished all the same"
        self.heard.append(ctx.is_aborted())
        return "half of it"

    def wait_for_the_test(self) -> str:
        """Work without asking."""
        self.inside.set()
        self.let_go.wait()
        return "finished all the same"

    async def entered(self) -> None:
        """Wait until it is inside."""
        await eventually(self.inside.is_set)


@pytest.fixture
def thread() -> Any:
    """A thread's function, let go at the end."""
    thread = Thread()
    yield thread
    thread.let_go.set()


@pytest.mark.usefixtures("echo")
class TestWaiting:
    async def test_many_jobs_end_with_one_call(self, queue: Queue, echo: AnyTask) -> None:
        """Queued and delayed ones; the answer names those that had not ended."""
        jobs = [await echo.enqueue(text="hi") for _ in range(3)]
        jobs.append(await echo.using(delay=3600).enqueue(text="later"))
        keys = [job.key for job in jobs]
        assert await queue.revoke([*keys, keys[0], "unheard of"], reason="wrong month") == keys
        assert await queue.revoke(keys) == []
        for job in jobs:
            with pytest.raises(JobRevokedError, match="wrong month"):
                await job.wait(5)
        assert (await lists(queue))["incomplete"] == []
        assert await left_behind(queue) == []

    async def test_more_jobs_than_a_call_carries(self, queue: Queue, echo: AnyTask) -> None:
        """Each of them ends."""
        jobs = await echo.enqueue_many({"text": str(number)} for number in range(250))
        assert len(await queue.revoke(job.key for job in jobs)) == 250
        assert (await lists(queue))["incomplete"] == []

    async def test_one_job_by_its_handle(self, queue: Queue, echo: AnyTask) -> None:
        """The handle is brought up to date, and tells whether there was anything to revoke."""
        job = await echo.enqueue(text="hi")
        assert await job.revoke() is True
        assert (job.status, job.error, job.ended) == (Status.ABORTED, "revoked", True)
        assert await job.revoke(terminate=True) is False

    async def test_one_that_has_ended_stays_as_it_is(self, queue: Queue, echo: AnyTask) -> None:
        """Its result can still be had."""
        async with working(queue):
            job = await echo.enqueue(text="hi")
            await ended(job)
        assert await queue.revoke(job.key) == []
        assert await job.wait(5) == "hi"

    @pytest.mark.parametrize("keys", [5, None, [5], [["a"]]])
    async def test_what_is_no_key_is_refused(self, queue: Queue, keys: Any) -> None:
        """And nothing else is revoked."""
        with pytest.raises(OptionError, match="expected the key of a job"):
            await queue.revoke(keys)

    @pytest.mark.parametrize("reason", [None, 5, "x" * 1001])
    async def test_what_is_no_reason_is_refused(self, queue: Queue, echo: AnyTask, reason: Any) -> None:
        """Likewise."""
        job = await echo.enqueue(text="hi")
        with pytest.raises(OptionError, match="expected text of at most"):
            await job.revoke(reason=reason)
        assert await queue.revoke(job.key, reason="file \udcff is gone") == [job.key]


class TestCoroutines:
    @pytest.mark.parametrize("terminate", [False, True])
    async def test_one_that_runs_is_cancelled_and_cleans_up(
        self, queue: Queue, registry: Registry, terminate: bool
    ) -> None:
        """It hears of it by a push, and ends as aborted with the reason."""
        seen: list[bool] = []

        @registry.task(retries=3)
        async def work(ctx: Context) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append(ctx.is_aborted())

        async with working(queue):
            job = await work.enqueue()
            await eventually(lambda: running(queue, job))
            await job.revoke(terminate, reason="enough")
            assert job.status in (Status.ABORTING, Status.ABORTED)
            with pytest.raises(JobRevokedError, match="enough"):
                await job.wait(5)
        assert (seen, job.attempts) == ([True], 1)
        assert await left_behind(queue) == []

    async def test_one_whose_worker_has_died_ends_with_the_next(self, queue: Queue, gate: Gate, echo: AnyTask) -> None:
        """It is not stuck between running and revoked."""
        job = await registry_job(queue)
        [_] = await queue.claim(1, worker="dead")
        await job.revoke(reason="enough")
        redis: Any = queue.redis
        await redis.zadd(queue.keys.leases, {"dead": 1})
        async with working(queue):
            await ended(job)
        assert (job.status, job.error, gate.begun) == (Status.ABORTED, "enough", [])
        assert await left_behind(queue) == []


async def registry_job(queue: Queue) -> Job[Any]:
    """Queue a job of the gate's task."""
    job = await queue.enqueue("held")
    assert job is not None
    return job


class TestThreads:
    async def test_one_that_asks_hears_of_it_and_ends_in_its_own_way(
        self, queue: Queue, registry: Registry, thread: Thread
    ) -> None:
        """The seeds' pattern: look, clean up, return. What it returns does not count."""
        task = registry.task(thread.wait_for_the_end)
        async with working(queue):
            job: Job[Any] = await task.enqueue()
            await thread.entered()
            await job.revoke(reason="enough")
            with pytest.raises(JobRevokedError, match="enough"):
                await job.wait(5)
        assert thread.heard == [True]
        assert job.result is None
        assert await left_behind(queue) == []

    async def test_one_that_finishes_without_having_asked_is_complete(
        self, queue: Queue, registry: Registry, thread: Thread
    ) -> None:
        """The work is done, so it is not called undone."""

        @registry.task
        def busy(ctx: Context) -> str:
            return thread.wait_for_the_test()

        async with working(queue) as worker:
            job = await busy.enqueue()
            await thread.entered()
            await job.revoke()
            await eventually(lambda: [one for one in worker._running.values() if one.claim.job.interrupted])
            assert not job.ended
            thread.let_go.set()
            assert await job.wait(5) == "finished all the same"

    async def test_to_terminate_leaves_it_behind_at_once(
        self, queue: Queue, registry: Registry, thread: Thread, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Also after it has been asked in vain."""

        @registry.task
        def busy(ctx: Context) -> str:
            return thread.wait_for_the_test()

        async with working(queue) as worker:
            job = await busy.enqueue()
            await thread.entered()
            await job.revoke(reason="please")
            await eventually(lambda: [one for one in worker._running.values() if one.claim.job.interrupted])
            assert await job.revoke(terminate=True, reason="at once")
            assert await job.revoke(reason="please")
            with pytest.raises(JobRevokedError, match="at once"):
                await job.wait(5)
            assert not thread.let_go.is_set()
        assert "its thread runs on" in caplog.text

    async def test_one_that_cannot_ask_is_left_behind_at_once(
        self, queue: Queue, registry: Registry, thread: Thread
    ) -> None:
        """It takes no context, so it could never hear of it."""
        task = registry.task(thread.wait_for_the_test)
        async with working(queue):
            job: Job[Any] = await task.enqueue()
            await thread.entered()
            await job.revoke(reason="enough")
            with pytest.raises(JobRevokedError, match="enough"):
                await job.wait(5)
            assert not thread.let_go.is_set()

    async def test_one_over_its_time_limit_hears_of_it(self, queue: Queue, registry: Registry, thread: Thread) -> None:
        """Its job has failed already; it can at least stop."""
        task = registry.task(timeout=0.5)(thread.wait_for_the_end)
        async with working(queue):
            job = await task.enqueue()
            await ended(job)
            await eventually(lambda: thread.heard)
        assert "ran over its limit" in (job.error or "")

    async def test_one_in_a_stopping_worker_hears_of_it_and_is_put_back(
        self, queue: Queue, registry: Registry, thread: Thread
    ) -> None:
        """After the grace period; what it returns does not count, and the attempt is not spent."""
        hasty = queue.settings.with_values(shutdown_grace=0.01)
        task = registry.task(thread.wait_for_the_end)
        async with working(queue, settings=hasty, cancellation_hard_deadline_s=10):
            job: Job[Any] = await task.enqueue()
            await thread.entered()
        assert thread.heard == [True]
        stored = await queue.job(job.key)
        assert stored is not None
        assert (stored.status, stored.attempts) == (Status.QUEUED, 0)
        await job.revoke()
