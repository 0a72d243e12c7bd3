"""Upkeep: what somebody has to do now and then so that nothing is forgotten.

Each duty is a small class with one ``run_once()``; the worker calls it on a timer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from croniter import croniter
from redis.exceptions import RedisError, ResponseError
from saq.job import CronJob

from knapsaq import events
from knapsaq.batching import being_cancelled
from knapsaq.errors import BrokerError
from knapsaq.job import Job
from knapsaq.queue import Queue
from knapsaq.sweeping import rescue
from knapsaq.timing import from_ms

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
            if not failed and not _is_away(error):
                events.duty_failed(name, error)
            failed += 1
        if not being_cancelled():
            await asyncio.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failed - 1)) if failed else pause)


def _is_away(error: Exception) -> bool:
    """Tell whether Redis is away, which the worker's loop tells; a server that refuses a command is not."""
    cause = error.__cause__ if isinstance(error, BrokerError) else error
    return isinstance(cause, (RedisError, OSError)) and not isinstance(cause, ResponseError)


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
            jobs = await rescue(queue, name)
            if jobs:
                events.jobs_rescued(queue.name, name.decode(errors="backslashreplace"), len(jobs))
            rescued += len(jobs)
        return rescued


class CronJobs:
    """Queues SAQ's ``CronJob``: a unique one when the last of it has ended, any other once for each due time.

    A worker that starts brings its schedule along: a job that waits for another due time gives way.

    Args:
        queue: The queue.
        cron_jobs: What ``Worker(cron_jobs=...)`` was given.
        zone: The time zone of the expressions.
    """

    def __init__(self, queue: Queue, cron_jobs: Collection[CronJob[Any]], zone: tzinfo) -> None:
        self._queue = queue
        self._zone = zone
        self._crons = [_Cron(cron, key) for cron, key in zip(cron_jobs, _cron_keys(cron_jobs), strict=True)]

    async def run_once(self) -> None:
        """Queue the next job of each that has none; together they cost one call."""
        await asyncio.gather(*(self._queue_next(cron) for cron in self._crons))

    async def _queue_next(self, cron: _Cron) -> None:
        moment = from_ms(self._queue.now_ms()).astimezone(self._zone)
        due = int(croniter(cron.job.cron, moment).get_next(float))
        if cron.queued == due:
            return
        first, cron.started = not cron.started, True
        if cron.job.unique and (last := await self._queue.job(cron.key)) and not last.ended:
            # Only who starts replaces: else two versions of a program would go on replacing each other's.
            if (last.scheduled, last.kwargs) == (due, cron.job.kwargs):
                cron.queued = due
                return
            if not first or last.scheduled <= moment.timestamp():
                return
            await self._queue.abort(last, "its schedule has changed")
        given = {name: getattr(cron.job, name) for name in ("timeout", "heartbeat", "retries", "ttl", "kwargs")}
        fields = {name: value for name, value in given.items() if value is not None}
        job: Job[Any] = Job(
            function=cron.job.function.__qualname__,
            key=cron.key if cron.job.unique else f"{cron.key}:{due}",
            scheduled=due,
            **{"timeout": None, "ttl": None, **fields},
        )
        if await self._queue.accept(job, once=not cron.job.unique) or not cron.job.unique:
            cron.queued = due


@dataclass(slots=True)
class _Cron:
    """One of SAQ's cron jobs, its key, and the due time up to which its jobs have been queued."""

    job: CronJob[Any]
    key: str
    queued: int = 0
    started: bool = False


def _cron_keys(cron_jobs: Collection[CronJob[Any]]) -> list[str]:
    """Return SAQ's key for each; a further cron job of the same function and kind has its number behind it."""
    counts: Counter[tuple[str, bool]] = Counter()
    keys: list[str] = []
    for cron in cron_jobs:
        name = cron.function.__qualname__
        counts[name, cron.unique] += 1
        number = counts[name, cron.unique]
        keys.append(f"cron:{name}" if number == 1 else f"cron:{name}#{number}")
    return keys


async def _redis_now_ms(queue: Queue) -> int:
    seconds, microseconds = await queue.redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
