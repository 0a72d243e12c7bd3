"""Knapsaq, with all that it guarantees by default."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from benchmarks.adapters import expressions, ran
from knapsaq import Client, Queue, Registry, Settings, Worker, connect

registry = Registry()


@registry.task(queue="bench")
async def noop(number: int) -> int:
    """Do nothing."""
    ran(number)
    return number


class Producer:
    """Sends by the task; waits by the job that this gives."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def enqueue(self, number: int) -> Any:
        """Queue one no-op."""
        return await noop.enqueue(number=number)

    async def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        """Queue many no-ops in one call."""
        return await noop.enqueue_many([{"number": number} for number in numbers])

    async def result(self, job: Any) -> Any:
        """Wait for a result."""
        return await job.wait()

    async def apply(self, number: int) -> Any:
        """Queue one no-op and wait for its result."""
        return await self._queue.apply("noop", number=number)


def _open(url: str) -> Any:
    return connect(Settings(broker_url=url, queues=("bench",), log_level="WARNING", _env_file=None), registry=registry)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Producer]:
    """Connect."""
    async with _open(url) as client:
        yield Producer(client.queue("bench"))


def work(url: str, concurrency: int, schedules: int = 0) -> None:
    """Run a worker."""
    for number, cron in enumerate(expressions(schedules)):
        registry.scheduled_task(cron=cron, name=f"scheduled-{number}", queue="bench")(lambda: None)

    async def run() -> None:
        client: Client
        async with _open(url) as client:
            await Worker(client.queue("bench"), concurrency=concurrency).start()

    uvloop.run(run())
