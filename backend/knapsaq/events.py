"""Events: what happened, told to the log. One function an event; all log text is here."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from saq.job import Job

logger = logging.getLogger("knapsaq")
SHOWN_CHARACTERS = 200


def job_enqueued(job: Job) -> None:
    """A job was accepted."""
    logger.debug("job %s of task %s enqueued in %s", job.key, job.function, job.get_queue().name)


def workflow_enqueued(workflow: str, nodes: int) -> None:
    """A workflow was accepted."""
    logger.debug("workflow %s of %s nodes enqueued", workflow, nodes)


def job_ended(job: Job, status: str) -> None:
    """An attempt ended, and how; arguments and results are never logged."""
    if status == "failed":
        logger.error("job %s of task %s failed after %s attempts\n%s", job.key, job.function, job.attempts, job.error)
    elif status == "complete" and job.error:
        logger.warning("job %s of task %s is done without its result: %s", job.key, job.function, job.error)
    elif logger.isEnabledFor(logging.INFO):
        logger.info("job %s of task %s: %s, attempt %s", job.key, job.function, status, job.attempts)


def job_died(job: Job) -> None:
    """Nobody can run a job; it is among the dead letters."""
    logger.error("job %s of task %s is a dead letter: %s", job.key, job.function, job.error)


def job_retried(job: Job, after: float) -> None:
    """An attempt failed, and another one is due."""
    reason = (job.error or "").strip().rsplit("\n", 1)[-1]
    logger.warning("job %s of task %s is run again in %.3g s: %s", job.key, job.function, after, reason)


def task_unknown(job: Job, after: float) -> None:
    """A job's task is not known here; another worker may know it."""
    logger.warning("job %s: no task %s is known here; it is put back for %.3g s", job.key, job.function, after)


def claim_lost(job_id: str) -> None:
    """A worker's outcome was refused, as the job is no longer its own."""
    logger.warning("%s: the outcome was not written, as the job is no longer this worker's or has ended", job_id)


def thread_abandoned(job: Job) -> None:
    """A thread runs on after its job has timed out or was interrupted; Python cannot stop it."""
    logger.warning("job %s of task %s was cancelled, but its thread runs on", job.key, job.function)


def thread_awaited(job: Job, threads: int) -> None:
    """A job waits for a thread; those that were abandoned count until they end."""
    logger.warning("job %s of task %s waits, as all %s threads are busy", job.key, job.function, threads)


def cancellation_ignored(job: Job) -> None:
    """A task did not end after it was cancelled."""
    logger.warning("job %s of task %s does not end although it was cancelled", job.key, job.function)


def record_unreadable(queue: str, record: object, error: Exception) -> None:
    """A stored job cannot be read; its contents, arguments among them, are not logged."""
    # The text of an error and not its repr, which may hold the bytes that could not be decoded.
    problem = f"{type(error).__name__}: {error}"[:SHOWN_CHARACTERS]
    size = f"length {len(record):,}" if isinstance(record, (bytes, str)) else type(record).__name__
    logger.error("queue %s holds a record that cannot be read (%s, %s): %s", queue, _key(record), size, problem)


def worker_started(worker: str, queue: str, concurrency: int, tasks: int) -> None:
    """A worker takes jobs from now on."""
    logger.info("worker %s started: queue %s, %s at once, %s tasks", worker, queue, concurrency, tasks)


def worker_stopping(worker: str, running: int, grace: float) -> None:
    """A worker takes no more jobs."""
    logger.info("worker %s stops: %s jobs have %.3g s to end", worker, running, grace)


def worker_stopped(worker: str) -> None:
    """A worker has stopped."""
    logger.info("worker %s stopped", worker)


def jobs_rescued(queue: str, worker: str, jobs: int) -> None:
    """A worker has died, and its jobs wait again."""
    logger.warning("worker %s of queue %s has died; its %s jobs wait again", worker, queue, jobs)


def loop_blocked(seconds: float, task: str | None, job: Job | None, stack: str) -> None:
    """A worker's event loop is blocked; said once a stall. A stack has no values of variables."""
    logger.warning("the event loop has been blocked for %.1f s by %s\n%s", seconds, _blocker(task, job), stack)


def loop_freed(seconds: float, task: str | None, job: Job | None) -> None:
    """A worker's event loop runs again."""
    logger.warning("the event loop runs again after %.1f s; it was blocked by %s", seconds, _blocker(task, job))


def loop_given_up(seconds: float, task: str | None, job: Job | None, stack: str) -> None:
    """A process ends, as its event loop has been blocked for the whole of ``loop_stall_limit``."""
    logger.critical(
        "the event loop has been blocked for %.1f s by %s; "
        "the limit is reached, so the process gives its jobs up and ends\n%s",
        seconds,
        _blocker(task, job),
        stack,
    )


def broker_lost(place: str, error: BaseException) -> None:
    """Redis cannot be reached; said once an outage."""
    logger.error("%s: Redis is away (%s); trying again until it is back", place, error)


def broker_back(place: str) -> None:
    """Redis can be reached again."""
    logger.info("%s: Redis is back", place)


def duty_failed(duty: str, error: BaseException) -> None:
    """A background duty raised; it is tried again."""
    logger.error("%s failed and is tried again", duty, exc_info=error)


def _blocker(task: str | None, job: Job | None) -> str:
    """Return in words what an event loop is in."""
    if job is not None:
        return f"job {job.key} of task {job.function} in queue {job.get_queue().name}"
    return f"asyncio's task {task}, which is no job" if task else "a callback or another thread"


def _key(record: object) -> str:
    """Return the key in a record as far as that can be read."""
    try:
        fields = msgspec.json.decode(record) if isinstance(record, (bytes, str)) else record
    except (ValueError, RecursionError):
        fields = None
    key = fields.get("key") if isinstance(fields, dict) else None
    return f"key {key[:SHOWN_CHARACTERS]!r}" if isinstance(key, str) else "without a key"


def no_task_known() -> None:
    """A worker was started, and nothing has filled the registry."""
    logger.warning("no task is registered: the worker can run nothing; check the imports of the module given with -A")


def schedule_unserved(task: str, queue: str) -> None:
    """A scheduled task belongs to a queue that nobody serves."""
    logger.warning("task %s is scheduled in queue %s, which is not served: add it to KNAPSAQ_QUEUES", task, queue)
