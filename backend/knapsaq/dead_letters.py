"""Dead letters: jobs that nobody can run, kept with their reason until somebody looks at them.

A job dies when its worker has died over it three times, when its record cannot be read, or when no worker has known
its task for as long as the settings allow. Its record says that it failed, and why; here is what it was before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from saq.job import Status

from knapsaq.claims import DIED, ClaimingQueue
from knapsaq.errors import OptionError
from knapsaq.job import META_KEY, PROGRESS, UNKNOWN_SINCE, Job
from knapsaq.redis import scripts
from knapsaq.timing import from_ms

LATEST_MS = 253_402_300_799_000  # the end of the year 9999
RUN_FIELDS = ("status", "attempts", "started", "completed", "touched", "progress", "error", "result", "worker_id")


@dataclass(frozen=True, slots=True)
class DeadJob:
    """A dead letter.

    Attributes:
        key: The job's key.
        function: The name of its task; None where the record cannot be read.
        reason: Why it died, in words.
        payload: Its record as it was.
        died_at: When it died.
        history: The deaths of workers that ran it, oldest first.
        attempts: How many attempts were begun, 0 where the record cannot be read. One whose worker died is run again
            as the same attempt: it is one, however many died over it.
    """

    key: str
    function: str | None
    reason: str
    payload: bytes
    died_at: datetime
    history: tuple[str, ...]
    attempts: int

    @property
    def crashes(self) -> int:
        """How many workers died while they ran it."""
        return len(self.history)


class DeadLetters:
    """The dead letters of one queue."""

    def __init__(self, queue: ClaimingQueue) -> None:
        self._queue = queue

    async def page(self, offset: int, limit: int) -> list[DeadJob]:
        """Return some of them, the newest first.

        Raises:
            OptionError: A number is out of range.
        """
        given: tuple[tuple[str, Any, int], ...] = (("offset", offset, 0), ("limit", limit, 1))
        for name, value, least in given:
            if not isinstance(value, int) or value < least:
                raise OptionError("queue.dead()", name, value, f"a whole number from {least}")
        keys, execute = self._queue.keys, self._queue.line.execute
        found = await execute("ZREVRANGE", keys.dead, offset, offset + limit - 1, "WITHSCORES")
        ids, scores = found[::2], found[1::2]
        if not ids:
            return []
        records = await execute("HMGET", keys.dead_records, *ids)
        reasons = await execute("HMGET", keys.dead_reasons, *ids)
        return [
            self._letter(job_id, float(score), record or b"", reason or b"")
            for job_id, score, record, reason in zip(ids, scores, records, reasons, strict=True)
        ]

    async def find(self, key: str) -> DeadJob | None:
        """Return the dead letter of a key, or None."""
        own, execute = self._queue.keys, self._queue.line.execute
        job_id = self._queue.job_id(key).encode()
        died_ms = await execute("ZSCORE", own.dead, job_id)
        if died_ms is None:
            return None
        record = await execute("HGET", own.dead_records, job_id)
        reason = await execute("HGET", own.dead_reasons, job_id)
        return self._letter(job_id, float(died_ms), record or b"", reason or b"")

    async def replay(self, keys: tuple[str, ...]) -> int:
        """Queue dead jobs again, from their first attempt, and return how many that were."""
        queue, own = self._queue, self._queue.keys
        replayed = 0
        for key in keys:
            job_id = queue.job_id(key)
            record = await queue.line.execute("HGET", own.dead_records, job_id)
            if record is not None:
                names = [own.dead, own.dead_records, own.dead_reasons, own.incomplete, job_id]
                replayed += await scripts.replay(queue.line, names, [queue.now_argument, self._revived(record)])
        return replayed

    async def discard(self, keys: tuple[str, ...]) -> int:
        """Forget dead jobs and return how many that were."""
        own, execute = self._queue.keys, self._queue.line.execute
        ids = await self._ids(keys)
        if not ids:
            return 0
        await execute("HDEL", own.dead_records, *ids)
        await execute("HDEL", own.dead_reasons, *ids)
        return int(await execute("ZREM", own.dead, *ids))

    async def _ids(self, keys: tuple[str, ...]) -> list[bytes]:
        """Return the ids of dead jobs, those that nobody could have made among them."""
        own, execute = self._queue.keys, self._queue.line.execute
        ids = [self._queue.job_id(key).encode() for key in keys]
        dead = await execute("ZMSCORE", own.dead, *ids) if ids else []
        strange = {key for key, score in zip(keys, dead, strict=True) if score is None}
        all_ids = await execute("ZRANGE", own.dead, 0, -1) if strange else []
        return ids + [job_id for job_id in all_ids if self._key(job_id) in strange]

    def _key(self, job_id: bytes) -> str:
        shown = job_id.decode(errors="backslashreplace")
        return shown.removeprefix(self._queue.job_id("")) or shown

    def _letter(self, job_id: bytes, died_ms: float, record: bytes, reason: bytes) -> DeadJob:
        why, *deaths = reason.decode(errors="backslashreplace").split("\n")
        history = tuple(_death(line) for line in deaths if line)
        died_at = from_ms(int(min(max(died_ms, 0), LATEST_MS)))
        job = self._readable(record)
        function, attempts = (job.function, job.attempts) if job else (None, 0)
        # The record does not have an attempt that began after it was written, if that has killed its worker soon.
        attempts += job is not None and job.status is not Status.ACTIVE and why.startswith(DIED)
        return DeadJob(self._key(job_id), function, why, record, died_at, history, attempts)

    def _readable(self, record: bytes) -> Job[Any] | None:
        try:
            return Job.from_record(self._queue.load(record))
        except Exception:  # noqa: BLE001 - whatever the bytes are
            return None

    def _revived(self, record: bytes) -> bytes | str:
        """Return a record as it was before its first attempt; as it is if it cannot be read."""
        try:
            fields = self._queue.load(record)
            kept = {name: value for name, value in fields.items() if name not in RUN_FIELDS}
            extras = kept.get("meta", {}).get(META_KEY, {})
            extras.pop(UNKNOWN_SINCE, None)
            extras.pop(PROGRESS, None)
            return self._queue.dump({**kept, "status": "queued"})
        except Exception:  # noqa: BLE001 - whatever the bytes are
            return record


def _death(line: str) -> str:
    moment, _, worker = line.partition(" ")
    when = from_ms(int(moment)).isoformat(timespec="milliseconds") if moment.isdigit() else moment
    return f"{when} worker {worker} died"
