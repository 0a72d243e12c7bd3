"""Watchdog: tells which task blocks a loop, and ends a process whose loop does not come back.

Where in the flow: a thread beside a loop, one for all workers on it. At every turn
it looks whether the loop has run a callback, the sign, since the turn before; a
job costs nothing. It is no worker's lease thread, which may have to wait for Redis.

Invariants, each a test in ``tests/redis/test_watchdog.py``:

* a stall is told once, with task and stack, and once more when it is over, however many workers the loop has;
* time in which the process itself was stopped is no stall, and neither is the time before the loop's first sign;
* a process whose loop is blocked for the whole of the limit gives up its leases and ends, also while its log hangs;
  time in which somebody steps through it with a debugger does not count.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple, Protocol

from knapsaq import events
from knapsaq.job import Job

STALLED = 70
"""The exit code of a process whose loop was blocked for too long; ``EX_SOFTWARE`` in BSD's sysexits.h."""

TURN = 0.25  # seconds
TOLD_AFTER = 1.0  # seconds of a stall
STACK_FRAMES = 25
CALLER = "knapsaq.executor"  # the module that calls the tasks' functions
LOG_SECONDS = 1.0  # that a line may take, as what the log is written to may be what blocks the loop
FAREWELL_SECONDS = 5.0  # that giving up the leases may take

_watchdogs: dict[asyncio.AbstractEventLoop, Watchdog] = {}
_lock = threading.Lock()


class Ward(Protocol):
    """A worker on a watched loop; it is asked in the watchdog's thread."""

    @property
    def stall_limit(self) -> float:
        """Seconds that the loop may be blocked; 0 is no limit."""

    def job_of(self, task: asyncio.Task[Any], /) -> Job[Any] | None:
        """Return the job that a task runs."""

    def give_up(self) -> None:
        """Begin to give up the lease."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is given up."""


class Blocker(NamedTuple):
    """What a loop is in: the name of asyncio's task and its job, as far as it is one."""

    task: str | None
    job: Job[Any] | None


def watch(ward: Ward) -> None:
    """Watch the running loop for a worker on it, until :func:`leave`."""
    loop = asyncio.get_running_loop()
    with _lock:
        watchdog = _watchdogs.get(loop)
        if watchdog is None:
            watchdog = _watchdogs[loop] = Watchdog(loop)
            watchdog.start()
        watchdog.wards += (ward,)


def leave(ward: Ward) -> None:
    """End the watch for a worker, if there is one; blocks until the last one's watchdog has ended."""
    with _lock:
        watchdog = next((each for each in _watchdogs.values() if ward in each.wards), None)
        if watchdog is None:
            return
        watchdog.wards = tuple(each for each in watchdog.wards if each is not ward)
        if watchdog.wards:
            return
        del _watchdogs[watchdog.loop]
    watchdog.stop()


class Watchdog(threading.Thread):
    """Watches one loop; made in the loop's own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.loop = loop
        self.wards: tuple[Ward, ...] = ()
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._signed = self._begun = False
        self._stalled = self._debugged_until = 0.0
        self._blocker: Blocker | None = None

    def run(self) -> None:
        """Look at the loop until ``stop``."""
        looked, used = time.monotonic(), time.process_time()
        self._ask()
        while not self._ended.wait(TURN):
            now, cpu = time.monotonic(), time.process_time()
            waited = now - looked
            if waited > 2 * TURN > cpu - used:
                waited = TURN  # late, and not by work: the process was stopped, the machine slept or is overloaded
            looked, used = now, cpu
            self._look(waited)

    def stop(self) -> None:
        """End the thread; blocks until it has ended."""
        self._ended.set()
        self.join()

    def _ask(self) -> None:
        self._signed = False
        try:
            self.loop.call_soon_threadsafe(self._sign)
        except RuntimeError:  # the loop has been closed
            self._ended.set()

    def _sign(self) -> None:
        self._signed = self._begun = True

    def _look(self, waited: float) -> None:
        """Reckon with a turn of so many seconds."""
        # Where this thread could not run either, a call in C has held the interpreter, and has just ended.
        held = waited >= TOLD_AFTER
        if self._signed and not held:
            if self._blocker is not None:
                _told(events.loop_freed, self._stalled, *self._blocker)
            self._blocker = None
            self._stalled = self._debugged_until = 0.0
            self._ask()
        elif self._begun and self.loop.is_running():
            self._stalled += waited
            if _is_debugged(self._frame()):
                self._debugged_until = self._stalled
            limit = min((ward.stall_limit for ward in self.wards if ward.stall_limit), default=math.inf)
            if self._stalled - self._debugged_until >= limit and not held:
                self._end_process()
            elif self._stalled >= TOLD_AFTER and self._blocker is None:
                self._blocker, stack = self._seen()
                _told(events.loop_blocked, self._stalled, *self._blocker, stack)

    def _seen(self) -> tuple[Blocker, str]:
        """Return what the loop is in, and its stack."""
        task = asyncio.current_task(self.loop)
        stack = traceback.StackSummary.extract(_inner(self._frame()), limit=STACK_FRAMES)
        text = "".join(reversed(stack.format()))
        if task is None:
            return Blocker(None, None), text
        jobs = (ward.job_of(task) for ward in self.wards)
        return Blocker(task.get_name(), next((job for job in jobs if job), None)), text

    def _frame(self) -> FrameType:
        return sys._current_frames()[self._loop_thread]  # noqa: SLF001 - there is no other way

    def _end_process(self) -> None:
        blocker, stack = self._seen()
        if self._signed:
            return
        _told(events.loop_given_up, self._stalled, *blocker, stack)
        _told(atexit._run_exitfuncs)  # noqa: SLF001 - log handlers among them write what they hold
        end = time.monotonic() + FAREWELL_SECONDS
        for ward in self.wards:
            ward.give_up()
        for ward in self.wards:
            ward.join(max(0.0, end - time.monotonic()))
        os._exit(STALLED)


def _told(event: Callable[..., None], *facts: object) -> None:
    """Tell an event from a thread of its own, and wait a moment for it."""
    telling = threading.Thread(target=event, args=facts, name="watchdog-log", daemon=True)
    telling.start()
    telling.join(LOG_SECONDS)


def _inner(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """Walk from a frame outwards, and not beyond the call of a task's function, as its callers are always the same."""
    while frame is not None:
        yield frame, frame.f_lineno
        frame = None if frame.f_globals.get("__name__") == CALLER else frame.f_back


def _is_debugged(frame: FrameType | None) -> bool:
    """Whether somebody steps through a thread that is in this frame."""
    if sys.version_info >= (3, 12) and sys.monitoring.get_tool(sys.monitoring.DEBUGGER_ID) is not None:
        return True
    while frame is not None and frame.f_trace is None:
        frame = frame.f_back
    return frame is not None
