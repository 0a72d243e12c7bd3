"""arq, polling as fast as makes it fastest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.worker import Worker

from benchmarks.adapters import ran

POLL = 0.01  # seconds; arq's default is 0.5
RESULT_LIMIT = 60
JOBS_AT_ONCE = 100


async def noop(_ctx: Any, number: int) -> int:
    """Do nothing."""
    ran(number)
    return number


class Producer:
    """Sends by the pool."""

    def __init__(self, pool: ArqRedis) -> None:
        self._pool = pool

    async def enqueue(self, number: int) -> Any:
        """Queue one no-op."""
        return await self._pool.enqueue_job("noop", number)

    async def result(self, job: Any) -> Any:
        """Wait for a result."""
        return await job.result(timeout=RESULT_LIMIT, poll_delay=POLL)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Producer]:
    """Connect."""
    pool = await create_pool(RedisSettings.from_dsn(url))
    try:
        yield Producer(pool)
    finally:
        await pool.aclose()


def work(url: str, _concurrency: int) -> None:
    """Run a worker."""
    uvloop.install()
    settings = RedisSettings.from_dsn(url)
    Worker([noop], redis_settings=settings, max_jobs=JOBS_AT_ONCE, poll_delay=POLL).run()
