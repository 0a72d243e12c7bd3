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
    │   ├── UnknownTaskError        nobody registered that name
    │   └── UnknownQueueError       no queue of that name is connected
    ├── ProviderError
    │   └── MissingProviderError    a parameter that nobody provides
    ├── InvalidArgumentsError       a call that does not fit the task's signature
    ├── PayloadTooLargeError        arguments or a result over the limit
    ├── NotConnectedError           .enqueue() outside a connection
    ├── BrokerError                 Redis cannot be reached, started or used
    ├── WorkerError                 a worker cannot start or be controlled
    ├── TaskTimeoutError            an attempt ran over its limit; raised inside the worker
    ├── WorkflowError               what a workflow can end with
    │   ├── WorkflowFailedError     with every failed node and its error
    │   ├── WorkflowRevokedError
    │   └── WorkflowMissingError
    └── JobError                    what waiting for a job can end with
        ├── JobFailedError
        ├── JobRevokedError
        ├── JobMissingError
        └── ResultError             the job is done, its result is not to be had

Each error carries its facts as attributes, takes them as positional arguments
(so that it pickles), and says what was wrong, what was given and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

LISTED_NAMES = 10


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the sentence that helps somebody who mistyped ``name``; it names at most ten of ``known``."""
    names = sorted(known)
    if not names:
        return "none is known"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    listed = ", ".join(names[:LISTED_NAMES]) + (
        f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    )
    return f"did you mean {close[0]!r}? Known: {listed}" if close else f"known: {listed}"


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


class WorkflowDefinitionError(ConfigurationError):
    """The parts of a workflow do not fit together; nothing was queued."""

    def __init__(self, step: str, part: str, expected: str, given: str) -> None:
        super().__init__(step, part, expected, given)
        self.step, self.part, self.expected, self.given = step, part, expected, given

    def __str__(self) -> str:
        return f"workflow step {self.step!r}, {self.part}: expected {self.expected}, given {self.given}"


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


class InvalidArgumentsError(KnapsaqError):
    """A call does not fit the task's signature; nothing was queued."""

    def __init__(self, task: str, parameter: str, expected: str, given: str) -> None:
        super().__init__(task, parameter, expected, given)
        self.task, self.parameter, self.expected, self.given = task, parameter, expected, given

    def __str__(self) -> str:
        return f"task {self.task!r}, argument {self.parameter!r}: expected {self.expected}, given {self.given}"


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
    """A task was enqueued outside a connection."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task

    def __str__(self) -> str:
        return (
            f"task {self.task!r} cannot be enqueued: no queue is connected. In a script use "
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


class JobMissingError(JobError):
    """The job is not in Redis (any more): its result outlived its ttl, or it was purged."""

    def __str__(self) -> str:
        return f"job {self.key} of task {self.task!r} is not in Redis: {self.error}"


class ResultError(JobError):
    """The job is done, but its result could not be stored or does not fit the annotated type."""

    def __str__(self) -> str:
        return f"job {self.key} of task {self.task!r} is done, but its result is not to be had: {self.error}"


class NodeFailure(NamedTuple):
    """Why a node of a workflow has no result.

    Attributes:
        node: Its name.
        task: Its task's name.
        error: The end of its traceback, or the reason why it was revoked.
    """

    node: str
    task: str
    error: str


class WorkflowError(KnapsaqError):
    """A workflow has no result, or cannot do what was asked."""

    def __init__(self, workflow: str, reason: str) -> None:
        super().__init__(workflow, reason)
        self.workflow, self.reason = workflow, reason

    def __str__(self) -> str:
        return f"workflow {self.workflow}: {self.reason}"


class WorkflowFailedError(WorkflowError):
    """One of a workflow's last nodes has failed or was cancelled; ``failures`` names each node that failed."""

    def __init__(self, workflow: str, reason: str, failures: tuple[NodeFailure, ...]) -> None:
        super().__init__(workflow, reason)
        self.failures = failures
        self.args = (workflow, reason, failures)

    @classmethod
    def of(cls, workflow: str, failures: Iterable[NodeFailure]) -> WorkflowFailedError:
        """Return the error that names each failed node; its text names at most ten."""
        every = tuple(failures)
        named = [f"{one.node} ({one.task}): {one.error.strip().rpartition(chr(10))[2]}" for one in every]
        more = f"; and {len(named) - LISTED_NAMES} more" if len(named) > LISTED_NAMES else ""
        return cls(workflow, "; ".join(named[:LISTED_NAMES]) + more, every)

    def __str__(self) -> str:
        return f"workflow {self.workflow} failed: {self.reason}"


class WorkflowRevokedError(WorkflowError):
    """Somebody ended the workflow on purpose."""

    def __str__(self) -> str:
        return f"workflow {self.workflow} was revoked: {self.reason}"


class WorkflowMissingError(WorkflowError):
    """The workflow is not in Redis (any more)."""

    def __str__(self) -> str:
        return f"workflow {self.workflow} is not in Redis: {self.reason}"
