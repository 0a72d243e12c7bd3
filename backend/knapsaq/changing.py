"""Changing: every write to a job that has been accepted.

Where in the flow: between reading and ``Queue``. Jobs are ended, retried and updated here by others than the worker
that runs them, and the dead ones are looked after; workers write what they say of themselves. ``queue`` accepts
new jobs.

Invariants, each a test in ``tests/redis/test_queue.py`` or ``test_revoking.py``:

* a job that has ended stays ended, and its result stays;
* an attempt whose claim was taken away cannot write.
"""

from __future__ import annotations

import json
from typing import Any, cast

from redis.asyncio import Redis
from saq.job import TERMINAL_STATUSES, Status
from saq.job import Job as SaqJob
from saq.types import WorkerInfo

from knapsaq.dead_letters import DeadJob, DeadLetters
from knapsaq.job import Job
from knapsaq.reading import ReadingQueue
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors
from knapsaq.revoking import RevokingQueue
from knapsaq.steering import SteeringQueue
from knapsaq.sweeping import Sweeper
from knapsaq.timing import now_ms


class ChangingQueue(ReadingQueue, RevokingQueue, SteeringQueue):
    """A queue whose jobs can be changed; ``Queue`` is the whole."""

    def __init__(self, redis: Redis, name: str = "default", **options: Any) -> None:
        super().__init__(redis, name, **options)
        self._dead_letters = DeadLetters(self)
        self.sweeper = Sweeper(self)

    async def _retry(self, job: SaqJob, error: str | None) -> None:  # noqa: ARG002 - SAQ's signature
        delay = 0 if job.attempts == 0 else job.next_retry_delay()
        score = self.now_ms() / 1000 + delay if delay else 0
        own = self.keys
        keys = [own.active, own.incomplete, own.claims, own.dead, own.dead_records, own.dead_reasons, job.id]
        await scripts.retry(self.line, keys, [self.now_argument, self.serialize(job), score])

    async def _update(self, job: SaqJob, status: Status | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        # Only a copy that knows the end may be written over it: any other lacks the result.
        knows_end = job.status in TERMINAL_STATUSES
        token = job.token if isinstance(job, Job) else ""
        if status is None and token and not knows_end:
            self.updated += 1
            status = Status.ACTIVE  # it is written only while the claim stands
        elif status is None:
            stored = await self.job(job.key)
            status = stored.status if stored else None
        job.status = Status(status or job.status)  # the HTTP proxy hands in its text
        args = [self.serialize(job), int(knows_end and job.status in TERMINAL_STATUSES), job.status.value, token]
        await scripts.update(self.line, [self.keys.incomplete, self.keys.claims, job.id], args)

    def copy(self, job: SaqJob) -> Job[Any]:
        """Return a copy of a job, with its claim."""
        twin = cast("Job[Any]", super().copy(job))
        twin.token = job.token if isinstance(job, Job) else ""
        return twin

    async def dead(self, offset: int = 0, limit: int = 100) -> list[DeadJob]:
        """Return a page of the dead letters, the newest first: jobs that nobody can run.

        Raises:
            OptionError: ``offset`` is below 0, or ``limit`` below 1.
            BrokerError: Redis cannot be reached.
        """
        with broker_errors(self.settings.broker_url):
            return await self._dead_letters.page(offset, limit)

    async def dead_letter(self, key: str) -> DeadJob | None:
        """Return the dead letter of that key, or None.

        Raises:
            BrokerError: Redis cannot be reached.
        """
        with broker_errors(self.settings.broker_url):
            return await self._dead_letters.find(key)

    async def replay(self, *keys: str) -> int:
        """Queue dead jobs again, from their first attempt; returns how many.

        One whose key belongs to a newer job that has not ended stays where it is.
        """
        with broker_errors(self.settings.broker_url):
            return await self._dead_letters.replay(keys)

    async def discard(self, *keys: str) -> int:
        """Forget dead jobs; returns how many."""
        with broker_errors(self.settings.broker_url):
            return await self._dead_letters.discard(keys)

    async def write_worker_info(self, worker_id: str, info: WorkerInfo, ttl: int) -> None:
        """Store what a worker says of itself for ``ttl`` seconds."""
        key = self.namespace(f"worker_info:{worker_id}")
        await scripts.worker_info(self.line, [self._stats, key], [now_ms(), json.dumps(info), ttl])

    async def forget_worker(self, worker: str) -> None:
        """Take a worker that has stopped out of what ``info`` shows."""
        key = self.namespace(f"worker_info:{worker}")
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.zrem(self._stats, key)
            pipe.delete(key)
            await pipe.execute()

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:  # noqa: ARG002 - SAQ's signature
        """Put back or end the jobs of plain SAQ workers that nobody runs any more, and return their ids.

        Args:
            lock: Seconds in which nobody else sweeps; one of our workers holds the lock for as long as it lives.
            abort: Not used; SAQ waits so long for each job.
        """
        if not await self.redis.set(self.keys.saq_sweep_lock, 1, ex=lock, nx=True):
            return []
        return await self.sweeper.run_once()
