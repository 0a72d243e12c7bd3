"""Client: an open connection to the broker, with a queue for each name in the settings.

Where in the flow: whoever sends or works opens one. While it is open, the tasks of
its registry send their jobs through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from knapsaq import submission
from knapsaq.canvas import Expression, FlowOptions
from knapsaq.claims import Clock
from knapsaq.definitions import Store
from knapsaq.errors import UnknownQueueError
from knapsaq.flows import flow_of
from knapsaq.job import Job
from knapsaq.queue import Queue
from knapsaq.redis.cluster import clients_of
from knapsaq.redis.connection import check_broker, open_redis
from knapsaq.redis.embedded import EmbeddedBroker
from knapsaq.redis.line import shared_line
from knapsaq.registry import Registry, get_registry
from knapsaq.setting_checks import EMBEDDED
from knapsaq.settings import Settings
from knapsaq.waiting import shared_pushes
from knapsaq.workflow import WorkflowJob


class Client:
    """The queues of one program; made by ``connect``.

    Attributes:
        settings: The settings that it was opened with.
        registry: The tasks that it sends.
        queues: The queues by name.
    """

    def __init__(self, redis: Redis, settings: Settings, registry: Registry, clock: Clock | None = None) -> None:
        self.settings = settings
        self.registry = registry
        self.queues = {
            name: Queue(redis, name, registry=registry, settings=settings, clock=clock) for name in settings.queues
        }

    def queue(self, name: str = "default") -> Queue:
        """Return a queue.

        Raises:
            UnknownQueueError: The settings do not name it.
        """
        queue = self.queues.get(name)
        if queue is None:
            raise UnknownQueueError(name, tuple(self.queues))
        return queue

    async def enqueue(self, name: str, **kwargs: Any) -> Job[Any] | None:
        """Queue a job by its task's name or route, in the task's own queue; see ``Queue.enqueue``.

        Raises:
            UnknownTaskError: No task has the name.
            UnknownQueueError: The task's queue is not connected.
            InvalidArgumentsError: The arguments do not fit the task.
            PayloadTooLargeError: They are too large.
            BrokerError: Redis cannot be reached.
        """
        return await self.queue(self.registry.get(name).options.queue).enqueue(name, **kwargs)

    @property
    def schedule_stores(self) -> Mapping[str, Store]:
        """Where each queue keeps its schedules, by the queue's name."""
        return {name: queue.schedules for name, queue in self.queues.items()}

    def send(self, queue: str, job: Job[Any]) -> Awaitable[Job[Any]]:
        """Accept a task's job, or return the one that has its key and has not ended."""
        return self.queue(queue).submit(job)

    def send_many(self, queue: str, jobs: list[Job[Any]]) -> Awaitable[list[Job[Any]]]:
        """Accept jobs of tasks; for each the one that has its key and has not ended takes its place."""
        return self.queue(queue).submit_many(jobs)

    def start(self, expression: Expression, options: FlowOptions) -> Awaitable[WorkflowJob]:
        """Accept a workflow."""
        return submission.start(self.queue, expression, options)

    def extend(self, job: Job[Any], expression: Expression, *, replaces: bool) -> Awaitable[None]:
        """Add to the workflow of a job that runs, perhaps in that job's place."""
        return submission.extend(self.queue, job, expression, replaces=replaces)

    def workflow(self, workflow_id: str) -> WorkflowJob:
        """Return the workflow of an id; whether there is one, its methods tell.

        Raises:
            WorkflowError: It is no workflow's id.
        """
        return WorkflowJob(workflow_id, flow_of(self.queue(next(iter(self.queues))), workflow_id))


@asynccontextmanager
async def connect(
    settings_or_url: Settings | str | None = None, *, registry: Registry | None = None, clock: Clock | None = None
) -> AsyncIterator[Client]:
    """Open the broker and bind the tasks to it while the block runs.

    Args:
        settings_or_url: Settings, a broker's URL, or ``"embedded"``; what ``KNAPSAQ_*`` says unless given.
        registry: The tasks; the program's registry unless given.
        clock: Where leases and due times come from, for tests; Redis' own clock unless given.

    Raises:
        SettingsError: A setting is wrong.
        RouteError: A route of the registry leads to no task; see ``knapsaq.routes``.
        BrokerError: The broker cannot be reached, started or used; the text says what to do.
    """
    registry = registry or get_registry()
    settings = registry.prepare(Settings.load(settings_or_url))
    embedded = EmbeddedBroker(settings.embedded_dir) if settings.broker_url == EMBEDDED else None
    try:
        url = await asyncio.to_thread(embedded.start) if embedded else settings.broker_url
        redis = open_redis(url)
        try:
            client = Client(redis, settings, registry, clock)
            for server in dict.fromkeys(queue.redis for queue in client.queues.values()):
                await check_broker(server, url)
            try:
                with registry.bound(client):
                    yield client
            finally:
                for queue in client.queues.values():
                    await queue.disconnect()
        finally:
            await _close(redis)
    finally:
        if embedded:
            await asyncio.to_thread(embedded.stop)


async def _close(redis: Redis) -> None:
    """Close a client, and in a cluster those of all queues."""
    for each in clients_of(redis):
        with suppress(RedisError, OSError):
            await shared_pushes(each).close()
            await shared_line(each).close()
            await each.aclose()
