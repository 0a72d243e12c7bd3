"""Seed: "Basic Task Definition". A function with a decorator, and one that asks for its context."""

from __future__ import annotations

import asyncio
import logging

import pytest

from knapsaq import Client, Context, Registry
from knapsaq.testing import running_worker


async def test_a_simple_task_is_a_function_with_a_decorator(client: Client, registry: Registry) -> None:
    """``@task`` is all; the function can still be called, and a worker runs it as well."""

    @registry.task
    def add(x: int, y: int) -> int:
        return x + y

    assert add(2, 3) == 5
    async with running_worker(registry=registry):
        assert await (await add.delay(2, 3)).wait(5) == 5


async def test_a_bound_task_asks_for_its_context(
    client: Client, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """What Celery gives as ``self``: a state that others see while the task runs, retries, and a logger."""
    seen = asyncio.Event()

    @registry.task(retries=1)
    async def process_data(ctx: Context, data_id: int) -> str:
        await ctx.set_progress(0, 1, state="PROCESSING")
        ctx.logger.info("data %s, retry %s", data_id, ctx.retries)
        await seen.wait()
        if ctx.retries == 0:
            raise ctx.retry(after=0)
        return f"data {data_id}"

    with caplog.at_level(logging.INFO, "knapsaq.task"):
        job = await process_data.delay(7)
        async with running_worker(registry=registry):
            async for update in job.updates():
                if update.meta.get("state") == "PROCESSING":
                    seen.set()
    assert job.result == "data 7"
    assert [record.message for record in caplog.records if record.name == "knapsaq.task.process_data"] == [
        "data 7, retry 0",
        "data 7, retry 1",
    ]
