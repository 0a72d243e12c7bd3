"""Overseer: ends jobs that run here and must not go on.

Where in the flow: beside the worker's loop, once a second. It looks for functions that outlive their limit, for those
that give no sign of life, and for jobs that somebody else has ended, as programs of SAQ do without an order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from knapsaq.outcomes import Aborted, Outcome
from knapsaq.queue import Queue
from knapsaq.running import Running
from knapsaq.timing import now_ms

OLD_MS = 1000  # a running job of this age is looked after, once a second


class Overseer:
    """Looks after the jobs of one worker.

    Args:
        queue: The queue.
        running: What the worker runs, by job id.
        give_up: Ends a job whose function does not end.
    """

    def __init__(
        self, queue: Queue, running: Mapping[str, Running], give_up: Callable[[Running, Outcome], None]
    ) -> None:
        self._queue, self._running, self._give_up = queue, running, give_up

    async def run_once(self) -> None:
        """End jobs that are overdue, silent, or no longer in the queue, as after an abort by a program of SAQ."""
        now, loop_time = now_ms(), asyncio.get_running_loop().time()
        for running in list(self._running.values()):
            if outcome := running.overdue(loop_time):
                self._give_up(running, outcome)
            elif running.silent(loop_time) and (stored := await self._queue.job(running.claim.job.key)):
                # The sign of life may have come through another copy of the job.
                running.claim.job.touched = max(stored.touched, running.claim.job.touched)
                if self._goes_on(running) and (outcome := running.silent(loop_time)):
                    running.interrupt(outcome)
        old = [running for running in self._running.values() if now - running.claim.job.started > OLD_MS]
        if old:
            ids = [running.claim.job_id for running in old]
            scores = await self._queue.redis.zmscore(self._queue.keys.incomplete, ids)
            for running, score in zip(old, scores, strict=True):
                stored = await self._queue.job(running.claim.job.key) if score is None else None
                if score is None and self._goes_on(running):
                    running.interrupt(Aborted((stored and stored.error) or "somebody else has ended it"))

    def _goes_on(self, running: Running) -> bool:
        return self._running.get(running.claim.job_id) is running
