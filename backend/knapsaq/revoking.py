"""Revoking: jobs that are ended on purpose.

Where in the flow: one script ends those that wait and leaves an order for the workers of those that run, who hear of
it by a push. An order that only asks leaves a function which can hear of it the time to end in its own way.

Invariants, each a test in ``tests/redis/test_revoking.py``:

* a job that waits ends at once, and never runs;
* one that runs hears of it by a push, and ends as aborted, with the reason, also if its worker dies meanwhile;
* one that has ended stays as it is;
* a purge ends all that waits, wherever it does, and nothing that runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from saq.job import Job as SaqJob
from saq.job import Status

from knapsaq.claims import ClaimingQueue
from knapsaq.codec import utf8
from knapsaq.errors import OptionError
from knapsaq.job import Job
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors
from knapsaq.redis.line import text
from knapsaq.timing import now_ms

REVOKED_A_CALL = 100
SCANNED_A_CALL = 500
MAX_REASON_CHARACTERS = 1000


class RevokingQueue(ClaimingQueue):
    """SAQ's queue with claims, and how its jobs are ended on purpose; ``Queue`` is the whole."""

    async def abort(self, job: SaqJob, error: str, ttl: float = 5) -> None:  # noqa: ARG002 - SAQ's signature
        """End a job on purpose: at once if it waits, through its worker if it runs; nothing if it has ended."""
        await self._end([job], error, terminate=True)

    async def revoke(
        self, keys: str | Iterable[str], *, terminate: bool = False, running: bool = True, reason: str = "revoked"
    ) -> list[str]:
        """End jobs on purpose; ``wait()`` then raises ``JobRevokedError``.

        Those that wait never run. Of those that run, ``async`` tasks are cancelled at once, and clean up; functions in
        a thread or a process that take ``ctx`` find ``ctx.is_aborted()`` true; what they return after they have asked
        does not count. Functions there that cannot ask are given up: their process is killed, their thread left behind.

        Args:
            keys: The jobs' keys, or one; a hundred take two round trips.
            terminate: Whether functions that could ask are given up as well.
            running: Whether those that run are meant too; False leaves them alone.
            reason: What their ``error`` says; at most 1,000 characters.

        Returns:
            The keys of those that had not ended; without those that were left alone.

        Raises:
            OptionError: A key or the reason is no text.
            BrokerError: Redis cannot be reached.
        """
        return [job.key for job in await self.revoke_jobs(keys, terminate, reason, running=running)]

    async def revoke_jobs(
        self, keys: str | Iterable[str], terminate: bool, reason: str, *, running: bool = True
    ) -> list[Job[Any]]:
        """Do the same and return the jobs as they are now; ``Job.revoke`` comes here."""
        wanted, why = _keys(keys), _checked(reason)
        ended: list[Any] = []
        with broker_errors(self.settings.broker_url):
            for start in range(0, len(wanted), REVOKED_A_CALL):
                ids = [self.job_id(key) for key in wanted[start : start + REVOKED_A_CALL]]
                found = [self.deserialize(payload) for payload in await self.line.execute("MGET", *ids)]
                if open_ones := [job for job in found if job is not None and not job.ended]:
                    ended += await self._end(open_ones, why, terminate=terminate, running=running)
        return ended

    async def purge(self, *, reason: str = "purged", progress: Callable[[int], object] | None = None) -> int:
        """End all jobs that wait, delayed and parked ones included; those that run go on.

        Jobs that are accepted meanwhile may be among them. One whose record cannot be read stays, and becomes a dead
        letter when a worker takes it.

        Args:
            reason: What their ``error`` says; at most 1,000 characters.
            progress: Called with the number of jobs that have been ended so far, after some hundred each.

        Returns:
            How many were ended.

        Raises:
            OptionError: The reason is no text.
            BrokerError: Redis cannot be reached; call again for the rest.
        """
        ended = 0
        async for number in self._purging(_checked(reason)):
            ended += number
            if progress is not None:
                progress(ended)
        return ended

    async def _purging(self, reason: str) -> AsyncIterator[int]:
        """End what waits, and yield how many each time."""
        queued, incomplete, execute = self.keys.queued, self.keys.incomplete, self.line.execute
        # From its head on first: to take one out of the middle of a long list would take long.
        with broker_errors(self.settings.broker_url):
            left, passed = int(await execute("LLEN", queued)), 0
            while left > 0 and (ids := await execute("LRANGE", queued, passed, passed + REVOKED_A_CALL - 1)):
                ended = await self._end_waiting(ids, reason)
                passed += len(ids) - ended
                left -= len(ids)
                yield ended
            cursor: int | bytes = 0
            while True:
                cursor, found = await execute("ZSCAN", incomplete, cursor, "COUNT", SCANNED_A_CALL)
                yield await self._end_waiting(found[::2], reason)
                if not int(cursor):
                    return

    async def _end_waiting(self, ids: Sequence[bytes], reason: str) -> int:
        keys = [self.job_key_from_id(text(job_id)) for job_id in ids]
        return len(await self.revoke(keys, running=False, reason=reason))

    async def _end(self, jobs: Sequence[SaqJob], reason: str, *, terminate: bool, running: bool = True) -> list[SaqJob]:
        """End jobs, which are brought up to date, and return those that had not ended; one call.

        Args:
            jobs: The jobs as they were last read.
            reason: Why.
            terminate: Whether those that run are ended at once.
            running: Whether those that run are ended at all.
        """
        own, ends = self.keys, now_ms()
        keys = [own.queued, own.active, own.incomplete, own.aborts, own.crashes, *(job.id for job in jobs)]
        args: list[scripts.Argument] = [reason, int(terminate), int(running), own.wake, self.now_argument]
        before = [(job.status, job.error, job.completed) for job in jobs]
        for job in jobs:
            job.status, job.error = Status.ABORTING, reason
            aborting = self.serialize(job)
            job.status, job.completed = Status.ABORTED, ends
            args += (self.serialize(job), self.whole_ttl(job), aborting)
        answers = await scripts.abort(self.line, keys, args)
        ended: list[SaqJob] = []
        for job, answer, was in zip(jobs, answers, before, strict=True):
            if answer == b"ended":
                job.status, job.error, job.completed = was
                continue
            ended.append(job)
            if answer == b"aborting":
                job.status, job.completed = Status.ABORTING, 0
            else:
                self.aborted += 1
        return ended


def _keys(given: Any) -> list[str]:
    """Return keys, each once."""
    keys = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    for key in keys:
        if not isinstance(key, str):
            raise OptionError("revoke()", "keys", key, "the key of a job, or several of them")
    return list(dict.fromkeys(keys))


def _checked(reason: Any) -> str:
    if isinstance(reason, str) and len(reason) <= MAX_REASON_CHARACTERS:
        return utf8(reason)
    raise OptionError("revoke()", "reason", reason, f"text of at most {MAX_REASON_CHARACTERS:,} characters")
