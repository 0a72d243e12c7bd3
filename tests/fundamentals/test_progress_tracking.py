"""Seed: "Progress Tracking". A task tells how far it is, and a view answers whoever asks."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from litestar import Litestar, get
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar_saq import TaskQueues
from tests.support import eventually

from knapsaq import Client, Context, JobFailedError, Registry, Settings
from knapsaq.litestar import KnapsaqPlugin
from knapsaq.testing import running_worker


@get("/jobs/{key:str}")
async def check_progress(key: FromPath[str], task_queues: NamedDependency[TaskQueues]) -> dict[str, Any]:
    """The seed's view. What it calls PENDING also for keys that nobody knows is 404 here."""
    job = await task_queues.get("default").job(key)
    if job is None:
        raise NotFoundException(f"there is no job {key!r}")
    match job.status:
        case "new" | "queued":
            return {"state": "PENDING", "progress": 0}
        case "active":
            return {"state": "PROGRESS", "progress": round(job.progress * 100)}
        case "complete":
            return {"state": "SUCCESS", "result": job.result}
        case status:
            return {"state": status.upper(), "error": (job.error or "").strip().rsplit("\n", 1)[-1]}


async def test_a_view_tells_how_far_a_job_is(settings: Settings, client: Client, registry: Registry) -> None:
    """From the queue to the result, and what went wrong if it did."""
    go_on = asyncio.Event()

    @registry.task
    async def long_running_task(ctx: Context, *, items: list[int]) -> dict[str, Any]:
        total = len(items)
        for i, item in enumerate(items):
            if item < 0:
                raise ValueError(f"item {item}")
            await ctx.set_progress(i + 1, total)
            if i + 1 == total // 2:
                await go_on.wait()
        return {"status": "complete", "processed": total}

    app = Litestar([check_progress], plugins=[KnapsaqPlugin(settings, registry=registry)], logging_config=None)
    serving = httpx.ASGITransport(app=app)
    async with app.lifespan(), httpx.AsyncClient(transport=serving, base_url="http://shop.test") as api:

        async def shown(key: str) -> Any:
            return (await api.get(f"/jobs/{key}")).json()

        job = await long_running_task.enqueue(items=[1, 2, 3, 4])
        assert await shown(job.key) == {"state": "PENDING", "progress": 0}
        async with running_worker(registry=registry):

            async def is_half_done() -> bool:
                return await shown(job.key) == {"state": "PROGRESS", "progress": 50}

            await eventually(is_half_done)
            go_on.set()
            await job.wait(5)
            assert await shown(job.key) == {"state": "SUCCESS", "result": {"status": "complete", "processed": 4}}

            bad = await long_running_task.enqueue(items=[-1])
            with pytest.raises(JobFailedError):
                await bad.wait(5)
            assert await shown(bad.key) == {"state": "FAILED", "error": "ValueError: item -1"}
        assert (await api.get("/jobs/unknown")).status_code == 404


async def test_changes_are_pushed_to_whoever_follows_a_job(client: Client, registry: Registry) -> None:
    """Nobody has to ask again and again; ``meta`` has what the task adds."""

    @registry.task
    async def long_running_task(ctx: Context, *, items: list[str]) -> int:
        for number, item in enumerate(items, start=1):
            await ctx.set_progress(number, len(items), item=item)
        return len(items)

    job = await long_running_task.enqueue(items=["a", "b", "c"])
    assert (job.status, job.progress) == ("queued", 0.0)
    async with running_worker(registry=registry):
        updates = [update async for update in job.updates()]
    assert (updates[-1].percent, dict(updates[-1].meta)) == (100, {"current": 3, "total": 3, "item": "c"})
    assert job.result == 3


async def test_a_plain_function_tells_its_progress_without_await(client: Client, registry: Registry) -> None:
    """From its thread; what it told last stays when it fails."""

    @registry.task
    def threaded(ctx: Context) -> str:
        ctx.set_progress(1, 2, step="half")
        raise OSError("down")

    async with running_worker(registry=registry):
        job = await threaded.enqueue()
        with pytest.raises(JobFailedError):
            await job.wait(5)
    assert (job.progress, job.progress_meta["step"]) == (0.5, "half")
