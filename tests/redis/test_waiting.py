from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.support import Server, eventually

from knapsaq import Job, JobMissingError, JobNotEndedError, Queue, Registry, Settings, Task, connect
from knapsaq.outcomes import Succeeded
from knapsaq.testing import running_worker


async def channels(queue: Queue) -> list[bytes]:
    """Return the jobs' channels that somebody listens to."""
    found: list[bytes] = await queue.redis.pubsub_channels("saq:job:*")
    return found


async def no_channels(queue: Queue) -> bool:
    return not await channels(queue)


async def end(queue: Queue, job: Job[Any]) -> None:
    """Run a job by hand."""
    [claim] = await queue.claim(1, worker="by hand")
    assert claim.job == job
    assert await queue.settle(claim, Succeeded("done"), worker="by hand")


class TestWait:
    async def test_a_waiter_is_told_when_the_job_ends(self, queue: Queue, echo: Task[..., Any, Any]) -> None:
        """It hears of it by a push: looking by itself would take longer than this test may."""
        job = await echo.enqueue(text="hi")
        waiting = asyncio.create_task(job.wait(5))
        await eventually(lambda: channels(queue))
        await end(queue, job)
        assert await waiting == "done"

    async def test_a_job_that_has_ended_already_is_not_waited_for(
        self, queue: Queue, echo: Task[..., Any, Any]
    ) -> None:
        """The record is looked at once the line stands, so an end before it is not missed."""
        job = await echo.enqueue(text="hi")
        await end(queue, job)
        assert await job.wait(5) == "done"

    async def test_many_waiters_share_a_line_and_leave_nothing_behind(
        self, queue: Queue, registry: Any, echo: Task[..., Any, Any]
    ) -> None:
        """A hundred jobs waited for at once end with no channel of theirs."""
        async with running_worker(registry=registry):
            jobs = await asyncio.gather(*(echo.enqueue(text=str(number)) for number in range(100)))
            results = await asyncio.gather(*(job.wait(10) for job in jobs))
        assert results == [str(number) for number in range(100)]
        await eventually(lambda: no_channels(queue))
        assert not queue._pushes._channels

    async def test_two_may_wait_for_one_job_and_one_may_give_up(self, queue: Queue, echo: Task[..., Any, Any]) -> None:
        """The line stays up for the one who goes on waiting."""
        job = await echo.enqueue(text="hi")
        patient = asyncio.create_task(job.wait(5))
        with pytest.raises(TimeoutError):
            await job.wait(0.01)
        await eventually(lambda: channels(queue))
        await end(queue, job)
        assert await patient == "done"

    @pytest.mark.parametrize("status", ["queued", "active"])
    async def test_who_waits_in_vain_is_told_what_for(
        self, queue: Queue, echo: Task[..., Any, Any], status: str
    ) -> None:
        """Task, key, how long and how the job stands, as facts and in words, with what to do; it is a TimeoutError."""
        job = await echo.enqueue(text="hi")
        if status == "active":
            [claim] = await queue.claim(1, worker="by hand")
            stamp = queue.stamp(claim)
            assert stamp is not None
            await queue.advance("by hand", [stamp], 0)
        with pytest.raises(TimeoutError) as caught:
            await job.wait(0.01)
        error = caught.value
        assert isinstance(error, JobNotEndedError)
        assert error.args == ("echo", job.key, 0.01, status)
        assert str(error) == (
            f"job {job.key} of task 'echo' has not ended within 0.01 s: it is {status}, and goes on. Wait for it "
            f"again; `await job.why()` and `knapsaq why {job.key}` tell what it waits for"
        )
        assert job.status.value == status

    async def test_a_job_whose_record_this_program_cannot_read_is_not_said_to_be_gone(
        self, queue: Queue, echo: Task[..., Any, Any]
    ) -> None:
        """Another program may read it; how it stands is not known here."""
        job = await echo.enqueue(text="hi")
        redis: Any = queue.redis
        await redis.set(job.id, "{")
        with pytest.raises(JobNotEndedError, match="does not say how it stands"):
            await job.wait(0.01)

    async def test_what_has_ended_as_the_time_is_over_counts(
        self, queue: Queue, echo: Task[..., Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A last look takes the result, should its push be late."""
        job = await echo.enqueue(text="hi")
        waiting = asyncio.create_task(job.wait(0.3))
        await eventually(lambda: channels(queue))
        monkeypatch.setattr(queue._pushes, "_take", lambda _push: None)
        queue._pushes._line._wire.on_push = queue._pushes._take  # type: ignore[union-attr]
        await end(queue, job)
        assert await waiting == "done"

    async def test_without_redis_the_time_is_over_all_the_same(self, tmp_path: Path, settings: Settings) -> None:
        """How the job stands is not known then, and nobody waits for that."""
        server = Server(tmp_path / "server")
        registry = Registry()

        @registry.task
        async def anything() -> None: ...

        async with connect(settings.with_values(broker_url=server.start()), registry=registry):
            job = await anything.enqueue()
            server.kill()
            with pytest.raises(JobNotEndedError, match=r"within 0\.01 s: Redis does not say how it stands\. Wait"):
                await job.wait(0.01)
        server.stop()

    async def test_many_that_begin_to_wait_at_once_subscribe_together(
        self, queue: Queue, echo: Task[..., Any, Any]
    ) -> None:
        """Also after a single one, which subscribed by itself."""
        redis: Any = queue.redis
        jobs = await echo.enqueue_many([{"text": "hi"}] * 50)
        with pytest.raises(TimeoutError):
            await jobs[0].wait(0.01)
        await redis.config_resetstat()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.gather(*(job.wait(5) for job in jobs))
        assert (await redis.info("commandstats"))["cmdstat_subscribe"]["calls"] <= 2

    async def test_a_line_that_was_cut_is_mended(self, queue: Queue, echo: Task[..., Any, Any]) -> None:
        """An end that nobody could push is seen all the same."""
        job = await echo.enqueue(text="hi")
        waiting = asyncio.create_task(job.wait(5))
        await eventually(lambda: channels(queue))
        await queue.redis.client_kill_filter(_type="pubsub")
        await end(queue, job)
        assert await waiting == "done"

    async def test_a_job_that_is_gone_says_so(self, queue: Queue, echo: Task[..., Any, Any]) -> None:
        """Nobody waits for ever for a record that has expired."""
        job = await echo.enqueue(text="hi")
        await end(queue, job)
        await queue.redis.delete(job.id)
        with pytest.raises(JobMissingError):
            await job.wait(5)

    async def test_who_comes_second_is_told_although_the_first_gives_up_at_once(
        self, queue: Queue, echo: Task[..., Any, Any]
    ) -> None:
        """The first had not subscribed yet for both."""
        job = await echo.enqueue(text="hi")
        async with asyncio.timeout(5):
            for turns in range(4):
                heard = asyncio.Event()
                first = asyncio.create_task(_listen(queue, job, asyncio.Event()))
                second = asyncio.create_task(_listen(queue, job, heard))
                for _ in range(turns):
                    await asyncio.sleep(0)
                first.cancel()
                await heard.wait()
                second.cancel()
                await asyncio.gather(first, second, return_exceptions=True)
                await eventually(lambda: no_channels(queue))

    async def test_a_line_whose_server_never_confirms_is_left(
        self, queue: Queue, echo: Task[..., Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever still waits after two looks subscribes over another line."""
        job = await echo.enqueue(text="hi")
        pushes = queue._pushes
        take = pushes._take
        deaf = True
        monkeypatch.setattr(pushes._line, "_on_push", lambda push: None if deaf else take(push))
        waiting = asyncio.create_task(job.wait(10))
        await eventually(lambda: channels(queue))
        deaf = False
        monkeypatch.setattr(pushes._line, "_on_push", take)
        for _ in range(2):
            pushes._look()
        await eventually(lambda: job.id in pushes._channels and pushes._channels[job.id].confirmed)
        await end(queue, job)
        assert await waiting == "done"


async def _listen(queue: Queue, job: Job[Any], heard: asyncio.Event) -> None:
    async with queue._pushes.on(job.id):
        heard.set()
        await asyncio.sleep(60)
