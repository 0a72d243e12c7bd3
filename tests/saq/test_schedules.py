"""Faults 7 to 16: retries, delays and cron jobs that run twice, too often, late or never."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

import pytest
from saq.job import CronJob, Status
from tests.saq.conftest import SOON, Program
from tests.support import eventually

NEVER = "0 0 1 1 *"
"""A cron expression that is due once a year."""


async def tick(ctx: dict[str, Any]) -> None:
    """Do nothing, now and then."""


async def waiting(queue: Any) -> list[Any]:
    """Return the jobs that have not ended, the one that is due first in front."""
    jobs = [job async for job in queue.iter_jobs(statuses=[Status.QUEUED])]
    return sorted(jobs, key=lambda job: job.scheduled)


class TestRetries:
    async def test_a_scheduled_job_that_is_retried_runs_once_for_it(self, saq_or_ours: Program) -> None:
        """Fault 7: SAQ queues it and leaves its due time, so that it is queued a second time."""
        queue = saq_or_ours.queue()
        await saq_or_ours.job(queue, scheduled=int(time.time()) - 5, retries=3)
        await queue.schedule()
        job = await saq_or_ours.begin(queue)
        await job.retry("again")
        await saq_or_ours.redis.delete(queue.namespace("schedule"))
        await queue.schedule()
        assert await queue.count("queued") == 1

    async def test_a_delay_is_as_long_as_it_says(self, saq_or_ours: Program) -> None:
        """Fault 12: SAQ looks once a second, so three waits of 0.1 s take up to six seconds."""
        at: list[float] = []

        async def fail(ctx: dict[str, Any]) -> None:
            at.append(time.monotonic())
            raise LookupError

        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("fail", fail)):
            await saq_or_ours.job(queue, "fail", retries=4, retry_delay=0.1)
            await eventually(lambda: len(at) == 4, within=SOON + 0.3)
        assert at[-1] - at[0] >= 0.3

    async def test_a_result_that_cannot_be_stored_does_not_run_the_job_again(
        self, saq_or_ours: Program, runs: list[str]
    ) -> None:
        """Fault 14: the work is done; SAQ leaves it active and runs it again after each sweep."""

        async def opaque(ctx: dict[str, Any]) -> object:
            runs.append("opaque")
            return object()

        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("opaque", opaque)):
            job = await saq_or_ours.job(queue, "opaque", retries=3)
            await saq_or_ours.ends(job, within=SOON)
        assert (job.status, runs) == (Status.COMPLETE, ["opaque"])
        assert "cannot be stored" in job.error

    async def test_a_task_that_this_worker_does_not_know_yet_is_left_for_one_that_does(
        self, saq_or_ours: Program, runs: list[int]
    ) -> None:
        """Fault 13: in a rolling deployment old workers burn all attempts of a new task in a second."""

        async def new(ctx: dict[str, Any]) -> None:
            runs.append(ctx["job"].attempts)

        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("old", tick)):
            job = await saq_or_ours.job(queue, "new")
            await saq_or_ours.ends(await saq_or_ours.job(queue, "old"))
            assert (await saq_or_ours.stored(queue, job)).status is Status.QUEUED
        async with saq_or_ours.working(queue, ("new", new)):
            await saq_or_ours.ends(job, within=5)
        assert (job.status, runs) == (Status.COMPLETE, [1])

    async def test_a_backoff_never_shrinks_to_nothing(self, saq_or_ours: Program) -> None:
        """Fault 15: SAQ draws a delay between 0 and the whole, and that cannot be switched off."""
        queue = saq_or_ours.queue()
        job = await saq_or_ours.job(queue, retry_delay=10, retry_backoff=True)
        job.attempts = 1
        drawn = [job.next_retry_delay() for _ in range(200)]
        assert 5 <= min(drawn) <= max(drawn) <= 10


class TestDelays:
    @pytest.mark.parametrize("scheduled", [0.0, -1])
    async def test_a_due_time_in_the_past_is_now(self, saq_or_ours: Program, scheduled: float) -> None:
        """Fault 11: SAQ stores such a job, and nobody ever runs it."""
        queue = saq_or_ours.queue()
        job = await saq_or_ours.job(queue, scheduled=scheduled)
        await queue.schedule()
        assert await queue.dequeue(timeout=0.1) == job


class TestCronJobs:
    async def test_one_that_is_not_unique_is_queued_once_for_each_due_time(self, saq_or_ours: Program) -> None:
        """Fault 8: SAQ queues another job every second."""
        queue = saq_or_ours.queue()
        worker = saq_or_ours.worker(queue, cron_jobs=[CronJob(tick, cron=NEVER, unique=False)])
        for _ in range(3):
            await worker.schedule()
        assert len(await waiting(queue)) == 1

    async def test_two_of_one_function_both_run(self, saq_or_ours: Program) -> None:
        """Fault 9: SAQ knows a cron job by its function alone."""
        queue = saq_or_ours.queue()
        crons: list[CronJob[Any]] = [CronJob(tick, cron=NEVER), CronJob(tick, cron="0 0 1 7 *")]
        worker = saq_or_ours.worker(queue, cron_jobs=crons)
        await worker.schedule()
        assert {datetime.fromtimestamp(job.scheduled).astimezone().month for job in await waiting(queue)} == {1, 7}

    async def test_a_changed_expression_counts_from_the_next_start_of_a_worker(self, saq_or_ours: Program) -> None:
        """Fault 9: SAQ waits until the old one has fired, be that in a year."""
        queue = saq_or_ours.queue()
        for cron in (NEVER, "* * * * *"):
            await saq_or_ours.worker(queue, cron_jobs=[CronJob(tick, cron=cron)]).schedule()
        [job] = await waiting(queue)
        assert job.scheduled <= time.time() + 60

    async def test_hooks_see_a_cron_job_when_it_is_queued_and_not_every_second(self, saq_or_ours: Program) -> None:
        """Fault 10: in SAQ they run for every cron job every second on every worker."""
        seen: list[str] = []

        async def hook(job: Any) -> None:
            seen.append(job.key)

        queue = saq_or_ours.queue()
        queue.register_before_enqueue(hook)
        workers = [saq_or_ours.worker(queue, cron_jobs=[CronJob(tick, cron=NEVER)]) for _ in range(3)]
        for _ in range(4):
            for worker in workers:
                await worker.schedule()
        queue.unregister_before_enqueue(hook)
        assert len(seen) == 1

    async def test_workers_that_start_with_the_same_schedule_agree_on_one_job(self, saq_or_ours: Program) -> None:
        """Fault 9: replacing a changed schedule does not lose or double one that several workers bring."""
        queue = saq_or_ours.queue()
        await saq_or_ours.worker(queue, cron_jobs=[CronJob(tick, cron=NEVER)]).schedule()
        crons: list[CronJob[Any]] = [CronJob(tick, cron="* * * * *")]
        workers = [saq_or_ours.worker(queue, cron_jobs=crons) for _ in range(5)]
        for _ in range(3):
            await asyncio.gather(*(worker.schedule() for worker in workers))
        [job] = await waiting(queue)
        assert job.scheduled <= time.time() + 60
