"""Jobs that wait are ended all at once, wherever they wait; those that run are not touched."""

from __future__ import annotations

import pytest
from tests.redis.conftest import Gate
from tests.redis.places import clear, define, fill
from tests.support import left_behind, store, working

from knapsaq import OptionError, Queue, Registry
from knapsaq.registry import AnyTask
from knapsaq.revoking import REVOKED_A_CALL


class TestPurge:
    async def test_all_that_waits_ends_and_what_runs_goes_on(self, queue: Queue, registry: Registry) -> None:
        """Queued, ranked, tenants', parked and delayed ones; those that run keep their claims, and hear of nothing."""
        await fill(queue, define(registry))
        assert await queue.purge(reason="wrong month") == 14
        counts = await queue.counts()
        assert (counts.active, counts.incomplete) == (2, 2)
        for key in ("plain-0", "urgent-1", "fair-1", "slot-2", "rate-1", "struck-0", "late-1"):
            job = await queue.job(key)
            assert job is not None
            assert (job.status, job.error) == ("aborted", "wrong month")
        assert not (await queue.advance("w1", [], 0)).aborts
        assert await queue.purge() == 0
        await clear(queue)

    async def test_many_are_ended_in_several_calls_and_each_is_told(self, queue: Queue, echo: AnyTask) -> None:
        """So that whoever waits sees how far it is."""
        number = 3 * REVOKED_A_CALL + 1
        await echo.enqueue_many({"text": "a"} for _ in range(number))
        told: list[int] = []
        assert await queue.purge(progress=told.append) == number
        assert told == sorted(told)
        assert (told[0], told[-1]) == (REVOKED_A_CALL, number)
        assert len(told) >= 4
        assert await left_behind(queue) == []

    async def test_a_record_that_cannot_be_read_stays_and_stops_nothing(self, queue: Queue, echo: AnyTask) -> None:
        """A worker makes a dead letter of it."""
        await store(queue, "strange", b"{")
        await echo.enqueue("a")
        assert await queue.purge() == 1
        assert await queue.count("queued") == 1
        await queue.claim(1, worker="w1")
        assert await queue.count("dead") == 1

    async def test_a_job_that_has_begun_meanwhile_is_left_alone(
        self, queue: Queue, gate: Gate, registry: Registry
    ) -> None:
        """``running=False`` decides in the step that would end it."""
        async with working(queue):
            job = await registry.get("held").enqueue()
            await gate.entered()
            assert await queue.revoke(job.key, running=False) == []
            assert await queue.purge() == 0
            gate.open()
            assert await job.wait(10) == "let go"

    async def test_a_reason_that_is_no_text_is_refused(self, queue: Queue, echo: AnyTask) -> None:
        """Before anything ends."""
        job = await echo.enqueue("a")
        with pytest.raises(OptionError):
            await queue.purge(reason=7)  # type: ignore[arg-type]
        assert await queue.count("queued") == 1
        await queue.revoke(job.key)
