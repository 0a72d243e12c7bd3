"""Seed: "Task Signatures". A call as a value, sent later or put into a workflow."""

from __future__ import annotations

from knapsaq import Client, Registry, chain, signature
from knapsaq.testing import running_worker


async def test_a_signature_is_a_call_that_is_sent_later(client: Client, registry: Registry) -> None:
    """By name, from the task, or immutable."""

    @registry.task(name="tasks.add")
    async def add(x: int, y: int) -> int:
        return x + y

    async with running_worker(registry=registry):
        by_name = signature("tasks.add", args=(2, 2), registry=registry)
        assert await (await by_name.enqueue()).wait(5) == 4

        shortcut = add.s(2, 2)
        assert await (await shortcut.delay()).wait(5) == 4

        immutable = add.si(2, 2)  # ignores what the step before it returned
        assert await (await chain(add.s(10, 10), immutable).enqueue()).wait(5) == 4


async def test_options_travel_with_a_signature(client: Client, registry: Registry) -> None:
    """Queue, countdown and headers; the signature itself stays as it was."""

    @registry.task
    async def add(x: int, y: int) -> int:
        return x + y

    plain = add.s(2, 2)
    job = await plain.set(queue="mail", countdown=600, headers={"tenant": "acme"}).enqueue()
    assert job.get_queue().name == "mail"
    assert dict(job.headers) == {"tenant": "acme"}
    assert await client.queue("mail").count("queued") == 0
    again = await plain.apply_async(countdown=600)
    assert again.get_queue().name == "default"
    await client.queue("mail").abort(job, "the test is over")
    await client.queue().abort(again, "the test is over")
