"""The manual as code: one run under control."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from datetime import timedelta

import pytest
from tests import process_tasks
from tests.support import eventually

from knapsaq import (
    Client,
    Context,
    JobExpiredError,
    JobRevokedError,
    OptionError,
    Registry,
    Settings,
    Snooze,
    SoftTimeLimitExceeded,
    TaskDefinitionError,
    Worker,
    connect,
)
from knapsaq.testing import ManualClock, make_context, running_worker


class TestSnooze:
    async def test_a_task_puts_itself_off_without_spending_an_attempt(self, client: Client, registry: Registry) -> None:
        """Raise it as often as needed, as a server's Retry-After says; the job has its retries for real errors."""
        seen: list[int] = []

        @registry.task(retries=1, retry_delay=0)
        async def charge(ctx: Context) -> str:
            seen.append(ctx.retries)
            if len(seen) < 4:
                raise Snooze(after=0.01)
            if len(seen) == 4:
                raise ConnectionError
            return "charged"

        async with running_worker(registry=registry):
            job = await charge.enqueue()
            assert await job.wait(10) == "charged"
        assert seen == [0, 0, 0, 0, 1]
        assert job.attempts == 2

    async def test_it_may_be_returned_as_well(self, client: Client, registry: Registry) -> None:
        """Callers see the other type of the annotation alone."""
        runs: list[int] = []

        @registry.task
        async def poll() -> int | Snooze:
            runs.append(1)
            return 7 if len(runs) > 1 else Snooze(after=timedelta(milliseconds=5))

        async with running_worker(registry=registry):
            assert await (await poll.enqueue()).wait(10) == 7
        assert len(runs) == 2


@pytest.mark.parametrize("after", [0, -1, float("nan"), float("inf"), True, "5", None, timedelta(0)])
def test_a_snooze_has_a_length(after: object) -> None:
    """A wrong one is told where it is made."""
    with pytest.raises(Exception, match=r"Snooze\(\): option 'after' is .*; expected seconds above 0"):
        Snooze(after)  # type: ignore[arg-type]


class TestExpires:
    async def test_a_job_that_is_not_started_in_time_never_runs(
        self, settings: Settings, registry: Registry, clock: ManualClock
    ) -> None:
        """Whoever waits for it is told; one that was started in time may go on."""
        runs: list[str] = []

        @registry.task(expires=3600)
        async def offer(name: str) -> str:
            runs.append(name)
            return name

        async with connect(settings, registry=registry, clock=clock):
            late = await offer.enqueue("late")
            later = await offer.using(expires=timedelta(hours=3)).enqueue("later")
            until = await offer.using(expires=clock.now + timedelta(hours=3)).enqueue("until")
            celery = await offer.apply_async(["celery"], expires=60)
            clock.advance(timedelta(hours=2))
            async with running_worker(registry=registry):
                for job in (late, celery):
                    with pytest.raises(JobExpiredError, match="never ran: expired, as it was not started by") as caught:
                        await job.wait(10)
                    assert isinstance(caught.value, JobRevokedError)
                    assert (job.status, job.attempts) == ("aborted", 0)
                assert [await later.wait(10), await until.wait(10)] == ["later", "until"]
        assert runs == ["later", "until"]

    async def test_its_time_begins_when_it_may_run(
        self, settings: Settings, registry: Registry, clock: ManualClock
    ) -> None:
        """An hour's delay and a minute to start it; a moment that comes before is refused."""

        @registry.task(expires=60)
        async def offer() -> str:
            return "made"

        async with connect(settings, registry=registry, clock=clock):
            made = await offer.using(delay=3600).enqueue()
            missed = await offer.using(eta=clock.now + timedelta(minutes=30)).enqueue()
            with pytest.raises(OptionError, match="a moment after it is due"):
                await offer.using(delay=3600, expires=clock.now + timedelta(minutes=30)).enqueue()
            clock.advance(3630)
            async with running_worker(registry=registry):
                assert await made.wait(10) == "made"
                with pytest.raises(JobExpiredError):
                    await missed.wait(10)

    async def test_what_was_started_once_does_not_expire(
        self, settings: Settings, registry: Registry, clock: ManualClock
    ) -> None:
        """Retries and snoozes may come later; and an expired job can be run by hand."""
        runs: list[str] = []

        @registry.task(expires=60, retries=1, retry_delay=0)
        async def offer() -> str:
            runs.append("run")
            if len(runs) == 1:
                clock.advance(3600)
                raise Snooze(after=0.001)
            if len(runs) == 2:
                raise ConnectionError
            return "made"

        async with connect(settings, registry=registry, clock=clock) as client, running_worker(registry=registry):
            job = await offer.enqueue()

            async def ended() -> bool:
                clock.advance(1)
                await client.queue().redis.publish(client.queue().keys.wake, "due")
                await job.refresh()
                return job.ended

            await eventually(ended)
            assert await job.wait(10) == "made"

            expired = await offer.using(expires=clock.now - timedelta(1)).enqueue()
            with pytest.raises(JobExpiredError):
                await expired.wait(10)
            await expired.retry()
            assert await expired.wait(10) == "made"


