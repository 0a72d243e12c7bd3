"""Seed: "Task Signatures". The ways to call a task, and a call as a value, sent later or put into a workflow."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from knapsaq import Client, JobExpiredError, OptionError, Registry, Settings, chain, connect, signature
from knapsaq.testing import ManualClock, running_worker


async def test_delay_is_short_for_apply_async(client: Client, registry: Registry) -> None:
    """The first takes the arguments as they are, the second as a list and a dictionary, with options beside them."""

    @registry.task
    async def task(arg1: int, arg2: int = 0, *, key: str = "") -> list[Any]:
        return [arg1, arg2, key]

    async with running_worker(registry=registry):
        assert await (await task.delay(1, 2)).wait(5) == [1, 2, ""]
        assert await (await task.apply_async(args=[1, 2])).wait(5) == [1, 2, ""]
        assert await (await task.apply_async(args=[1], kwargs={"key": "value"})).wait(5) == [1, 0, "value"]


async def test_apply_async_says_when_and_where(
    client: Client, registry: Registry, settings: Settings, clock: ManualClock
) -> None:
    """``countdown`` or ``eta``, ``expires`` and ``queue``; our own spelling is ``task.using(...).enqueue(...)``."""

    @registry.task
    async def task(arg1: int, *, key: str) -> list[Any]:
        return [arg1, key]

    @registry.task
    async def nothing() -> None: ...

    call: dict[str, Any] = {"args": [1], "kwargs": {"key": "value"}}
    async with connect(settings, registry=registry, clock=clock) as at, running_worker(registry=registry):
        in_a_minute = await task.apply_async(**call, countdown=60, expires=3600, queue="mail")
        in_two_hours = await task.apply_async(**call, eta=clock.now + timedelta(hours=2))
        with pytest.raises(OptionError, match="either delay or eta"):
            await task.apply_async(**call, countdown=60, eta=clock.now)

        async def pass_by(seconds: float) -> None:
            clock.advance(seconds)
            for queue in at.queues:
                await (await nothing.using(queue=queue).enqueue()).wait(5)

        await pass_by(59)
        assert [await queue.count("incomplete") for queue in at.queues.values()] == [1, 1]
        await pass_by(2)
        assert await in_a_minute.wait(5) == [1, "value"]
        assert [await queue.count("incomplete") for queue in at.queues.values()] == [1, 0]
        await pass_by(7200)
        assert await in_two_hours.wait(5) == [1, "value"]
    assert in_a_minute.get_queue().name == "mail"


async def test_a_call_that_is_not_started_in_time_never_runs(
    client: Client, registry: Registry, settings: Settings, clock: ManualClock
) -> None:
    """``expires=3600``: an hour from when it may run."""

    @registry.task
    async def task() -> None: ...

    async with connect(settings, registry=registry, clock=clock):
        late = await task.apply_async(expires=3600)
        clock.advance(3601)
        async with running_worker(registry=registry):
            with pytest.raises(JobExpiredError):
                await late.wait(5)


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


async def test_apply_async_says_what_goes_first(client: Client, registry: Registry) -> None:
    """``priority=9``: 0 to 9, higher ones first, of those that wait; without one a job has 0."""
    order: list[str] = []

    @registry.task
    async def task(name: str) -> None:
        order.append(name)

    jobs = [await task.delay(name) for name in ("first", "second")]
    jobs += [
        await task.apply_async(args=["urgent"], priority=9),
        await task.using(priority=5).enqueue("soon"),
        await task.s("most urgent").set(priority=9).delay(),
    ]
    async with running_worker(["default"], concurrency=1, registry=registry):
        for job in jobs:
            await job.wait(5)
    assert order == ["urgent", "most urgent", "soon", "first", "second"]
