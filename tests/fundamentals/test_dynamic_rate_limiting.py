"""Seed: "Dynamic Rate Limiting". The server says when to come back, and the job is put off for exactly as long."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.support import eventually

from knapsaq import Client, Context, Job, JobFailedError, Registry, Settings, Snooze, connect
from knapsaq.testing import ManualClock, running_worker


class RateLimitError(Exception):
    """The server's 429."""

    def __init__(self, retry_after: int | None) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class Api:
    """A server that is asked too often.

    Args:
        refusals: Its first answers: what each says of when to come back.
    """

    def __init__(self, *refusals: int | None) -> None:
        self.refusals = list(refusals)
        self.calls = 0

    async def call(self, endpoint: str) -> str:
        """Answer."""
        self.calls += 1
        if self.refusals:
            raise RateLimitError(self.refusals.pop(0))
        return f"answer of {endpoint}"


@pytest.fixture
async def at(settings: Settings, registry: Registry, client: Client, clock: ManualClock) -> AsyncIterator[ManualClock]:
    """A clock by which a worker goes."""

    @registry.task
    async def nothing() -> None: ...

    async with connect(settings, registry=registry, clock=clock):
        yield clock


async def put_back(job: Job[str], api: Api, calls: int) -> None:
    """Wait until the server has been asked so often, and the job waits again."""

    async def waits() -> bool:
        return api.calls == calls and await job.get_queue().count("active") == 0

    await eventually(waits)


async def pass_by(clock: ManualClock, seconds: float, registry: Registry) -> None:
    """Let time pass, and the worker look at the clock."""
    clock.advance(seconds)
    await (await registry.get("nothing").enqueue()).wait(5)


async def test_a_task_backs_off_for_as_long_as_the_server_says(registry: Registry, at: ManualClock) -> None:
    """And for a minute where it says nothing; one that asks for retries itself need not be given a number of them."""
    api = Api(30, None)

    @registry.task
    async def api_call_task(ctx: Context, endpoint: str) -> str:
        try:
            return await api.call(endpoint)
        except RateLimitError as exc:
            raise ctx.retry(after=exc.retry_after or 60, cause=exc) from exc

    async with running_worker(registry=registry):
        job = await api_call_task.enqueue("/users")
        await put_back(job, api, calls=1)
        await pass_by(at, 29.9, registry)
        assert api.calls == 1
        await pass_by(at, 0.2, registry)
        await put_back(job, api, calls=2)
        await pass_by(at, 59.8, registry)
        assert api.calls == 2
        await pass_by(at, 0.3, registry)
        assert await job.wait(5) == "answer of /users"
    assert job.attempts == 3


async def test_after_the_last_attempt_the_error_is_the_servers(registry: Registry, at: ManualClock) -> None:
    """Not that somebody wanted to retry."""
    api = Api(0, 0)

    @registry.task(retries=1)
    async def api_call_task(ctx: Context, endpoint: str) -> str:
        try:
            return await api.call(endpoint)
        except RateLimitError as exc:
            raise ctx.retry(after=0, cause=exc) from exc

    async with running_worker(registry=registry):
        with pytest.raises(JobFailedError, match="RateLimitError"):
            await (await api_call_task.enqueue("/users")).wait(5)
    assert api.calls == 2


async def test_a_snooze_leaves_the_retries_for_real_errors(registry: Registry, at: ManualClock) -> None:
    """What Celery has no word for: to be told to come back later is no failure, however often it happens."""
    api = Api(30, 30, 30)

    @registry.task(retries=0)
    async def api_call_task(endpoint: str) -> str:
        try:
            return await api.call(endpoint)
        except RateLimitError as exc:
            raise Snooze(after=exc.retry_after or 60) from exc

    async with running_worker(registry=registry):
        job = await api_call_task.enqueue("/users")
        for calls in (1, 2, 3):
            await put_back(job, api, calls)
            await pass_by(at, 30.1, registry)
        assert await job.wait(5) == "answer of /users"
    assert job.attempts == 1
