"""Errors of single jobs: what waiting for one, or sending one beside another, may end with."""

from __future__ import annotations

from knapsaq.errors import KnapsaqError


class JobError(KnapsaqError):
    """Waiting for a job ended without a result."""

    def __init__(self, task: str, key: str, error: str) -> None:
        super().__init__(task, key, error)
        self.task, self.key, self.error = task, key, error


class JobFailedError(JobError):
    """The last attempt raised; ``error`` has the traceback's text."""

    def __str__(self) -> str:
        last = self.error.strip().rsplit("\n", 1)[-1]
        return f"job {self.key} of task {self.task!r} failed: {last}"


class JobRevokedError(JobError):
    """The job was ended on purpose: somebody revoked it, or the task discarded it; ``error`` is the reason."""

    def __str__(self) -> str:
        return f"job {self.key} of task {self.task!r} was revoked: {self.error or 'no reason given'}"


class JobExpiredError(JobRevokedError):
    """The job was not started before it expired, and never ran; ``error`` says until when it could have been."""

    def __str__(self) -> str:
        return f"job {self.key} of task {self.task!r} never ran: {self.error}"


class JobMissingError(JobError):
    """The job is not in Redis (any more): its result outlived its ttl, or it was purged."""

    def __str__(self) -> str:
        return f"job {self.key} of task {self.task!r} is not in Redis: {self.error}"


class ResultError(JobError):
    """The job is done, but its result could not be stored or does not fit the annotated type."""

    def __str__(self) -> str:
        return f"job {self.key} of task {self.task!r} is done, but its result is not to be had: {self.error}"


class JobNotEndedError(KnapsaqError, TimeoutError):
    """The job was waited for in vain; ``status`` is empty where that is not to be had."""

    def __init__(self, task: str, key: str, seconds: float, status: str) -> None:
        super().__init__()  # an OSError would make a file's name of the third
        self.task, self.key, self.seconds, self.status = task, key, seconds, status
        self.args = (task, key, seconds, status)

    def __str__(self) -> str:
        stands = f"it is {self.status}, and goes on" if self.status else "Redis does not say how it stands"
        return (
            f"job {self.key} of task {self.task!r} has not ended within {self.seconds:g} s: {stands}. "
            f"Wait for it again; `await job.why()` and `knapsaq why {self.key}` tell what it waits for"
        )


class DuplicateJobError(KnapsaqError):
    """A job that is to be unique was enqueued again; ``key`` is the job that there is, and nothing was queued."""

    def __init__(self, task: str, key: str) -> None:
        super().__init__(task, key)
        self.task, self.key = task, key

    def __str__(self) -> str:
        there = f"a job of task {self.task!r} stands for these arguments already: {self.key}"
        return f"{there}; wait for that one, or have it returned with Unique(clash='existing')"
