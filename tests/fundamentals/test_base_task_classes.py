"""Seed: "Base Task Classes". What a base class does around a task's call, a middleware does."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from knapsaq import Client, Context, JobFailedError, Middleware, Registry
from knapsaq.middleware import CallNext
from knapsaq.testing import running_worker

logger = logging.getLogger("shop")


class DatabaseTask(Middleware):
    """The seed's base task that ensures a connection.

    Args:
        engine: Where to.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def around(self, ctx: Context, call_next: CallNext) -> Any:
        """Connect, put the connection where the task finds it, and go on."""
        async with self.engine.begin() as connection:
            ctx["connection"] = connection
            return await call_next()


class LoggedTask(Middleware):
    """The seed's base task with automatic logging."""

    def on_success(self, ctx: Context, result: Any) -> None:
        """Log it."""
        logger.info("Task %s[%s] succeeded", ctx.task.name, ctx.id)

    def on_failure(self, ctx: Context, error: BaseException) -> None:
        """Log it."""
        logger.error("Task %s[%s] failed: %s", ctx.task.name, ctx.id, error)

    def on_retry(self, ctx: Context, error: BaseException, after: float) -> None:
        """Log it."""
        logger.warning("Task %s[%s] retrying: %s", ctx.task.name, ctx.id, error)


@pytest.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    """A database in memory."""
    engine = create_async_engine("sqlite+aiosqlite://")
    yield engine
    await engine.dispose()


async def test_a_task_that_is_logged(client: Client, registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """A line for each end, and for each retry."""

    @registry.task(middleware=LoggedTask(), retries=1, retry_delay=0)
    async def my_logged_task(*, data: str) -> str:
        if data == "bad":
            raise ValueError(data)
        return data

    with caplog.at_level(logging.INFO, "shop"):
        async with running_worker(registry=registry):
            assert await (await my_logged_task.using(key="a").enqueue(data="good")).wait(5) == "good"
            with pytest.raises(JobFailedError):
                await (await my_logged_task.using(key="b").enqueue(data="bad")).wait(5)
    assert [record.message for record in caplog.records if record.name == "shop"] == [
        "Task my_logged_task[a] succeeded",
        "Task my_logged_task[b] retrying: bad",
        "Task my_logged_task[b] failed: bad",
    ]


async def test_a_task_with_a_connection_to_the_database(
    client: Client, registry: Registry, engine: AsyncEngine
) -> None:
    """It is there when the task begins, and is committed or rolled back when that ends."""

    @registry.task(middleware=DatabaseTask(engine))
    async def count_users(ctx: Context) -> int:
        connection: AsyncConnection = ctx["connection"]
        return int(await connection.scalar(text("select 41 + 1")) or 0)

    async with running_worker(registry=registry):
        assert await (await count_users.enqueue()).wait(5) == 42


async def test_several_go_together(
    client: Client, registry: Registry, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """A preset is the base class that many tasks share; what a task adds goes inside."""
    database_task = registry.task.preset(middleware=DatabaseTask(engine))

    @database_task(middleware=LoggedTask())
    async def both(ctx: Context) -> bool:
        return "connection" in ctx

    with caplog.at_level(logging.INFO, "shop"):
        async with running_worker(registry=registry):
            assert await (await both.using(key="a").enqueue()).wait(5) is True
    assert "Task both[a] succeeded" in caplog.messages
