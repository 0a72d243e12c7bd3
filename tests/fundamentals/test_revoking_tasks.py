"""Seed: "Revoking Tasks". One job or many, by the job or by its key, and with a process that is killed."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests import process_tasks
from tests.support import eventually

from knapsaq import Client, Job, JobRevokedError, Registry, Settings, connect
from knapsaq.testing import running_worker


async def is_revoked(*jobs: Job[Any]) -> bool:
    """Whether jobs have ended as revoked, for those who wait as well as in their records."""
    for job in jobs:
        with pytest.raises(JobRevokedError):
            await job.wait(10)
    return {job.status for job in jobs} == {"aborted"}


async def test_a_job_that_waits_never_runs(client: Client, registry: Registry) -> None:
    """In its queue, or delayed; no worker has to hear of it. One that has ended stays as it is."""
    runs: list[int] = []

    @registry.task
    async def my_task(data: int) -> None:
        runs.append(data)

    result = await my_task.delay(1)
    assert await result.revoke()
    later = await my_task.using(delay=3600).enqueue(2)
    assert await later.revoke(reason="not needed")
    with pytest.raises(JobRevokedError, match="not needed"):
        await later.wait(5)

    async with running_worker(registry=registry):
        last = await my_task.delay(3)
        await last.wait(5)
    assert runs == [3]
    assert await is_revoked(result, later)
    assert not await last.revoke()
    assert last.status == "complete"


async def test_a_coroutine_that_runs_is_cancelled(client: Client, registry: Registry) -> None:
    """Also without ``terminate``, as it can clean up at its ``await``; Celery lets it run on."""
    begun = asyncio.Event()

    @registry.task
    async def my_task() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with running_worker(registry=registry):
        result = await my_task.delay()
        await asyncio.wait_for(begun.wait(), 10)
        await result.revoke()
        assert await is_revoked(result)


async def test_terminate_kills_the_process_of_a_running_job(settings: Settings, tmp_path: Path) -> None:
    """What Celery's ``terminate=True`` does: a function that could ask, and does not, is given no time to."""
    notes = tmp_path / "pid"
    async with connect(settings, registry=process_tasks.registry), running_worker(registry=process_tasks.registry):
        result = await process_tasks.deaf.enqueue(str(notes))
        pid = int(await eventually(lambda: notes.exists() and notes.read_text()))
        await result.revoke(terminate=True)
        assert await is_revoked(result)

        def is_gone() -> bool:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            return False

        await eventually(is_gone)


async def test_terminate_leaves_a_thread_behind(client: Client, registry: Registry) -> None:
    """Threads cannot be killed; the job has ended all the same, and its slot is free."""
    begun, go_on = threading.Event(), threading.Event()

    @registry.task
    def my_task() -> None:
        begun.set()
        go_on.wait(10)

    async with running_worker(registry=registry):
        result = await my_task.delay()
        await eventually(begun.is_set)
        await result.revoke(terminate=True)
        assert await is_revoked(result)
        go_on.set()


async def test_jobs_are_revoked_by_their_keys(client: Client, registry: Registry) -> None:
    """One, or many with one call, which says what it has found going on; a key in a log is enough."""

    @registry.task
    async def my_task(data: int) -> None: ...

    task_id, task_id1, task_id2 = [(await my_task.delay(data)).key for data in range(3)]
    assert await client.queue().revoke(task_id, terminate=True) == [task_id]
    assert await client.queue().revoke([task_id1, task_id2, "unknown"]) == [task_id1, task_id2]
    for key in (task_id, task_id1, task_id2):
        job = await client.queue().job(key)
        assert job is not None
        assert await is_revoked(job)
