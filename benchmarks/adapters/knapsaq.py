"""Knapsaq, with all that it guarantees by default."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from benchmarks.adapters import expressions, ran
from knapsaq import Client, Queue, Registry, Settings, Worker, chain, chord, connect

registry = Registry()


@registry.task(queue="bench")
async def noop(number: int) -> int:
    """Do nothing."""
    ran(number)
    return number


@registry.task(queue="bench")
async def step(number: int) -> int:
    """Count on."""
    ran(number)
    return number + 1


@registry.task(queue="bench")
async def join(numbers: list[int]) -> int:
    """Take the results of a group."""
    return await step.function(max(numbers) + 1)


@registry.task(queue="bench", rate_limit="1/h")
async def limited(number: int) -> int:
    """Do nothing, once an hour."""
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

    async def park(self, numbers: Sequence[int]) -> None:
        """Queue jobs of which one an hour may run."""
        await limited.enqueue_many([{"number": number} for number in numbers])

    async def result(self, job: Any) -> Any:
        """Wait for a result."""
        return await job.wait()

    async def chord(self, numbers: Sequence[int]) -> Any:
        """Queue a group and its join, and wait for that."""
        return await (await chord(noop.map(numbers), join.s()).enqueue()).wait()

    async def chain(self, numbers: Sequence[int]) -> Any:
        """Queue steps in a row, and wait for the last."""
        return await (await chain(step.s(numbers[0]), *(step.s() for _ in numbers[1:])).enqueue()).wait()

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
