"""Job: one call of a task.

A ``Job`` is SAQ's Job, field for field, so that SAQ's own producers, workers and
web UI understand it. What SAQ has no place for lives in ``Job.meta`` under the one
key ``knapsaq``. A job knows how to ask its queue about itself; it decides nothing.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import msgspec
from saq.job import TERMINAL_STATUSES, Status
from saq.job import Job as SaqJob

from knapsaq.errors import JobFailedError, JobRevokedError, ResultError

if TYPE_CHECKING:
    import asyncio

    from saq.queue import Queue as SaqQueue

R = TypeVar("R")

META_KEY = "knapsaq"
FIELDS = frozenset(field.name for field in dataclasses.fields(SaqJob))


def new_key() -> str:
    """Return a key that nobody can guess."""
    return uuid.uuid4().hex


class Record(msgspec.Struct):
    """The kinds of a job's fields, against which what was stored or set by hand is checked."""

    function: str
    key: str
    queue: Any = None
    kwargs: dict[str, Any] | None = None
    timeout: float | None = None
    heartbeat: float = 0
    retries: int = 1
    ttl: float | None = None
    retry_delay: float = 0
    retry_backoff: bool | float = False
    scheduled: float = 0
    progress: float = 0
    attempts: int = 0
    completed: int = 0
    queued: int = 0
    started: int = 0
    touched: int = 0
    result: Any = None
    error: str | None = None
    status: Any = None
    priority: int = 0
    group_key: str | None = None
    meta: dict[Any, Any] = {}
    worker_id: str | None = None


def check_fields(record: Mapping[str, Any]) -> None:
    """Refuse fields of a wrong kind, with which no worker could go on.

    Raises:
        msgspec.ValidationError: Naming the field, what it has to be and what it is.
    """
    msgspec.convert(record, Record)


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
    limit = cast("asyncio.Timeout | None", None)
    """In the worker, while the function runs: its time limit. It is no field, and not stored."""
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
    def extras(self) -> Mapping[str, Any]:
        """What Knapsaq stores with the job beyond SAQ's fields."""
        return cast("Mapping[str, Any]", self.meta.get(META_KEY, {}))

    @property
    def abort_id(self) -> str:
        """The Redis key of SAQ's abort mark; ours names the queue, so that equal keys of two queues do not meet."""
        queue: SaqQueue = self.get_queue()
        return f"saq:abort:{queue.name}:{self.key}"

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


_DEFAULTS = tuple(
    (field.name, field.default) for field in dataclasses.fields(SaqJob) if field.name not in ("queue", "meta")
)
