"""Routes to jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, FromQuery
from litestar.response import ServerSentEvent, ServerSentEventMessage
from litestar.status_codes import HTTP_202_ACCEPTED
from litestar_saq import TaskQueues
from msgspec import json

from app.jobs.views import EnqueuedJob, JobProgress, JobReason, JobView
from app.queue.registry import get_registry
from knapsaq import Job


class JobController(Controller):
    """How jobs went."""

    path = "/jobs"
    tags = ("Jobs",)

    @get("/{key:str}")
    async def show(
        self, key: FromPath[str], task_queues: NamedDependency[TaskQueues], queue: FromQuery[str] = "default"
    ) -> JobView:
        """Show a job's status, and its result or error once it has ended."""
        return JobView.of(await _find(task_queues, queue, key))

    @get("/{key:str}/progress")
    async def progress(
        self, key: FromPath[str], task_queues: NamedDependency[TaskQueues], queue: FromQuery[str] = "default"
    ) -> JobProgress:
        """Show how far a job is."""
        return JobProgress.of(await _find(task_queues, queue, key))

    @get("/{key:str}/updates")
    async def updates(
        self, key: FromPath[str], task_queues: NamedDependency[TaskQueues], queue: FromQuery[str] = "default"
    ) -> ServerSentEvent:
        """Send how far a job is, as server-sent events: now, at each change, and at its end."""
        return ServerSentEvent(_events(await _find(task_queues, queue, key)))

    @get("/{key:str}/why")
    async def why(
        self, key: FromPath[str], task_queues: NamedDependency[TaskQueues], queue: FromQuery[str] = "default"
    ) -> list[JobReason]:
        """Show what a job waits for, the most telling reason first; of one that runs or has ended, that it does."""
        job = await _find(task_queues, queue, key)
        return [JobReason.of(reason) for reason in await job.why()]


async def _find(task_queues: TaskQueues, queue: str, key: str) -> Job[Any]:
    if queue not in task_queues.queues:
        raise NotFoundException(f"there is no queue {queue!r}; there are: {', '.join(sorted(task_queues.queues))}")
    job = await task_queues.get(queue).job(key)
    if job is None:
        raise NotFoundException(
            f"there is no job {key!r} in queue {queue!r}: either the key is wrong, "
            f"or it ended longer ago than results are kept (KNAPSAQ_RESULT_TTL)"
        )
    return cast("Job[Any]", job)


async def _events(job: Job[Any]) -> AsyncIterator[ServerSentEventMessage]:
    async for update in job.updates():
        view = JobProgress.of(job)
        yield ServerSentEventMessage(event=update.status.value, data=json.encode(view).decode())


class ScheduleController(Controller):
    """Scheduled tasks, run by hand; in debug mode only, because anybody may call it."""

    path = "/schedules"
    tags = ("Jobs",)

    @post("/{name:str}/run", status_code=HTTP_202_ACCEPTED)
    async def run(self, name: FromPath[str], task_queues: NamedDependency[TaskQueues]) -> EnqueuedJob:
        """Run a scheduled task now, with its schedule's arguments."""
        scheduled = {task.name: task for task in get_registry().get_scheduled_tasks()}
        if name not in scheduled:
            raise NotFoundException(f"there is no scheduled task {name!r}; there are: {', '.join(sorted(scheduled))}")
        task = scheduled[name]
        job = await task_queues.get(task.options.queue).enqueue(name, **task.schedules[0].kwargs)
        return EnqueuedJob.of(job)
