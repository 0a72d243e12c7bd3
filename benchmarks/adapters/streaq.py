"""streaq."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from streaq import Worker

from benchmarks.adapters import ran

JOBS_AT_ONCE = 32  # with 200 it is slower
POLL = 0.01  # seconds between two looks for many results


def _worker(url: str) -> tuple[Any, Any]:
    worker: Any = Worker(redis_url=url, queue_name="bench", concurrency=JOBS_AT_ONCE, anyio_kwargs={"use_uvloop": True})

    @worker.task(silent=True, ttl=3600)
    async def noop(number: int) -> int:
        ran(number)
        return number

    @worker.task(silent=True, ttl=3600)
    async def step(number: int) -> int:
        ran(number)
        return number + 1

    worker.bench_step = step
    return worker, noop


class Producer:
    """Sends by the task."""

    def __init__(self, worker: Any, task: Any) -> None:
        self._worker, self._task = worker, task

    async def enqueue(self, number: int) -> Any:
        """Queue one no-op."""
        return await self._task.enqueue(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        """Queue many no-ops in one call."""
        tasks = [self._task.enqueue(number) for number in numbers]
        await self._worker.enqueue_many(tasks)
        return tasks

    async def result(self, task: Any) -> Any:
        """Wait for a result."""
        return await task.result()

    async def fan(self, numbers: Sequence[int]) -> None:
        """Queue many no-ops and wait for all results, by looking: ``result()`` of hundreds of tasks at once hangs."""
        left = [self._worker.results_key + task.id for task in await self.enqueue_many(numbers)]
        while left:
            found = await self._worker.redis.mget(left)
            left = [key for key, value in zip(left, found, strict=True) if value is None]
            await asyncio.sleep(POLL if left else 0)

    async def chord(self, numbers: Sequence[int]) -> Any:
        """Queue a group and what runs after it, which gets no results, and wait for that."""
        members = await self.enqueue_many(numbers)
        joined = self._worker.bench_step.enqueue(numbers[-1] + 1).start(after=[task.id for task in members])
        await joined
        return await joined.result()

    async def chain(self, numbers: Sequence[int]) -> Any:
        """Queue steps in a row, and wait for the last."""
        task = self._worker.bench_step.enqueue(numbers[0])
        for _ in numbers[1:]:
            task = task.then(self._worker.bench_step)
        await task
        return await task.result()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Producer]:
    """Connect."""
    worker, task = _worker(url)
    async with worker:
        yield Producer(worker, task)


def work(url: str, _concurrency: int) -> None:
    """Run a worker."""
    worker, _task = _worker(url)
    worker.run_sync()
