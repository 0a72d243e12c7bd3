"""Threads: where plain functions run.

Invariants, each a test in ``tests/unit/test_threads.py``:

* a thread that was left behind counts until it has ended, and waiting for one costs no time;
* a soft time limit is raised in the function, and nowhere else in its thread.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread

from knapsaq import events
from knapsaq.errors import SoftTimeLimitExceeded
from knapsaq.job import Job


class Threads:
    """The threads of one worker.

    Args:
        number: How many functions run at once, those counted that time-outs have left behind.
    """

    def __init__(self, number: int) -> None:
        self._free = anyio.CapacityLimiter(number)
        self._unlimited = anyio.CapacityLimiter(math.inf)

    async def run(
        self, job: Job[Any], function: Callable[[], Any], *, hears: bool = False, soft: float | None = None
    ) -> Any:
        """Run a job's function in a thread and return what it returns.

        Args:
            job: The job; the time for which it waits for a thread does not count for its deadline.
            function: The function.
            hears: Whether it can ask if it is to end.
            soft: The soft limit that the job's deadline keeps.
        """
        call = ThreadCall(function, self._free)
        await self._wait(job, call)
        if job.deadline is not None and soft is not None:
            call.make_interruptible(_limit_of(job.function, soft))
            job.deadline.remind(call.raise_in_thread)
        job.listener = call if hears else None
        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._unlimited)
        finally:
            job.listener = None
            if job.deadline is not None:
                job.deadline.remind(None)
            if call.leave():
                events.thread_abandoned(job)

    async def _wait(self, job: Job[Any], call: ThreadCall) -> None:
        """Wait until there is a thread."""
        with suppress(anyio.WouldBlock):
            self._free.acquire_on_behalf_of_nowait(call)
            return
        events.thread_awaited(job, int(self._free.total_tokens))
        if job.deadline is not None:
            job.deadline.put_off()
        await self._free.acquire_on_behalf_of(call)
        if job.deadline is not None:
            job.deadline.go_on()


class ThreadCall:
    """A function on its way through a thread, and the holder of a token until that thread has really ended.

    Args:
        function: What the thread runs.
        tokens: Where the token came from; made on the loop that runs.
    """

    def __init__(self, function: Callable[[], Any], tokens: anyio.CapacityLimiter) -> None:
        self._function, self._tokens = function, tokens
        self._loop = asyncio.get_running_loop()
        self._taken = threading.Lock()  # by the thread that runs it, or by the loop that has left before
        self._ended = False
        self._limit: type[BaseException] | None = None
        self._gate = threading.Lock()  # before the thread's identity, while an exception is sent there
        self._thread: int | None = None
        self._due = False

    def __call__(self) -> Any:
        """Run the function, in the thread; nothing happens if nobody waits for it any more."""
        if not self._taken.acquire(blocking=False):
            return None
        try:
            return self._function() if self._limit is None else self._run_interruptible()
        finally:
            self._ended = True
            with suppress(RuntimeError):  # the loop is closed, and the tokens are gone with it
                self._loop.call_soon_threadsafe(self._tokens.release_on_behalf_of, self)

    def interrupt(self) -> None:
        """Do nothing: the job has the flag for which ``ctx.is_aborted()`` looks, and the thread sees it."""

    def make_interruptible(self, error: type[BaseException]) -> None:
        """Have ``raise_in_thread`` raise an error of this kind."""
        self._limit = error

    def raise_in_thread(self) -> None:
        """Raise the error in the function; at its next step of Python, so not before a call of C returns. Once only."""
        with self._gate:
            self._due = True
            if self._thread is not None:
                _set_async_exception(self._thread, self._limit)

    def leave(self) -> bool:
        """Say on the loop that nobody waits any more; returns whether the thread runs on."""
        if self._taken.acquire(blocking=False):
            self._tokens.release_on_behalf_of(self)
            return False
        return not self._ended

    def _run_interruptible(self) -> Any:
        """Run the function; an error that is raised a moment too late must not get any further than here."""
        result, failure, ended = None, None, False
        try:
            with self._gate:
                self._thread = threading.get_ident()
                if self._due and self._limit is not None:
                    raise self._limit
            try:
                result = self._function()
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                failure = error
            ended = True
            self._shut()
        except SoftTimeLimitExceeded as error:
            failure = failure if ended else error
            self._shut()  # the only one that was ever sent has arrived
        if failure is not None:
            raise failure
        return result

    def _shut(self) -> None:
        with self._gate:
            self._thread = None
        _set_async_exception(threading.get_ident(), None)


def _set_async_exception(thread: int, error: type[BaseException] | None) -> None:
    """Have an exception raised in a thread of Python; None takes back one that was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))


def _limit_of(task: str, seconds: float) -> type[SoftTimeLimitExceeded]:
    """Return the error as a class that needs no arguments, as the interpreter makes the object."""

    def __init__(self: SoftTimeLimitExceeded) -> None:  # noqa: N807 - it is one
        SoftTimeLimitExceeded.__init__(self, task, seconds)

    kind = SoftTimeLimitExceeded
    return type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})
