"""Batch: how many calls of a task its function gets at once, and how long they wait for each other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from knapsaq.errors import KnapsaqError, OptionError
from knapsaq.timing import Duration

SMALLEST, LARGEST = 2, 10_000
LONGEST_WAIT = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class Batch:
    """What ``@task(batch=...)`` is given: the function gets a list of calls, and each caller its own result.

    Attributes:
        size: How many calls a list has at most, from 2 to 10,000.
        wait: Seconds, above 0 and up to an hour, or a ``timedelta``, for which the first call waits for the others.

    Raises:
        OptionError: One is out of range.
    """

    size: int
    wait: Duration

    def __post_init__(self) -> None:
        size: Any = self.size
        if not isinstance(size, int) or isinstance(size, bool) or not SMALLEST <= size <= LARGEST:
            raise OptionError("Batch()", "size", size, f"a whole number from {SMALLEST} to {LARGEST:,}")
        wait: Any = self.wait
        length = wait.total_seconds() if isinstance(wait, timedelta) else wait
        is_number = isinstance(length, (int, float)) and not isinstance(length, bool)
        if not is_number or not 0 < length <= LONGEST_WAIT:
            raise OptionError("Batch()", "wait", wait, "seconds above 0 up to 3,600, or a timedelta")
        object.__setattr__(self, "wait", float(length))  # one form, so that equal ones are equal


class BatchResultError(KnapsaqError):
    """A task with ``batch=...`` has not returned a list with a result for each call; raised inside the worker."""

    def __init__(self, task: str, calls: int, returned: str) -> None:
        super().__init__(task, calls, returned)
        self.task, self.calls, self.returned = task, calls, returned

    def __str__(self) -> str:
        return (
            f"task {self.task!r} was given {self.calls} calls and returned {self.returned}; it has to return a list "
            f"with one result for each of them, in their order, where an exception fails its own call alone"
        )
