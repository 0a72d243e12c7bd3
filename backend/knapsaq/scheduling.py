"""Scheduling: where a queue keeps its schedules, and every write that changes one.

Where in the flow: beside the queue. Whoever fires and whoever edits comes here; each write names the version of the
record that it was made of, and is refused where that is another by now.

Invariants, each a test in ``tests/redis/test_schedules.py``:

* a due time fires at most once, whoever asks;
* the job is accepted in the step that moves the due time on, so no crash loses or doubles one;
* a record that cannot be read harms no other schedule.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from knapsaq.definitions import KEEP, Change, Fired, Held
from knapsaq.errors import PayloadTooLargeError
from knapsaq.job import Job, new_key
from knapsaq.reading import ReadingQueue
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors
from knapsaq.redis.keys import Keys
from knapsaq.redis.line import text

DUE_A_CALL = WRITTEN_A_CALL = 500
BIRTH_SECONDS = 86_400


class Row(NamedTuple):
    """A due time that is to fire, with its job or a note why it gives none; see ``lua/schedules_fire.lua``.

    Attributes:
        held: The schedule as it was seen.
        next_ms: Its next due time.
        overlap: Whether it fires while the job before has not ended.
        moment_ms: The due time that this row is about.
        key: The job's key.
        note: Why it gives none.
        payload: The job's record; empty for none.
        score: The second at which the job may run.
    """

    held: Held
    next_ms: int
    overlap: bool
    moment_ms: int
    key: str
    note: str = ""
    payload: bytes | str = b""
    score: float = 0


class Due(NamedTuple):
    """What is due: now, the schedules, and when the first of the others is due."""

    now_ms: int
    held: list[Held]
    later_ms: int | None


class Shot(NamedTuple):
    """What firing gave: now, when a schedule is due next, and for each row 1 done, 0 refused, 2 skipped."""

    now_ms: int
    earliest_ms: int | None
    answers: list[int]


class ScheduleStore:
    """The schedules of one queue."""

    def __init__(self, queue: ReadingQueue) -> None:
        self._queue = queue
        self.timezone = queue.settings.timezone

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the other queues that are connected."""
        return tuple(name for name in self._queue.settings.queues if name != self._queue.name)

    async def due(self, passed_over: int = 0) -> Due:
        """Return up to 500 schedules that are due, the oldest first, and so many more as the caller passes over."""
        queue, keys = self._queue, self._queue.keys
        args = [queue.now_argument, DUE_A_CALL + passed_over]
        now, rows, later = await scripts.schedules_due(queue.line, [keys.schedules, keys.schedules_due], args)
        held = [
            Held(text(name), raw, int(float(due)))
            for name, due, raw in zip(rows[::3], rows[1::3], rows[2::3], strict=True)
        ]
        return Due(now, held, int(later) if later else None)

    async def fire(self, rows: Sequence[Row], worker: str) -> Shot:
        """Fire; the rows of one schedule follow each other.

        Args:
            rows: The due times.
            worker: Who fires, for the others to hear.
        """
        queue, keys = self._queue, self._queue.keys
        args: list[scripts.Argument] = [queue.now_argument, worker, keys.schedules_wake]
        for row in rows:
            args += (row.held.name, row.held.due_ms or 0, row.held.version, row.next_ms, int(row.overlap))
            args += (row.moment_ms, row.note, row.payload, row.score)
        ids = [queue.job_id(row.key) for row in rows]
        now, earliest, answers = await scripts.schedules_fire(queue.line, [*keys.of_fire, *ids], args)
        return Shot(now, int(earliest) if earliest else None, answers)

    async def read(self, *names: str) -> tuple[int, list[Held]]:
        """Return now in milliseconds and what is held of the names; of all that there are unless some are given."""
        queue, keys = self._queue, self._queue.keys
        ask = queue.line.execute
        with broker_errors(queue.settings.broker_url):
            if names:
                raws, dues, now_ms = await asyncio.gather(
                    ask("HMGET", keys.schedules, *names), ask("ZMSCORE", keys.schedules_due, *names), self._now_ms()
                )
                return now_ms, _held(names, raws, dues)
            # In this order: what fires in between has a due time that is too old, and is refused where it matters.
            scores, pairs, now_ms = await asyncio.gather(
                ask("ZRANGE", keys.schedules_due, 0, -1, "WITHSCORES"), ask("HGETALL", keys.schedules), self._now_ms()
            )
        found = {name: int(float(due)) for name, due in zip(scores[::2], scores[1::2], strict=True)}
        return now_ms, [
            Held(text(name), raw, found.get(name)) for name, raw in zip(pairs[::2], pairs[1::2], strict=True)
        ]

    async def read_in(self, other: str, names: Sequence[str]) -> list[Held]:
        """Return what another queue holds of the names."""
        keys, ask = Keys(other), self._queue.sibling(other).line.execute
        with broker_errors(self._queue.settings.broker_url):
            raws, dues = await asyncio.gather(
                ask("HMGET", keys.schedules, *names), ask("ZMSCORE", keys.schedules_due, *names)
            )
        return _held(names, raws, dues)

    async def move(self, source: str, target: str, change: Change) -> bool:
        """Move a schedule from one queue to another and tell whether it was not refused.

        It is one step; between two slots of a cluster it is two, of which the second is the removal. Should the first
        have been the last, the worker that starts next in the old queue does it, as the schedule has left its code.
        """
        if change.record is None:
            return False
        here, there = self._queue.sibling(source), self._queue.sibling(target)
        if here.redis is not there.redis:
            with broker_errors(self._queue.settings.broker_url):
                return await _move_apart(here, there, change)
        old, new = Keys(source), Keys(target)
        keys = [old.schedules, old.schedules_due, old.schedules_fires]
        keys += [new.schedules, new.schedules_due, new.schedules_fires]
        args: list[scripts.Argument] = [old.schedules_wake, new.schedules_wake, change.name, change.version]
        args += (change.record.encode(), "" if change.due_ms is None else change.due_ms)
        with broker_errors(self._queue.settings.broker_url):
            return bool(await scripts.schedules_move(self._queue.line, keys, args))

    async def birth(self) -> bytes:
        """Return what marks the data: another one after Redis has lost it, or when nobody has asked for a day."""
        ask, key = self._queue.line.execute, self._queue.keys.schedules_birth
        _, _, mark = await asyncio.gather(
            ask("SET", key, new_key(), "NX", "EX", BIRTH_SECONDS), ask("EXPIRE", key, BIRTH_SECONDS), ask("GET", key)
        )
        return bytes(mark or b"")

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        """Store changes, each for itself, and tell which were not refused.

        Raises:
            PayloadTooLargeError: The record of one is larger than a job may be; nothing was stored.
            BrokerError: Redis cannot be reached.
        """
        queue, keys = self._queue, self._queue.keys
        records = [change.record.encode() if change.record else b"" for change in changes]
        limit = queue.settings.max_payload_bytes
        for change, record in zip(changes, records, strict=True):
            if len(record) > limit:
                raise PayloadTooLargeError(f"the record of schedule {change.name!r}", len(record), limit)
        answers: list[bool] = []
        own = [keys.schedules, keys.schedules_due, keys.schedules_fires]
        for start in range(0, len(changes), WRITTEN_A_CALL):
            args: list[scripts.Argument] = [keys.schedules_wake]
            part = slice(start, start + WRITTEN_A_CALL)
            for change, record in zip(changes[part], records[part], strict=True):
                args += (change.name, change.version, record, "" if change.due_ms is None else change.due_ms)
            with broker_errors(queue.settings.broker_url):
                answers += [bool(answer) for answer in await scripts.schedules_write(queue.line, own, args)]
        return answers

    async def history(self, name: str) -> list[Fired]:
        """Return the last ten due times that have passed, the newest first."""
        queue = self._queue
        with broker_errors(queue.settings.broker_url):
            raw = await queue.line.execute("HGET", queue.keys.schedules_fires, name)
        history = []
        for line in text(raw or b"").splitlines()[1:]:
            due, sign, what = line.split(" ", 2)
            key = queue.job_key_from_id(what) if sign == "+" else ""
            history.append(Fired(int(due), key, "" if key else what))
        return history

    async def jobs(self, keys: Sequence[str]) -> list[Job[Any] | None]:
        """Return the jobs of these keys, with None for each that is not there."""
        return await self._queue.jobs(keys)

    async def _now_ms(self) -> int:
        if self._queue.clock:
            return self._queue.clock()
        seconds, microseconds = await self._queue.line.execute("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000


async def _move_apart(here: ReadingQueue, there: ReadingQueue, change: Change) -> bool:
    """Move a schedule between two queues whose keys no script can change together."""
    name, old, new = change.name, here.keys, there.keys
    due_ms: Any = change.due_ms
    if due_ms == KEEP:
        due_ms = await here.line.execute("ZSCORE", old.schedules_due, name)
    if fired := re.match(rb"\d+ ", await here.line.execute("HGET", old.schedules_fires, name) or b""):
        await there.line.execute("HSETNX", new.schedules_fires, name, fired[0] + b"\n")
    record = (change.record or "").encode()
    args: list[scripts.Argument] = [new.schedules_wake, name, "", record, "" if due_ms is None else due_ms]
    [stored] = await scripts.schedules_write(there.line, [new.schedules, new.schedules_due, new.schedules_fires], args)
    if stored:
        args = [old.schedules_wake, name, change.version, b"", ""]
        await scripts.schedules_write(here.line, [old.schedules, old.schedules_due, old.schedules_fires], args)
    return bool(stored)


def _held(names: Sequence[str], raws: Sequence[bytes | None], dues: Sequence[bytes | None]) -> list[Held]:
    return [
        Held(name, raw or b"", None if due is None else int(float(due)))
        for name, raw, due in zip(names, raws, dues, strict=True)
    ]
