"""Events: what happened, told to the log. One function an event; all log text is here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from saq.job import Job

logger = logging.getLogger("knapsaq")
SHOWN_CHARACTERS = 200
SHOWN_JOBS = 10


def job_enqueued(job: Job) -> None:
    """A job was accepted."""
    if logger.isEnabledFor(logging.DEBUG):
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


def job_snoozed(job: Job, after: float) -> None:
    """A task put its job off."""
    logger.info("job %s of task %s has put itself off for %.3g s", job.key, job.function, after)


def task_unknown(job: Job, after: float) -> None:
    """A job's task is not known here; another worker may know it."""
    logger.warning("job %s: no task %s is known here; it is put back for %.3g s", job.key, job.function, after)


def claim_lost(job_id: str) -> None:
    """A worker's outcome was refused, as the job is no longer its own."""
    logger.warning("%s: the outcome was not written, as the job is no longer this worker's or has ended", job_id)


def refused_again(worker: str, count: int) -> None:
    """Outcomes that were sent again after an outage were refused."""
    logger.info("worker %s: of the outcomes that were sent again, Redis had these already: %s", worker, count)


def outcomes_given_up(worker: str, job_ids: Sequence[str]) -> None:
    """A worker ends while Redis is away, and could not write how some of its jobs ended."""
    shown = ", ".join(job_ids[:SHOWN_JOBS]) + (", ..." if len(job_ids) > SHOWN_JOBS else "")
    text = "worker %s stops while Redis is away: how %s jobs ended is not written, and they will run again: %s"
    logger.error(text, worker, len(job_ids), shown)


def thread_abandoned(job: Job) -> None:
    """A thread runs on after its job has timed out or was interrupted; Python cannot stop it."""
    logger.warning("job %s of task %s was cancelled, but its thread runs on", job.key, job.function)


def thread_awaited(job: Job, threads: int) -> None:
    """A job waits for a thread; those that were abandoned count until they end."""
    logger.warning("job %s of task %s waits, as all %s threads are busy", job.key, job.function, threads)


def process_awaited(job: Job, processes: int) -> None:
    """A job waits for a process, as is usual where more jobs run at once than there are processors."""
    logger.debug("job %s of task %s waits, as all %s processes are busy", job.key, job.function, processes)


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


def progress_lost(job: Job, error: BaseException) -> None:
    """How far a job is could not be written; said once an attempt."""
    logger.warning("the progress of job %s of task %s could not be written: %s", job.key, job.function, error)


def hook_failed(hook: str, job: Job, error: BaseException) -> None:
    """A middleware raised after an attempt had ended, or refused a scheduled job; nothing else comes of it."""
    logger.error("%s of a middleware failed for job %s of task %s", hook, job.key, job.function, exc_info=error)


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


def schedule_changed(queue: str, name: str, edited: tuple[str, ...] | None) -> None:
    """An operator has changed a schedule; None is that it was removed."""
    what = "removed" if edited is None else f"changed: {', '.join(edited) or 'nothing, the code counts'}"
    logger.info("schedule %s of queue %s was %s", name, queue, what)


def schedule_reconciled(queue: str, name: str, what: str) -> None:
    """A worker that starts has stored, replaced or removed a schedule."""
    logger.info("schedule %s of queue %s is %s in the code", name, queue, what)


def schedule_moved(name: str, source: str, target: str) -> None:
    """The task of a schedule has another queue now, and the schedule has gone there with it."""
    logger.info("schedule %s of queue %s is in queue %s now, as its task is", name, source, target)


def schedule_ambiguous(name: str, queue: str, others: tuple[str, ...]) -> None:
    """Several queues hold a schedule of one name; the one that the code has now is meant."""
    logger.warning("schedule %s is in queue %s too; this is about queue %s", name, " and ".join(others), queue)


def schedule_edit_lost(queue: str, name: str, edited: tuple[str, ...]) -> None:
    """The code has taken a schedule away or over, and what an operator had changed is lost."""
    logger.warning("schedule %s of queue %s: what was changed by hand is gone: %s", name, queue, ", ".join(edited))


def schedule_misfits(queue: str, name: str, error: Exception) -> None:
    """The arguments that an operator has given a schedule do not fit its task any more; its jobs will fail."""
    logger.warning("schedule %s of queue %s: what was changed by hand does not fit: %s", name, queue, error)


def schedule_missed(queue: str, name: str, missed: str, dropped: bool) -> None:
    """Due times have passed while no worker fired them, and give no job."""
    why = "there were too many at once" if dropped else "no worker ran in time"
    logger.warning("schedule %s of queue %s: due times from %s on give no job: %s", name, queue, missed, why)


def schedule_skipped(queue: str, name: str) -> None:
    """A due time gives no job, as the job before has not ended."""
    logger.warning("schedule %s of queue %s: a due time is skipped, as the previous run has not ended", name, queue)


def schedule_refused(queue: str, name: str, error: Exception) -> None:
    """A due time gives no job, as that is too large, or a hook has refused it."""
    logger.error("schedule %s of queue %s: the job of a due time was refused", name, queue, exc_info=error)


def schedule_unreadable(queue: str, name: str, error: Exception) -> None:
    """A stored schedule cannot be read here; it is left as it is."""
    logger.error("schedule %s of queue %s cannot be read here: %s", name, queue, str(error)[:SHOWN_CHARACTERS])


def queue_without_task(queue: str, hint: str) -> None:
    """A worker was told to serve a queue that no task names."""
    logger.warning("queue %s is served, but is no task's queue: %s", queue, hint)
