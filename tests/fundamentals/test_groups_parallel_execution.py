"""Seed: "Groups - Parallel Execution". Members run side by side, and the results come in their order."""

from __future__ import annotations

import asyncio

from knapsaq import Client, Registry, group
from knapsaq.testing import running_worker


async def test_members_run_in_parallel_and_give_all_results(client: Client, registry: Registry) -> None:
    """The seed's group, from a generator; the slowest is first, and its result is as well."""

    @registry.task
    async def process_item(item_id: int) -> str:
        await asyncio.sleep(0.05 if item_id == 1 else 0)
        return f"item {item_id}"

    async with running_worker(registry=registry):
        parallel = group(process_item.s(item_id) for item_id in (1, 2, 3))
        result = await parallel.delay()
        assert await result.wait(5) == ["item 1", "item 2", "item 3"]
        assert (await result.status()).counts == {"complete": 3}


async def test_groups_nest(client: Client, registry: Registry) -> None:
    """The result has the shape of the expression, empty groups included."""

    @registry.task
    async def process_item(item_id: int) -> int:
        return item_id

    async with running_worker(registry=registry):
        nested = group(group(process_item.s(1), process_item.s(2)), process_item.s(3), group())
        assert await (await nested.enqueue()).wait(5) == [[1, 2], 3, []]
        assert await (await process_item.map([4, 5]).enqueue()).wait(5) == [4, 5]
