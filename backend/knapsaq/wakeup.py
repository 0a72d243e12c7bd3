"""Wakeup: how an idle worker hears at once that there is work.

A push to the queue ends a blocking call; a new due time or an abort comes over a
channel. While either line is down, and for jobs that programs of SAQ delay, the thread of the lease looks.

A worker that runs nothing sends the claim behind the blocking call, over the same connection: the server keeps it
until the push and answers both, so the job comes without a further round trip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from redis.exceptions import RedisError

from knapsaq.claims import Advance, Claim
from knapsaq.queue import Queue
from knapsaq.redis.line import COMMAND_TIMEOUT, Line

BLOCK_SECONDS = 30
"""How long an idle worker waits for a push before it looks for itself."""
PAUSE = 0.2  # seconds until the next look after the line was cut
UNBLOCKED_SECONDS = 0.05  # until a blocking call is ended once more: it may have been on its way
UNBLOCKED_TIMES = 40


class Wakeup:
    """Sets an event when a queue may have work for its worker.

    Args:
        queue: The queue.
        signal: The event.
        on_schedules: Takes what is said of schedules; nothing, when something may have been said that was not heard.
        on_relay: Called when there may be something to relay.
    """

    def __init__(
        self,
        queue: Queue,
        signal: asyncio.Event,
        on_schedules: Callable[[bytes], None] = lambda _message: None,
        on_relay: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue = queue
        self._on_schedules, self._on_relay = on_schedules, on_relay
        self.signal = signal
        self._watching: asyncio.Task[None] | None = None
        self._ahead: asyncio.Task[Advance | None] | None = None
        self._blocking = Line(queue.redis, patience=BLOCK_SECONDS + COMMAND_TIMEOUT, numbered=True)
        self._blocks = False
        self._cut = asyncio.Event()
        self._channel = Line(queue.redis, on_push=self._take, on_cut=self._cut.set)

    async def listen(self) -> None:
        """Hear of new due times, aborts and schedules, until cancelled."""
        # The answer to `subscribe` sets the signal too: what was said before the line was up has to be looked for.
        while True:
            self._cut.clear()
            await self._channel.tell("SUBSCRIBE", self._queue.keys.wake, self._queue.keys.schedules_wake)
            await self._cut.wait()

    def watch(self) -> None:
        """Hear of the next push; nothing happens while the last watch still stands."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._wait_for_push())

    def claim_ahead(self, worker: str) -> asyncio.Task[Advance | None]:
        """Claim a job as soon as there is one, which sets the event; None where the answer was lost."""
        self.watch()
        self._ahead = asyncio.create_task(self._claim_behind(worker))
        return self._ahead

    async def claim_one(self, worker: str, timeout: float) -> Claim | None:
        """Claim a job, or return None if there is none within so many seconds."""
        end = (loop := asyncio.get_running_loop()).time() + timeout
        while not (claims := await self._queue.claim(1, worker=worker)) and loop.time() < end:
            self.signal.clear()
            self.watch()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(BLOCK_SECONDS, end - loop.time())):
                    await self.signal.wait()
        return claims[0] if claims else None

    async def unblock(self) -> None:
        """End the watch, and with it the claim behind it."""
        try:
            async with asyncio.timeout(UNBLOCKED_SECONDS * UNBLOCKED_TIMES):
                while self._ahead is not None and not self._ahead.cancelled():
                    if self._ahead.done():
                        return
                    if (number := self._blocking.number) is not None:
                        await self._queue.line.execute("CLIENT", "UNBLOCK", number)
                    await asyncio.wait({self._ahead}, timeout=UNBLOCKED_SECONDS)
        except (RedisError, OSError):
            pass  # Redis is away, or hangs
        await self._blocking.close()
        if self._ahead is not None:
            await asyncio.wait({self._ahead})

    async def close(self) -> None:
        """End the watch."""
        tasks = [task for task in (self._watching, self._ahead) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._blocking.close()
        await self._channel.close()

    async def _wait_for_push(self) -> None:
        queued = self._queue.keys.queued
        self._blocks = True
        try:
            # From the queue to the same end of the queue: nothing moves, but the call blocks while it is empty.
            await self._blocking.execute("BLMOVE", queued, queued, "LEFT", "LEFT", BLOCK_SECONDS)
        except (RedisError, OSError):
            self._blocks = False
            await asyncio.sleep(PAUSE)
        if self._ahead is None or self._ahead.done():
            self.signal.set()

    async def _claim_behind(self, worker: str) -> Advance | None:
        if not self._blocks:  # nothing would hold the claim back, and a full server would be asked without pause
            await asyncio.sleep(PAUSE)
        try:
            return await self._queue.advance(worker, [], -1, self._blocking)
        except (RedisError, OSError):
            await asyncio.sleep(PAUSE)
            return None
        finally:
            self.signal.set()

    def _take(self, push: object) -> None:
        match push:
            case [_, channel, message] if channel == self._queue.keys.schedules_wake.encode():
                self._on_schedules(message if isinstance(message, bytes) else b"")
            case [b"message", _, b"relay"]:
                self._on_relay()
            case [b"subscribe", *_]:
                self._on_relay()
                self.signal.set()
            case _:
                self.signal.set()
