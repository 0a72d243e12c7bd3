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
from knapsaq.timing import now_ms

REVOKED_A_CALL = 100
MAX_REASON_CHARACTERS = 1000


class Revoker:
    """Ends jobs of one queue."""

    def __init__(self, queue: ClaimingQueue) -> None:
        self._queue = queue

    async def end(self, jobs: Sequence[SaqJob], reason: str, *, terminate: bool) -> list[SaqJob]:
        """End jobs, which are brought up to date, and return those that had not ended; one call.

        Args:
            jobs: The jobs as they were last read.
            reason: Why.
            terminate: Whether those that run are ended at once.
        """
        own, ends = self._queue.keys, now_ms()
        keys = [own.queued, own.active, own.incomplete, own.aborts, own.crashes, *(job.id for job in jobs)]
        args: list[scripts.Argument] = [reason, int(terminate), own.wake]
        before = [(job.status, job.error, job.completed) for job in jobs]
        for job in jobs:
            job.status, job.error = Status.ABORTING, reason
            aborting = self._queue.serialize(job)
            job.status, job.completed = Status.ABORTED, ends
            args += (self._queue.serialize(job), self._queue.whole_ttl(job), aborting)
        answers = await scripts.abort(self._queue.line, keys, args)
        ended: list[SaqJob] = []
        for job, answer, was in zip(jobs, answers, before, strict=True):
            if answer == b"ended":
                job.status, job.error, job.completed = was
                continue
            ended.append(job)
            if answer == b"aborting":
                job.status, job.completed = Status.ABORTING, 0
            else:
                self._queue.aborted += 1
        return ended

    async def revoke(self, keys: str | Iterable[str], reason: str, *, terminate: bool) -> list[Job[Any]]:
        """Read jobs and end them; returns those that had not ended, as they are now.

        Raises:
            OptionError: The keys are no texts, or the reason is none.
        """
        wanted, text = _keys(keys), _checked(reason)
        ended: list[Any] = []
        for start in range(0, len(wanted), REVOKED_A_CALL):
            ids = [self._queue.job_id(key) for key in wanted[start : start + REVOKED_A_CALL]]
            found = [self._queue.deserialize(payload) for payload in await self._queue.line.execute("MGET", *ids)]
            open_ones = [job for job in found if job is not None and not job.ended]
            if open_ones:
                ended += await self.end(open_ones, text, terminate=terminate)
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
