"""Seed: "Batch Processing" of the common task patterns. One job that queues a job for each item."""

from __future__ import annotations

from collections import Counter

from knapsaq import Client, Context, Job, Queue, Registry
from knapsaq.testing import running_worker


async def jobs_of(queue: Queue, keys: list[str]) -> list[Job[int]]:
    """Find jobs by their keys, and wait until each has ended."""
    found = [job for key in keys if (job := await queue.job(key))]
    for job in found:
        await job.wait(10)
    return found


async def test_a_batch_queues_a_job_for_each_item(client: Client, registry: Registry) -> None:
    """The seed's loop. It waits for none of them; each knows which batch it is of."""

    @registry.task
    async def process_item(item_id: int) -> int:
        return item_id * 10

    @registry.task
    async def process_batch(item_ids: list[int]) -> list[str]:
        return [(await process_item.delay(item_id)).key for item_id in item_ids]

    async with running_worker(registry=registry):
        batch = await process_batch.delay([1, 2, 3])
        items = await jobs_of(client.queue(), await batch.wait(10))
    assert [job.result for job in items] == [10, 20, 30]
    assert {job.parent_id for job in items} == {batch.key}


async def test_a_large_batch_is_queued_with_a_few_round_trips(client: Client, registry: Registry) -> None:
    """``enqueue_many`` instead of the loop; nothing is queued unless all arguments are right."""

    @registry.task
    async def process_item(item_id: int) -> int:
        return item_id * 10

    @registry.task
    async def process_batch(item_ids: list[int]) -> list[str]:
        return [job.key for job in await process_item.enqueue_many({"item_id": item_id} for item_id in item_ids)]

    async with running_worker(registry=registry):
        batch = await process_batch.delay(list(range(500)))
        items = await jobs_of(client.queue(), await batch.wait(10))
    assert sum(job.result for job in items) == sum(range(500)) * 10


async def test_a_batch_that_runs_twice_queues_no_item_twice(client: Client, registry: Registry) -> None:
    """A key of each item: what waits already is not queued again."""
    runs: Counter[int] = Counter()

    @registry.task
    async def process_item(item_id: int) -> None:
        runs[item_id] += 1

    @registry.task(retries=1, retry_delay=0)
    async def process_batch(ctx: Context, item_ids: list[int]) -> None:
        for item_id in item_ids:
            await process_item.using(key=f"item:{item_id}", queue="mail").enqueue(item_id)
        if ctx.retries == 0:
            raise ConnectionError("the worker lost its line at the end")

    async with running_worker(["default"], registry=registry):
        batch = await process_batch.delay([1, 2, 3])
        await batch.wait(10)
    assert batch.attempts == 2
    async with running_worker(["mail"], registry=registry):
        await jobs_of(client.queue("mail"), [f"item:{item_id}" for item_id in (1, 2, 3)])
    assert runs == {1: 1, 2: 1, 3: 1}
