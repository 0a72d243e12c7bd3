"""huey with two processes, its fastest way; it acknowledges nothing, so a killed worker loses its jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from huey import RedisHuey

from benchmarks.adapters import ran

PROCESSES = 2
POLL = 0.01  # seconds between two looks for a result; the default grows from 0.05 to 1
RESULT_LIMIT = 60


def _app(url: str) -> tuple[RedisHuey, Any]:
    app = RedisHuey("bench", url=url)

    @app.task(name="noop")
    def noop(number: int) -> int:
        ran(number)
        return number

    return app, noop


class Producer:
    """Sends by the task."""

    def __init__(self, task: Any) -> None:
        self._task = task

    async def enqueue(self, number: int) -> Any:
        """Queue one no-op."""
        return self._task(number)

    async def result(self, handle: Any) -> Any:
        """Wait for a result."""
        return handle.get(blocking=True, timeout=RESULT_LIMIT, max_delay=POLL)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Producer]:
    """Connect."""
    _, task = _app(url)
    yield Producer(task)


def work(url: str, _concurrency: int) -> None:
    """Run a worker."""
    app, _task = _app(url)
    app.create_consumer(workers=PROCESSES, worker_type="process").run()
