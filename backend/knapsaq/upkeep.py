"""Upkeep: what somebody has to do now and then so that nothing is forgotten.

Each duty is a small class with one ``run_once()``; the worker calls it on a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from redis.exceptions import RedisError
from saq.job import Status

from knapsaq import events
from knapsaq.codec import to_json_types
from knapsaq.job import Job
from knapsaq.options import CallOptions
from knapsaq.queue import Queue
from knapsaq.redis import scripts
from knapsaq.schedules import Schedule
from knapsaq.task import Task
from knapsaq.timing import from_ms, now_ms

HORIZON = 60
"""Seconds before its due time at which a scheduled job is queued."""

UNCLAIMED_SECONDS = 30
"""How long a job may lie among the active ones without a claim or a stamp: SAQ's own workers need milliseconds."""


FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds until a duty that failed is tried again


async def repeat(name: str, duty: Callable[[], Awaitable[Any]], pause: float) -> None:
    """Do a duty again and again until cancelled, with ``pause`` seconds in between.

    One that fails is tried again, later each time; Redis being away is left to the worker's loop to tell.
    """
    failed = 0
    while not being_cancelled():
        try:
            await duty()
            failed = 0
        except Exception as error:  # noqa: BLE001 - a duty is tried for as long as the worker lives
            if not failed and not isinstance(error, (RedisError, OSError)):
                events.duty_failed(name, error)
            failed += 1
        if not being_cancelled():
            await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failed - 1)) if failed else pause)


def being_cancelled() -> bool:
    """Tell whether this task was told to end; redis-py may turn the order into an error of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Rescuer:
    """Hands back the jobs of workers whose lease has run out."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def run_once(self) -> int:
        """Rescue the jobs of all dead workers and return their number."""
        queue, keys = self._queue, self._queue.keys
        now = queue.clock() if queue.clock else await _redis_now_ms(queue)
        rescued = 0
        for name in await queue.redis.zrangebyscore(keys.leases, "-inf", now):
            worker = name.decode()
            jobs = await scripts.rescue(
                queue.redis,
                [keys.queued, keys.active, keys.incomplete, keys.leases, keys.claims(worker), keys.crashes],
                [queue.now_argument, worker],
            )
            if jobs:
                events.jobs_rescued(queue.name, worker, len(jobs))
            rescued += len(jobs)
        return rescued


class Sweeper:
    """Looks after active jobs that none of our workers has claimed: those of plain SAQ workers.

    One that is over its timeout or heartbeat is run again if it has attempts left, else ended. One without a start
    stamp was taken by a worker that died in the same moment; seen twice, it is put back.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._seen: dict[bytes, int] = {}

    async def run_once(self) -> list[str]:
        """Return the ids of the jobs that were put back or ended."""
        keys, redis = self._queue.keys, cast("Any", self._queue.redis)
        active = await redis.lrange(keys.active, 0, -1)
        claimed: set[bytes] = set()
        for worker in await redis.zrange(keys.leases, 0, -1):
            claimed.update(await redis.hkeys(keys.claims(worker.decode())))
        orphans = [job_id for job_id in active if job_id not in claimed]
        self._seen = {job_id: self._seen.get(job_id, now_ms()) for job_id in orphans}
        return [job_id.decode() for job_id in orphans if await self._sweep(job_id)]

    async def _sweep(self, job_id: bytes) -> bool:
        queue = self._queue
        payload = await queue.redis.get(job_id)
        job = queue.deserialize(payload)
        if job is None:
            async with queue.redis.pipeline(transaction=True) as pipe:
                pipe.lrem(queue.keys.active, 0, job_id.decode())
                pipe.zrem(queue.keys.incomplete, job_id)
                await pipe.execute()
            return True
        lost = job.status is Status.QUEUED and now_ms() - self._seen[job_id] > UNCLAIMED_SECONDS * 1000
        if job.stuck and not job.retryable:
            await queue.finish(job, Status.ABORTED, error=queue.swept_error_message)
        elif job.stuck or lost:
            await queue.retry(job, queue.swept_error_message)
        return bool(job.stuck or lost)


@dataclass(slots=True)
class _Fire:
    """One schedule, and the due time up to which its jobs have been queued."""

    task: Task[..., Any, Any]
    schedule: Schedule
    due: int


class Scheduler:
    """Queues the jobs of schedules shortly before they are due.

    The key of such a job holds its due time, so however many workers run, each due time gives one job.
    """

    def __init__(self, queue: Queue, tasks: Sequence[Task[..., Any, Any]]) -> None:
        self._queue = queue
        self._zone = queue.settings.timezone
        now = self._now()
        self._fires = [
            _Fire(task, schedule, schedule.next_after(now, self._zone)) for task in tasks for schedule in task.schedules
        ]

    async def run_once(self) -> int:
        """Queue what is due within the horizon and return how many jobs that were."""
        queued = 0
        for fire in self._fires:
            while fire.due - self._now().timestamp() <= HORIZON:
                queued += await self._queue.accept(self._job(fire), once=True)
                fire.due = fire.schedule.next_after(datetime.fromtimestamp(fire.due, UTC), self._zone)
        return queued

    def _now(self) -> datetime:
        return from_ms(self._queue.clock() if self._queue.clock else now_ms())

    def _job(self, fire: _Fire) -> Job[Any]:
        options = CallOptions(key=f"cron:{fire.task.name}:{fire.due}", eta=fire.due)
        kwargs = {name: to_json_types(value) for name, value in fire.schedule.kwargs.items()}
        return fire.task.build_job(options, (), kwargs)


async def _redis_now_ms(queue: Queue) -> int:
    seconds, microseconds = await queue.redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
