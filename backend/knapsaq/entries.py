"""Entries: schedules and their fires as operators see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from knapsaq.definitions import Fired, Held, Record
from knapsaq.job import Job
from knapsaq.schedules import Misfire
from knapsaq.timing import from_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEntry:
    """One schedule as it counts now.

    Attributes:
        name: Its name.
        task: The name of the task whose jobs it fires.
        queue: The queue that they go to.
        cron: Its expression, or None.
        every: Its interval, or None.
        timezone: The IANA zone of the expression.
        words: When it fires, in words.
        kwargs: The arguments of its jobs by parameter name, as JSON types.
        jitter: By a part of this each job is delayed.
        misfire: What becomes of missed due times.
        misfire_window: How far back they are made up for.
        overlap: Whether it fires while the job before has not ended.
        enabled: Whether it fires; False while it is paused.
        edited: What an operator has changed, by the names of these attributes.
        added: Whether it was added at run time and is in nobody's code.
        next_due: When it fires next, in UTC and before its jitter; None while it is paused.
        differs: Whether this program's code says something else than the one that was deployed.
    """

    name: str
    task: str
    queue: str
    cron: str | None
    every: timedelta | None
    timezone: str
    words: str
    kwargs: Mapping[str, Any]
    jitter: timedelta
    misfire: Misfire
    misfire_window: timedelta
    overlap: bool
    enabled: bool
    edited: tuple[str, ...]
    added: bool
    next_due: datetime | None
    differs: bool

    @classmethod
    def of(cls, queue: str, held: Held, record: Record, code: Record | None) -> ScheduleEntry:
        """Return what is held of a schedule; ``code`` is what this program would store, if it has it."""
        counts = record.effective
        return cls(
            name=held.name,
            task=record.task,
            queue=queue,
            cron=counts.cron,
            every=None if counts.every is None else timedelta(seconds=counts.every),
            timezone=counts.timezone,
            words=counts.words,
            kwargs=counts.kwargs,
            jitter=timedelta(seconds=counts.jitter),
            misfire=counts.misfire,
            misfire_window=timedelta(seconds=counts.misfire_window),
            overlap=counts.overlap,
            enabled=counts.enabled,
            edited=record.edited_fields,
            added=record.code is None,
            next_due=None if held.due_ms is None else from_ms(held.due_ms),
            differs=code is not None and not record.same_code(code),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleFire:
    """A due time that has passed, and what came of it.

    Attributes:
        due: The due time, in UTC.
        key: The key of its job; None where there is none.
        reason: Why there is none.
        status: The job's status, such as ``"complete"``; None without a job, or when its record has expired.
        error: The job's error.
        started: When its last attempt began.
        completed: When it ended.
    """

    due: datetime
    key: str | None = None
    reason: str | None = None
    status: str | None = None
    error: str | None = None
    started: datetime | None = None
    completed: datetime | None = None

    @classmethod
    def of(cls, fired: Fired, job: Job[Any] | None) -> ScheduleFire:
        """Return a fire with what became of its job."""
        due = from_ms(fired.due_ms)
        if job is None:
            return cls(due=due, key=fired.key or None, reason=fired.reason or None)
        return cls(
            due=due,
            key=fired.key,
            status=job.status.value,
            error=job.error,
            started=from_ms(job.started) if job.started else None,
            completed=from_ms(job.completed) if job.completed else None,
        )
