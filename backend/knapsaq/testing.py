"""Testing: a worker inside a test, a clock that tests move, and a context for direct calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from knapsaq.client import Client
from knapsaq.context import Context
from knapsaq.errors import NotConnectedError
from knapsaq.process import run_workers
from knapsaq.registry import Registry, get_registry
from knapsaq.timing import Duration, seconds


class ManualClock:
    """A clock that stands still until a test moves it; hand it to ``connect(..., clock=...)``.

    Args:
        start: The aware moment at which it begins; now unless given.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._ms = int((start or datetime.now(UTC)).timestamp() * 1000)

    def __call__(self) -> int:
        """Return its time in milliseconds since 1970."""
        return self._ms

    @property
    def now(self) -> datetime:
        """Its time."""
        return datetime.fromtimestamp(self._ms / 1000, UTC)

    def advance(self, by: Duration) -> None:
        """Move it on by seconds or a ``timedelta``."""
        self._ms += int(seconds(by) * 1000)

    def travel(self, to: datetime) -> None:
        """Set it to an aware moment."""
        self._ms = int(to.timestamp() * 1000)


@asynccontextmanager
async def running_worker(
    queues: Sequence[str] | None = None, *, concurrency: int = 10, registry: Registry | None = None
) -> AsyncIterator[Client]:
    """Run workers in this loop while the block runs; inside ``connect``.

    Args:
        queues: The names of the queues; all of the connection's unless given.
        concurrency: How many jobs of each queue run at once.
        registry: The registry that is connected; the program's unless given.

    Raises:
        NotConnectedError: There is no open connection.
    """
    client = (registry or get_registry()).sender
    if not isinstance(client, Client):
        raise NotConnectedError("running_worker")
    stop = asyncio.Event()
    workers = asyncio.create_task(run_workers(client, stop, queues=queues, concurrency=concurrency))
    try:
        yield client
    finally:
        stop.set()
        await workers


def make_context(**entries: Any) -> Context:
    """Return a context for calling a task's function directly.

    Args:
        entries: What the function looks up, such as ``queue=...``.
    """
    return Context(entries)


__all__ = ["ManualClock", "make_context", "running_worker"]
