"""dramatiq, one process with eight threads."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.adapters import ran

THREADS = 8
RESULT_LIMIT_MS = 60_000


def _actor(url: str) -> tuple[RedisBroker, Any]:
    broker = RedisBroker(url=url)
    broker.add_middleware(Results(backend=RedisBackend(url=url, use_namespace_prefix_keys=True), result_ttl=3_600_000))

    @dramatiq.actor(actor_name="noop", broker=broker, store_results=True)
    def noop(number: int) -> int:
        ran(number)
        return number

    return broker, noop


class Producer:
    """Sends by the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def enqueue(self, number: int) -> Any:
        """Queue one no-op."""
        return self._actor.send(number)

    async def result(self, message: Any) -> Any:
        """Wait for a result."""
        return message.get_result(block=True, timeout=RESULT_LIMIT_MS)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Producer]:
    """Connect."""
    broker, actor = _actor(url)
    dramatiq.set_broker(broker)
    yield Producer(actor)
    broker.close()


def work(url: str, _concurrency: int) -> None:
    """Run a worker."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before threads inherit the mask
    broker, _ = _actor(url)
    dramatiq.set_broker(broker)
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    worker.start()
    signal.sigwait({signal.SIGTERM})
    worker.stop()
