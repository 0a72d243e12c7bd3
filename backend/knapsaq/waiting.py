"""Waiting: how callers hear that a job has changed.

Where in the flow: ``Job.wait`` subscribes to the job's channel, looks whether it has ended, and looks again when
its end is pushed. One connection serves all waiters of a queue, and waiters of one turn of the loop subscribe together.

Invariants, each a test in ``tests/redis/test_waiting.py``:

* a job that ends between the look and the subscription is not missed, as the subscription comes first;
* a line that was cut is mended, and everybody looks again;
* nobody left waiting means no channel.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from knapsaq.batching import Batcher
from knapsaq.redis.line import Line

SUBSCRIBED_A_CALL = 1000
MENDED_AFTER = 0.5  # seconds
LOOK_SECONDS = 10.0  # until waiters look for themselves, should a push have been lost


class News:
    """What a waiter has heard: channel and text of each push; the text is empty where it should look for itself."""

    __slots__ = ("_heard", "_waiting")

    def __init__(self) -> None:
        self._heard: deque[tuple[str, bytes]] = deque()
        self._waiting: asyncio.Future[None] | None = None

    def tell(self, channel: str, text: bytes) -> None:
        """Add a push."""
        self._heard.append((channel, text))
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def get(self) -> tuple[str, bytes]:
        """Return the oldest push that has not been taken yet, or wait for one."""
        while not self._heard:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        return self._heard.popleft()

    async def newest(self) -> bytes:
        """Take all pushes, or wait for one, and return the text of the newest that has one."""
        _, text = await self.get()
        while self._heard:
            text = self._heard.popleft()[1] or text
        return text


class _Channel:
    """Who listens to a channel, and who waits until the server has confirmed it."""

    __slots__ = ("confirmed", "listeners", "overdue", "pending")

    def __init__(self) -> None:
        self.confirmed = self.overdue = False
        self.listeners: list[News] = []
        self.pending: list[asyncio.Future[None]] = []

    def settle(self, error: Exception | None = None) -> None:
        """Tell those who wait for the confirmation."""
        for future in self.pending:
            if not future.done():
                future.set_result(None) if error is None else future.set_exception(error)
        self.pending.clear()


class Pushes:
    """Tells waiters of a queue when a channel has news.

    Args:
        redis: Whose address and login to use; one connection is opened with the first waiter.
    """

    def __init__(self, redis: Redis) -> None:
        self._line = Line(redis, on_push=self._take, on_cut=self._cut)
        self._channels: dict[str, _Channel] = {}
        self._subscribe = Batcher(self._subscribe_all, SUBSCRIBED_A_CALL)
        self._left: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def on(self, *channels: str) -> AsyncIterator[News]:
        """Yield what is pushed to some channels from now on.

        Raises:
            redis.exceptions.RedisError: Redis cannot be reached, or forbids it.
        """
        news = News()
        try:
            for name in channels[1:]:
                await self._listen(name, news)
            await self._listen(channels[0], news)
            yield news
        finally:
            for name in channels:
                self._leave(name, news)

    async def close(self) -> None:
        """End the connection; for those who still wait, it is a cut like any other."""
        if self._looking is not None and not self._channels:
            self._looking.cancel()
            self._looking = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._line.close()

    async def _listen(self, name: str, news: News) -> None:
        loop = asyncio.get_running_loop()
        channel = self._channels.get(name)
        is_new = channel is None
        if channel is None:
            channel = self._channels[name] = _Channel()
            if self._looking is None:
                self._looking = loop.call_later(LOOK_SECONDS, self._look)
        channel.listeners.append(news)
        if channel.confirmed:
            return
        confirmation = loop.create_future()
        channel.pending.append(confirmation)
        if is_new:
            try:
                await self._subscribe.ask(name)
            except asyncio.CancelledError:
                confirmation.cancel()
                self._begin(self._ask_for_others(name, channel))
                raise
            except BaseException as error:
                confirmation.cancel()
                channel.settle(RedisConnectionError(f"nobody has subscribed: {error}"))
                raise
        await confirmation

    async def _ask_for_others(self, name: str, channel: _Channel) -> None:
        """Subscribe in place of a listener that was cancelled on the way, if others wait for it."""
        if self._channels.get(name) is channel:
            try:
                await self._subscribe.ask(name)
            except (RedisError, OSError) as error:
                channel.settle(RedisConnectionError(f"nobody has subscribed: {error}"))

    async def _subscribe_all(self, names: Sequence[str]) -> Sequence[None]:
        await self._line.tell("SUBSCRIBE", *names)
        await asyncio.sleep(0)  # as any call does, so that others of this turn come along with the next one
        return [None] * len(names)

    def _leave(self, name: str, news: News) -> None:
        channel = self._channels.get(name)
        if channel is None or news not in channel.listeners:
            return
        channel.listeners.remove(news)
        if not channel.listeners:
            del self._channels[name]
            self._left.append(name)
            if len(self._left) == 1:
                self._begin(self._unsubscribe())

    async def _unsubscribe(self) -> None:
        names, self._left = [name for name in self._left if name not in self._channels], []
        if names:
            with suppress(RedisError, OSError):
                await self._line.tell("UNSUBSCRIBE", *names)

    def _begin(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take(self, push: Any) -> None:
        if isinstance(push, Exception):  # as where the user may not subscribe
            for channel in self._channels.values():
                channel.settle(push)
            return
        kind, name, text = push[0], push[1].decode(), push[2]
        found = self._channels.get(name)
        if found is None or kind == b"unsubscribe":
            return
        if kind == b"subscribe":
            if not found.confirmed:
                found.confirmed = True
                found.settle()
                return
            text = b""
        for news in found.listeners:
            news.tell(name, text)

    def _cut(self) -> None:
        if self._channels:
            self._tell_everybody()
            self._take(RedisConnectionError("the line of those who wait was cut"))
            self._begin(self._mend())

    async def _mend(self) -> None:
        while self._channels:
            await asyncio.sleep(MENDED_AFTER)
            with suppress(RedisError, OSError):
                if names := list(self._channels):
                    await self._subscribe_all(names)
                return

    def _look(self) -> None:
        self._tell_everybody()
        channels = self._channels.values()
        if any(channel.overdue and not channel.confirmed for channel in channels):
            self._begin(self._line.close())  # the line is dead; a cut like any other
        for channel in channels:
            channel.overdue = True
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(LOOK_SECONDS, self._look) if self._channels else None

    def _tell_everybody(self) -> None:
        for name, channel in self._channels.items():
            for news in channel.listeners:
                news.tell(name, b"")


_shared: WeakKeyDictionary[Redis, Pushes] = WeakKeyDictionary()


def shared_pushes(redis: Redis) -> Pushes:
    """Return what all queues of a client share."""
    return _shared.setdefault(redis, Pushes(redis))
