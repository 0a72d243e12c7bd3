"""Celery with prefork and late acknowledgement, its fastest way that loses no job of a killed worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery, chain, chord, group
from celery.result import ResultSet

from benchmarks.adapters import ran

RESULT_LIMIT = 60


def _app(url: str) -> tuple[Celery, Any]:
    app = Celery("bench", broker=url, backend=url)
    app.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=4,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        result_expires=3600,
    )

    @app.task(name="noop")
    def noop(number: int) -> int:
        ran(number)
        return number

    @app.task(name="step")
    def step(number: int) -> int:
        ran(number)
        return number + 1

    @app.task(name="join")
    def join(numbers: list[int]) -> int:
        return int(step(max(numbers) + 1))

    return app, noop


class Producer:
    """Sends by the task."""

    def __init__(self, app: Celery, task: Any) -> None:
        self._app, self._task = app, task

    async def enqueue(self, number: int) -> Any:
        """Queue one no-op."""
        return self._task.delay(number)

    async def result(self, handle: Any) -> Any:
        """Wait for a result."""
        return handle.get(timeout=RESULT_LIMIT)

    async def fan(self, numbers: Sequence[int]) -> Any:
        """Queue many no-ops and wait for all results."""
        handles = ResultSet([self._task.delay(number) for number in numbers], app=self._app)
        return handles.join_native(timeout=RESULT_LIMIT)

    async def chord(self, numbers: Sequence[int]) -> Any:
        """Queue a group and its join, and wait for that."""
        members = group(self._task.s(number) for number in numbers)
        return chord(members, self._app.signature("join")).delay().get(timeout=RESULT_LIMIT)

    async def chain(self, numbers: Sequence[int]) -> Any:
        """Queue steps in a row, and wait for the last."""
        first = self._app.signature("step", args=(numbers[0],))
        return chain(first, *(self._app.signature("step") for _ in numbers[1:])).delay().get(timeout=RESULT_LIMIT)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Producer]:
    """Connect."""
    app, task = _app(url)
    yield Producer(app, task)
    app.close()


def work(url: str, _concurrency: int) -> None:
    """Run a worker."""
    app, _task = _app(url)
    app.worker_main(["worker", "--concurrency=2", "--loglevel=WARNING", "--without-gossip", "--without-mingle"])
