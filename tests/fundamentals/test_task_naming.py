"""Seed: "Task Naming". Explicit names outlive refactoring; without one the function's name counts."""

from __future__ import annotations

import pytest

from knapsaq import Client, DuplicateTaskError, Queue, Registry, Settings, UnknownTaskError, connect
from knapsaq.testing import running_worker


async def test_an_explicit_name_outlives_a_rename(client: Client, registry: Registry, settings: Settings) -> None:
    """A job that was queued by one release is run by the next, in which the function is called otherwise."""

    @registry.task(name="orders.tasks.process_order")
    async def process_order(order_id: int) -> str:
        return f"order {order_id}"

    job = await process_order.enqueue(7)

    next_release = Registry()

    @next_release.task(name="orders.tasks.process_order")
    async def handle_order(order_id: int) -> str:
        return f"order {order_id}, handled"

    async with connect(settings, registry=next_release), running_worker(registry=next_release):
        assert await job.wait(5) == "order 7, handled"


async def test_without_one_the_functions_name_counts(queue: Queue, registry: Registry) -> None:
    """The module is no part of it, so moving the function breaks nothing; renaming it does, and the caller hears so."""

    @registry.task
    async def process_order(order_id: int) -> str:
        return f"order {order_id}"

    assert (process_order.name, registry.names()) == ("process_order", ("process_order",))
    async with running_worker(registry=registry):
        job = await queue.enqueue("process_order", order_id=7)
        assert job is not None
        assert await job.wait(5) == "order 7"
    with pytest.raises(UnknownTaskError, match="did you mean 'process_order'"):
        await queue.enqueue("process_orders", order_id=7)


def test_two_tasks_of_one_name_are_refused(registry: Registry) -> None:
    """Celery lets the second one take the place of the first; here the import ends, and the error has both places."""

    @registry.task
    async def process_order(order_id: int) -> None: ...

    with pytest.raises(DuplicateTaskError, match=r"'process_order' is defined twice: .*test_task_naming\.py:\d+ and"):

        @registry.task(name="process_order")
        async def another(order_id: int) -> None: ...
