"""taskiq on a Redis stream, which acknowledges."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from taskiq.api import run_receiver_task
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.adapters import ran

JOBS_AT_ONCE = 100
POLL = 0.01  # seconds between two looks for a result; the default is 0.2
RESULT_LIMIT = 60


async def noop(number: int) -> int:
    """Do nothing."""
    ran(number)
    return number


class Producer:
    """Sends by the task."""

    def __init__(self, task: Any) -> None:
        self._task = task

    async def enqueue(self, number: int) -> Any:
        """Queue one no-op."""
        return await self._task.kiq(number)

    async def result(self, handle: Any) -> Any:
        """Wait for a result."""
        return await handle.wait_result(check_interval=POLL, timeout=RESULT_LIMIT)


def _broker(url: str) -> tuple[Any, Any]:
    results = RedisAsyncResultBackend(url, result_ex_time=3600, prefix_str="result", serializer=ORJSONSerializer())
    broker = RedisStreamBroker(url).with_result_backend(results).with_serializer(ORJSONSerializer())
    return broker, broker.register_task(noop, task_name="noop")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Producer]:
    """Connect."""
    broker, task = _broker(url)
    await broker.startup()
    try:
        yield Producer(task)
    finally:
        await broker.shutdown()


def work(url: str, _concurrency: int) -> None:
    """Run a worker."""
    broker, _task = _broker(url)
    uvloop.run(
        run_receiver_task(
            broker, validate_params=False, max_async_tasks=JOBS_AT_ONCE, max_prefetch=JOBS_AT_ONCE, run_startup=True
        )
    )
