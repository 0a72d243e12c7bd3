"""Batching: requests of one turn of the event loop share one call.

A hundred coroutines that enqueue at once then cost one round trip, and one that
enqueues alone costs no more than without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Batcher(Generic[Request, Answer]):
    """Answers requests, all of a turn of the loop with one call.

    Args:
        call: Takes requests and returns their answers in the same order. What it raises goes to each caller.
        limit: How many requests a call may carry.
    """

    def __init__(self, call: Callable[[Sequence[Request]], Awaitable[Sequence[Answer]]], limit: int) -> None:
        self._call = call
        self._limit = limit
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, request: Request) -> Answer:
        """Return the answer to a request; a caller that is cancelled does not disturb the others."""
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
            batch, self._waiting = [one for one in self._waiting if not one[1].cancelled()], []
            if batch != [mine]:
                self._send(batch)
        return (await self._call([request]))[0] if batch == [mine] else await answer

    def _send(self, batch: list[tuple[Request, asyncio.Future[Answer]]]) -> None:
        for start in range(0, len(batch), self._limit):
            call = asyncio.create_task(self._answer(batch[start : start + self._limit]))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _answer(self, batch: list[tuple[Request, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._call([request for request, _ in batch])
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
