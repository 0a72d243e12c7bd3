from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from knapsaq.batching import Batcher


class Calls:
    """A call that notes what it is asked, and may be held up or fail."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.error: Exception | None = None
        self.began, self.open = asyncio.Event(), asyncio.Event()
        self.open.set()

    async def __call__(self, requests: Sequence[int]) -> Sequence[int]:
        """Answer each request tenfold."""
        self.began.set()
        self.seen.append(list(requests))
        await asyncio.sleep(0)  # a call takes longer than a turn
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [10 * request for request in requests]


async def test_requests_of_one_turn_share_a_call() -> None:
    """Each caller gets its own answer."""
    calls = Calls()
    batcher = Batcher(calls, 100)
    assert await asyncio.gather(*(batcher.ask(number) for number in range(5))) == [0, 10, 20, 30, 40]
    assert calls.seen == [[0, 1, 2, 3, 4]]


async def test_a_call_carries_no_more_than_its_limit() -> None:
    """More requests make more calls, and no request is lost or asked twice."""
    calls = Calls()
    batcher = Batcher(calls, 2)
    assert await asyncio.gather(*(batcher.ask(number) for number in range(5))) == [0, 10, 20, 30, 40]
    assert [len(call) for call in calls.seen] == [2, 2, 1]


async def test_a_lone_request_goes_out_by_itself() -> None:
    """It waits for nobody."""
    calls = Calls()
    batcher = Batcher(calls, 100)
    assert [await batcher.ask(1), await batcher.ask(2)] == [10, 20]
    assert calls.seen == [[1], [2]]


async def test_after_a_lone_request_only_the_first_of_many_goes_out_by_itself() -> None:
    """Those that come while it is on its way share a call, and from then on all of a turn do."""
    calls = Calls()
    batcher = Batcher(calls, 100)
    await batcher.ask(7)
    for _ in range(2):
        assert await asyncio.gather(*(batcher.ask(number) for number in range(4))) == [0, 10, 20, 30]
    assert calls.seen == [[7], [0], [1, 2, 3], [0, 1, 2, 3]]


async def test_a_lone_request_does_not_wait_for_the_end_of_its_turn() -> None:
    """What it asks for is on its way before anything else of the loop gets its turn."""
    calls = Calls()
    batcher = Batcher(calls, 100)
    await batcher.ask(1)
    asking = batcher.ask(2)
    asking.send(None)
    assert calls.seen == [[1], [2]]
    asking.close()


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_request_does_not_overtake_many_that_came_before(turns: int) -> None:
    """Those of ``ask_all`` leave a turn later than it is called, and a lone one waits for them."""
    calls = Calls()
    batcher = Batcher(calls, 100)
    await batcher.ask(0)
    many = asyncio.create_task(batcher.ask_all([1, 2]))
    for _ in range(turns):
        await asyncio.sleep(0)
    lone = asyncio.create_task(batcher.ask(3))
    await asyncio.gather(many, lone)
    assert calls.seen == [[0], [1, 2], [3]]


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
async def test_a_cancelled_caller_takes_nobody_along(place: int) -> None:
    """Whoever of a batch is cancelled, the others are answered."""
    calls = Calls()
    batcher = Batcher(calls, 100)
    callers = [asyncio.create_task(batcher.ask(number)) for number in range(3)]
    await asyncio.sleep(0)
    callers[place].cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(answers.pop(place), asyncio.CancelledError)
    assert answers == [10 * number for number in range(3) if number != place]


async def test_a_caller_cancelled_while_the_call_is_under_way_takes_nobody_along() -> None:
    """The call belongs to no single caller."""
    calls = Calls()
    calls.open.clear()
    batcher = Batcher(calls, 100)
    callers = [asyncio.create_task(batcher.ask(number)) for number in range(2)]
    await calls.began.wait()
    callers[0].cancel()
    calls.open.set()
    assert await callers[1] == 10


async def test_what_a_call_raises_goes_to_each_caller_and_the_next_call_is_made_afresh() -> None:
    """An error of one turn is not remembered."""
    calls = Calls()
    calls.error = ValueError("away")
    batcher = Batcher(calls, 100)
    answers = await asyncio.gather(batcher.ask(1), batcher.ask(2), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["away", "away"]
    calls.error = None
    assert await batcher.ask(3) == 30
