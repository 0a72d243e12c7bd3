"""Job: one call of a task.

A ``Job`` is SAQ's Job, field for field, so that SAQ's own producers, workers and
web UI understand it. What SAQ has no place for lives in ``Job.meta`` under the one
key ``knapsaq``. A job knows how to ask its queue about itself; it decides nothing.
"""

from __future__ import annotations

import binascii
import dataclasses
import os
import random
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import msgspec
from saq.job import TERMINAL_STATUSES, Status
from saq.job import Job as SaqJob

from knapsaq.checks import check
from knapsaq.deadline import Deadline
from knapsaq.errors import OptionError
from knapsaq.job_errors import JobExpiredError, JobFailedError, JobRevokedError, ResultError
from knapsaq.options import CALL_CHECKS
from knapsaq.reasons import Reason
from knapsaq.record import Record
from knapsaq.timing import from_ms

if TYPE_CHECKING:
    from saq.queue import Queue as SaqQueue

R = TypeVar("R")

META_KEY = "knapsaq"
UNLIMITED_BACKOFF = 24 * 3600.0
SIGNS = bytes.maketrans(b"+/", b"az")
# Among the extras: the millisecond by which it has to be started, until it is; the seconds, where it is not known yet
# when it may run; and true once it was not.
EXPIRES_AT, EXPIRES_IN, EXPIRED = "expires_at", "expires_in", "expired"
# Text that travels along, the keys of other jobs, how far it is, and the millisecond at which a worker first did not
# know the task.
HEADERS, PARENT, ROOT, PROGRESS, UNKNOWN_SINCE = "headers", "parent", "root", "progress", "unknown_since"
CONTROL = "control"  # its priority, limits, tenant and identity, for the scripts that obey them
FIELDS = frozenset(field.name for field in dataclasses.fields(SaqJob))


def backed_off(delay: float, backoff: bool | float, attempts: int, *, jitter: bool) -> float:
    """Return the seconds until the next attempt: with ``backoff`` doubled with each one, up to a day or to a number.

    Args:
        delay: The seconds until the second attempt.
        backoff: True, False, or the longest delay.
        attempts: How many there were.
        jitter: Whether they are drawn from the upper half of that.

    Source: "equal jitter", M. Brooker, AWS Architecture Blog, 2015.
    """
    if backoff is not False:
        longest = UNLIMITED_BACKOFF if backoff is True else float(backoff)
        delay = min(longest, delay * 2.0 ** min(max(attempts, 1) - 1, 60))
    return float(delay * random.uniform(0.5, 1.0) if jitter else delay)  # noqa: S311 - spreads load, keeps no secret


def new_key() -> str:
    """Return a key that nobody can guess: 22 letters and digits, with 127 random bits."""
    # A key stands in four places of Redis. Base 64 without signs of its own is short, and no word of a command line.
    return binascii.b2a_base64(os.urandom(16)).translate(SIGNS)[:22].decode()


def extras_of(job: SaqJob) -> Mapping[str, Any]:
    """Return what Knapsaq stores with a job beyond SAQ's fields."""
    extras: Any = job.meta.get(META_KEY)
    return extras if isinstance(extras, dict) else {}


@dataclasses.dataclass(frozen=True, slots=True)
class Update:
    """How a job stands at a moment.

    Attributes:
        status: SAQ's status.
        progress: How far it is, from 0 to 1.
        meta: What its task has told with that: ``current``, ``total`` and its own; empty if nothing.
    """

    status: Status
    progress: float
    meta: Mapping[str, Any]

    @property
    def percent(self) -> int:
        """How far it is in whole percent; 100 is all of it."""
        return int(self.progress * 100)

    @property
    def ended(self) -> bool:
        """Whether the job is complete, failed or aborted."""
        return self.status in TERMINAL_STATUSES


