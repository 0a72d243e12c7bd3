"""Seed: "Deduplication with Locks". One job at a time for each resource, or one job at all."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from tests.support import eventually

from knapsaq import Client, Concurrency, Job, JobFailedError, Queue, Registry, Unique
from knapsaq.testing import running_worker


class Resources:
    """Counts how many jobs work on a resource at a time, and holds them until it is opened."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.opened = asyncio.Event()

    async def process(self, resource_id: str) -> None:
        """Work on one."""
        self.runs[resource_id] += 1
        self.now[resource_id] += 1
        self.most[resource_id] = max(self.most[resource_id], self.now[resource_id])
        await self.opened.wait()
        self.now[resource_id] -= 1


@pytest.fixture
def resources() -> Resources:
    """What the jobs work on."""
    return Resources()


async def test_a_lock_lets_one_job_at_a_time_work_on_a_resource(
    client: Client, registry: Registry, resources: Resources
) -> None:
    """In the whole fleet. The others wait for it where they cost no slot, and other resources go on meanwhile."""

    @registry.task(concurrency=Concurrency(1, key="resource_id"))
    async def deduplicated_task(resource_id: str) -> str:
        await resources.process(resource_id)
        return resource_id

    async with running_worker(registry=registry), running_worker(registry=registry):
        jobs = [await deduplicated_task.enqueue(resource_id) for resource_id in ("a", "a", "a", "b")]
        await eventually(lambda: resources.now == {"a": 1, "b": 1})
        [reason] = await jobs[1].why()
        assert (reason.kind, reason.jobs) == ("concurrency", (jobs[0].key,))
        resources.opened.set()
        assert [await job.wait(10) for job in jobs] == ["a", "a", "a", "b"]
    assert resources.most == {"a": 1, "b": 1}
    assert resources.runs == {"a": 3, "b": 1}


async def test_a_second_call_is_skipped_while_there_is_a_job(
    client: Client, registry: Registry, resources: Resources
) -> None:
    """What the seed does: who calls again gets the job that waits or runs; once that has ended, there is a new one."""

    @registry.task(unique=Unique(by=("resource_id",)))
    async def deduplicated_task(resource_id: str, reason: str = "") -> str:
        await resources.process(resource_id)
        return reason

    async with running_worker(registry=registry):
        first = await deduplicated_task.enqueue("a", reason="asked for")
        await eventually(lambda: resources.now["a"] == 1)
        again = await deduplicated_task.enqueue("a", reason="asked for again")
        assert again.key == first.key
        resources.opened.set()
        assert [await first.wait(10), await again.wait(10)] == ["asked for", "asked for"]
        assert await (await deduplicated_task.enqueue("a", reason="later")).wait(10) == "later"
    assert resources.runs == {"a": 2}


async def test_a_lock_is_given_back_however_the_job_ends(client: Client, registry: Registry) -> None:
    """No ``finally``, and no time after which a lock that was forgotten counts as free."""

    @registry.task(concurrency=Concurrency(1, key="resource_id"), unique=Unique(by=("resource_id",)))
    async def deduplicated_task(resource_id: str, how: str) -> str:
        if how == "raises":
            raise ValueError(resource_id)
        return how

    async with running_worker(registry=registry):
        with pytest.raises(JobFailedError):
            await (await deduplicated_task.enqueue("a", "raises")).wait(10)
        revoked = await deduplicated_task.using(delay=3600).enqueue("a", "is revoked")
        await revoked.revoke()
        assert await (await deduplicated_task.enqueue("a", "ends well")).wait(10) == "ends well"


async def test_an_idempotency_key_is_one_job_for_a_day(client: Client, registry: Registry, queue: Queue) -> None:
    """Whoever sends the same order again gets the first one's job, with its result, also after its end."""
    charged: list[int] = []

    @registry.task
    async def charge(amount: int) -> int:
        charged.append(amount)
        return amount

    async def order_seven() -> Job[int]:
        return await charge.using(key="order:7", unique=Unique(until=86_400)).enqueue(100)

    async with running_worker(registry=registry):
        assert await (await order_seven()).wait(10) == 100
        again = await order_seven()
        assert (again.key, await again.wait(10)) == ("order:7", 100)
    assert charged == [100]
