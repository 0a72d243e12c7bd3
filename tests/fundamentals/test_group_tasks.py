"""Seed: "Group Tasks" of the common task patterns. Ten calls at once."""

from __future__ import annotations

from knapsaq import Client, Registry, group
from knapsaq.testing import running_worker


async def test_a_group_of_ten_runs_in_parallel(client: Client, registry: Registry) -> None:
    """As the seed writes it."""

    @registry.task
    async def task(i: int) -> int:
        return i * i

    async with running_worker(registry=registry):
        job = group([task.s(i) for i in range(10)])
        result = await job.apply_async()
        assert await result.wait(5) == [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]
