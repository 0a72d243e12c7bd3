"""Reading: what may be asked of a queue, with nothing changed.

Where in the flow: beside the queue's writes. ``Job.wait`` comes here, and so do SAQ's page and programs that look.

Invariants, each a test in ``tests/redis``:

* whoever waits for a job hears of its end by a push, also after an outage;
* pages of ``info`` neither repeat nor skip a job.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Self, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from saq.job import TERMINAL_STATUSES, Status
from saq.types import QueueInfo, WorkerInfo

from knapsaq.batching import Batcher
from knapsaq.errors import BrokerError
from knapsaq.explaining import ExplainingQueue
from knapsaq.job import Job, Update
from knapsaq.job_errors import JobMissingError, JobNotEndedError
from knapsaq.looking import ALL_PLACES, Counts, LookingQueue
from knapsaq.redis.connection import broker_errors
from knapsaq.slots import given_up
from knapsaq.timing import now_ms
from knapsaq.waiting import News, shared_pushes

READ_A_CALL = 1000
COUNTED = tuple(field.name for field in dataclasses.fields(Counts))
AWAY = (RedisConnectionError, RedisTimeoutError, OSError)
LOOK_PAUSE = 0.5  # seconds between two attempts to reach Redis
GONE = "its record is gone; keep it longer with ttl"
GOING_ON = frozenset(status.value.encode() for status in Status if status not in TERMINAL_STATUSES)
NO_END = GOING_ON | {b""}


class ReadingQueue(LookingQueue, ExplainingQueue):
    """SAQ's queue with claims, and what may be asked of it; ``Queue`` is the whole."""

    def __init__(self, redis: Redis, name: str = "default", **options: Any) -> None:
        super().__init__(redis, name, **options)
        self._pushes = shared_pushes(self.redis)
        self._siblings: dict[str, Self] = {}
        self._reading = Batcher(self._read, READ_A_CALL)
        self._looking = Batcher(self._scores, READ_A_CALL)

    async def job(self, job_key: str) -> Job[Any] | None:
        """Return the job of that key as Redis has it now, or None."""
        return self.deserialize(await self._reading.ask(self.job_id(job_key)))

    async def jobs(self, job_keys: Iterable[str]) -> list[Job[Any] | None]:  # type: ignore[override]
        """Return the jobs of these keys, with None for each that is not there."""
        ids = [self.job_id(key) for key in job_keys]
        return [self.deserialize(payload) for payload in (await self._read(ids) if ids else ())]

    async def count(self, kind: str) -> int:
        """Return how many jobs there are: a field of ``Counts``, such as ``"queued"`` or ``"dead"``.

        Raises:
            ValueError: It is none.
            BrokerError: Redis cannot be reached.
        """
        if kind not in COUNTED:
            msg = f"unknown kind of jobs {kind!r}; known: {', '.join(COUNTED)}"
            raise ValueError(msg)
        return int(getattr(await self.counts(), kind))

    async def info(self, jobs: bool = False, offset: int = 0, limit: int = 10) -> QueueInfo:
        """Return the workers, the counts and, if wanted, a page of jobs: active, then waiting, then delayed ones.

        As SAQ has no word for them, those that are parked count as queued.
        """
        counts = await self.counts()
        page = await self.page(ALL_PLACES, offset, limit) if jobs and limit > 0 else []
        return {
            "workers": await self._workers(),
            "name": self.name,
            "queued": counts.queued + counts.parked,
            "active": counts.active,
            "scheduled": counts.scheduled,
            "jobs": [each.job.to_dict() for each in page if each.job is not None],
        }

    async def _workers(self) -> dict[str, WorkerInfo]:
        keys = await self.line.execute("ZRANGEBYSCORE", self._stats, now_ms(), "+inf")
        infos = await self.line.execute("MGET", *keys) if keys else []
        workers: dict[str, WorkerInfo] = {}
        for key, info in zip(keys, infos, strict=True):
            with suppress(ValueError):  # what nobody can read is not shown
                workers[key.decode().rpartition(":")[2]] = msgspec.json.decode(info or b"", type=WorkerInfo)
        return workers

    async def iter_jobs(
        self, statuses: Collection[Status] = tuple(Status), batch_size: int = 100
    ) -> AsyncIterator[Job[Any]]:
        """Yield all jobs of some statuses, ended ones included, in no order; it goes through the whole database."""
        cursor: int | bytes = 0
        while True:
            cursor, ids = await self.line.execute("SCAN", cursor, "MATCH", self.job_id("*"), "COUNT", batch_size)
            for payload in await self._read(ids) if ids else ():
                job = self.deserialize(payload)
                if job is not None and job.status in statuses:
                    yield job
            if not int(cursor):
                return

    async def listen(
        self,
        job_keys: Iterable[str],
        callback: Callable[[str, Status], Any],
        timeout: float | None = 10,
        poll_interval: float = 0.5,  # noqa: ARG002 - SAQ's signature; changes are pushed
    ) -> None:
        """Call ``callback(key, status)`` at each change of some jobs, and for those that have ended already.

        Returns when the callback returns something true.

        Raises:
            TimeoutError: It did not within ``timeout`` seconds; 0 and ``None`` are no limit.
        """
        channels = [self.job_id(key) for key in job_keys]
        if not channels:
            return
        async with asyncio.timeout(timeout or None), self._pushes.on(*channels) as news:
            for channel in channels:
                news.tell(channel, b"")
            while True:
                channel, text = await news.get()
                key = self.job_key_from_id(channel)
                if text:
                    status = Status(text.decode())
                elif (job := await self.job(key)) and job.ended:
                    status = job.status
                else:
                    continue
                answer = callback(key, status)
                if await answer if inspect.isawaitable(answer) else answer:
                    return

    async def wait_ended(self, job: Job[Any], timeout: float | None) -> None:
        """Return when the job has ended, with ``job`` brought up to date.

        Raises:
            JobNotEndedError: It has not ended in time.
            JobMissingError: It is not in Redis any more.
        """
        with given_up():
            try:
                async with asyncio.timeout(timeout):
                    while not await self._ended(job):  # noqa: ASYNC110 - an outage has no event to wait for
                        # Redis is away; the job is not lost for that.
                        await asyncio.sleep(LOOK_PAUSE)
            except TimeoutError:
                status = await self._look_again(job)
                if not (status and job.ended):
                    raise JobNotEndedError(job.function, job.key, timeout or 0.0, status) from None

    async def _look_again(self, job: Job[Any]) -> str:
        """Bring a job up to date that was waited for in vain, and return its status; "" if that is not to be had."""
        with suppress(BrokerError, RedisError, OSError):
            async with asyncio.timeout(LOOK_PAUSE):
                stored = await self.job(job.key)
            if stored is not None:
                job.replace(stored)
                return stored.status.value
        return ""

    async def _ended(self, job: Job[Any]) -> bool:
        """Return True when the job has ended, False if Redis went away meanwhile."""
        try:
            async with self._pushes.on(job.id) as news:
                if await self._looking.ask(job.id) is not None:
                    await _end_of(news)
                while True:
                    stored = await self.job(job.key)
                    if stored is None:
                        raise JobMissingError(job.function, job.key, GONE)
                    if stored.ended:
                        job.replace(stored)
                        return True
                    await _end_of(news)
        except (BrokerError, RedisError, OSError) as error:
            self._refuse_unless_away(error)
            return False

    def _refuse_unless_away(self, error: Exception) -> None:
        """Raise an error as ours unless it will pass by itself."""
        cause = error.__cause__ if isinstance(error, BrokerError) else error
        if not isinstance(cause, AWAY) or isinstance(cause, AuthenticationError):
            with broker_errors(self.settings.broker_url):
                raise error

    async def updates(self, job: Job[Any]) -> AsyncGenerator[Update, None]:
        """Yield how the job stands, now and at each change, up to its end; see ``Job.updates``.

        Raises:
            JobMissingError: It is not in Redis any more, and how it ended is not known.
            BrokerError: Redis refuses to answer.
        """
        last: Update | None = None
        while True:
            try:
                async with self._pushes.on(job.id) as news:
                    said = b""
                    while True:
                        # The look comes behind the subscription, so nothing is missed in between.
                        stored = await self.job(job.key)
                        update = _seen(job, stored, said if stored else await _last_word(news, said))
                        if update != last:
                            last = update
                            yield update
                        if update.ended:
                            return
                        with given_up():
                            said = await news.newest()
            except (BrokerError, RedisError, OSError) as error:
                self._refuse_unless_away(error)
                await asyncio.sleep(LOOK_PAUSE)

    def decode_result(self, job: Job[Any]) -> Any:
        """Return the job's result as the task's annotated type; as it is stored where the task is not known here."""
        task = self.registry.find(job.function) if self.registry else None
        return job.result if task is None else task.signature.result(job.result)

    def pushed(self, channel: str) -> AbstractAsyncContextManager[News]:
        """Return what yields the news of a channel."""
        return self._pushes.on(channel)

    def sibling(self, name: str) -> Self:
        """Return another queue of the same Redis; this one if it has the name."""
        if name == self.name:
            return self
        if name not in self._siblings:
            options: Any = {"registry": self.registry, "settings": self.settings, "clock": self.clock}
            self._siblings[name] = type(self)(self.redis, name, **options)
        return self._siblings[name]

    async def disconnect(self) -> None:
        """Close the connections, those to the slots of other queues too."""
        for one in self._siblings.values():
            if one.redis is not self.redis:
                await one.disconnect()
        await super().disconnect()

    async def _read(self, job_ids: Sequence[str | bytes]) -> Sequence[bytes | None]:
        with broker_errors(self.settings.broker_url):
            return cast("Sequence[bytes | None]", await self.line.execute("MGET", *job_ids))

    async def _scores(self, job_ids: Sequence[str]) -> Sequence[bytes | None]:
        """Return each job's due time; None for those that have ended."""
        scores = await self.line.execute("ZMSCORE", self.keys.incomplete, *job_ids)
        return cast("Sequence[bytes | None]", scores)


def _seen(job: Job[Any], stored: Job[Any] | None, said: bytes) -> Update:
    """Return how a job stands: by its record, or, where that was not kept, by the end that was pushed."""
    if stored is not None:
        job.replace(stored)
        return job.as_update
    if said not in NO_END:
        job.status = Status(said.decode())
        job.progress = 1.0 if job.status is Status.COMPLETE else job.progress
        return job.as_update
    raise JobMissingError(job.function, job.key, GONE)


async def _last_word(news: News, said: bytes) -> bytes:
    """Return how a job ended whose record is gone; what is pushed may be behind what is read, but not for long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_PAUSE):
            while said in NO_END:
                said = await news.newest()
    return said


async def _end_of(news: News) -> None:
    """Return when the job may have ended."""
    while (await news.get())[1] in GOING_ON:
        pass
