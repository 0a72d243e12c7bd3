"""The manual as code: what to do when something goes wrong."""

from __future__ import annotations

import asyncio

import pytest

from knapsaq import Client, Context, Discard, JobFailedError, JobRevokedError, Registry, Retry
from knapsaq.testing import running_worker


async def test_a_task_that_raises_is_run_again_as_often_as_it_says(client: Client, registry: Registry) -> None:
    """``retries`` are further attempts after the first; the context counts them."""
    seen: list[int] = []

    @registry.task(retries=3, retry_delay=0)
    async def flaky(ctx: Context) -> str:
        seen.append(ctx.retries)
        if ctx.retries < 2:
            raise ConnectionError
        return "sent"

    async with running_worker(registry=registry):
        job = await flaky.enqueue()
        assert await job.wait(5) == "sent"
    assert seen == [0, 1, 2]
    assert job.attempts == 3


async def test_a_task_without_retries_is_run_once(client: Client, registry: Registry) -> None:
    """Nothing happens twice unless somebody said so."""
    seen: list[int] = []

    @registry.task
    async def fails() -> None:
        seen.append(1)
        raise ConnectionError

    async with running_worker(registry=registry):
        with pytest.raises(JobFailedError):
            await (await fails.enqueue()).wait(5)
    assert seen == [1]


async def test_only_some_errors_are_worth_another_attempt(client: Client, registry: Registry) -> None:
    """``retry_on`` names them, ``give_up_on`` takes some out again."""

    @registry.task(retries=1, retry_delay=0, retry_on=OSError, give_up_on=PermissionError)
    async def read(*, error: str) -> None:
        raise {"io": OSError, "permission": PermissionError, "key": KeyError}[error]

    attempts = {}
    async with running_worker(registry=registry):
        for error in ("io", "permission", "key"):
            job = await read.enqueue(error=error)
            with pytest.raises(JobFailedError):
                await job.wait(5)
            attempts[error] = job.attempts
    assert attempts == {"io": 2, "permission": 1, "key": 1}


async def test_a_task_asks_for_another_attempt_itself(client: Client, registry: Registry) -> None:
    """``raise ctx.retry(after=..., cause=...)`` or ``raise Retry(...)``, as a server's Retry-After tells."""

    @registry.task
    async def charge(ctx: Context) -> str:
        if ctx.retries == 0:
            raise Retry(after=0.01)
        if ctx.retries == 1:
            raise ctx.retry(after=0.01, cause=ConnectionError("busy"))
        return "charged"

    async with running_worker(registry=registry):
        assert await (await charge.enqueue()).wait(5) == "charged"


async def test_the_seeds_pattern_of_retrying_in_an_except_block(client: Client, registry: Registry) -> None:
    """After the last attempt the job's error is what went wrong, not that somebody wanted to retry."""

    @registry.task(retries=1)
    async def send_email(ctx: Context, user_email: str) -> None:
        try:
            raise ConnectionError(user_email)  # noqa: TRY301 - as the seed has it
        except Exception as exc:
            raise ctx.retry(after=0, cause=exc) from exc

    async with running_worker(registry=registry):
        job = await send_email.enqueue("a@b.c")
        with pytest.raises(JobFailedError, match=r"ConnectionError: a@b\.c"):
            await job.wait(5)
    assert job.attempts == 2


async def test_work_that_became_pointless_is_discarded(client: Client, registry: Registry) -> None:
    """It is no failure and is not retried; people see why."""

    @registry.task(retries=3)
    async def remind() -> None:
        raise Discard("the user is gone")

    async with running_worker(registry=registry):
        job = await remind.enqueue()
        with pytest.raises(JobRevokedError, match="discarded: the user is gone"):
            await job.wait(5)
    assert job.attempts == 1


async def test_an_attempt_has_a_time_limit(client: Client, registry: Registry) -> None:
    """The task is cancelled and may clean up; the limit can be changed for one call."""
    cleaned: list[str] = []

    @registry.task(timeout=60)
    async def heavy_processing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    async with running_worker(registry=registry):
        job = await heavy_processing.using(timeout=0.02).enqueue()
        with pytest.raises(JobFailedError, match=r"ran over its limit of 0\.02 s"):
            await job.wait(5)
    assert cleaned == ["up"]


async def test_one_jobs_failure_harms_no_other(client: Client, registry: Registry) -> None:
    """Not even one that wants to leave the process."""

    @registry.task
    async def leave() -> None:
        raise SystemExit(1)

    @registry.task
    async def stay() -> str:
        return "here"

    async with running_worker(registry=registry):
        with pytest.raises(JobFailedError, match="SystemExit"):
            await (await leave.enqueue()).wait(5)
        assert await (await stay.enqueue()).wait(5) == "here"
