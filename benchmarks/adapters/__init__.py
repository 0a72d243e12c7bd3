"""Adapters: one module a system, each with the same no-op task, run by ``__main__`` as processes of their own.

A module offers two functions:

* ``connected(url)``, an asynchronous context manager that yields a :class:`Producer`;
* ``work(url, concurrency)``, which runs a worker until the process is ended; some take a number of schedules, too.

The systems' own environments import this: only the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from benchmarks.ledger import open_ledger

LEDGER = open_ledger()


class Producer(Protocol):
    """What a connected system can do.

    It may also have ``enqueue_many(numbers)``, ``apply(number)`` and ``fan(numbers)``, where it has something better
    than one call after the other. A system without coroutines blocks in these and never gives up the loop.
    """

    async def enqueue(self, number: int) -> Any:
        """Queue one no-op and return what its result is asked of."""

    async def result(self, handle: Any) -> Any:
        """Wait for a result."""


class BulkProducer(Producer, Protocol):
    """A system that takes many jobs in one call."""

    async def enqueue_many(self, numbers: Sequence[int]) -> list[Any]:
        """Queue many no-ops."""


def ran(number: int) -> None:
    """Note that a body runs: all that a no-op does besides returning its number."""
    if LEDGER is not None:
        LEDGER.run(number)


def expressions(number: int) -> Iterator[str]:
    """Yield cron expressions, none of which is due within months."""
    distant = datetime.now(UTC) + timedelta(days=180)
    for count in range(number):
        yield f"{count % 60} {count // 60 % 24} {distant.day % 28 + 1} {distant.month} *"
