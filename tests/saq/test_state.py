"""Faults 17 to 22: updates, aborts and batches that strand jobs or hit those of others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from saq.job import Job as SaqJob
from saq.job import Status
from tests.saq.conftest import SOON, Program
from tests.support import eventually


class TestUpdate:
    async def test_progress_that_comes_late_leaves_the_result(self, saq_or_ours: Program) -> None:
        """Fault 17: SAQ writes the stale copy back, without the result and without an expiry."""
        queue = saq_or_ours.queue()
        await saq_or_ours.job(queue)
        job = await saq_or_ours.begin(queue)
        late = await saq_or_ours.stored(queue, job)
        await job.finish(Status.COMPLETE, result="done")
        await late.update(progress=0.5)

        found = await saq_or_ours.stored(queue, job)
        assert (found.status, found.result) == (Status.COMPLETE, "done")
        assert await saq_or_ours.redis.ttl(job.id) > 0


class TestAbort:
    async def test_a_job_that_waits_for_its_time_ends_at_once(self, saq_or_ours: Program) -> None:
        """Fault 18: in SAQ it is aborting for ever."""
        queue = saq_or_ours.queue()
        job = await saq_or_ours.job(queue, scheduled=4_000_000_000)
        await job.abort("enough")
        found = await saq_or_ours.stored(queue, job)
        assert (found.status, found.error) == (Status.ABORTED, "enough")
        assert await saq_or_ours.redis.ttl(job.id) > 0

    async def test_a_job_that_has_ended_stays_as_it_is(self, saq_or_ours: Program) -> None:
        """Fault 18: in SAQ it becomes aborting, and stays for ever."""
        queue = saq_or_ours.queue()
        await saq_or_ours.job(queue)
        job = await saq_or_ours.begin(queue)
        await job.finish(Status.COMPLETE, result="done")
        await job.abort("too late")
        found = await saq_or_ours.stored(queue, job)
        assert (found.status, found.result) == (Status.COMPLETE, "done")
        assert await saq_or_ours.redis.ttl(job.id) > 0

    async def test_a_job_of_the_same_key_in_another_queue_can_be_queued(self, saq_or_ours: Program) -> None:
        """Fault 19: SAQ's mark of an abort does not name the queue."""
        queue, other = saq_or_ours.queue(), saq_or_ours.queue("mail")
        await saq_or_ours.job(queue, key="one")
        job = await saq_or_ours.begin(queue)
        await job.abort("enough")
        assert await other.enqueue("noop", key="one") is not None

    async def test_a_task_that_does_not_end_holds_up_no_other_abort(self, saq_or_ours: Program) -> None:
        """Fault 20: SAQ's worker waits for the one that it cancelled first."""
        inside, let_go = asyncio.Event(), asyncio.Event()

        async def stubborn(ctx: dict[str, Any]) -> None:
            inside.set()
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue

        async def obedient(ctx: dict[str, Any]) -> None:
            await let_go.wait()

        queue = saq_or_ours.queue()
        functions = ("stubborn", stubborn), ("obedient", obedient)
        async with saq_or_ours.working(queue, *functions, timers={"abort": 0.02}):
            first = await saq_or_ours.job(queue, "stubborn")
            await inside.wait()
            second = await saq_or_ours.job(queue, "obedient")
            try:
                for job in (first, second):
                    await eventually(lambda job=job: self._runs(queue, job))
                    await job.abort("enough")
                await saq_or_ours.ends(second, within=SOON)
            finally:
                let_go.set()
        assert second.status is Status.ABORTED

    async def _runs(self, queue: Any, job: Any) -> bool:
        found = await queue.job(job.key)
        return bool(found and found.status is Status.ACTIVE)


class TestBatch:
    async def test_the_jobs_of_others_are_left_alone(self, saq_or_ours: Program) -> None:
        """Fault 21: SAQ's hook is the queue's, and aborts whatever anybody enqueues meanwhile."""
        queue = saq_or_ours.queue()
        opened = asyncio.Event()

        async def other() -> None:
            await opened.wait()
            await saq_or_ours.job(queue, key="others")

        others = asyncio.create_task(other())

        async def fail() -> None:
            async with queue.batch():
                opened.set()
                await others
                raise LookupError

        with pytest.raises(LookupError):
            await fail()
        assert await queue.count("queued") == 1

    async def test_a_job_that_had_the_key_before_is_left_alone(self, saq_or_ours: Program) -> None:
        """Fault 21: what was not accepted is not the batch's."""
        queue = saq_or_ours.queue()
        await saq_or_ours.job(queue, key="earlier")

        async def fail() -> None:
            async with queue.batch():
                assert await queue.enqueue("noop", key="earlier") is None
                raise LookupError

        with pytest.raises(LookupError):
            await fail()
        assert await queue.count("queued") == 1

    async def test_a_cancelled_batch_takes_its_jobs_back(self, saq_or_ours: Program) -> None:
        """Fault 21: the example of SAQ's own manual, which does not work there."""
        queue = saq_or_ours.queue()

        async def cancelled() -> None:
            async with queue.batch():
                await saq_or_ours.job(queue)
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await cancelled()
        assert await queue.count("queued") == 0


class TestKeys:
    async def test_no_key_is_no_common_key(self, saq_or_ours: Program) -> None:
        """Fault 26: in SAQ all jobs with ``key=None`` are one."""
        queue = saq_or_ours.queue()
        jobs = [await queue.enqueue("noop", key=None), await queue.enqueue(SaqJob("noop", key=None))]  # type: ignore[arg-type]
        assert None not in jobs
        assert len({job.key for job in jobs}) == 2
        assert await queue.count("queued") == 2
