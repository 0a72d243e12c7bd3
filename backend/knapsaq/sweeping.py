"""Sweeping: jobs of plain SAQ workers that nobody runs any more.

SAQ's own sweep takes a job that has just been dequeued for one that is stuck, and runs
it twice or ends it although it is running; this one follows SAQ's rule, corrected.
"""

from __future__ import annotations

from saq.job import Status

from knapsaq.claims import ClaimingQueue

UNCLAIMED_SECONDS = 30
"""How long a job may lie among the active ones without a claim or a stamp: SAQ's own workers need milliseconds."""


class Sweeper:
    """Looks after active jobs that none of our workers has claimed: those of plain SAQ workers.

    One that is over its timeout or heartbeat is run again if it has attempts left, else ended. One that has had no
    start stamp for a while was taken by a worker that died in that moment, and is put back.
    """

    def __init__(self, queue: ClaimingQueue) -> None:
        self._queue = queue
        self._seen: dict[bytes, int] = {}

    async def run_once(self) -> list[str]:
        """Return the ids of the jobs that were put back or ended."""
        keys = self._queue.keys
        # In one step: a job that is rescued in between would look as if nobody had claimed it.
        async with self._queue.redis.pipeline(transaction=True) as pipe:
            pipe.lrange(keys.active, 0, -1)
            pipe.hkeys(keys.claims)
            active, claimed = await pipe.execute()
        orphans = [job_id for job_id in active if job_id not in set(claimed)]
        self._seen = {job_id: self._seen.get(job_id, self._queue.now_ms()) for job_id in orphans}
        return [job_id.decode() for job_id in orphans if await self._sweep(job_id)]

    async def _sweep(self, job_id: bytes) -> bool:
        queue = self._queue
        payload = await queue.redis.get(job_id)
        job = queue.deserialize(payload)
        if job is None:
            async with queue.redis.pipeline(transaction=True) as pipe:
                pipe.lrem(queue.keys.active, 0, job_id.decode())
                pipe.zrem(queue.keys.incomplete, job_id)
                if queue.settings.result_ttl:
                    pipe.expire(job_id, queue.settings.result_ttl)
                await pipe.execute()
            return True
        lost = job.status is Status.QUEUED and self._queue.now_ms() - self._seen[job_id] > UNCLAIMED_SECONDS * 1000
        stuck = job.stuck
        if stuck and not job.retryable:
            await queue.finish(job, Status.ABORTED, error=queue.swept_error_message)
        elif stuck or lost:
            await queue.retry(job, queue.swept_error_message)
        return stuck or lost
