"""Seed: "Chain Tasks" of the common task patterns. The spelling with two pairs of brackets."""

from __future__ import annotations

from knapsaq import Client, Registry, chain
from knapsaq.testing import running_worker


async def test_a_chain_is_sent_by_calling_it(client: Client, registry: Registry) -> None:
    """As the seed writes it, with one ``await`` in front."""

    @registry.task
    async def task1(arg: int) -> int:
        return arg + 1

    @registry.task
    async def task2(value: int) -> int:
        return value * 2

    @registry.task
    async def task3(value: int) -> str:
        return f"{value}!"

    async with running_worker(registry=registry):
        result = await chain(task1.s(1), task2.s(), task3.s())()
        assert await result.wait(5) == "4!"
