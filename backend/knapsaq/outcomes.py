"""Outcomes: how one attempt of a job ended, as a value.

Where in the flow: the executor runs the function and returns an ``Outcome``; it
writes nothing. The queue turns the outcome into what Redis has to store. A task
chooses its outcome by returning, by raising, or with one of the signals below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from knapsaq.timing import Duration, seconds


class TaskSignal(Exception):  # noqa: N818 - a signal to the executor, not an error
    """What a task raises to choose its own outcome."""


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


Outcome: TypeAlias = Succeeded | Failed | Retried | Aborted | Released
