"""Plain SAQ, with the settings that make it fastest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from saq.job import CronJob
from saq.queue.redis import RedisQueue
from saq.worker import Worker

from benchmarks.adapters import expressions, ran

OPERATIONS = 100  # at once; SAQ's default is 20
POLL = 0.01  # seconds between two looks of map; SAQ's default is 0.5


async def noop(_ctx: Any, *, number: int) -> int:
    """Do nothing."""
    ran(number)
    return number


class Producer:
    """Sends by the queue; SAQ waits by ``apply`` and ``map``, which enqueue themselves."""

    def __init__(self, queue: RedisQueue) -> None:
        self._queue = queue

    async def enqueue(self, number: int) -> Any:
        """Queue one no-op."""
        return await self._queue.enqueue("noop", number=number)

    async def apply(self, number: int) -> Any:
        """Queue one no-op and wait for its result, as SAQ does unless told otherwise."""
        return await self._queue.apply("noop", number=number)

    async def fan(self, numbers: Sequence[int]) -> Any:
        """Queue many no-ops and wait for all results."""
        return await self._queue.map("noop", [{"number": number} for number in numbers], poll_interval=POLL)


def _queue(url: str) -> RedisQueue:
    return RedisQueue.from_url(url, name="bench", max_concurrent_ops=OPERATIONS)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Producer]:
    """Connect."""
    queue = _queue(url)
    await queue.connect()
    try:
        yield Producer(queue)
    finally:
        await queue.disconnect()


def _cron_job(number: int, cron: str) -> CronJob[Any]:
    """Return a cron job with a function of its own: of two with one function SAQ keeps one."""

    async def scheduled(_ctx: Any) -> None: ...

    scheduled.__qualname__ = f"scheduled-{number}"
    return CronJob(scheduled, cron=cron)


def work(url: str, concurrency: int, schedules: int = 0) -> None:
    """Run a worker."""
    crons = [_cron_job(number, cron) for number, cron in enumerate(expressions(schedules))]

    async def run() -> None:
        queue = _queue(url)
        await queue.connect()
        worker: Worker[Any] = Worker(queue, [("noop", noop)], concurrency=concurrency, cron_jobs=crons)
        await worker.start()
        await queue.disconnect()

    uvloop.run(run())
