"""What tests of running and storage share: waiting on conditions, workers, and a server that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from redis import Redis as BlockingRedis

from knapsaq import Job, Queue
from knapsaq.redis.embedded import EmbeddedBroker
from knapsaq.worker import Worker

PATIENCE = 30.0
"""Seconds after which what a test waits for will not come; far more than it takes."""


async def eventually(condition: Callable[[], Any | Awaitable[Any]], *, within: float = PATIENCE) -> Any:
    """Look until a condition, which may be a coroutine function, is true, and return what it gave."""
    deadline = time.monotonic() + within
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"waited {within:g} s in vain for {inspect.getsource(condition).strip()}")
        await asyncio.sleep(0.005)


def named(value: object) -> str:
    """Return a name for a parameter that is the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


@asynccontextmanager
async def working(queue: Queue, functions: Any = (), **options: Any) -> AsyncIterator[Worker]:
    """Run a worker while the block runs, and let it end in its own way if the block has stopped it."""
    worker = Worker(queue, functions, **options)
    worker.SIGNALS = []
    running = asyncio.create_task(worker.start())
    await asyncio.sleep(0)
    try:
        yield worker
    finally:
        async with asyncio.timeout(2 * PATIENCE):
            await worker.stop()
            await running


async def ended(*jobs: Job[Any] | None) -> None:
    """Wait until jobs have ended, however they end; afterwards they are as Redis has them."""
    for job in jobs:
        assert job is not None
        await job.get_queue().wait_ended(job, PATIENCE)  # type: ignore[attr-defined]


async def lists(queue: Queue) -> Mapping[str, list[str]]:
    """Return the keys of jobs that wait, that run, and that have not ended."""
    redis: Any = queue.redis
    keys = queue.keys
    members = {
        "queued": await redis.lrange(keys.queued, 0, -1),
        "active": await redis.lrange(keys.active, 0, -1),
        "incomplete": await redis.zrange(keys.incomplete, 0, -1),
    }
    return {name: [queue.job_key_from_id(job_id.decode()) for job_id in ids] for name, ids in members.items()}


async def left_behind(queue: Queue) -> list[str]:
    """Return every key of a queue that neither expires, nor is a job's record, a dead letter, a lease or a schedule."""
    redis: Any = queue.redis
    found = [key async for key in redis.scan_iter(match=f"saq:{queue.name}:*")]
    keys = queue.keys
    lasting = (keys.leases, keys.dead, keys.dead_records, keys.dead_reasons)
    owned = {key.encode() for key in (*lasting, keys.schedules, keys.schedules_due, keys.schedules_fires)}
    return sorted([key.decode() for key in found if key not in owned and await redis.ttl(key) == -1])


async def store(queue: Queue, key: str, record: bytes) -> None:
    """Queue a record as it is, whatever it holds."""
    redis: Any = queue.redis
    job_id = queue.job_id(key)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.set(job_id, record)
        pipe.zadd(queue.keys.incomplete, {job_id: 0})
        pipe.rpush(queue.keys.queued, job_id)
        await pipe.execute()


class Server:
    """A server of one test, which writes every change to its append-only file and can be killed."""

    def __init__(self, directory: Path) -> None:
        self._broker = EmbeddedBroker(directory)
        self.url = ""

    def start(self) -> str:
        """Start it, or start it again on the same data, and return its URL."""
        self.url = self._broker.start()
        with BlockingRedis.from_url(self.url) as redis:
            redis.config_set("appendfsync", "always")
        return self.url

    def kill(self) -> None:
        """End it as ``kill -9`` does, and return when it is gone."""
        with BlockingRedis.from_url(self.url) as redis:
            pid = int(redis.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while answers(self.url):
            assert time.monotonic() < deadline, "the killed server still answers"

    def stop(self) -> None:
        """End it for good."""
        self._broker.stop()


class Proxy:
    """A line to a server that can lose a reply: what was asked is done, and the line is cut instead of the answer.

    Args:
        path: Where it listens.
        url: The server's URL, ``unix://...``.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.url = f"unix://{path}"
        self.lost = 0
        self._path = path
        self._server_path = unquote(url.removeprefix("unix://"))
        self._loses: Callable[[bytes, bytes], bool] = lambda _request, _reply: False
        self._lines: set[asyncio.Task[None]] = set()

    def lose(self, times: int, which: Callable[[bytes, bytes], bool]) -> None:
        """Lose the replies for which ``which(request, reply)`` holds, so many of them."""
        limit = self.lost + times
        self._loses = lambda request, reply: self.lost < limit and which(request, reply)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Proxy]:
        """Pass everything on while the block runs."""
        server = await asyncio.start_unix_server(self._serve, self._path)
        try:
            yield self
        finally:
            server.close()
            for line in self._lines:
                line.cancel()
            await asyncio.gather(*self._lines, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)
        from_server, to_server = await asyncio.open_unix_connection(self._server_path)
        request = b""

        async def ask() -> None:
            nonlocal request
            while request := await reader.read(1 << 20):
                to_server.write(request)

        asking = asyncio.create_task(ask())
        try:
            while reply := await from_server.read(1 << 20):
                if self._loses(request, reply):
                    self.lost += 1
                    return
                writer.write(reply)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            to_server.close()
            writer.close()


def answers(url: str) -> bool:
    """Whether a server can be reached."""
    with BlockingRedis.from_url(url) as redis, contextlib.suppress(ConnectionError, OSError):
        try:
            return bool(redis.ping())
        except Exception:  # noqa: BLE001 - refused, reset or loading: it does not answer
            return False
    return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