class TestSoftTimeout:
    async def test_a_task_is_reminded_before_its_time_is_over(self, client: Client, registry: Registry) -> None:
        """In a coroutine and in a thread alike: it stores what it has, and its result counts."""

        @registry.task(soft_timeout=0.05, timeout=60)
        async def crawl() -> str:
            try:
                await asyncio.Event().wait()
            except SoftTimeLimitExceeded:
                return "half of the pages"
            return "never"

        @registry.task(soft_timeout=timedelta(milliseconds=300))
        def count() -> str:
            try:
                while True:
                    time.sleep(0.001)
            except SoftTimeLimitExceeded:
                return "half of the rows"

        async with running_worker(registry=registry):
            first, second = await crawl.enqueue(), await count.enqueue()
            assert [await first.wait(10), await second.wait(10)] == ["half of the pages", "half of the rows"]

    async def test_a_soft_limit_above_the_hard_one_of_the_settings_is_refused_at_the_workers_start(
        self, client: Client, registry: Registry
    ) -> None:
        """It would never be raised; a task that names its own hard limit is right."""

        @registry.task(soft_timeout=400, timeout=500)
        async def right() -> None: ...

        Worker(client.queue())

        @registry.task(soft_timeout=400)
        async def wrong() -> None: ...

        with pytest.raises(TaskDefinitionError, match="task 'wrong': soft_timeout=400 is not below"):
            Worker(client.queue())


class TestProcesses:
    async def test_work_for_the_processor_has_a_process_of_its_own(self, settings: Settings) -> None:
        """The function stands at the top of a module; everything else is as for other tasks."""
        async with connect(settings, registry=process_tasks.registry), running_worker(registry=process_tasks.registry):
            job = await process_tasks.whoami.enqueue()
            assert await job.wait(30) != os.getpid()
            assert await (await process_tasks.reminded.enqueue()).wait(30) == "woken after 0.3 s"


class TestRevocation:
    async def test_jobs_are_ended_on_purpose(self, client: Client, registry: Registry) -> None:
        """A running task cleans up, a waiting one never runs, and whoever waits is told why."""
        seen: list[str] = []
        inside = threading.Event()

        @registry.task
        async def crawl() -> None:
            try:
                seen.append("begun")
                await asyncio.Event().wait()
            finally:
                seen.append("cleaned up")

        @registry.task
        def resize(ctx: Context) -> str:
            inside.set()
            while not ctx.is_aborted():
                time.sleep(0.001)
            return "half of the pictures"

        async with running_worker(registry=registry):
            first, second = await crawl.enqueue(), await resize.enqueue()
            later = await crawl.using(delay=3600).enqueue()
            await eventually(lambda: seen and inside.is_set())
            assert await first.revoke(reason="not needed")
            keys = [second.key, later.key]
            assert await client.queue().revoke(keys, reason="not needed") == keys
            for job in (first, second, later):
                with pytest.raises(JobRevokedError, match="not needed"):
                    await job.wait(10)
        assert seen == ["begun", "cleaned up"]

    async def test_a_task_that_is_called_directly_is_never_aborted(self) -> None:
        """There is nobody who could."""
        assert make_context().is_aborted() is False
