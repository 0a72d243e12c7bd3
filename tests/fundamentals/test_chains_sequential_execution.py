"""Seed: "Chains - Sequential Execution". Each step gets what the one before it returned."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from knapsaq import Client, Registry, WorkflowDefinitionError, WorkflowFailedError, chain
from knapsaq.testing import running_worker


async def test_each_task_passes_its_result_to_the_next(client: Client, registry: Registry) -> None:
    """The seed's chain: fetch, parse, store, and a last step that ignores its input."""
    said: list[str] = []

    @registry.task
    async def fetch_data(url: str) -> str:
        return f"body of {url}"

    @registry.task
    async def parse_data(body: str) -> dict[str, str]:
        return {"text": body}

    @registry.task
    async def store_data(parsed: dict[str, str]) -> int:
        return len(parsed["text"])

    @registry.task
    async def notify_complete() -> str:
        said.append("complete")
        return "notified"

    async with running_worker(registry=registry):
        workflow = chain(fetch_data.s("/a"), parse_data.s(), store_data.s(), notify_complete.si())
        result = await workflow.delay()
        assert await result.wait(5) == "notified"
        assert said == ["complete"]
        assert await result.results() == {
            "fetch_data#0": "body of /a",
            "parse_data#1": {"text": "body of /a"},
            "store_data#2": 10,
            "notify_complete#3": "notified",
        }


async def test_results_arrive_as_the_types_that_the_next_step_names(client: Client, registry: Registry) -> None:
    """A moment is a moment, not a text."""

    @registry.task
    async def now() -> datetime:
        return datetime(2031, 1, 2, tzinfo=UTC)

    @registry.task
    async def year(moment: datetime) -> int:
        return moment.year

    async with running_worker(registry=registry):
        assert await (await (now.s() | year.s()).enqueue()).wait(5) == 2031
        assert await (await chain(now.s()).enqueue()).wait(5) == datetime(2031, 1, 2, tzinfo=UTC)


async def test_a_step_that_cannot_take_the_result_is_refused_before_anything_is_queued(
    client: Client, registry: Registry
) -> None:
    """Where Celery would fail in the worker, after the first steps have run."""

    @registry.task
    async def number() -> int:
        return 1

    @registry.task
    async def shout(text: str) -> str:
        return text.upper()

    with pytest.raises(WorkflowDefinitionError, match="expected str, given int, the result of the step before it"):
        chain(number.s(), shout.s())
    assert await client.queue().redis.dbsize() == 0


async def test_a_step_that_fails_ends_the_chain_and_names_itself(client: Client, registry: Registry) -> None:
    """What follows is cancelled, and ``retry_failed`` goes on from there, with the results that there are."""
    tries: list[str] = []

    @registry.task
    async def fetch() -> str:
        tries.append("fetch")
        return "body"

    @registry.task
    async def store(body: str) -> str:
        tries.append("store")
        if tries.count("store") == 1:
            raise ConnectionError("the database is away")
        return f"stored {body}"

    async with running_worker(registry=registry):
        result = await (fetch.s() | store.s() | store.s()).enqueue()
        with pytest.raises(WorkflowFailedError, match=r"store#1 \(store\): ConnectionError: the database is away"):
            await result.wait(5)
        assert (await result.status()).nodes["store#2"] == "cancelled"
        assert await result.retry_failed() == 2
        assert await result.wait(5) == "stored stored body"
    assert tries == ["fetch", "store", "store", "store"]
