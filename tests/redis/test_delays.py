"""Delays of every kind are kept to the millisecond, and a delayed job runs once however it comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support import left_behind, lists

from knapsaq import Client, Job, Queue, Registry, Settings, connect
from knapsaq.outcomes import Released, Retried, Succeeded
from knapsaq.registry import AnyTask
from knapsaq.testing import ManualClock

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
TICK = timedelta(milliseconds=1)
DELAY = timedelta(milliseconds=1234)


@pytest.fixture
def clock() -> ManualClock:
    """Noon."""
    return ManualClock(NOON)


@pytest.fixture
async def client(settings: Settings, registry: Registry, clock: ManualClock) -> AsyncIterator[Client]:
    """A connection that goes by the clock, with an empty server behind it."""
    async with connect(settings, registry=registry, clock=clock) as client:
        await client.queue().redis.flushall()
        yield client


Send = Callable[[AnyTask], Awaitable[Job[Any]]]
WAYS: dict[str, Send] = {
    "delay": lambda echo: echo.using(delay=DELAY).enqueue(text="hi"),
    "eta": lambda echo: echo.using(eta=NOON + DELAY).enqueue(text="hi"),
    "countdown": lambda echo: echo.apply_async(kwargs={"text": "hi"}, countdown=1.234),
}


class TestPrecision:
    @pytest.mark.parametrize("way", WAYS)
    async def test_a_delayed_job_may_run_at_its_very_millisecond(
        self, queue: Queue, echo: AnyTask, clock: ManualClock, way: str
    ) -> None:
        """And not one before."""
        await WAYS[way](echo)
        clock.advance(DELAY - TICK)
        assert await queue.claim(1, worker="w") == []
        clock.advance(TICK)
        assert len(await queue.claim(1, worker="w")) == 1

    @pytest.mark.parametrize("outcome", [Retried("no luck", 1.234), Released("later", 1.234)])
    async def test_so_may_a_retry(
        self, queue: Queue, echo: AnyTask, clock: ManualClock, outcome: Retried | Released
    ) -> None:
        """Whether it spends an attempt or not."""
        await echo.enqueue(text="hi")
        [claim] = await queue.claim(1, worker="w")
        await queue.settle(claim, outcome, worker="w")
        clock.advance(DELAY - TICK)
        assert await queue.claim(1, worker="w") == []
        clock.advance(TICK)
        assert len(await queue.claim(1, worker="w")) == 1

    @pytest.mark.parametrize("eta", [NOON, NOON - TICK, datetime(1969, 1, 1, tzinfo=UTC)])
    async def test_a_moment_that_has_passed_is_now(self, queue: Queue, echo: AnyTask, eta: datetime) -> None:
        """However long ago."""
        await echo.using(eta=eta).enqueue(text="hi")
        assert len(await queue.claim(1, worker="w")) == 1


class TestOnce:
    @pytest.mark.parametrize("after", [0.0, 5.0])
    async def test_a_delayed_job_that_is_retried_runs_once_for_it(
        self, queue: Queue, echo: AnyTask, clock: ManualClock, after: float
    ) -> None:
        """Its due time has passed, and does not count again."""
        await echo.using(delay=1).enqueue(text="hi")
        clock.advance(1)
        [claim] = await queue.claim(5, worker="w")
        await queue.settle(claim, Retried("again", after), worker="w")
        clock.advance(after)
        [again] = await queue.claim(5, worker="w")
        clock.advance(60)
        assert await queue.claim(5, worker="w") == []
        assert len((await lists(queue))["active"]) == 1
        await queue.settle(again, Succeeded("done"), worker="w")
        clock.advance(60)
        assert await queue.claim(5, worker="w") == []
        assert await left_behind(queue) == []
