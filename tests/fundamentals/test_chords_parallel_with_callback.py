"""Seed: "Chords - Parallel with Callback". What runs once all members have ended."""

from __future__ import annotations

import pytest

from knapsaq import Client, Registry, WorkflowFailedError, chord
from knapsaq.testing import running_worker


async def test_the_callback_gets_the_list_of_all_results(client: Client, registry: Registry) -> None:
    """The seed's chord; also with no member at all."""

    @registry.task
    async def process_item(item_id: int) -> int:
        return item_id * 10

    @registry.task
    async def aggregate_results(results: list[int]) -> int:
        return sum(results)

    async with running_worker(registry=registry):
        for item_ids, total in (([1, 2, 3], 60), ([], 0)):
            workflow = chord([process_item.s(item_id) for item_id in item_ids], aggregate_results.s())
            assert await (await workflow.delay()).wait(5) == total


async def test_a_member_that_fails_ends_the_chord_with_every_error_named(client: Client, registry: Registry) -> None:
    """It does not hang, which is the commonest complaint about Celery's."""

    @registry.task
    async def process_item(item_id: int) -> int:
        if item_id % 2:
            raise ValueError(f"item {item_id} is odd")
        return item_id

    @registry.task
    async def aggregate_results(results: list[int | None]) -> int:
        return sum(one or 0 for one in results)

    members = [process_item.s(item_id) for item_id in range(4)]
    async with running_worker(registry=registry):
        result = await chord(members, aggregate_results.s()).enqueue()
        with pytest.raises(WorkflowFailedError) as caught:
            await result.wait(5)
        assert [failure.node for failure in caught.value.failures] == ["process_item#1", "process_item#3"]
        assert "item 3 is odd" in str(caught.value)

        # A callback may also take what there is.
        result = await chord(members, aggregate_results.s().set(on_failure="continue")).enqueue()
        assert await result.wait(5) == 2
