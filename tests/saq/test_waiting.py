"""Faults 22 to 25: callers that wait too long, for ever, or at everybody else's cost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from saq.job import Status
from tests.saq.conftest import SOON, Program
from tests.support import eventually


async def quick(ctx: dict[str, Any]) -> str:
    """End at once."""
    return "done"


class TestApply:
    async def test_it_answers_when_the_job_ends(self, saq_or_ours: Program) -> None:
        """Fault 22: SAQ sleeps twice half a second, and then reports a job as late that has long been done."""
        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("quick", quick)):
            assert await queue.apply("quick", timeout=SOON) == "done"

    async def test_its_job_has_a_time_limit(self, saq_or_ours: Program) -> None:
        """Fault 22: in SAQ it has none, so that nobody ever takes it for stuck."""
        queue = saq_or_ours.queue()
        applying = asyncio.create_task(queue.apply("quick"))
        try:
            await eventually(lambda: queue.count("queued"))
            [job] = [job async for job in queue.iter_jobs()]
            assert job.timeout
        finally:
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)

    async def test_it_answers_although_the_worker_died(self, saq_or_ours: Program) -> None:
        """Fault 22: in SAQ the caller waits for ever."""
        queue = saq_or_ours.queue()
        applying = asyncio.create_task(queue.apply("quick"))
        try:
            await eventually(lambda: queue.count("queued"))
            await saq_or_ours.crash(queue)
            await saq_or_ours.recover(queue)
            async with saq_or_ours.working(queue, ("quick", quick)):
                assert await asyncio.wait_for(applying, SOON) == "done"
        finally:
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)


class TestRefresh:
    async def test_an_end_between_look_and_subscription_is_heard_of(
        self, saq_or_ours: Program, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Fault 23: SAQ looks first and subscribes then, and what happens in between it never learns."""
        queue = saq_or_ours.queue()
        await saq_or_ours.job(queue)
        running = await saq_or_ours.begin(queue)
        job = await saq_or_ours.stored(queue, running)
        look = queue.job

        async def look_and_end(key: str) -> Any:
            found = await look(key)
            monkeypatch.setattr(queue, "job", look)
            await running.finish(Status.COMPLETE, result="done")
            return found

        monkeypatch.setattr(queue, "job", look_and_end)
        async with asyncio.timeout(SOON):
            await job.refresh(0)
        assert job.result == "done"

    async def test_whoever_waits_hears_of_its_own_jobs_alone(self, saq_or_ours: Program) -> None:
        """Fault 24: SAQ's process hears of every change of every job of the queue, and remembers each."""
        queue = saq_or_ours.queue()
        job = await saq_or_ours.job(queue)
        other = await saq_or_ours.job(queue)
        waiting = asyncio.create_task(job.refresh(2))
        await eventually(lambda: self._told(saq_or_ours.redis, job.id))
        try:
            assert not await self._told(saq_or_ours.redis, other.id)
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def test_whoever_may_not_listen_is_told_so(self, saq_or_ours: Program) -> None:
        """Fault 25: SAQ's reader ends, and the caller goes on as if the job had."""
        queue = saq_or_ours.queue()
        job = await saq_or_ours.job(queue)
        redis = saq_or_ours.redis
        await redis.acl_setuser("deaf", enabled=True, passwords=["+x"], keys=["*"], commands=["+@all"], reset=True)
        saq_or_ours.at_end(redis.acl_deluser, "deaf")
        url = saq_or_ours.settings.broker_url
        theirs = saq_or_ours.queue(url=f"{url}{'&' if '?' in url else '?'}username=deaf&password=x")
        found = await saq_or_ours.stored(theirs, job)
        with pytest.raises(Exception, match=r"forbids|No permission"):
            await found.refresh(SOON)

    async def _told(self, redis: Any, channel: str) -> int:
        told: int = await redis.publish(channel, "active")
        return told
