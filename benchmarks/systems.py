"""The systems that are measured: one small adapter each, with the same no-op task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from saq.queue.redis import RedisQueue
from saq.worker import Worker as SaqWorker

from knapsaq import Client, Registry, Settings, Worker, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUEUE = "bench"


class System(Protocol):
    """One system with its queue open."""

    async def enqueue(self, number: int) -> None:
        """Queue one no-op."""

    async def apply(self, number: int) -> None:
        """Queue one no-op and wait for its result."""

    async def left(self) -> int:
        """Return how many jobs have not ended."""

    async def work(self, concurrency: int, done: asyncio.Event) -> None:
        """Run a worker until ``done``."""


class Knapsaq:
    """Knapsaq, with everything that it guarantees."""

    def __init__(self, client: Client, task: Any) -> None:
        self._client, self._queue, self._task = client, client.queue(QUEUE), task

    async def enqueue(self, number: int) -> None:
        """Queue one no-op."""
        await self._task.enqueue(number=number)

    async def apply(self, number: int) -> None:
        """Queue one no-op and wait for its result."""
        await (await self._task.enqueue(number=number)).wait()

    async def left(self) -> int:
        """Return how many jobs have not ended."""
        return await self._queue.count("incomplete")

    async def work(self, concurrency: int, done: asyncio.Event) -> None:
        """Run a worker until ``done``."""
        await _run(Worker(self._queue, concurrency=concurrency), done)


class Saq:
    """Plain SAQ."""

    def __init__(self, queue: RedisQueue, body: Callable[[], None]) -> None:
        self._queue, self._body = queue, body

    async def enqueue(self, number: int) -> None:
        """Queue one no-op."""
        await self._queue.enqueue("noop", number=number)

    async def apply(self, number: int) -> None:
        """Queue one no-op and wait for its result."""
        await self._queue.apply("noop", number=number)

    async def left(self) -> int:
        """Return how many jobs have not ended."""
        return await self._queue.count("incomplete")

    async def work(self, concurrency: int, done: asyncio.Event) -> None:
        """Run a worker until ``done``."""

        async def noop(_ctx: Any, *, number: int) -> int:
            self._body()
            return number

        worker: SaqWorker[Any] = SaqWorker(self._queue, [("noop", noop)], concurrency=concurrency)
        await _run(worker, done)


async def _run(worker: SaqWorker[Any], done: asyncio.Event) -> None:
    worker.SIGNALS = []
    running = asyncio.create_task(worker.start())
    await done.wait()
    await worker.stop()
    await running


@asynccontextmanager
async def open_system(name: str, url: str, body: Callable[[], None]) -> AsyncIterator[System]:
    """Open a system by name; ``body`` is called by each job."""
    if name == "saq":
        queue = (
            RedisQueue.from_url(url, name=QUEUE, max_concurrent_ops=100) if "unix" not in url else _saq_on_socket(url)
        )
        await queue.connect()
        try:
            yield Saq(queue, body)
        finally:
            await queue.disconnect()
        return
    registry = Registry()

    @registry.task(queue=QUEUE)
    async def noop(*, number: int) -> int:
        body()
        return number

    settings = Settings(broker_url=url, queues=(QUEUE,), _env_file=None)
    async with connect(settings, registry=registry) as client:
        yield Knapsaq(client, noop)


def _saq_on_socket(url: str) -> RedisQueue:
    from redis.asyncio import Redis  # noqa: PLC0415 - SAQ's own from_url refuses unix sockets

    return RedisQueue(Redis.from_url(url), name=QUEUE, max_concurrent_ops=100)
