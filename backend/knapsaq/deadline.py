"""Deadline: the moment at which an attempt of a job is cancelled.

It does what ``asyncio.timeout`` does, but sets no timer for what ends within one turn of the loop, as most small jobs
do, and can be moved while the attempt waits for something that does not count.
"""

from __future__ import annotations

import asyncio


class Deadline:
    """Cancels the current task once its time is over; made where the task runs.

    Args:
        seconds: From now on, above 0.

    Attributes:
        when: The moment, in the loop's time; None while it is put off.
    """

    __slots__ = ("_asked", "_loop", "_task", "_timer", "expired", "when")

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None, "a deadline needs a task"  # noqa: S101 - it is made in coroutines alone
        self._task = task
        self._asked = task.cancelling()
        self._loop = task.get_loop()
        self.expired = False
        self.when: float | None = self._loop.time() + seconds
        self._timer: asyncio.Handle = self._loop.call_soon(self._arm)

    def put_off(self) -> float:
        """Stop the clock and return the seconds that are left."""
        self._timer.cancel()
        left = max(0.0, (self.when or 0.0) - self._loop.time())
        self.when = None
        return left

    def go_on(self, left: float) -> None:
        """Start the clock again with so many seconds."""
        self.when = self._loop.time() + left
        self._arm()

    def close(self) -> bool:
        """End it; returns whether it was this, and nobody else, that cancelled the task."""
        self._timer.cancel()
        expired, self.expired = self.expired, False
        return expired and self._task.uncancel() <= self._asked

    def _arm(self) -> None:
        if self.when is not None:
            self._timer = self._loop.call_at(self.when, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()