class ResultReader(Protocol):
    """What a job asks of its queue in order to give its result to a caller."""

    async def wait_ended(self, job: Job[Any], timeout: float | None) -> None:
        """Return when the job has ended, with ``job`` brought up to date."""

    def updates(self, job: Job[Any]) -> AsyncGenerator[Update, None]:
        """Yield how the job stands, now and at each change, up to its end."""

    def decode_result(self, job: Job[Any]) -> Any:
        """Return the job's result as the task's annotated type."""

    async def reasons(self, job: Job[Any]) -> list[Reason]:
        """Return why a job does not run."""

    async def revoke_jobs(self, keys: str, terminate: bool, reason: str) -> list[Job[Any]]:
        """End a job on purpose; returns it as it is now, or nothing if it has ended already."""


class Listener(Protocol):
    """What tells a running function that it is to end."""

    def interrupt(self) -> None:
        """Tell it; it asks ``ctx.is_aborted()`` in its own time."""


@dataclasses.dataclass(eq=False, repr=False)
class Job(SaqJob, Generic[R]):
    """One call of a task; SAQ's fields, plus what is below."""

    key: str = dataclasses.field(default_factory=new_key)
    delay = 0.0
    """While it is being sent: seconds until it may run, by Redis' clock. It is no field, and not stored."""
    expires = cast("float | datetime | None", None)
    """While it is being sent: what the call or its task says. It is no field; stored is the moment."""
    keep = 0
    """While it is being sent: seconds that its record has to be kept if nobody has set ``ttl``. It is no field."""
    deadline = cast("Deadline | None", None)
    """In the worker, while the function runs: when it is cancelled. It is no field, and not stored."""
    interrupted = False
    """In the worker: whether the attempt is to end. It is no field, and not stored."""
    told = False
    """In the worker: whether the function has asked after it was so, and heard. It is no field, and not stored."""
    listener = cast("Listener | None", None)
    """In the worker, while its function can hear of that by itself, in a thread or a process: what tells it."""
    gathers = False
    """In the worker: whether it waits for others of its batch. It is no field, and not stored."""
    alone = False
    """In the worker: whether it is run without others of its batch. It is no field, and not stored."""
    token = ""
    """In the worker that runs the job: its claim. It is no field, and not stored."""

    async def wait(self, timeout: float | None = None) -> R:
        """Wait until the job has ended and return its result.

        Args:
            timeout: Seconds, above 0; ``None`` waits as long as it takes.

        Returns:
            The task's return value, decoded to its annotated type.

        Raises:
            JobFailedError: The last attempt raised; ``.error`` has the traceback's text.
            JobRevokedError: Somebody ended it, or the task discarded it; ``.error`` is the reason.
            JobExpiredError: Likewise, as no worker has started it in time.
            JobMissingError: It is not in Redis any more; keep results longer with ``ttl``.
            ResultError: It is done, but what it returned could not be stored or does not fit the annotation.
            JobNotEndedError: Not ended yet, a ``TimeoutError`` too. The job goes on; call again.
        """
        reader = cast("ResultReader", self.get_queue())
        await reader.wait_ended(self, timeout)
        if self.status is Status.FAILED:
            raise JobFailedError(self.function, self.key, self.error or "")
        if self.status is Status.ABORTED:
            kind = JobExpiredError if EXPIRED in self.extras else JobRevokedError
            raise kind(self.function, self.key, self.error or "")
        if self.error:
            raise ResultError(self.function, self.key, self.error)
        try:
            return cast("R", reader.decode_result(self))
        except msgspec.ValidationError as error:
            raise ResultError(self.function, self.key, str(error)) from error

    async def revoke(self, terminate: bool = False, *, reason: str = "revoked") -> bool:
        """End the job on purpose; see ``Queue.revoke``.

        Args:
            terminate: Whether a function in a thread or a process is not left the time to end in its own way.
            reason: What its ``error`` says; at most 1,000 characters.

        Returns:
            Whether it had not ended.

        Raises:
            OptionError: The reason is no text.
            BrokerError: Redis cannot be reached.
        """
        reader = cast("ResultReader", self.get_queue())
        revoked = await reader.revoke_jobs(self.key, terminate, reason)
        for job in revoked:
            self.replace(job)
        return bool(revoked)

    async def why(self) -> list[Reason]:
        """Return what the job waits for, the most telling reason first; ``str()`` of each says it in words.

        A job that runs or has ended gives that as its one reason. ``self`` is brought up to date.

        Raises:
            BrokerError: Redis cannot be reached.
        """
        return await cast("ResultReader", self.get_queue()).reasons(self)

    def updates(self) -> AsyncGenerator[Update, None]:
        """Yield how the job stands: now, at each change, and last of all at its end; ``self`` is brought up to date.

        Changes are pushed. Where they come faster than they are taken, what is in between is left out.

        Raises:
            JobMissingError: It is not in Redis any more, and how it ended is not known.
        """
        return cast("ResultReader", self.get_queue()).updates(self)

    @property
    def progress_meta(self) -> Mapping[str, Any]:
        """What its task has told with ``ctx.set_progress``: ``current``, ``total`` and its own; empty if nothing."""
        meta: Any = self.extras.get(PROGRESS)
        return meta if isinstance(meta, dict) else {}

    @property
    def as_update(self) -> Update:
        """How the job, as last read from Redis, stands."""
        return Update(self.status, self.progress, self.progress_meta)

    def replace(self, job: SaqJob) -> None:
        """Take over all fields of another job."""
        self.__dict__.update((name, value) for name, value in vars(job).items() if name in FIELDS)

    def next_retry_delay(self) -> float:
        """Return the seconds until the next attempt; with a backoff, not less than half of them by chance."""
        backoff = self.retry_backoff
        return backed_off(self.retry_delay, backoff, self.attempts, jitter=backoff is not False)

    async def update(self, **kwargs: Any) -> None:
        """Store the job as it is with some fields changed, as in SAQ; another ``meta`` leaves what is ours in it."""
        meta = kwargs.get("meta")
        if self.extras and isinstance(meta, dict) and META_KEY not in meta:
            kwargs["meta"] = {**meta, META_KEY: self.extras}
        await super().update(**kwargs)

    async def retry(self, error: str | None = None) -> None:
        """Run an ended job again, from its first attempt; nothing happens to one that has not ended."""
        if self.ended:
            self.attempts, self.result = 0, None
            self.forget(PROGRESS, EXPIRES_AT, EXPIRES_IN, EXPIRED)
        await super().retry(error)

    @property
    def ended(self) -> bool:
        """Whether the job, as last read from Redis, is complete, failed or aborted."""
        return self.status in TERMINAL_STATUSES

    @property
    def headers(self) -> Mapping[str, str]:
        """The text that travels with the job and with those that it enqueues, by name."""
        headers: Any = self.extras.get(HEADERS)
        return headers if isinstance(headers, dict) else {}

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Add text that travels with the job; for a middleware's ``before_enqueue``.

        Raises:
            OptionError: It is no text by name.
        """
        given = check(f"add_headers() of job {self.key}", {"headers": headers}, CALL_CHECKS).get("headers", {})
        self.note(**{HEADERS: {**self.headers, **given}})

    @property
    def control(self) -> Mapping[str, Any]:
        """What its options on priority, limits and uniqueness come to, by name; empty without any."""
        control: Any = self.extras.get(CONTROL)
        return control if isinstance(control, dict) else {}

    @property
    def parent_id(self) -> str | None:
        """The key of the job that it follows from: which enqueued or spawned it, or is before it in its workflow."""
        parent = self.extras.get(PARENT)
        return parent if isinstance(parent, str) else None

    @property
    def root_id(self) -> str:
        """The id of the workflow that it is of, else the key of the job with which it began, perhaps its own."""
        root = self.extras.get(ROOT)
        return root if isinstance(root, str) else self.parent_id or self.key

    @property
    def extras(self) -> Mapping[str, Any]:
        """What Knapsaq stores with the job beyond SAQ's fields."""
        return extras_of(self)

    def note(self, **extras: Any) -> None:
        """Store something among the extras."""
        self.meta = {**self.meta, META_KEY: {**self.extras, **extras}}

    def forget(self, *names: str) -> None:
        """Store no longer what the extras have under some names."""
        extras = self.extras
        if any(name in extras for name in names):
            left = {name: value for name, value in extras.items() if name not in names}
            self.meta = {**self.meta, META_KEY: left}

    def set_expiry(self, now: int) -> None:
        """Note the moment by which it has to be started, in milliseconds since 1970 as ``now`` is.

        Raises:
            OptionError: It would never run, as it is due later.
        """
        due = now / 1000 + self.delay if self.delay else max(now / 1000, self.scheduled)
        moment = self.expires.timestamp() if isinstance(self.expires, datetime) else due + (self.expires or 0.0)
        if (self.delay or self.scheduled) and moment <= due:
            expected = f"a moment after it is due, {from_ms(int(due * 1000))}, as it would never run"
            raise OptionError(f"a job of task {self.function!r}", "expires", self.expires, expected)
        self.note(**{EXPIRES_AT: int(moment * 1000)})

    def expire_later(self) -> None:
        """Have a length of time in which it has to be started count from the moment at which its workflow queues it."""
        if isinstance(self.expires, (int, float)):
            self.note(**{EXPIRES_IN: vars(self).pop("expires")})

    def expired(self, now: int) -> str | None:
        """Return why it may not be started any more, which is noted; once it may, it does not expire later.

        Args:
            now: Milliseconds since 1970.
        """
        end, length = self.extras.get(EXPIRES_AT), self.extras.get(EXPIRES_IN)
        if isinstance(length, (int, float)):
            end = int(max(self.queued, self.scheduled * 1000) + length * 1000)
        if not isinstance(end, int) or end <= 0:
            return None
        self.forget(EXPIRES_AT, EXPIRES_IN)
        if now <= end:
            return None
        self.note(**{EXPIRED: True})
        return f"expired, as it was not started by {from_ms(end):%Y-%m-%d %H:%M:%S} UTC"

    @property
    def abort_id(self) -> str:
        """The Redis key of SAQ's abort mark; ours names the queue, so that equal keys of two queues do not meet."""
        queue: SaqQueue = self.get_queue()
        return f"saq:abort:{queue.name}:{self.key}"

    @classmethod
    def like(cls, pattern: dict[str, Any], key: str, kwargs: dict[str, Any] | None) -> Job[Any]:
        """Return a new job with the fields of a pattern, which is what ``Job.__dict__`` holds."""
        job: Job[Any] = object.__new__(cls)
        job.__dict__ = fields = pattern.copy()
        fields["key"], fields["kwargs"], fields["meta"] = key, kwargs, {}
        return job

    @classmethod
    def from_record(cls, record: Any) -> Job[Any]:
        """Return the job of a stored record, without its queue; fields that SAQ does not know are left out.

        Raises:
            msgspec.ValidationError: It is no record, or a field is of a wrong kind.
            KeyError: Its status is none of SAQ's.
        """
        Record.of(record)
        job: Job[Any] = object.__new__(cls)
        job.__dict__ = fields = {**_FRESH, "meta": {}, **record}
        for name in () if record.keys() <= FIELDS else record.keys() - FIELDS:
            del fields[name]
        status = fields["status"]
        if status.__class__ is str:
            fields["status"] = _STATUSES.get(status) or Status[status.upper()]
        return job

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from SAQ's defaults, as SAQ stores them."""
        fields = self.__dict__
        stored = {
            name: value
            for name, default in _DEFAULTS
            if (value := fields[name]) is not default and (value != default or value.__class__ is not default.__class__)
        }
        if self.queue is not None:
            stored["queue"] = self.queue.name
        if self.meta:
            stored["meta"] = self.meta
        return stored


_FRESH = {field.name: field.default for field in dataclasses.fields(SaqJob) if field.name != "meta"}
_STATUSES = {status.value: status for status in Status}
_DEFAULTS = tuple(
    (field.name, field.default) for field in dataclasses.fields(SaqJob) if field.name not in ("queue", "meta")
)
