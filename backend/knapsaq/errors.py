"""Errors: everything that Knapsaq raises, as one tree.

    KnapsaqError
    ├── ConfigurationError          settings or options that cannot work
    │   ├── CronError               a cron expression or interval that names no time
    │   ├── OptionError             a wrong option of @task, @scheduled_task or .using()
    │   ├── SettingsError           a wrong KNAPSAQ_* value
    │   ├── TaskDefinitionError     a function that cannot be a task
    │   └── WorkflowDefinitionError a workflow whose parts do not fit together
    ├── RegistryError
    │   ├── DuplicateTaskError      two functions under one name
    │   ├── RouteError              dotted paths that lead to no task
    │   ├── DuplicateScheduleError  two schedules under one name
    │   ├── UnknownTaskError        nobody registered that name
    │   ├── UnknownScheduleError    no connected queue has a schedule of that name
    │   ├── UnknownQueueError       no queue of that name is connected
    │   └── ScheduleError           a schedule cannot be changed as asked
    ├── ProviderError
    │   └── MissingProviderError    a parameter that nobody provides
    ├── MiddlewareError             a middleware that does what it may not
    ├── InvalidArgumentsError       a call that does not fit the task's signature
    ├── DuplicateJobError           a job that is to be unique, and is not
    ├── PayloadTooLargeError        arguments or a result over the limit
    ├── NotConnectedError           .enqueue() outside a connection
    ├── BrokerError                 Redis cannot be reached, started or used
    ├── WorkerError                 a worker cannot start or be controlled
    ├── TaskTimeoutError            an attempt ran over its limit; raised inside the worker
    ├── SoftTimeLimitExceeded       it is about to; raised inside the task
    ├── TaskProcessError            a task raised in a process; raised inside the worker
    ├── ProcessDiedError            a task's process died under it; likewise
    ├── JobNotEndedError            a job that was waited for goes on; a TimeoutError too
    ├── WorkflowNotEndedError       likewise a workflow
    ├── BatchResultError            a task with batch=... returned no result for each call; likewise
    ├── WorkflowError               what a workflow can end with
    │   ├── WorkflowFailedError     with every failed node and its error
    │   ├── WorkflowRevokedError
    │   └── WorkflowMissingError
    └── JobError                    what waiting for a job can end with
        ├── JobFailedError
        ├── JobRevokedError
        │   └── JobExpiredError     it was not started in time
        ├── JobMissingError
        └── ResultError             the job is done, its result is not to be had

Each error carries its facts as attributes, takes them as positional arguments
(so that it pickles), and says what was wrong, what was given and what to do.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterable

LISTED_NAMES = 10


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the sentence that helps somebody who mistyped ``name``; it names at most ten of ``known``."""
    names = sorted(known)
    if not names:
        return "none is known"
    close = closest(name, names)
    listed = ", ".join(names[:LISTED_NAMES]) + (
        f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    )
    return f"did you mean {close!r}? Known: {listed}" if close else f"known: {listed}"


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the one of ``known`` that ``name`` may stand for; ``cutoff`` is how alike they have to be, 0 to 1."""
    import difflib  # noqa: PLC0415 - only mistakes need it

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


class KnapsaqError(Exception):
    """The root of all errors of Knapsaq."""


class ConfigurationError(KnapsaqError):
    """Settings or options that cannot work."""


class CronError(ConfigurationError, ValueError):
    """A cron expression, an interval or its zone names no time; ``field`` is the part that is wrong."""

    def __init__(self, field: str, given: object, expected: str) -> None:
        super().__init__(field, given, expected)
        self.field, self.given, self.expected = field, given, expected

    def __str__(self) -> str:
        return f"{self.field} is {self.given!r}; expected {self.expected}"


class OptionError(ConfigurationError):
    """An option of ``@task``, ``@scheduled_task`` or ``.using()`` is unknown or has a wrong value."""

    def __init__(self, place: str, option: str, given: object, expected: str) -> None:
        super().__init__(place, option, given, expected)
        self.place, self.option, self.given, self.expected = place, option, given, expected

    def __str__(self) -> str:
        return f"{self.place}: option {self.option!r} is {self.given!r}; expected {self.expected}"


class SettingsError(ConfigurationError):
    """A setting is missing or has a wrong value."""

    def __init__(self, setting: str, given: object, expected: str) -> None:
        super().__init__(setting, given, expected)
        self.setting, self.given, self.expected = setting, given, expected

    def __str__(self) -> str:
        return f"setting {self.setting} is {self.given!r}; expected {self.expected}"


class TaskDefinitionError(ConfigurationError):
    """A function cannot be a task as it is written."""

    def __init__(self, task: str, problem: str) -> None:
        super().__init__(task, problem)
        self.task, self.problem = task, problem

    def __str__(self) -> str:
        return f"task {self.task!r}: {self.problem}"


class RegistryError(KnapsaqError):
    """The registry cannot do what was asked."""


class DuplicateTaskError(RegistryError):
    """Two functions were registered under one task name."""

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(name, first, second)
        self.name, self.first, self.second = name, first, second

    def __str__(self) -> str:
        return (
            f"task {self.name!r} is defined twice: {self.first} and {self.second}; "
            f"give one of them another name with @task(name=...)"
        )


class RouteError(RegistryError):
    """Routes lead to no task: all that are wrong, each with its reason; the program does not start."""

    def __init__(self, routes: tuple[str, ...], reasons: tuple[str, ...]) -> None:
        super().__init__(routes, reasons)
        self.routes, self.reasons = routes, reasons

    def __str__(self) -> str:
        each = [f"route {route!r}: {reason}" for route, reason in zip(self.routes, self.reasons, strict=True)]
        return each[0] if len(each) == 1 else "\n".join([f"{len(each)} routes are wrong", *each])


class DuplicateScheduleError(RegistryError):
    """Two schedules have one name."""

    def __init__(self, name: str, first: str, second: str) -> None:
        super().__init__(name, first, second)
        self.name, self.first, self.second = name, first, second

    def __str__(self) -> str:
        return (
            f"schedule {self.name!r} is defined twice: {self.first} and {self.second}; "
            f"give one of them another name with @scheduled_task(schedule=...), or with name=... where a route names it"
        )


class UnknownTaskError(RegistryError):
    """No task of that name is registered in this process."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        hint = nearest(self.name, self.known)
        return (
            f"no task is named {self.name!r}; {hint}. "
            f"A task is registered when its module is imported: import it where the queue is configured"
        )


