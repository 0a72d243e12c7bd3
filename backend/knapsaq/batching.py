"""Batching: requests of one turn of the event loop share one call.

A hundred coroutines that enqueue at once then cost one round trip, and one that enqueues alone costs no more than
without: it goes out at once, unless another request is on its way or the one before it had company.

Invariants, each a test in ``tests/unit/test_batching.py``: requests go out in the order in which they came, those of
``ask_all`` too; a caller that is cancelled disturbs no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class Batcher(Generic[Request, Answer]):
    """Answers requests, all of a turn of the loop with one call.

    Args:
        call: Takes requests and returns their answers in the same order. What it raises goes to each caller.
        limit: How many requests a call may carry, or how much weight; a heavier one goes alone.
        weight: What a request counts for; 1 unless given.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Request]], Awaitable[Sequence[Answer]]],
        limit: int,
        weight: Callable[[Request], float] = lambda _request: 1,
    ) -> None:
        self._call = call
        self._limit = limit
        self._weight = weight
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._had_company = True
        self._under_way = 0
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, request: Request) -> Answer:
        """Return the answer to a request; a caller that is cancelled does not disturb the others."""
        if not (self._waiting or self._under_way or self._had_company):
            return (await self._counted([request]))[0]
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        mine = (request, answer)
        self._waiting.append(mine)
        if len(self._waiting) > 1:
            return await answer
        try:
            await asyncio.sleep(0)  # whoever asks in this turn comes along
        except asyncio.CancelledError:
            answer.cancel()
            raise
        finally:
            self._had_company = len(self._waiting) > 1
            batch, self._waiting = [one for one in self._waiting if not one[1].cancelled()], []
            if batch != [mine]:
                self._send(batch)
        return (await self._counted([request]))[0] if batch == [mine] else await answer

    async def ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers to requests, with no more calls than are needed."""
        calls = []
        self._under_way += 1
        try:
            for part in self._parts(requests, lambda request: request):
                calls.append(asyncio.ensure_future(self._call(part)))
                await asyncio.sleep(0)  # it is under way while the next one is made
            return [answer for answers in await asyncio.gather(*calls) for answer in answers]
        finally:
            self._under_way -= 1

    def _send(self, batch: list[tuple[Request, asyncio.Future[Answer]]]) -> None:
        for part in self._parts(batch, lambda one: one[0]):
            call = asyncio.create_task(self._answer(part))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def _parts(self, items: Sequence[Item], request_of: Callable[[Item], Request]) -> Iterator[list[Item]]:
        """Yield runs of items, each as much as a call may carry."""
        part: list[Item] = []
        carried = 0.0
        for item in items:
            weight = self._weight(request_of(item))
            if part and carried + weight > self._limit:
                yield part
                part, carried = [], 0.0
            part.append(item)
            carried += weight
        if part:
            yield part

    async def _counted(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Make a call, during which nothing goes out at once."""
        self._under_way += 1
        try:
            return await self._call(requests)
        finally:
            self._under_way -= 1

    async def _answer(self, batch: list[tuple[Request, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._counted([request for request, _ in batch])
        except BaseException as error:  # noqa: BLE001 - each caller gets it, cancellation too
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), value in zip(batch, answers, strict=True):
            if not answer.done():
                answer.set_result(value)


def being_cancelled() -> bool:
    """Tell whether this task was told to end; redis-py may turn the order into an error of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call a function in a loop's own thread; nothing happens if the loop has been closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function)
