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
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import msgspec
from saq.job import TERMINAL_STATUSES, Status
from saq.job import Job as SaqJob

from knapsaq.deadline import Deadline
from knapsaq.errors import JobFailedError, JobRevokedError, ResultError

if TYPE_CHECKING:
    from saq.queue import Queue as SaqQueue

R = TypeVar("R")

META_KEY = "knapsaq"
UNLIMITED_BACKOFF = 24 * 3600.0
SIGNS = bytes.maketrans(b"+/", b"az")
PARENT, ROOT = "parent", "root"  # among the extras: where a job comes from
UNKNOWN_SINCE = "unknown_since"  # among the extras: the millisecond at which a worker first did not know the task
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


class Record(msgspec.Struct, omit_defaults=True):
    """A job's fields as they are stored: their kinds, and SAQ's defaults, which are left out."""

    function: str
    key: str
    queue: Any = None
    kwargs: dict[str, Any] | None = None
    timeout: int | float | None = 10
    heartbeat: int | float = 0
    retries: int = 1
    ttl: int | float | None = 600
    retry_delay: int | float = SaqJob.retry_delay
    retry_backoff: bool | float = False
    scheduled: int | float = 0
    progress: int | float = SaqJob.progress  # the same object, as only that is left out
    attempts: int = 0
    completed: int = 0
    queued: int = 0
    started: int = 0
    touched: int = 0
    result: Any = None
    error: str | None = None
    status: Any = Status.NEW
    priority: int = 0
    group_key: str | None = None
    meta: dict[Any, Any] = {}
    worker_id: str | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Record:
        """Return checked fields; what SAQ does not know is left out.

        Raises:
            msgspec.ValidationError: Naming the field, what it has to be and what it is.
        """
        return msgspec.convert(fields, cls)


class ResultReader(Protocol):
    """What a job asks of its queue in order to give its result to a caller."""

    async def wait_ended(self, job: Job[Any], timeout: float | None) -> None:
        """Return when the job has ended, with ``job`` brought up to date."""

    def decode_result(self, job: Job[Any]) -> Any:
        """Return the job's result as the task's annotated type."""


@dataclasses.dataclass(eq=False, repr=False)
class Job(SaqJob, Generic[R]):
    """One call of a task; SAQ's fields, plus what is below."""

    key: str = dataclasses.field(default_factory=new_key)
    delay = 0.0
    """While it is being sent: seconds until it may run, by Redis' clock. It is no field, and not stored."""
    deadline = cast("Deadline | None", None)
    """In the worker, while the function runs: when it is cancelled. It is no field, and not stored."""
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
            JobMissingError: It is not in Redis any more; keep results longer with ``ttl``.
            ResultError: It is done, but what it returned could not be stored or does not fit the annotation.
            TimeoutError: Not ended yet. The job goes on; call again.
        """
        reader = cast("ResultReader", self.get_queue())
        await reader.wait_ended(self, timeout)
        if self.status is Status.FAILED:
            raise JobFailedError(self.function, self.key, self.error or "")
        if self.status is Status.ABORTED:
            raise JobRevokedError(self.function, self.key, self.error or "")
        if self.error:
            raise ResultError(self.function, self.key, self.error)
        try:
            return cast("R", reader.decode_result(self))
        except msgspec.ValidationError as error:
            raise ResultError(self.function, self.key, str(error)) from error

    def replace(self, job: SaqJob) -> None:
        """Take over all fields of another job."""
        self.__dict__.update((name, value) for name, value in vars(job).items() if name in FIELDS)

    def next_retry_delay(self) -> float:
        """Return the seconds until the next attempt; with a backoff, not less than half of them by chance."""
        backoff = self.retry_backoff
        return backed_off(self.retry_delay, backoff, self.attempts, jitter=backoff is not False)

    async def retry(self, error: str | None = None) -> None:
        """Run an ended job again, from its first attempt; nothing happens to one that has not ended."""
        if self.ended:
            self.attempts, self.result = 0, None
        await super().retry(error)

    @property
    def ended(self) -> bool:
        """Whether the job, as last read from Redis, is complete, failed or aborted."""
        return self.status in TERMINAL_STATUSES

    @property
    def headers(self) -> Mapping[str, str]:
        """The text that travels with the job, by name."""
        return cast("Mapping[str, str]", self.extras.get("headers", {}))

    @property
    def parent_id(self) -> str | None:
        """The key of the job that it follows from: the first of them in a workflow, or the one that spawned it."""
        parent = self.extras.get(PARENT)
        return parent if isinstance(parent, str) else None

    @property
    def root_id(self) -> str:
        """The id of the workflow that it is of, else the key of the job with which it began."""
        root = self.extras.get(ROOT)
        return root if isinstance(root, str) else self.parent_id or self.key

    @property
    def extras(self) -> Mapping[str, Any]:
        """What Knapsaq stores with the job beyond SAQ's fields."""
        extras: Any = self.meta.get(META_KEY)
        return extras if isinstance(extras, dict) else {}

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