class UnknownScheduleError(RegistryError):
    """No connected queue has a schedule of that name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        hint = nearest(self.name, self.known)
        return (
            f"no schedule is named {self.name!r}; {hint}. A schedule of @scheduled_task is stored when a worker of its "
            f"queue starts; the queue has to be one of KNAPSAQ_QUEUES"
        )


class ScheduleError(RegistryError):
    """A schedule cannot be changed as asked; nothing was changed."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name, self.problem = name, problem

    def __str__(self) -> str:
        return f"schedule {self.name!r}: {self.problem}"


class UnknownQueueError(RegistryError):
    """No queue of that name is connected."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        return f"no queue is named {self.name!r}; {nearest(self.name, self.known)}. Add it to KNAPSAQ_QUEUES"


class ProviderError(KnapsaqError):
    """A dependency could not be provided."""


class MissingProviderError(ProviderError):
    """A task asks for a parameter that is neither an argument nor provided by anybody."""

    def __init__(self, task: str, parameter: str, known: tuple[str, ...]) -> None:
        super().__init__(task, parameter, known)
        self.task, self.parameter, self.known = task, parameter, known

    def __str__(self) -> str:
        return (
            f"task {self.task!r} asks for {self.parameter!r}, which nobody provides; "
            f"{nearest(self.parameter, self.known)}. Add it to dependencies={{...}} of the plugin or of @task"
        )


class MiddlewareError(KnapsaqError):
    """A middleware did what it may not; the attempt has failed."""

    def __init__(self, task: str, problem: str) -> None:
        super().__init__(task, problem)
        self.task, self.problem = task, problem

    def __str__(self) -> str:
        return f"a middleware of task {self.task!r}: {self.problem}"


class InvalidArgumentsError(KnapsaqError):
    """A call does not fit the task's signature; nothing was queued. ``place`` says whose call, if a schedule's."""

    def __init__(self, task: str, parameter: str, expected: str, given: str, place: str = "") -> None:
        super().__init__(task, parameter, expected, given, place)
        self.task, self.parameter, self.expected, self.given, self.place = task, parameter, expected, given, place

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        return f"{place}task {self.task!r}, argument {self.parameter!r}: expected {self.expected}, given {self.given}"


class PayloadTooLargeError(KnapsaqError):
    """Arguments or a result are larger than the limit; nothing was queued or stored."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(what, size, limit)
        self.what, self.size, self.limit = what, size, limit

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.size:,} bytes are over the limit of {self.limit:,}; "
            f"pass an id instead of the object, or raise KNAPSAQ_MAX_PAYLOAD_BYTES"
        )


