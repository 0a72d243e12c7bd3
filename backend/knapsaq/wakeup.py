"""Wakeup: how an idle worker hears at once that there is work.

A push to the queue ends a blocking call; a new due time or an abort comes over a
channel. While either line is down, and for jobs that programs of SAQ delay, the thread of the lease looks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from redis.exceptions import RedisError

from knapsaq.queue import Queue
from knapsaq.redis.line import COMMAND_TIMEOUT, Line

BLOCK_SECONDS = 30
"""How long an idle worker waits for a push before it looks for itself."""
PAUSE = 0.2  # seconds until the next look after the line was cut


class Wakeup:
    """Sets an event when a queue may have work for its worker.

    Args:
        queue: The queue.
        signal: The event.
    """

    def __init__(self, queue: Queue, signal: asyncio.Event) -> None:
        self._queue = queue
        self._signal = signal
        self._watching: asyncio.Task[None] | None = None
        self._blocking = Line(queue.redis, patience=BLOCK_SECONDS + COMMAND_TIMEOUT)
        self._cut = asyncio.Event()
        self._channel = Line(queue.redis, on_push=self._take, on_cut=self._cut.set)

    async def listen(self) -> None:
        """Hear of new due times and aborts, until cancelled."""
        # The answer to `subscribe` sets the signal too: what was said before the line was up has to be looked for.
        while True:
            self._cut.clear()
            await self._channel.tell("SUBSCRIBE", self._queue.keys.wake)
            await self._cut.wait()

    def watch(self) -> None:
        """Hear of the next push; nothing happens while the last watch still stands."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._wait_for_push())

    async def close(self) -> None:
        """End the watch."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._blocking.close()
        await self._channel.close()

    async def _wait_for_push(self) -> None:
        queued = self._queue.keys.queued
        try:
            # From the queue to the same end of the queue: nothing moves, but the call blocks while it is empty.
            await self._blocking.execute("BLMOVE", queued, queued, "LEFT", "LEFT", BLOCK_SECONDS)
        except (RedisError, OSError):
            await asyncio.sleep(PAUSE)
        self._signal.set()

    def _take(self, _push: object) -> None:
        self._signal.set()


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call a function in a loop's own thread; nothing happens if the loop has been closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)
