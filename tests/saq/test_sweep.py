"""Faults 1 to 6: jobs that a sweep takes from living workers, and jobs that a crash loses."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from saq.job import Status
from tests.saq.conftest import SOON, Program
from tests.support import eventually


class TestLivingWorkers:
    async def test_a_job_that_has_just_been_taken_is_left_alone(self, saq_or_ours: Program) -> None:
        """Fault 1: between taking a job and its first stamp lies a round trip, in which a sweep may look."""
        queue = saq_or_ours.queue()
        await saq_or_ours.job(queue, "noop", key="one")
        job = await queue.dequeue(timeout=1)
        await queue.sweep(abort=0.01)
        await job.update(status=Status.ACTIVE)
        await job.finish(Status.COMPLETE, result="done")

        found = await saq_or_ours.stored(queue, job)
        assert (found.status, found.result) == (Status.COMPLETE, "done")
        assert await queue.count("queued") == 0

    async def test_a_worker_that_starts_on_a_backlog_runs_each_job_once(
        self, saq_or_ours: Program, runs: list[int]
    ) -> None:
        """The fault without a number: the first sweep of a worker meets the first jobs that it takes."""

        async def note(ctx: dict[str, Any], *, number: int) -> None:
            runs.append(number)

        queue = saq_or_ours.queue()
        jobs = [await saq_or_ours.job(queue, "note", number=number, retries=2) for number in range(500)]
        async with saq_or_ours.working(queue, ("note", note), concurrency=100):
            await eventually(lambda: len(runs) >= 500)
            await eventually(lambda: self._complete(queue, jobs), within=SOON)
        assert sorted(runs) == list(range(500))

    async def _complete(self, queue: Any, jobs: list[Any]) -> bool:
        found = await queue.jobs(job.key for job in jobs)
        return all(job.status is Status.COMPLETE for job in found)

    async def test_a_worker_whose_clock_is_wrong_keeps_its_job(self, saq_or_ours: Program, runs: list[str]) -> None:
        """Fault 5: how long a job has been running is a matter of its worker's lease, not of two machines' clocks."""
        begun, let_go = asyncio.Event(), asyncio.Event()

        async def slow(ctx: dict[str, Any]) -> str:
            await ctx["job"].update(started=ctx["job"].started - 3_600_000)
            runs.append("slow")
            begun.set()
            await let_go.wait()
            return "done"

        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("slow", slow)):
            job = await saq_or_ours.job(queue, "slow", timeout=600, retries=3)
            await begun.wait()
            await saq_or_ours.redis.delete(queue.namespace("sweep"))
            await queue.sweep(abort=0.01)
            let_go.set()
            await saq_or_ours.ends(job)
            await eventually(lambda: _is_empty(queue))  # what runs a second time has begun by then
        assert (job.status, job.result, runs) == (Status.COMPLETE, "done", ["slow"])


class TestCrashes:
    async def test_a_crash_loses_no_job(self, saq_or_ours: Program, runs: list[int]) -> None:
        """Fault 2: a job that may be tried once has not been tried if its worker died."""

        async def note(ctx: dict[str, Any]) -> None:
            runs.append(ctx["job"].attempts)

        queue = saq_or_ours.queue()
        job = await saq_or_ours.job(queue, "note")
        await saq_or_ours.crash(queue)
        await saq_or_ours.recover(queue)
        async with saq_or_ours.working(queue, ("note", note)):
            await saq_or_ours.ends(job)
        assert (job.status, runs) == (Status.COMPLETE, [1])

    async def test_a_crash_does_not_lose_a_job_without_a_time_limit_either(
        self, saq_or_ours: Program, runs: list[str]
    ) -> None:
        """Fault 2: in SAQ it is active for ever, and a unique cron job never runs again."""

        async def note(ctx: dict[str, Any]) -> None:
            runs.append("note")

        queue = saq_or_ours.queue()
        job = await saq_or_ours.job(queue, "note", timeout=0, retries=3)
        await saq_or_ours.crash(queue)
        await saq_or_ours.recover(queue)
        async with saq_or_ours.working(queue, ("note", note)):
            await saq_or_ours.ends(job, within=SOON)
        assert runs == ["note"]


class TestRecords:
    async def test_a_record_that_cannot_be_read_keeps_no_other_from_being_swept(self, saq_or_ours: Program) -> None:
        """Fault 3: bad bytes, or a field that only a newer SAQ knows, end neither a sweep nor the page."""
        queue = saq_or_ours.queue()
        bad, stuck = [await saq_or_ours.job(queue, "noop", retries=2) for _ in range(2)]
        for _ in range(2):
            job = await saq_or_ours.begin(queue)
        await job.update(started=1)
        await saq_or_ours.redis.set(bad.id, b"\xff{")
        with contextlib.suppress(Exception):
            await queue.sweep(abort=0.01)

        assert (await saq_or_ours.stored(queue, stuck)).status is Status.QUEUED
        info = await queue.info(jobs=True)
        assert [job["key"] for job in info["jobs"]] == [stuck.key]

    async def test_many_stuck_jobs_are_swept_without_waiting_for_each(self, saq_or_ours: Program) -> None:
        """Fault 4: SAQ gives each five seconds, one after the other."""
        queue = saq_or_ours.queue()
        for _ in range(50):
            await saq_or_ours.job(queue, "noop", retries=2)
        for _ in range(50):
            job = await saq_or_ours.begin(queue)
            await job.update(started=1)
        async with asyncio.timeout(SOON):
            assert len(await queue.sweep()) == 50
        assert await queue.count("queued") == 50

    async def test_a_record_that_has_gone_does_not_end_a_burst(self, saq_or_ours: Program, runs: list[str]) -> None:
        """Fault 6: Redis may evict a record; the jobs behind it run all the same."""

        async def note(ctx: dict[str, Any]) -> None:
            runs.append(ctx["job"].key)

        queue = saq_or_ours.queue()
        jobs = [await saq_or_ours.job(queue, "note", key=str(number)) for number in range(5)]
        for job in jobs[:3]:
            await saq_or_ours.redis.delete(job.id)
        worker = saq_or_ours.worker(queue, [("note", note)], burst=True, dequeue_timeout=0.1, concurrency=2)
        async with asyncio.timeout(5):
            await worker.start()
        assert sorted(runs) == ["3", "4"]


async def _is_empty(queue: Any) -> bool:
    return not (await queue.count("queued") or await queue.count("active"))
