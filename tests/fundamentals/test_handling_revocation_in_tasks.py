"""Seed: "Handling Revocation in Tasks". A task that is revoked cleans up and ends."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from tests import process_tasks
from tests.support import eventually

from knapsaq import Client, Context, JobRevokedError, Registry, Settings, connect
from knapsaq.testing import make_context, running_worker


async def test_a_plain_function_asks_between_two_items(client: Client, registry: Registry) -> None:
    """The seed's loop: a look at a flag, as often as it likes; what it returns does not count."""
    done: list[int] = []
    cleaned_up: list[str] = []
    begun = threading.Event()

    @registry.task
    def cancelable_task(ctx: Context, items: list[int]) -> int:
        for item in items:
            if ctx.is_aborted():
                ctx.logger.info("Task was revoked, cleaning up")
                cleaned_up.append(ctx.id)
                return len(done)
            begun.set()
            time.sleep(0.001)
            done.append(item)
        return len(items)

    async with running_worker(registry=registry):
        job = await cancelable_task.enqueue(list(range(60_000)))
        await eventually(begun.is_set)
        await job.revoke(reason="not needed")
        with pytest.raises(JobRevokedError, match="not needed"):
            await job.wait(10)
    assert cleaned_up == [job.key]
    assert len(done) < 60_000


async def test_a_coroutine_is_cancelled_at_its_await(client: Client, registry: Registry) -> None:
    """``finally`` cleans up, also where a time limit ends it; ``ctx.is_aborted()`` is true there."""
    done: list[int] = []
    cleaned_up: list[bool] = []
    in_the_middle = asyncio.Event()

    @registry.task
    async def cancelable_task(ctx: Context, items: list[int]) -> None:
        try:
            for item in items:
                done.append(item)
                in_the_middle.set()
                await asyncio.Event().wait()
        finally:
            cleaned_up.append(ctx.is_aborted())

    async with running_worker(registry=registry):
        job = await cancelable_task.enqueue([1, 2, 3])
        await asyncio.wait_for(in_the_middle.wait(), 10)
        await job.revoke(reason="not needed")
        with pytest.raises(JobRevokedError, match="not needed"):
            await job.wait(10)
    assert (done, cleaned_up) == ([1], [True])


async def test_a_process_asks_likewise(settings: Settings, tmp_path: Path) -> None:
    """The order reaches it over its own line."""
    notes = tmp_path / "pid"
    async with connect(settings, registry=process_tasks.registry), running_worker(registry=process_tasks.registry):
        job = await process_tasks.asking.enqueue(str(notes))
        await eventually(notes.exists)
        await job.revoke()
        with pytest.raises(JobRevokedError):
            await job.wait(10)
    assert notes.with_suffix(".clean").read_text() == "up"


async def test_who_has_nobody_to_revoke_it_is_never_aborted() -> None:
    """A task that is called directly, as in a unit test, runs to its end."""
    assert make_context().is_aborted() is False
