"""What the tests of the line share: a server of their own, lines to it, and what stands between the two."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pytest
import uvloop

from knapsaq.redis.connection import open_redis
from knapsaq.redis.line import Line

NAME = "line-test"
PATIENCE = 0.4
SLACK = 0.6
"""Seconds that a busy machine may take on top."""

Change = Callable[[bytes], bytes]
NewLoop = Callable[[], asyncio.AbstractEventLoop]
LOOPS: dict[str, NewLoop] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_each_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test once on each kind of loop."""

    @pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
    @functools.wraps(test)
    def run(*self: object, new_loop: NewLoop, **fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(*self, **fixtures))  # type: ignore[arg-type]

    signature = inspect.signature(test)
    added = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])  # type: ignore[attr-defined]
    return run


@dataclass
class Site:
    """A server, on a socket and on a port, and who looks after it."""

    url: str
    port: int
    admin: Any

    @property
    def named_url(self) -> str:
        """Its URL, by which connections can be told from the admin's."""
        return f"{self.url}?client_name={NAME}"

    def connections(self) -> list[dict[str, str]]:
        """Return what the server knows of the connections that are under test."""
        return [client for client in self.admin.client_list() if client["name"] == NAME]

    def cut(self) -> None:
        """Cut all of them."""
        for client in self.connections():
            self.admin.client_kill_filter(_id=client["id"])

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Let the server take commands and say nothing while the block runs, as one that hangs."""
        pid = int(self.admin.info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def open_line(url: str, patience: float = 10.0, **options: Any) -> AsyncIterator[Line]:
    """Open a line, and close it."""
    redis = open_redis(url)
    line = Line(redis, patience, **options)
    try:
        yield line
    finally:
        await line.close()
        await redis.aclose()


@asynccontextmanager
async def relaying(url: str, tls: ssl.SSLContext | None = None, change: Change = bytes) -> AsyncIterator[int]:
    """Pass everything on to a server, with TLS or with changed replies; gives the port."""
    pumps: set[asyncio.Task[None]] = set()

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(change(data))
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(unquote(url.removeprefix("unix://")))
        pumps.add(asyncio.create_task(pump(reader, to_server, bytes)))
        pumps.add(asyncio.create_task(pump(from_server, writer, change)))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
        await asyncio.gather(*pumps)
    finally:
        listening.close()


async def identity(line: Line) -> int:
    """Return the server's number of the connection."""
    return int(await line.execute("CLIENT", "ID"))
