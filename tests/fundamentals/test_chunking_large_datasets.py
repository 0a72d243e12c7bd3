"""Seed: "Chunking Large Datasets". A call for each hundred items, and the sum of all."""

from __future__ import annotations

from knapsaq import Client, Registry, WorkflowJob, chord
from knapsaq.testing import running_worker


async def test_a_dataset_is_processed_in_chunks_and_summed(client: Client, registry: Registry) -> None:
    """The seed's chord, by hand and with ``task.chunks``."""

    @registry.task
    async def process_chunk(item_ids: list[int]) -> int:
        return len(item_ids)

    @registry.task
    async def aggregate_results(results: list[int]) -> int:
        return sum(results)

    async def process_all_items(all_ids: list[int], chunk_size: int) -> WorkflowJob:
        chunks = [all_ids[i : i + chunk_size] for i in range(0, len(all_ids), chunk_size)]
        return await chord([process_chunk.s(chunk) for chunk in chunks], aggregate_results.s()).delay()

    async with running_worker(registry=registry):
        by_hand = await process_all_items(list(range(950)), 100)
        shorter = await chord(process_chunk.chunks(range(950), 100), aggregate_results.s()).enqueue()
        assert [await by_hand.wait(5), await shorter.wait(5)] == [950, 950]
        assert (await shorter.status()).counts == {"complete": 11}
