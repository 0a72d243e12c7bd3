"""The manual as code: a function that gets a list of calls at once, where each caller gets its own result."""

from __future__ import annotations

import asyncio

import pytest

from knapsaq import (
    Batch,
    Client,
    Context,
    InvalidArgumentsError,
    JobFailedError,
    OptionError,
    Registry,
    TaskDefinitionError,
    chord,
)
from knapsaq.testing import running_worker


async def test_a_hundred_calls_are_one_run(client: Client, registry: Registry) -> None:
    """Callers give one text and get one vector; the function sees lists."""
    lists: list[list[str]] = []

    @registry.task(batch=Batch(size=100, wait=30))
    async def embed(texts: list[str]) -> list[list[float]]:
        lists.append(texts)
        return [[float(len(text))] for text in texts]

    async with running_worker(registry=registry, concurrency=10):
        jobs = await asyncio.gather(*(embed.enqueue("x" * number) for number in range(100)))
        vectors = await asyncio.gather(*(job.wait(10) for job in jobs))
    assert vectors == [[float(number)] for number in range(100)]
    assert [len(texts) for texts in lists] == [100]


async def test_what_has_gathered_runs_when_the_first_has_waited(client: Client, registry: Registry) -> None:
    """A lonely call is not left alone."""

    @registry.task(batch=Batch(size=100, wait=0.1))
    def count(words: list[str]) -> list[int]:
        return [len(word) for word in words]

    async with running_worker(registry=registry):
        assert await (await count.enqueue("lonely")).wait(10) == 6


async def test_an_error_in_a_results_place_fails_that_call_alone(client: Client, registry: Registry) -> None:
    """What is raised instead fails all of the run, each by its own retries."""

    @registry.task(batch=Batch(size=3, wait=30))
    async def invert(numbers: list[int]) -> list[float | Exception]:
        return [1 / number if number else ValueError("zero has no inverse") for number in numbers]

    async with running_worker(registry=registry):
        one, zero, two = [await invert.enqueue(number) for number in (1, 0, 2)]
        assert (await one.wait(10), await two.wait(10)) == (1.0, 0.5)
        with pytest.raises(JobFailedError, match="zero has no inverse"):
            await zero.wait(10)


async def test_the_jobs_of_a_run_are_in_its_context(client: Client, registry: Registry) -> None:
    """In the order of the list, each with its own headers."""

    @registry.task(batch=Batch(size=2, wait=30))
    async def greet(ctx: Context, names: list[str]) -> list[str]:
        return [f"{job.headers['greeting']} {name}" for job, name in zip(ctx.jobs, names, strict=True)]

    async with running_worker(registry=registry):
        ada = await greet.using(headers={"greeting": "hello"}).enqueue("Ada")
        grace = await greet.using(headers={"greeting": "bye"}).enqueue("Grace")
        assert (await ada.wait(10), await grace.wait(10)) == ("hello Ada", "bye Grace")


async def test_a_call_is_checked_against_the_type_of_the_items(client: Client, registry: Registry) -> None:
    """Nothing is queued otherwise."""

    @registry.task(batch=Batch(size=2, wait=30))
    async def embed(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    with pytest.raises(InvalidArgumentsError, match="argument 'texts': expected str"):
        await embed.enqueue(["a", "b"])  # type: ignore[arg-type]
    assert await client.queue().count("queued") == 0


async def test_a_batched_task_is_still_the_function(client: Client, registry: Registry) -> None:
    """Called in place it gets the list as it is."""

    @registry.task(batch=Batch(size=2, wait=30))
    async def embed(ctx: Context, texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    assert await embed({}, ["a", "bc", "def"]) == [1, 2, 3]


async def test_the_members_of_a_group_gather(client: Client, registry: Registry) -> None:
    """A workflow's node gives one item and gets one result."""

    @registry.task(batch=Batch(size=3, wait=30))
    async def price(articles: list[str]) -> list[int]:
        return [len(article) for article in articles]

    @registry.task
    async def total(prices: list[int]) -> int:
        return sum(prices)

    async with running_worker(registry=registry):
        flow = await chord(price.map(["a", "bc", "def"]), total.s()).enqueue()
        assert await flow.wait(10) == 6


def test_what_cannot_be_a_batch_is_refused_where_it_is_defined(registry: Registry) -> None:
    """With what to write instead."""
    with pytest.raises(OptionError, match="expected a whole number from 2 to 10,000"):
        Batch(size=1, wait=1)
    with pytest.raises(TaskDefinitionError, match="one list of items, such as `texts: list\\[str\\]`"):

        @registry.task(batch=Batch(size=2, wait=1))  # type: ignore[call-overload]
        async def of_one(text: str) -> list[str]:
            return [text]

    with pytest.raises(OptionError, match="no run='process' with it"):

        @registry.task(batch=Batch(size=2, wait=1), run="process")
        def far_away(texts: list[str]) -> list[str]:
            return texts
