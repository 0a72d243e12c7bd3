"""How a job looks from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from litestar.exceptions import ClientException
from litestar.status_codes import HTTP_409_CONFLICT
from msgspec import Struct
from saq import Job
from saq.job import Status

from knapsaq import Job as OurJob
from knapsaq.reasons import Reason


class EnqueuedJob(Struct):
    """What a route answers for a job that it has queued.

    Attributes:
        key: The job's key.
        task: The task's name.
        url: Where to ask how it went.
    """

    key: str
    task: str
    url: str

    @classmethod
    def of(cls, job: Job | None) -> EnqueuedJob:
        """Describe a job that was accepted just now.

        Raises:
            ClientException: SAQ answered None, as it does while a job of the same key has not ended; answered as 409.
        """
        if job is None:
            raise ClientException("the same job is waiting already", status_code=HTTP_409_CONFLICT)
        queue = job.get_queue().name
        url = f"/jobs/{job.key}" if queue == "default" else f"/jobs/{job.key}?queue={queue}"
        return cls(key=job.key, task=job.function, url=url)


class JobView(Struct):
    """How a job stands.

    Attributes:
        key: The job's key.
        task: The task's name.
        queue: The queue's name.
        status: ``new``, ``queued``, ``active``, ``complete``, ``failed`` or ``aborted``.
        attempts: How many attempts have been started.
        result: What the task returned.
        error: The last line of the last error; the whole of it is in ``/saq`` and in the worker's log.
        seconds: From the call to the end, or None while it has not ended.
    """

    key: str
    task: str
    queue: str
    status: str
    attempts: int
    result: Any
    error: str | None
    seconds: float | None

    @classmethod
    def of(cls, job: Job) -> JobView:
        """Describe a job as it was read from Redis."""
        return cls(
            key=job.key,
            task=job.function,
            queue=job.get_queue().name,
            status=job.status.value,
            attempts=job.attempts,
            result=job.result,
            error=_last_line(job.error),
            seconds=(job.completed - job.queued) / 1000 if job.completed else None,
        )


STATES = {
    Status.ACTIVE: "PROGRESS",
    Status.ABORTING: "PROGRESS",
    Status.COMPLETE: "SUCCESS",
    Status.FAILED: "FAILURE",
    Status.ABORTED: "REVOKED",
}


class JobProgress(Struct):
    """How far a job is, in the words that pages with a progress bar know from Celery.

    Attributes:
        state: ``PENDING``, ``PROGRESS``, ``SUCCESS``, ``FAILURE`` or ``REVOKED``.
        progress: Whole percent, 0 to 100.
        details: What the task has told: ``current``, ``total`` and what else it likes.
        result: What the task returned.
        error: The last line of the last error.
    """

    state: str
    progress: int
    details: dict[str, Any]
    result: Any
    error: str | None

    @classmethod
    def of(cls, job: OurJob[Any]) -> JobProgress:
        """Describe a job as it was read from Redis."""
        update = job.as_update
        return cls(
            state=STATES.get(update.status, "PENDING"),
            progress=update.percent,
            details=dict(update.meta),
            result=job.result,
            error=_last_line(job.error),
        )


class JobReason(Struct):
    """One thing that a job waits for.

    Attributes:
        kind: What it is: ``scheduled``, ``rate limit``, ``concurrency``, ``queued``, ``paused``, ``no worker``, ...
        words: The same as a sentence's part.
        until: When that will be over, as far as it is known.
        ahead: How many jobs are before it there.
        jobs: The keys of the jobs that it waits for.
    """

    kind: str
    words: str
    until: datetime | None
    ahead: int
    jobs: list[str]

    @classmethod
    def of(cls, reason: Reason) -> JobReason:
        """Describe a reason."""
        return cls(reason.kind, reason.words, reason.until, reason.ahead, [*reason.jobs])


def _last_line(error: str | None) -> str | None:
    return error.strip().rsplit("\n", 1)[-1] if error else None
