"""Seed: "Task-Level Rate Limits". So many a second, a minute or an hour, in the whole fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
from tests.support import eventually

from knapsaq import Client, Queue, Rate, Registry, Settings, connect
from knapsaq.testing import ManualClock, running_worker


class Fleet:
    """Two workers that go by a clock.

    Args:
        queue: The queue of both.
        clock: The clock.
        registry: The tasks.
    """

    def __init__(self, queue: Queue, clock: ManualClock, registry: Registry) -> None:
        self.queue, self._clock, self._registry = queue, clock, registry

    async def pass_by(self, seconds: float) -> None:
        """Let time pass, the workers look at the clock, and whatever may run do so."""
        self._clock.advance(seconds)
        await (await self._registry.get("nothing").enqueue()).wait(10)

        async def is_idle() -> bool:
            return await self.queue.count("active") == 0

        await eventually(is_idle)


@pytest.fixture
async def fleet(settings: Settings, registry: Registry, client: Client, clock: ManualClock) -> AsyncIterator[Fleet]:
    """The workers."""

    @registry.task
    async def nothing() -> None: ...

    async with (
        connect(settings, registry=registry, clock=clock) as at,
        running_worker(registry=registry),
        running_worker(registry=registry),
    ):
        yield Fleet(at.queue(), clock, registry)


@pytest.mark.parametrize(("rate", "interval"), [("10/m", 6.0), ("100/h", 36.0), ("1/s", 1.0)])
async def test_jobs_begin_one_interval_apart(registry: Registry, fleet: Fleet, rate: str, interval: float) -> None:
    """Spread over the period and not all at its beginning, over all workers together; in Celery for each worker."""
    runs: list[int] = []

    @registry.task(rate_limit=rate)
    async def rate_limited_task(data: int) -> int:
        runs.append(data)
        return data

    jobs = await rate_limited_task.enqueue_many({"data": data} for data in range(4))
    await fleet.pass_by(0)
    assert await jobs[0].wait(10) == 0
    assert [reason.kind for reason in await jobs[1].why()] == ["rate limit"]
    for done in (1, 2, 3):
        await fleet.pass_by(interval * 0.9)
        assert runs == list(range(done))
        await fleet.pass_by(interval * 0.2)
        assert await jobs[done].wait(10) == done


async def test_each_value_of_an_argument_may_have_a_limit_of_its_own(registry: Registry, fleet: Fleet) -> None:
    """And some jobs at once after a quiet time; what one tenant has queued holds up no other."""
    runs: Counter[str] = Counter()

    @registry.task(rate_limit=Rate("100/h", key="tenant_id", burst=5))
    async def hourly_limited_task(tenant_id: str) -> str:
        runs[tenant_id] += 1
        return tenant_id

    jobs = await hourly_limited_task.enqueue_many({"tenant_id": tenant_id} for tenant_id in ["acme"] * 7 + ["beta"])
    await fleet.pass_by(0)
    await eventually(lambda: runs == {"acme": 5, "beta": 1})
    await fleet.pass_by(36.1)
    await eventually(lambda: runs == {"acme": 6, "beta": 1})
    await fleet.pass_by(0)
    assert runs == {"acme": 6, "beta": 1}
    await fleet.pass_by(36.1)
    assert [await job.wait(10) for job in jobs] == ["acme"] * 7 + ["beta"]
