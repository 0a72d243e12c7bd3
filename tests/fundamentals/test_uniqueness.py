"""Uniqueness: jobs that are one and the same, idempotency keys, debounce and throttle."""

from __future__ import annotations

from datetime import timedelta

import pytest

from knapsaq import Client, Debounce, DuplicateJobError, Registry, Settings, Unique, connect
from knapsaq.testing import ManualClock, running_worker


class TestUniqueJobs:
    async def test_a_second_call_with_the_same_arguments_gets_the_first_ones_job(
        self, client: Client, registry: Registry
    ) -> None:
        """Until it has ended; however the arguments are written."""

        @registry.task(unique=True)
        async def report(month: int, year: int = 2031) -> str:
            return f"{month}/{year}"

        first = await report.enqueue(5)
        assert (await report.enqueue(year=2031, month=5)).key == first.key
        assert (await report.enqueue(6)).key != first.key
        assert await client.queue().enqueue("report", month=5) is None
        async with running_worker(registry=registry):
            assert await first.wait(timeout=10) == "5/2031"
            again = await report.enqueue(5)
            assert again.key != first.key
            await again.wait(timeout=10)

    async def test_a_clash_can_be_an_error_that_names_the_job(self, client: Client, registry: Registry) -> None:
        """So that a route handler can say so."""

        @registry.task(unique=Unique(by="user_id", clash="raise"))
        async def export(user_id: int, fmt: str) -> None: ...

        first = await export.enqueue(7, "csv")
        with pytest.raises(DuplicateJobError, match=first.key):
            await export.enqueue(7, "pdf")
        await first.revoke()
        assert (await export.enqueue(7, "pdf")).key != first.key

    async def test_the_newest_call_can_take_the_place_of_the_one_that_waits(
        self, client: Client, registry: Registry
    ) -> None:
        """It keeps the key and the place in the queue, and runs with the newest arguments."""

        @registry.task(unique=Unique(by=(), clash="replace"))
        async def publish(version: int) -> int:
            return version

        @registry.task
        async def other() -> None: ...

        first = await publish.enqueue(1)
        behind = await other.enqueue()
        assert (await publish.enqueue(2)).key == first.key
        assert [claim.job.key for claim in await client.queue().claim(2, worker="w")] == [first.key, behind.key]
        stored = await client.queue().job(first.key)
        assert stored is not None
        assert stored.kwargs == {"version": 2}
        assert (await publish.enqueue(3)).key == first.key  # it runs: stays as it is
        stored = await client.queue().job(first.key)
        assert stored is not None
        assert stored.kwargs == {"version": 2}

    async def test_until_the_start_lets_the_next_one_wait_while_the_first_runs(
        self, client: Client, registry: Registry
    ) -> None:
        """What changed after it began is not missed."""

        @registry.task(unique=Unique(until="start"))
        async def refresh() -> None: ...

        first = await refresh.enqueue()
        assert (await refresh.enqueue()).key == first.key
        await client.queue().claim(1, worker="w")
        second = await refresh.enqueue()
        assert second.key != first.key
        assert (await refresh.enqueue()).key == second.key


class TestIdempotencyKeys:
    async def test_the_same_key_gives_the_same_job_back_with_its_result(
        self, client: Client, registry: Registry
    ) -> None:
        """For the whole period, also when the job has ended, and its record is kept for as long."""

        @registry.task(ttl=10)
        async def charge(order_id: int) -> str:
            return f"order {order_id} is paid"

        once = charge.using(key="order:7", unique=Unique(until=timedelta(days=1)))
        first = await once.enqueue(order_id=7)
        async with running_worker(registry=registry):
            assert await first.wait(timeout=10) == "order 7 is paid"
        again = await once.enqueue(order_id=7)
        assert (again.key, again.result, again.attempts) == (first.key, "order 7 is paid", 1)
        assert await client.queue().redis.ttl(first.id) > 86_000

    async def test_a_key_that_is_used_twice_can_be_an_error(self, client: Client, registry: Registry) -> None:
        """While its job waits, too."""

        @registry.task
        async def charge(order_id: int) -> None: ...

        once = charge.using(key="order:7", unique=Unique(until="end", clash="raise"))
        first = await once.enqueue(order_id=7)
        with pytest.raises(DuplicateJobError, match="order:7"):
            await once.enqueue(order_id=8)
        assert await first.revoke()


class TestDebounceAndThrottle:
    async def test_a_debounced_task_runs_once_after_its_last_call(self, settings: Settings, registry: Registry) -> None:
        """With the arguments of that one."""
        clock = ManualClock()

        @registry.task(debounce=Debounce(30, by="document_id"))
        async def index(document_id: int, text: str) -> str:
            return text

        async with connect(settings, registry=registry, clock=clock) as client:
            await client.queue().redis.flushall()
            first = await index.enqueue(1, "a")
            clock.advance(timedelta(seconds=29))
            assert (await index.enqueue(1, "ab")).key == first.key
            clock.advance(timedelta(seconds=29))
            assert not await client.queue().claim(1, worker="w")
            clock.advance(timedelta(seconds=1))
            [claim] = await client.queue().claim(1, worker="w")
            assert claim.job.kwargs == {"document_id": 1, "text": "ab"}

    async def test_a_throttled_task_runs_its_first_call_and_gives_that_job_to_the_others(
        self, client: Client, registry: Registry
    ) -> None:
        """Also when it has ended."""

        @registry.task(throttle=60)
        async def warn(message: str) -> str:
            return message

        first = await warn.enqueue("full")
        async with running_worker(registry=registry):
            await first.wait(timeout=10)
        assert (await warn.enqueue("full")).key == first.key
        assert (await warn.enqueue("empty")).key != first.key
