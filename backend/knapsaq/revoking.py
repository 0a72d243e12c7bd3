"""Revoking: jobs that are ended on purpose.

Where in the flow: one script ends those that wait and leaves an order for the workers of those that run, who hear of
it by a push. An order that only asks leaves a function which can hear of it the time to end in its own way.

Invariants, each a test in ``tests/redis/test_revoking.py``:

* a job that waits ends at once, and never runs;
* one that runs hears of it by a push, and ends as aborted, with the reason, also if its worker dies meanwhile;
* one that has ended stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from saq.job import Job as SaqJob
from saq.job import Status

from knapsaq.claims import ClaimingQueue
from knapsaq.codec import utf8
from knapsaq.errors import OptionError
from knapsaq.job import Job
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors
from knapsaq.timing import now_ms

REVOKED_A_CALL = 100
MAX_REASON_CHARACTERS = 1000


class RevokingQueue(ClaimingQueue):
    """SAQ's queue with claims, and how its jobs are ended on purpose; ``Queue`` is the whole."""

    async def abort(self, job: SaqJob, error: str, ttl: float = 5) -> None:  # noqa: ARG002 - SAQ's signature
        """End a job on purpose: at once if it waits, through its worker if it runs; nothing if it has ended."""
        await self._end([job], error, terminate=True)

    async def revoke(self, keys: str | Iterable[str], *, terminate: bool = False, reason: str = "revoked") -> list[str]:
        """End jobs on purpose; ``wait()`` then raises ``JobRevokedError``.

        Those that wait never run. Of those that run, ``async`` tasks are cancelled at once, and clean up; functions in
        a thread or a process that take ``ctx`` find ``ctx.is_aborted()`` true; what they return after they have asked
        does not count. Functions there that cannot ask are given up: their process is killed, their thread left behind.

        Args:
            keys: The jobs' keys, or one; a hundred take two round trips.
            terminate: Whether functions that could ask are given up as well.
            reason: What their ``error`` says; at most 1,000 characters.

        Returns:
            The keys of those that had not ended.

        Raises:
            OptionError: A key or the reason is no text.
            BrokerError: Redis cannot be reached.
        """
        return [job.key for job in await self.revoke_jobs(keys, terminate, reason)]

    async def revoke_jobs(self, keys: str | Iterable[str], terminate: bool, reason: str) -> list[Job[Any]]:
        """Do the same and return the jobs as they are now; ``Job.revoke`` comes here."""
        wanted, text = _keys(keys), _checked(reason)
        ended: list[Any] = []
        with broker_errors(self.settings.redacted_broker_url):
            for start in range(0, len(wanted), REVOKED_A_CALL):
                ids = [self.job_id(key) for key in wanted[start : start + REVOKED_A_CALL]]
                found = [self.deserialize(payload) for payload in await self.line.execute("MGET", *ids)]
                if open_ones := [job for job in found if job is not None and not job.ended]:
                    ended += await self._end(open_ones, text, terminate=terminate)
        return ended

    async def _end(self, jobs: Sequence[SaqJob], reason: str, *, terminate: bool) -> list[SaqJob]:
        """End jobs, which are brought up to date, and return those that had not ended; one call.

        Args:
            jobs: The jobs as they were last read.
            reason: Why.
            terminate: Whether those that run are ended at once.
        """
        own, ends = self.keys, now_ms()
        keys = [own.queued, own.active, own.incomplete, own.aborts, own.crashes, *(job.id for job in jobs)]
        args: list[scripts.Argument] = [reason, int(terminate), own.wake, self.now_argument]
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
