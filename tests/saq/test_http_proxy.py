"""SAQ's HTTP proxy before our queue: programs that cannot reach Redis work through it."""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import saq
from saq.job import Status
from tests.support import ended, left_behind, lists

from knapsaq import Queue

ERRORS = ("ClientSession", "ClientError", "ClientResponseError", "ServerTimeoutError", "ClientConnectorError")


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """SAQ's module, with a stand-in for aiohttp, of which it needs a session and the names of errors."""
    aiohttp = types.ModuleType("aiohttp")
    for name in ERRORS:
        setattr(aiohttp, name, type(name, (Exception,), {}))
    monkeypatch.setitem(sys.modules, "aiohttp", aiohttp)
    yield importlib.import_module("saq.queue.http")
    del sys.modules["saq.queue.http"]


class Session:
    """Hands what is posted to the proxy, and gives its answers back."""

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    @asynccontextmanager
    async def post(self, _url: str, json: Any) -> AsyncIterator[Session]:
        """Post a request."""
        self._answer = await self._proxy.process(_dumped(json))
        yield self

    def raise_for_status(self) -> None:
        """Do nothing: the proxy has answered."""

    async def text(self) -> str:
        """Return the answer."""
        return self._answer or ""

    async def close(self) -> None:
        """Do nothing."""


def _dumped(body: Any) -> str:
    return json.dumps(body)


@pytest.fixture
async def far(http: Any, queue: Queue) -> AsyncIterator[Any]:
    """SAQ's queue over HTTP, with the proxy before ours at the other end."""
    own = Queue(queue.redis, "default", settings=queue.settings)

    async def session() -> Session:
        return Session(http.HttpProxy(own))

    far = http.HttpQueue("http://far", session_callback=session)
    await far.connect()
    yield far
    await far.disconnect()
    await own.line.close()


async def test_a_job_goes_all_the_way(far: Any, queue: Queue) -> None:
    """Enqueued, looked at, taken, updated, retried and finished from afar."""
    job = await far.enqueue("add", key="one", a=1, retries=2)
    assert await far.enqueue("add", key="one", a=1) is None
    assert (await far.job("one")).kwargs == {"a": 1}
    assert [found and found.key for found in await far.jobs(["one", "none"])] == ["one", None]
    assert [await far.count(kind) for kind in ("queued", "active", "incomplete")] == [1, 0, 1]

    taken = await far.dequeue(timeout=1)
    await taken.update(status=Status.ACTIVE, progress=0.5)
    found = await queue.job("one")
    assert found is not None
    assert (found.status, found.progress) == (Status.ACTIVE, 0.5)
    await taken.retry("again")
    taken = await far.dequeue(timeout=1)
    await taken.finish(Status.COMPLETE, result=[1])
    await far.notify(taken)
    await job.refresh()
    assert (job.status, job.result) == (Status.COMPLETE, [1])
    assert await left_behind(queue) == []


async def test_a_job_is_aborted_from_afar(far: Any, queue: Queue) -> None:
    """One that waits at once, one that runs in two steps."""
    waiting = await far.enqueue("add", key="waiting")
    await waiting.abort("enough")
    await far.enqueue("add", key="running")
    running = await far.dequeue(timeout=1)
    await running.update(status=Status.ACTIVE)
    await running.abort("enough")
    await far.finish_abort(await far.job("running"))
    statuses = [job.status for job in await queue.jobs(["waiting", "running"]) if job]
    assert statuses == [Status.ABORTED, Status.ABORTED]
    assert await left_behind(queue) == []


async def test_upkeep_from_afar(far: Any, queue: Queue) -> None:
    """``schedule``, ``sweep``, ``info`` and what a worker tells of itself."""
    await far.enqueue("add", key="due", scheduled=1)
    assert await far.schedule() == [queue.job_id("due")]
    taken = await far.dequeue(timeout=1)
    await taken.update(status=Status.ACTIVE, started=1)
    assert await far.sweep() == [queue.job_id("due")]
    await far.worker_info("w", queue_key="default", ttl=30)
    info = await far.info(jobs=True)
    assert (list(info["workers"]), info["active"]) == (["w"], 0)


async def test_saqs_worker_works_from_afar(far: Any, queue: Queue) -> None:
    """With nothing but HTTP between it and our queue."""

    async def add(ctx: dict[str, Any], *, a: int, b: int) -> int:
        return a + b

    job = await queue.enqueue(saq.Job("add", kwargs={"a": 1, "b": 2}))
    worker: saq.Worker[Any] = saq.Worker(
        far, [("add", add)], burst=True, dequeue_timeout=0.1, concurrency=1, shutdown_grace_period_s=0
    )
    worker.SIGNALS = []
    await worker.start()
    await ended(job)
    assert job is not None
    assert (job.status, job.result) == (Status.COMPLETE, 3)
    assert (await lists(queue))["incomplete"] == []
