"""The same program on Knapsaq, or on plain SAQ with ``KNAPSAQ_FAULTS_ON=saq``, where the tests that take it fail."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import pytest
import saq
from redis.asyncio import Redis
from saq.job import Status
from saq.queue.redis import RedisQueue
from tests.conftest import check_keys
from tests.support import PATIENCE, eventually

from knapsaq import Queue, Registry, Settings, Worker
from knapsaq.redis.connection import open_redis
from knapsaq.upkeep import Rescuer

T = TypeVar("T")

ON_SAQ = os.environ.get("KNAPSAQ_FAULTS_ON") == "saq"
DEAD = "a worker that died"
SOON = 0.7
"""Seconds in which what happens at once on ours has happened, on a busy machine too, and on SAQ it has not."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On plain SAQ, leave out what is about ours alone."""
    if not ON_SAQ:
        return
    kept = [item for item in items if "saq_or_ours" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # SAQ leaves coroutines behind that nobody awaits


class Program:
    """A program written for SAQ: its queues, workers and jobs, made of SAQ's classes or of ours.

    Args:
        settings: The broker and, for ours, everything else.

    Attributes:
        functions: What a worker has to be given for the tasks of the last queue.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.functions: list[Any] = []
        self._stack = AsyncExitStack()
        self.redis: Any = self._open(settings.broker_url)

    def _open(self, url: str) -> Any:
        redis: Any = Redis.from_url(url) if ON_SAQ else open_redis(url)
        self._stack.push_async_callback(redis.aclose)
        return redis

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter a context that is left when the test has ended and what was made since is closed."""
        return await self._stack.enter_async_context(context)

    def at_end(self, function: Any, *args: Any) -> None:
        """Call a coroutine function when the test has ended and what was made since is closed."""
        self._stack.push_async_callback(function, *args)

    def queue(self, name: str = "default", *, url: str | None = None, tasks: Sequence[Any] = ()) -> Any:
        """Return a queue.

        Args:
            name: Its name.
            url: Another server's, or another way to this one.
            tasks: Functions that are to be tasks of ours, and plain functions of SAQ's worker; see ``functions``.
        """
        redis = self._open(url) if url else self.redis
        registry = Registry()
        for function in tasks:
            registry.task(function)
        self.functions = [(function.__name__, function) for function in tasks] if ON_SAQ else []
        options = {"settings": self.settings, "registry": registry if tasks else None}
        queue: Any = RedisQueue(redis, name) if ON_SAQ else Queue(redis, name, **options)
        self._stack.push_async_callback(queue.disconnect)
        return queue

    def worker(self, queue: Any, functions: Any = (), **options: Any) -> Any:
        """Return a worker, with SAQ's arguments."""
        made: Any = saq.Worker if ON_SAQ else Worker
        worker = made(queue, functions, **options)
        worker.SIGNALS = []
        return worker

    @asynccontextmanager
    async def working(self, queue: Any, *functions: Any, **options: Any) -> AsyncIterator[Any]:
        """Run a worker while the block runs."""
        worker = self.worker(queue, functions, **{"shutdown_grace_period_s": 0, **options})
        running = asyncio.create_task(worker.start())
        # SAQ's worker sweeps as it starts, which is the matter of some tests and no business of the others.
        await eventually(lambda: queue.redis.exists(queue.namespace("sweep")))
        try:
            yield worker
        finally:
            async with asyncio.timeout(PATIENCE):
                await worker.stop()
                await running

    async def job(self, queue: Any, function: str = "noop", **fields: Any) -> Any:
        """Queue a job."""
        job = await queue.enqueue(function, **fields)
        assert job is not None
        return job

    async def stored(self, queue: Any, job: Any) -> Any:
        """Return a job as Redis has it."""
        found = await queue.job(job.key)
        assert found is not None
        return found

    async def ends(self, job: Any, *, within: float = 2.0) -> None:
        """Wait until a job has ended; afterwards it is as Redis has it."""
        found = await eventually(lambda: self._ended(job), within=within)
        job.replace(found)

    async def _ended(self, job: Any) -> Any:
        found = await job.get_queue().job(job.key)
        return found if found and found.status in (Status.COMPLETE, Status.FAILED, Status.ABORTED) else None

    async def begin(self, queue: Any) -> Any:
        """Take the next job and begin it, as a worker of SAQ does, and return it."""
        job = await queue.dequeue(timeout=1)
        assert job is not None
        job.attempts += 1
        await job.update(status=Status.ACTIVE)
        return job

    async def crash(self, queue: Any) -> None:
        """Let a worker begin the next job and die."""
        if ON_SAQ:
            job = await self.begin(queue)
            job.worker_id = DEAD
            await job.update(started=1)  # so long ago that its time is up
            return
        [claim] = await queue.claim(1, worker=DEAD)
        claim.job.attempts += 1
        await queue.advance(DEAD, [queue.stamp(claim)], 0)

    async def recover(self, queue: Any) -> None:
        """Do what the other workers do once they can know of the crash."""
        if ON_SAQ:
            await queue.sweep(abort=0.01)
            return
        await self.redis.zadd(queue.keys.leases, {DEAD: 1})
        await Rescuer(queue).run_once()

    async def close(self) -> None:
        """Close all queues, and look for keys that nobody owns."""
        if not ON_SAQ:
            await check_keys(self.redis)
        await self._stack.aclose()


@pytest.fixture
async def saq_or_ours(settings: Settings) -> AsyncIterator[Program]:
    """An empty server and a program on it; every test that asks for it fails on plain SAQ."""
    program = Program(settings)
    await program.redis.flushall()
    await program.redis.script_flush()
    yield program
    await program.close()


@pytest.fixture
def runs() -> list[Any]:
    """What the functions of a test note."""
    return []
