"""Progress: how far a running job is, told by its task as often as it likes, written ten times a second at most.

Where in the flow: ``ctx.set_progress`` puts the newest value on the job itself, so whatever ends the attempt writes it
too. In between a reporter writes the record through ``Queue.update``, which counts only while the claim stands.

Invariants, each a test in ``tests/redis/test_progress.py``:

* two writes of a job are at least a tenth of a second apart, however often its task tells;
* the last value is written before the end or with it, and nothing is written behind the end;
* telling neither waits for Redis nor keeps the event loop from anything, and fails no task while Redis is away.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Generator, Mapping
from typing import Any

import msgspec

from knapsaq import events
from knapsaq.batching import call_in
from knapsaq.codec import shown, to_json_types
from knapsaq.errors import InvalidArgumentsError, PayloadTooLargeError
from knapsaq.job import PROGRESS, Job

WRITE_SECONDS = 0.1
TURN_SECONDS = 0.005  # a task that tells in a loop lets others run as often
MAX_META_BYTES = 8192
NUMBER = "a number from 0"


class Turn:
    """What ``await ctx.set_progress(...)`` waits for: nothing, or that the loop has had a turn."""

    __slots__ = ("_taken",)

    def __init__(self, *, taken: bool) -> None:
        self._taken = taken

    def __await__(self) -> Generator[None, None, None]:
        if not self._taken:
            yield


NO_TURN, ONE_TURN = Turn(taken=True), Turn(taken=False)


class Reporter:
    """Writes the progress of one attempt.

    Args:
        job: The claimed job.
        loop: The worker's loop.
    """

    def __init__(self, job: Job[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._job, self._loop = job, loop
        self._next = self._turn_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._woken = self._late = self._failed = False

    def changed(self) -> Turn:
        """Have the job's progress written soon; from any thread."""
        if _running_loop() is not self._loop:
            if not self._woken:  # a thread that tells in a loop does not flood the other one
                self._woken = True
                call_in(self._loop, self._wake)
            return NO_TURN
        self._wake()
        now = self._loop.time()
        if now < self._turn_at:
            return NO_TURN
        self._turn_at = now + TURN_SECONDS
        return ONE_TURN

    def _wake(self) -> None:
        self._woken = False  # before the job is looked at, so that a later value wakes again
        if self._writing is not None:
            self._late = True
            return
        left = self._next - self._loop.time()
        if left <= 0:
            self._write()
        elif self._timer is None:
            self._timer = self._loop.call_later(left, self._write)

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next, self._late = self._loop.time() + WRITE_SECONDS, False
        self._writing = self._loop.create_task(self._update())

    async def _update(self) -> None:
        try:
            if is_running(self._job):  # else its settlement has the value, or it is no longer ours
                await self._job.update()
        except Exception as error:  # noqa: BLE001 - how far it is matters less than that it goes on
            if not self._failed:
                events.progress_lost(self._job, error)
            self._failed = True
        finally:
            self._writing = None
            if self._late:
                self._wake()


def is_running(job: Job[Any]) -> bool:
    """Tell whether an attempt of a claimed job goes on, as the worker that has it knows."""
    return bool(job.token and job.started and not job.ended)


def put(job: Job[Any], task: str, current: float, total: float, meta: Mapping[str, Any]) -> None:
    """Put on a job how far it is.

    Raises:
        InvalidArgumentsError: A number is none, or below 0, or ``meta`` is not made of what JSON can carry.
        PayloadTooLargeError: ``meta`` has over 8,192 bytes of JSON.
    """
    job.progress, details = checked(task, current, total, meta)
    job.note(**{PROGRESS: details})


def checked(task: str, current: Any, total: Any, meta: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return how far somebody is, from 0 to 1, and the details; see ``put`` for the errors."""
    for name, value in (("current", current), ("total", total)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise InvalidArgumentsError(task, name, NUMBER, shown(value))
    details = {"current": current, "total": total}
    if meta:
        try:
            plain = to_json_types(meta)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgumentsError(task, "meta", f"what JSON can carry ({error})", shown(meta)) from None
        size = len(msgspec.json.encode(plain))
        if size > MAX_META_BYTES:
            raise PayloadTooLargeError(f"the progress of task {task!r}", size, MAX_META_BYTES)
        details |= plain
    return min(1.0, current / total) if total else 1.0, details


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
