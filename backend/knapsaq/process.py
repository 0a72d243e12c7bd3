"""Process: the workers of one process, one for each queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from knapsaq import events
from knapsaq.client import Client
from knapsaq.job import new_key
from knapsaq.worker import Worker


async def run_workers(
    client: Client,
    stop: asyncio.Event,
    *,
    queues: Sequence[str] | None = None,
    concurrency: int | None = None,
    hurry: asyncio.Event | None = None,
    name: str | None = None,
) -> None:
    """Run a worker for each queue in this loop until ``stop`` is set, then let them drain.

    Args:
        client: The open connection.
        stop: Ends the workers once it is set.
        queues: The names of the queues; all of the client's unless given.
        concurrency: How many jobs of each queue run at once; ``Settings.concurrency`` unless given.
        hurry: Set it to end the grace period.
        name: The beginning of the workers' ids.

    Raises:
        UnknownQueueError: A queue is not the client's.
        ProviderError: A task asks for something that nobody provides.
    """
    names = queues or tuple(client.queues)
    if not client.registry.names():
        events.no_task_known()
    for task in client.registry.get_scheduled_tasks() if queues is None else ():
        if task.options.queue not in names:
            events.schedule_unserved(task.name, task.options.queue)
    workers = [Worker(client.queue(queue), concurrency=concurrency, **_identity(name)) for queue in names]
    for worker in workers:
        worker.SIGNALS = []

    async def stop_all() -> None:
        await stop.wait()
        for worker in workers:
            worker.request_stop()
        if hurry is not None:
            await hurry.wait()
            for worker in workers:
                worker.request_stop()

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(worker.start()) for worker in workers]
        stopping = group.create_task(stop_all())  # after the workers, so that an early stop finds them started
        await asyncio.wait(running)
        stopping.cancel()


def _identity(name: str | None) -> dict[str, Any]:
    """Return a worker's id with a name at its beginning; a lease is one worker's, so no two have the same."""
    return {} if name is None else {"id": f"{name}-{new_key()}"}


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group that is no group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
