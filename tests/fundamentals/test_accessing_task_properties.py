"""Seed: "Accessing Task Properties". All that the seed's task asks of ``self.request``, and where it is here."""

from __future__ import annotations

import socket
from typing import Any

from knapsaq import Client, Context, Registry
from knapsaq.testing import running_worker


async def test_a_task_knows_itself_its_job_and_where_that_comes_from(client: Client, registry: Registry) -> None:
    """On the second attempt of a job that another one has enqueued."""

    @registry.task(retries=1, retry_delay=0)
    async def task_with_context(ctx: Context, data: str) -> dict[str, Any]:
        if ctx.retries == 0:
            raise ConnectionError(data)
        return {
            "id": ctx.id,
            "name": ctx.task.name,
            "retries": ctx.retries,
            "hostname": ctx.hostname,
            "delivery_info": {"queue": ctx.queue.name, "attempts": ctx.job.attempts},
            "called_directly": ctx.called_directly,
            "parent_id": ctx.parent_id,
            "root_id": ctx.root_id,
            "header": ctx.headers.get("my_header"),
        }

    @registry.task
    async def parent() -> str:
        return (await task_with_context.using(key="child", queue="mail").enqueue("data")).key

    @registry.task
    async def root() -> str:
        return (await parent.using(key="parent").enqueue()).key

    async with running_worker(registry=registry):
        await root.using(key="root", headers={"my_header": "x"}).enqueue()
        found = None
        for queue, key in (("default", "root"), ("default", "parent"), ("mail", "child")):
            job = await client.queue(queue).job(key)
            assert job is not None
            found = await job.wait(5)
    assert found == {
        "id": "child",
        "name": "task_with_context",
        "retries": 1,
        "hostname": socket.gethostname(),
        "delivery_info": {"queue": "mail", "attempts": 2},
        "called_directly": False,
        "parent_id": "parent",
        "root_id": "root",
        "header": "x",
    }


async def test_a_task_that_is_called_directly_knows_that(registry: Registry) -> None:
    """What belongs to a job is empty then."""

    @registry.task
    async def task_with_context(ctx: Context) -> list[Any]:
        return [ctx.called_directly, ctx.id, ctx.retries, ctx.parent_id, ctx.root_id, dict(ctx.headers)]

    assert await task_with_context({}) == [True, "", 0, None, "", {}]
