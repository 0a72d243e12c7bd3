"""Routes to jobs."""

from __future__ import annotations

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, FromQuery
from litestar.status_codes import HTTP_202_ACCEPTED
from litestar_saq import TaskQueues

from app.jobs.views import EnqueuedJob, JobView
from app.queue.registry import get_registry


class JobController(Controller):
    """How jobs went."""

    path = "/jobs"
    tags = ("Jobs",)

    @get("/{key:str}")
    async def show(
        self, key: FromPath[str], task_queues: NamedDependency[TaskQueues], queue: FromQuery[str] = "default"
    ) -> JobView:
        """Show a job's status, and its result or error once it has ended."""
        if queue not in task_queues.queues:
            raise NotFoundException(f"there is no queue {queue!r}; there are: {', '.join(sorted(task_queues.queues))}")
        job = await task_queues.get(queue).job(key)
        if job is None:
            raise NotFoundException(
                f"there is no job {key!r} in queue {queue!r}: either the key is wrong, "
                f"or it ended longer ago than results are kept (KNAPSAQ_RESULT_TTL)"
            )
        return JobView.of(job)


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
