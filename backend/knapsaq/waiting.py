"""Waiting: how callers hear that a job has changed.

Where in the flow: ``Job.wait`` subscribes to the job's channel, looks at the record, and
looks again at each push. One connection serves all waiters of a queue, and waiters
of one turn of the loop subscribe together.

Invariants, each a test in ``tests/redis/test_waiting.py``:

* a job that ends between the look and the subscription is not missed, as the subscription comes first;
* a line that was cut is mended, and everybody looks again;
* nobody left waiting means no channel and no connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from knapsaq.batching import Batcher, being_cancelled

SUBSCRIBED_A_CALL = 1000
MENDED_AFTER = 0.5  # seconds
READ_SECONDS = 5.0
CONFIRMED_SECONDS = 2.0  # that a waiter waits for its subscription before it looks all the same


class Pushes:
    """Tells waiters of a queue when a channel has news.

    Args:
        redis: The connection pool; one connection is taken from it while somebody waits.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._line: tuple[Any, asyncio.Task[None]] | None = None
        self._changing = asyncio.Lock()  # subscriptions change one after the other
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._confirmed: dict[str, asyncio.Event] = {}
        self._subscribe = Batcher(self._subscribe_all, SUBSCRIBED_A_CALL)
        self._leaving: set[asyncio.Task[None]] = set()
        self._refusal: ResponseError | None = None

    @asynccontextmanager
    async def on(self, channel: str) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set at each push to ``channel`` from now on, and when the line was cut.

        Raises:
            redis.exceptions.RedisError: Redis cannot be reached.
        """
        news = asyncio.Event()
        self._waiters.setdefault(channel, set()).add(news)
        try:
            if channel not in self._confirmed:
                self._confirmed[channel] = asyncio.Event()
                try:
                    await self._subscribe.ask(channel)
                except BaseException:
                    self._confirmed.pop(channel, None)
                    raise
            with suppress(TimeoutError):
                async with asyncio.timeout(CONFIRMED_SECONDS):
                    if confirmed := self._confirmed.get(channel):
                        await confirmed.wait()
            if self._refusal is not None:
                raise self._refusal
            yield news
        finally:
            self._waiters[channel].discard(news)
            if not self._waiters[channel]:
                del self._waiters[channel]
                leaving = asyncio.create_task(self._leave(channel))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """End the connection; whoever still waits looks for itself."""
        await asyncio.gather(*self._leaving, return_exceptions=True)
        async with self._changing:
            await self._hang_up()
        self._tell_everybody()

    async def _subscribe_all(self, channels: Sequence[str]) -> Sequence[None]:
        async with self._changing:
            if self._line is None:
                pubsub: Any = self._redis.pubsub()
                await pubsub.subscribe(*channels)
                self._line = pubsub, asyncio.create_task(self._read(pubsub))
            else:
                await self._line[0].subscribe(*channels)
        return [None] * len(channels)

    async def _leave(self, channel: str) -> None:
        async with self._changing:
            if channel in self._waiters:
                return
            self._confirmed.pop(channel, None)
            if not self._waiters:
                await self._hang_up()
            elif self._line is not None:
                with suppress(RedisError, OSError):
                    await self._line[0].unsubscribe(channel)

    async def _hang_up(self) -> None:
        line, self._line = self._line, None
        self._refusal = None
        self._confirmed.clear()
        if line is not None:
            pubsub, reader = line
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await pubsub.aclose()

    async def _read(self, pubsub: Any) -> None:
        while not being_cancelled():
            try:
                message = await pubsub.get_message(timeout=READ_SECONDS)
            except ResponseError as error:  # as where the user may not subscribe
                self._refusal = error
                for confirmed in self._confirmed.values():
                    confirmed.set()
                return
            except (RedisError, OSError):
                # redis-py connects and subscribes again with the next read.
                self._tell_everybody()
                await asyncio.sleep(MENDED_AFTER)
                continue
            if message is None:
                continue
            channel = message["channel"].decode()
            if message["type"] == "subscribe" and channel in self._confirmed:
                self._confirmed[channel].set()
            for news in self._waiters.get(channel, ()):
                news.set()

    def _tell_everybody(self) -> None:
        for waiters in self._waiters.values():
            for news in waiters:
                news.set()
