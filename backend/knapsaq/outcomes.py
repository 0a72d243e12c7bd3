"""Outcomes: how one attempt of a job ended, as a value.

Where in the flow: the executor runs the function and returns an ``Outcome``; it
writes nothing. The queue turns the outcome into what Redis has to store. A task
chooses its outcome by returning, by raising, or with one of the signals below.
"""

from __future__ import annotations

import traceback
import types
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, Union, get_args, get_origin

from knapsaq.codec import to_json_types, utf8
from knapsaq.errors import OptionError, TaskProcessError
from knapsaq.timing import Duration, seconds

MAX_ERROR_CHARACTERS = 16_384
LONGEST_SNOOZE = 10 * 365 * 86_400.0  # seconds


class TaskSignal(Exception):  # noqa: N818 - a signal to the executor, not an error
    """What a task raises, or returns, to choose its own outcome."""


class Retry(TaskSignal):
    """Raise it to run the job again; it spends one of the task's ``retries``.

    Args:
        after: Seconds or a ``timedelta`` until the next attempt, exact and without jitter; ``None`` takes the
            task's own ``retry_delay`` and backoff.
        cause: What made the retry necessary; its traceback becomes the job's error.
    """

    def __init__(self, after: Duration | None = None, cause: BaseException | None = None) -> None:
        super().__init__(after, cause)
        self.after = None if after is None else max(0.0, seconds(after))
        if cause is not None:  # setting None would hide the exception that is being handled
            self.__cause__ = cause

    def __str__(self) -> str:
        return "the task asked for another attempt"


class Snooze(TaskSignal):
    """Raise or return it to put the job back for a while; it spends no attempt, however often it happens.

    Args:
        after: Seconds, above 0 and up to ten years, or a ``timedelta``, until the job is run again; exact.

    Raises:
        OptionError: ``after`` is none of these.
    """

    def __init__(self, after: Duration) -> None:
        super().__init__(after)
        given: Any = after
        is_length = isinstance(given, (int, float, timedelta)) and not isinstance(given, bool)
        self.after = seconds(after) if is_length else 0.0
        if not 0 < self.after <= LONGEST_SNOOZE:
            raise OptionError("Snooze()", "after", after, "seconds above 0 up to ten years, or a timedelta")

    def __str__(self) -> str:
        return f"the task put itself off for {self.after:g} s"


class Discard(TaskSignal):
    """Raise it to end the job for good without a result: the work has become pointless.

    Args:
        reason: Why, for the people who look at the job.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The function returned; ``result`` is made of JSON's types, ``problem`` says why it could not be stored."""

    result: Any
    problem: str | None = None


class Elsewhere(TaskSignal):
    """The function ran in another process and returned; its result is encoded already."""

    def __init__(self, outcome: Succeeded) -> None:
        super().__init__(outcome)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Failed:
    """The last attempt raised; ``error`` is the traceback's text."""

    error: str


@dataclass(frozen=True, slots=True)
class Dead(Failed):
    """Nobody can run the job; it failed, and is kept among the dead letters until somebody looks at it."""


@dataclass(frozen=True, slots=True)
class Retried:
    """The attempt raised, and another one is due ``after`` seconds."""

    error: str
    after: float


@dataclass(frozen=True, slots=True)
class Aborted:
    """The job was ended on purpose, by the task or by somebody else."""

    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """The attempt was interrupted from outside and does not count: another worker takes it at once, or ``after`` s."""

    reason: str
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Snoozed(Released):
    """The task put itself off. The attempt ended well, so earlier deaths of workers are not held against the job."""


Outcome: TypeAlias = Succeeded | Failed | Retried | Aborted | Released


def succeeded(task: str, result: Any) -> Succeeded:
    """Return the outcome of a task that has returned; one whose result cannot be stored says why, the work is done."""
    try:
        return Succeeded(to_json_types(result))
    except (TypeError, ValueError, RecursionError) as error:
        return Succeeded(None, f"the result of task {task!r} cannot be stored: {error}; return what JSON can carry")


def error_text(error: BaseException) -> str:
    """Return a traceback, which has the cause at its end."""
    if isinstance(error, TaskProcessError):
        return error.error
    return storable("".join(traceback.format_exception(error)))


def storable(text: str) -> str:
    """Return text that UTF-8 can carry, of a long one its beginning and its end."""
    text = utf8(text)
    if len(text) <= MAX_ERROR_CHARACTERS:
        return text
    half = MAX_ERROR_CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"


def without_signals(annotation: Any) -> Any:
    """Return a function's return annotation as callers see it: of ``str | Snooze`` remains ``str``."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return None if _is_signal(annotation) else annotation
    kept = [kind for kind in get_args(annotation) if not _is_signal(kind)]
    return Union[tuple(kept)] if kept else None  # noqa: UP007 - built at run time


def _is_signal(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, TaskSignal)
