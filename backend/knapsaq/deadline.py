"""Deadline: the moments at which an attempt of a job is reminded of its time, and cancelled.

It does what ``asyncio.timeout`` does, but sets no timer for what ends within one turn of the loop, as most small jobs
do, and can be moved while the attempt waits for something that does not count.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Generator
from typing import Any


class Deadline:
    """Cancels the current task once its time is over; made where the task runs.

    Args:
        seconds: From now on, above 0.

    Attributes:
        when: The moment, in the loop's time; None while it is put off.
    """

    __slots__ = ("_asked", "_kept", "_loop", "_task", "_timer", "expired", "when")

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None, "a deadline needs a task"  # noqa: S101 - it is made in coroutines alone
        self._task = task
        self._asked = task.cancelling()
        self._loop = task.get_loop()
        self.expired = False
        self.when: float | None = self._loop.time() + seconds
        self._timer: asyncio.Handle = self._loop.call_soon(self._arm)

    def put_off(self) -> None:
        """Stop the clock; nothing happens while it stands."""
        self._timer.cancel()
        if self.when is not None:
            self._kept, self.when = (self._loop.time(), self.when), None

    def go_on(self) -> None:
        """Start the clock again, with the time that was left."""
        if self.when is None:
            stopped, when = self._kept
            self._resume(when, self._loop.time() - stopped)

    def remind(self, reminder: Callable[[], None] | None) -> None:
        """Have something called once, at the soft limit, if there is one; None takes it back."""

    def close(self) -> bool:
        """End it; returns whether it was this, and nobody else, that cancelled the task."""
        self._timer.cancel()
        expired, self.expired = self.expired, False
        return expired and self._task.uncancel() <= self._asked

    def _resume(self, when: float, passed: float) -> None:
        self.when = when + passed
        self._arm()

    def _arm(self) -> None:
        if self.when is not None:
            self._timer = self._loop.call_at(self.when, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()


class SoftDeadline(Deadline):
    """A deadline with a soft limit before it, at which somebody is reminded.

    Args:
        seconds: The hard limit, from now on; infinite where there is none.
        soft: The soft one, below it.
    """

    __slots__ = ("_missed", "_reminder", "_soft_at")

    def __init__(self, seconds: float, soft: float) -> None:
        super().__init__(seconds)
        self._soft_at: float | None = self._loop.time() + soft
        self._reminder: Callable[[], None] | None = None
        self._missed = False

    def remind(self, reminder: Callable[[], None] | None) -> None:
        """Have something called once, at the soft limit, or soon where that has passed; None takes it back."""
        self._reminder = reminder
        if reminder is not None and self._missed:
            self._loop.call_soon(self._call_reminder)

    def close(self) -> bool:
        """End it; returns whether it was this, and nobody else, that cancelled the task."""
        self._reminder = None
        return super().close()

    def _resume(self, when: float, passed: float) -> None:
        if self._soft_at is not None:
            self._soft_at += passed
        super()._resume(when, passed)

    def _arm(self) -> None:
        if self.when is None:
            return
        if self._soft_at is not None:
            self._timer = self._loop.call_at(self._soft_at, self._expire_softly)
        elif not math.isinf(self.when):
            super()._arm()

    def _expire_softly(self) -> None:
        self._soft_at = None
        self._missed = True
        self._arm()
        self._call_reminder()

    def _call_reminder(self) -> None:
        if self._reminder is not None:
            self._missed = False
            self._reminder()


class Steered:
    """Awaits something for the current task, and can raise an error in it at its innermost ``await``.

    The task is cancelled for that, so that what it waits for is given up as ever; on its way in, the cancellation is
    exchanged for the error. Somebody else's cancellation of the same moment goes first.

    Args:
        awaitable: What to await.
        error: What ``interrupt`` raises; a ``CancelledError`` too, as what cleans up after that is right for it.
    """

    def __init__(self, awaitable: Awaitable[Any], error: asyncio.CancelledError) -> None:
        task = asyncio.current_task()
        assert task is not None, "there is nothing to steer"  # noqa: S101 - it is made in coroutines alone
        self._task, self._inner, self._error = task, awaitable.__await__(), error
        self._asked: int | None = None

    def interrupt(self) -> None:
        """Raise the error."""
        self._asked = self._task.cancelling()
        self._task.cancel()

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = self._inner.__next__
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            try:
                yield awaited
            except GeneratorExit:
                self._inner.close()
                raise
            except BaseException as thrown:  # noqa: BLE001 - whatever it is, it is the function's
                step = self._throwing(self._exchanged(thrown))
            else:
                step = self._inner.__next__

    def _exchanged(self, thrown: BaseException) -> BaseException:
        if self._asked is None or not isinstance(thrown, asyncio.CancelledError):
            return thrown
        asked, self._asked = self._asked, None
        return self._error if self._task.uncancel() <= asked else thrown

    def _throwing(self, error: BaseException) -> Callable[[], Any]:
        return lambda: self._inner.throw(error)
