"""Sweeping: jobs of plain SAQ workers that nobody runs any more.

SAQ's own sweep takes a job that has just been dequeued for one that is stuck, and runs
it twice or ends it although it is running; and it ends the jobs of workers that have
died. This one follows SAQ's rule, corrected.

Invariants, each a test in ``tests/redis/test_upkeep.py`` or ``tests/saq/test_mixed_fleet.py``:

* a job that one of our workers has claimed is never touched;
* a job that a living SAQ worker has just taken is never touched;
* a SAQ worker that dies costs none of its jobs an attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

from redis.exceptions import WatchError
from saq.job import Status

from knapsaq.claims import ClaimingQueue
from knapsaq.job import Job
from knapsaq.redis import scripts

UNCLAIMED_SECONDS = 30
"""How long a job stays in doubt, its record unchanged, before it is swept: SAQ's workers stamp a job within
milliseconds, tell of themselves every ten seconds, and end an overdue job within one."""

Doubt = Literal["not begun", "worker gone", "overdue", "stuck"]


class Sweeper:
    """Looks after active jobs that none of our workers has claimed: those of plain SAQ workers.

    One that was never begun was taken by a worker that died in that moment, and is put back. One whose worker no
    longer tells of itself is rescued as from a worker of ours. One that is over its timeout or heartbeat all the same
    is run again if it has attempts left, else ended; at once if nobody knows its worker, as in SAQ before 0.26.
    """

    def __init__(self, queue: ClaimingQueue) -> None:
        self._queue = queue
        self._doubted: dict[tuple[bytes, Doubt], int] = {}

    async def run_once(self) -> list[str]:
        """Return the ids of the jobs that were put back or ended."""
        queue, keys = self._queue, self._queue.keys
        # In one step: a job that is rescued in between would look as if nobody had claimed it.
        async with queue.redis.pipeline(transaction=True) as pipe:
            pipe.lrange(keys.active, 0, -1)
            pipe.hkeys(keys.claims)
            active, claimed = await pipe.execute()
        ours = set(claimed)
        orphans = [job_id for job_id in active if job_id not in ours]
        payloads = await queue.redis.mget(orphans) if orphans else []
        jobs = [queue.deserialize(payload) for payload in payloads]
        alive = await self._alive(jobs)
        before, self._doubted = self._doubted, {}
        swept: list[str] = []
        for job_id, payload, job in zip(orphans, payloads, jobs, strict=True):
            if job is None or job.id.encode() != job_id:
                if not await self._take_away(job_id, payload):
                    continue
            elif doubt := _doubt(job, alive):
                since = self._doubted[payload, doubt] = before.get((payload, doubt), queue.now_ms())
                if doubt != "stuck" and queue.now_ms() - since <= UNCLAIMED_SECONDS * 1000:
                    continue
                await self._sweep(job, doubt)
            else:
                continue
            swept.append(job_id.decode(errors="backslashreplace"))
        return swept

    async def _alive(self, jobs: Sequence[Job[Any] | None]) -> set[str]:
        """Return the workers of the jobs that still tell of themselves; Redis' clock decides, not theirs."""
        workers = list({job.worker_id for job in jobs if job and job.worker_id})
        infos = (
            await self._queue.redis.mget([self._queue.namespace(f"worker_info:{worker}") for worker in workers])
            if workers
            else []
        )
        return {worker for worker, info in zip(workers, infos, strict=True) if info}

    async def _sweep(self, job: Job[Any], doubt: Doubt) -> None:
        queue = self._queue
        if doubt == "worker gone":
            worker = str(job.worker_id)
            # As if it had been a worker of ours, whose lease has run out.
            async with queue.redis.pipeline(transaction=True) as pipe:
                pipe.hsetnx(queue.keys.claims, job.id, f"{worker} swept")
                pipe.zadd(queue.keys.leases, {worker: 0}, nx=True)
                await pipe.execute()
            await rescue(queue, worker)
        elif doubt == "not begun" or job.retryable:
            await queue.retry(job, queue.swept_error_message)
        else:
            await queue.finish(job, Status.ABORTED, error=queue.swept_error_message)

    async def _take_away(self, job_id: bytes, payload: bytes | None) -> bool:
        """Forget an id whose record is gone; queue one again whose record cannot be read, so that it is buried.

        Returns:
            Whether the record was still the same; else a new job has the key.
        """
        keys = self._queue.keys
        async with self._queue.redis.pipeline(transaction=True) as pipe:
            await pipe.watch(job_id)
            if await pipe.get(job_id) != payload:
                return False
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.lrem(keys.active, 0, job_id)  # type: ignore[arg-type]
            if payload is None:
                pipe.zrem(keys.incomplete, job_id)
            else:
                pipe.zadd(keys.incomplete, {job_id: 0})
                pipe.rpush(keys.queued, job_id)
            with suppress(WatchError):
                await pipe.execute()
                return True
            return False


async def rescue(queue: ClaimingQueue, worker: str | bytes) -> list[bytes]:
    """Hand back the jobs of a worker whose lease has run out, and return their ids; none if it is alive after all."""
    keys = queue.keys
    rescued: list[bytes] = await scripts.rescue(
        queue.line,
        keys.of_rescue,
        [queue.now_argument, worker],
    )
    return rescued


def _doubt(job: Job[Any], alive: set[str]) -> Doubt | None:
    if job.status is Status.QUEUED:
        return "not begun"
    if job.worker_id and job.worker_id not in alive:
        return "worker gone"
    if job.stuck:
        return "overdue" if job.worker_id else "stuck"
    return None
