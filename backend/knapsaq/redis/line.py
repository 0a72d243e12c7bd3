"""Line: one connection that carries the commands of all callers, in order.

Where in the flow: every script and every read of a record goes this way. redis-py makes the connection, with its
address, TLS, login, database and sentinels; then its transport is read and written here, without its layers: an
awaited command costs a third of what redis-py's own client takes, and callers share one connection.

Invariants, each a test in ``tests/redis/test_line.py``:

* a command is sent once; nobody repeats it when the reply is lost, as the server may have run it;
* a caller that is cancelled disturbs no other: its reply is dropped when it comes;
* a server that does not answer costs the patience and at most a tenth more;
* after a cut the next command connects again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, InvalidResponse, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from knapsaq.batching import being_cancelled
from knapsaq.redis.cluster import ELSEWHERE, elsewhere, is_lasting

COMMAND_TIMEOUT = 10.0
LOOKS = 10
"""How often, in the length of the patience, a connection is looked at that somebody waits for."""
CUT = "the connection to the server was cut"
CLOSED = "the connection was closed"

Push = Callable[[Any], None]
"""Takes what a server says without being asked: a list, or the error that it raised."""


class Line:
    """Sends commands over one connection, which is made with the first of them.

    Args:
        redis: Whose address and login to use.
        patience: Seconds without a reply after which the connection is given up.
        on_push: Makes it a line of a subscriber: takes all that arrives.
        on_cut: Called when a subscriber's connection was lost.
        numbered: Whether to ask for the connection's number.

    Attributes:
        number: The server's own number of the newest connection, if ``numbered``; None where the user may not ask.
    """

    def __init__(
        self,
        redis: Redis,
        patience: float = COMMAND_TIMEOUT,
        on_push: Push | None = None,
        on_cut: Callable[[], None] | None = None,
        *,
        numbered: bool = False,
    ) -> None:
        self._pool: Any = redis.connection_pool
        self._patience = patience
        self._on_push, self._on_cut = on_push, on_cut
        self._wire: _Wire | None = None
        self._opening: asyncio.Task[_Wire] | None = None
        self._numbered = numbered
        self.number: int | None = None

    async def execute(self, *words: Any) -> Any:
        """Send a command and return its reply, text as bytes.

        Raises:
            redis.exceptions.RedisError: Redis cannot be reached, refused the command, or does not answer.
        """
        wire = self._usable() or await self._open()
        return await wire.ask(_packed(words))

    async def tell(self, *words: Any) -> None:
        """Send a command of a subscriber, whose answers are pushes."""
        wire = self._usable() or await self._open()
        wire.write(_packed(words))

    async def close(self) -> None:
        """Close the connection; whoever waits for a reply gets an error."""
        opening, self._opening = self._opening, None
        if opening is not None and not opening.done():
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close(RedisConnectionError(CLOSED))
            await asyncio.sleep(0)  # the transport takes its leave in the next turn

    def _usable(self) -> _Wire | None:
        wire = self._wire
        return None if wire is None or wire.closed or wire.loop is not asyncio.get_running_loop() else wire

    async def _open(self) -> _Wire:
        loop = asyncio.get_running_loop()
        if self._wire is not None:
            with suppress(RuntimeError):  # its loop has been closed
                self._wire.close(RedisConnectionError(CUT))
            self._wire = None
        if self._opening is None or self._opening.done() or self._opening.get_loop() is not loop:
            self._opening = loop.create_task(self._connect(loop))
            self._opening.add_done_callback(_seen)
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if opening.cancelled() and not being_cancelled():
                raise RedisConnectionError(CLOSED) from None
            raise

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> _Wire:
        self.number = None
        connection: Any = self._pool.make_connection()
        connection.protocol = 2  # replies have the shapes of RESP2, whatever the client's own connections speak
        await connection.connect()
        if self._numbered:
            await connection.send_command("CLIENT", "ID")
            with suppress(ResponseError):
                self.number = await connection.read_response()
        writer = connection._writer  # noqa: SLF001 - redis-py lends its transport to nobody by another way
        connection._reader = connection._writer = None  # noqa: SLF001 - else it would close it
        self._wire = wire = _Wire(loop, writer, connection._parser.parse_error, self._patience)  # noqa: SLF001
        wire.on_push, wire.on_cut = self._on_push, self._on_cut
        writer.transport.set_protocol(wire)
        return wire


_shared: WeakKeyDictionary[Redis, Line] = WeakKeyDictionary()


def shared_line(redis: Redis) -> Line:
    """Return the line that all queues of a client share."""
    return _shared.setdefault(redis, Line(redis))


class _Wire(asyncio.Protocol):
    """One open connection: replies come in the order of the commands."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        writer: asyncio.StreamWriter,
        error: Callable[[str], Exception],
        patience: float,
    ) -> None:
        self.loop = loop
        self.closed = False
        self.on_push: Push | None = None
        self.on_cut: Callable[[], None] | None = None
        self._writer = writer  # which closes the transport when nobody holds it
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=error, notEnoughData=_Wire)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0
        self._seen: tuple[asyncio.Future[Any], int] | None = None
        self._looks = 0

    def write(self, command: bytes) -> None:
        if self.closed:  # it was cut between its handshake and its first command
            raise RedisConnectionError(CUT)
        try:
            self._writer.transport.write(command)
        except RuntimeError as error:  # uvloop closes a transport before it says so
            self.close(RedisConnectionError(CUT))
            raise RedisConnectionError(CUT) from error

    def ask(self, command: bytes) -> asyncio.Future[Any]:
        self.write(command)
        reply = self.loop.create_future()
        self._waiting.append(reply)
        if self._timer is None:
            self._look()
        return reply

    def data_received(self, data: bytes) -> None:
        self._heard += 1
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _Wire:
                if self.on_push is not None:
                    self.on_push(reply)
                else:
                    self._answer(waiting.popleft(), reply)
        except (InvalidResponse, IndexError) as error:
            self.close(RedisConnectionError(f"the server does not keep to its protocol: {error}"))

    def _answer(self, waiting: asyncio.Future[Any], reply: Any) -> None:
        if isinstance(reply, Exception):
            error = elsewhere(reply) if isinstance(reply, ELSEWHERE) else reply
            if not waiting.done():
                waiting.set_exception(error)
            if isinstance(reply, ReadOnlyError) or is_lasting(reply):  # there is another primary now: look for it
                self.close(RedisConnectionError(CUT))
        elif not waiting.done():
            waiting.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(RedisConnectionError(f"{CUT}: {exc}" if exc else CUT))

    def close(self, error: Exception) -> None:
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._writer.close()
        while self._waiting:
            reply = self._waiting.popleft()
            if not reply.done():
                reply.set_exception(error)
        if self.on_cut is not None:
            self.on_cut()

    def _look(self) -> None:
        """See whether the oldest request still waits in silence; one timer does for all of them."""
        if not self._waiting:
            self._timer = self._seen = None
            return
        seen = (self._waiting[0], self._heard)
        # Looks are counted, not seconds: a loop that was blocked has not heard what has come meanwhile.
        self._looks = self._looks + 1 if seen == self._seen else 0
        self._seen = seen
        if self._looks >= LOOKS:
            self.close(RedisTimeoutError(f"no reply within {self._patience:g} s"))
            return
        self._timer = self.loop.call_later(self._patience / LOOKS, self._look)


def text(raw: bytes) -> str:
    """Return what a server gave as text; bytes that are none come back as they were when it is sent."""
    return raw.decode("utf-8", "surrogateescape")


def _packed(words: tuple[Any, ...]) -> bytes:
    try:
        return cast("bytes", hiredis.pack_command(words))
    except UnicodeEncodeError:
        plain: Any = tuple(w.encode("utf-8", "surrogateescape") if isinstance(w, str) else w for w in words)
        return cast("bytes", hiredis.pack_command(plain))
    except TypeError as error:
        raise DataError(str(error)) from error


def _seen(task: asyncio.Task[_Wire]) -> None:
    """Look at a failed attempt to connect, whose callers may all have been cancelled."""
    if not task.cancelled():
        task.exception()