class NotConnectedError(KnapsaqError):
    """A task was enqueued, or schedules were looked at, outside a connection; ``task`` is empty for schedules."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        what = f"task {self.task!r} cannot be enqueued" if self.task else "schedules cannot be looked at or changed"
        return (
            f"{what}: no queue is connected. In a script use "
            f"`async with knapsaq.connect():`; in a Litestar app add KnapsaqPlugin to its plugins"
        )


class BrokerError(KnapsaqError):
    """Redis cannot be reached, started or used; ``url`` never holds a password."""

    def __init__(self, url: str, problem: str, remedy: str) -> None:
        super().__init__(url, problem, remedy)
        self.url, self.problem, self.remedy = url, problem, remedy

    def __str__(self) -> str:
        return f"broker {self.url}: {self.problem}; {self.remedy}"


class WorkerError(KnapsaqError):
    """A worker cannot start or be controlled."""


class TaskTimeoutError(KnapsaqError, TimeoutError):
    """An attempt ran longer than its hard limit and was cancelled."""

    def __init__(self, task: str, seconds: float) -> None:
        super().__init__(task, seconds)
        self.task, self.seconds = task, seconds

    def __str__(self) -> str:
        return f"task {self.task!r} ran over its limit of {self.seconds:g} s and was cancelled"


class SoftTimeLimitExceeded(KnapsaqError, CancelledError):  # noqa: N818 - Celery's name
    """An attempt has reached its ``soft_timeout``; raised in the task, which may clean up and go on to its hard limit.

    It is a ``CancelledError`` besides, so that task groups and whatever else cleans up after one does so.
    """

    def __init__(self, task: str, seconds: float) -> None:
        super().__init__(task, seconds)
        self.task, self.seconds = task, seconds

    def __str__(self) -> str:
        return f"task {self.task!r} has reached its soft limit of {self.seconds:g} s"


class TaskProcessError(KnapsaqError):
    """A task raised in a process of its own; ``error`` has the traceback's text, ``again`` is what its options say."""

    def __init__(self, task: str, error: str, again: bool) -> None:
        super().__init__(task, error, again)
        self.task, self.error, self.again = task, error, again

    def __str__(self) -> str:
        return f"task {self.task!r} raised in its process: {self.error.strip().rsplit(chr(10), 1)[-1]}"


class ProcessDiedError(KnapsaqError):
    """The process that ran a task has ended without an answer, or none could be started."""

    def __init__(self, task: str, problem: str) -> None:
        super().__init__(task, problem)
        self.task, self.problem = task, problem

    def __str__(self) -> str:
        return f"the process of task {self.task!r} is gone: {self.problem}"
