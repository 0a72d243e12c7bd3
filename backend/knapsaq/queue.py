"""Queue: where jobs wait, and every write that changes one.

Where in the flow: ``enqueue`` accepts jobs, ``advance`` settles what has ended and
claims what may run in one script call, ``wait_ended`` tells callers. It is SAQ's
``RedisQueue`` with SAQ's wire format: plain SAQ producers, SAQ's page and programs
written for SAQ go on working.

Invariants, each a test in ``tests/redis``:

* a job is accepted whole or not at all;
* an attempt whose claim was taken away cannot write;
* a record that cannot be read harms no other job.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from saq.job import TERMINAL_STATUSES, Status
from saq.job import Job as SaqJob
from saq.queue.base import JobError as SaqJobError

from knapsaq import events
from knapsaq.batching import Batcher
from knapsaq.claims import ClaimingQueue
from knapsaq.errors import BrokerError, InvalidArgumentsError, JobMissingError, PayloadTooLargeError, UnknownTaskError
from knapsaq.job import FIELDS, Job, check_fields
from knapsaq.options import CallOptions
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors, open_redis
from knapsaq.sweeping import Sweeper
from knapsaq.timing import now_ms
from knapsaq.waiting import Pushes

STORED_A_CALL = 500
SUBMITTED_TIMES = 3  # the job that has the key may end between two looks
READ_A_CALL = 1000
LOOK_SECONDS = 10.0  # until a waiter looks for itself, should a push have been lost
AWAY = (RedisConnectionError, RedisTimeoutError, OSError)
LOOK_PAUSE = 0.5  # seconds between two attempts to reach Redis


_batches: ContextVar[tuple[tuple[Queue, list[SaqJob]], ...]] = ContextVar("batches", default=())
"""The open ``Queue.batch()`` blocks of the running code, and the jobs that were accepted in each."""


class _Request(NamedTuple):
    """A job on its way to Redis."""

    job: SaqJob
    payload: bytes | str
    once: bool


class Queue(ClaimingQueue):
    """One queue in Redis.

    Args:
        redis: The connection pool.
        name: The queue's name.
        registry: The tasks that may be enqueued by name and checked; None enqueues any name, as SAQ does.
        settings: Defaults of jobs and limits; ``Settings()`` unless given.
        clock: Where leases and due times come from; Redis' own clock unless given.
        saq_options: ``dump``, ``load``, ``max_concurrent_ops`` and ``swept_error_message``, as in SAQ.
    """

    def __init__(self, redis: Redis, name: str = "default", **options: Any) -> None:
        super().__init__(redis, name, **options)
        self._storing = Batcher(self._store, STORED_A_CALL)
        self._reading = Batcher(self._read, READ_A_CALL)
        self._pushes = Pushes(self.redis)
        self.sweeper = Sweeper(self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Queue:
        """Return a queue for ``redis://``, ``rediss://`` or ``unix://``; options as for the class."""
        return cls(open_redis(url), **options)

    async def enqueue(self, job_or_func: str | SaqJob, **kwargs: Any) -> Job[Any] | None:
        """Queue a job by its task's name, or a job that was built by hand.

        Args:
            job_or_func: A task's name or a job.
            kwargs: The task's arguments; what the task does not take itself and SAQ's Job has (``key``,
                ``timeout``, ``scheduled``, ``retries`` as the greatest number of attempts, ...) is set on the job.

        Returns:
            The job; None while a job of the same key has not ended.

        Raises:
            UnknownTaskError: No task has the name.
            InvalidArgumentsError: The arguments do not fit the task.
            PayloadTooLargeError: They are too large.
            BrokerError: Redis cannot be reached.
        """
        job = self._build(job_or_func, kwargs) if isinstance(job_or_func, str) else _updated(job_or_func, kwargs)
        return cast("Job[Any]", job) if await self.accept(job) else None

    async def accept(self, job: SaqJob, *, once: bool = False) -> bool:
        """Store a job; calls of one turn of the loop travel together.

        Args:
            job: The job; its queue, status and missing limits are filled in.
            once: Whether a job of this key is accepted once and, for a day, never again.

        Returns:
            Whether it was stored; False while a job of its key has not ended.
        """
        if job.queue is not None and job.queue.name != self.name:
            msg = f"Job {job} registered to a different queue"
            raise ValueError(msg)
        job.queue = self
        job.queued = now_ms()
        job.status = Status.QUEUED
        limits = job.__dict__
        if limits["timeout"] is None:
            limits["timeout"] = self.settings.task_timeout
        if limits["ttl"] is None:
            limits["ttl"] = self.settings.result_ttl
        if self._before_enqueues:
            await self._before_enqueue(job)
        accepted = await self._storing.ask(_Request(job, self._payload(job), once))
        for queue, jobs in _batches.get() if accepted else ():
            if queue is self:
                jobs.append(job)
        return accepted

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[None]:
        """Abort the jobs that were accepted within the block, if it raises or is cancelled.

        Jobs that others enqueue meanwhile are not concerned; those of tasks that were started in the block are.
        """
        jobs: list[SaqJob] = []
        token = _batches.set((*_batches.get(), (self, jobs)))
        try:
            yield
        except BaseException:
            await asyncio.gather(*(self.abort(job, "cancelled") for job in jobs), return_exceptions=True)
            raise
        finally:
            _batches.reset(token)

    async def submit(self, job: Job[Any]) -> Job[Any]:
        """Store a job, or return the one that has its key and has not ended.

        Raises:
            JobMissingError: The key belongs to a record that cannot be read.
        """
        for _ in range(SUBMITTED_TIMES):
            if await self.accept(job):
                events.job_enqueued(job)
                return job
            existing = await self.job(job.key)
            if existing is not None and not existing.ended:
                return existing
        raise JobMissingError(job.function, job.key, "its key belongs to a record that cannot be read; use another key")

    def _build(self, name: str, kwargs: dict[str, Any]) -> Job[Any]:
        task = self.registry.find(name) if self.registry else None
        if task is None:
            if self.registry is not None:
                raise UnknownTaskError(name, self.registry.names())
            return cast("Job[Any]", _updated(Job(function=name), kwargs))
        own = task.signature.parameters.keys() - task.injected
        fields = {key: value for key, value in kwargs.items() if key in FIELDS and key not in own}
        arguments = {key: value for key, value in kwargs.items() if key not in fields}
        arguments.update(fields.pop("kwargs", None) or {})
        job = task.build_job(CallOptions(), (), arguments)
        for key, value in fields.items():
            setattr(job, key, value)
        return job

    async def _store(self, batch: Sequence[_Request]) -> list[bool]:
        own = self.keys
        keys = [own.incomplete, own.queued, own.claims, own.aborts, own.crashes]
        args: list[scripts.Argument] = [self.now_argument, own.wake]
        for request in batch:
            keys += (request.job.id, own.fired(request.job.key) if request.once else request.job.abort_id)
            delay = getattr(request.job, "delay", 0.0)
            score = f"+{delay}" if delay else max(0, request.job.scheduled)
            args += (request.payload, score, int(request.once))
        with broker_errors(self.settings.redacted_broker_url):
            return [bool(answer) for answer in await scripts.enqueue(self.redis, keys, args)]

    def _payload(self, job: SaqJob) -> bytes | str:
        try:
            check_fields(job.__dict__)
            payload = self.serialize(job)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentsError(job.function, "*", "what JSON can carry", str(error)) from error
        limit = self.settings.max_payload_bytes
        if len(payload) > limit:
            raise PayloadTooLargeError(f"arguments of task {job.function!r}", len(payload), limit)
        return payload

    async def abort(self, job: SaqJob, error: str, ttl: float = 5) -> None:  # noqa: ARG002 - SAQ's signature
        """End a job on purpose: at once if it waits, through its worker if it runs; nothing if it has ended."""
        before = (job.status, job.error, job.completed)
        job.status, job.error = Status.ABORTING, error
        aborting = self.serialize(job)
        job.status, job.completed = Status.ABORTED, now_ms()
        keys = self.keys
        answer = await scripts.abort(
            self.redis,
            [keys.queued, keys.active, keys.incomplete, keys.aborts, keys.crashes, job.id],
            [error, self.serialize(job), self.whole_ttl(job), aborting, keys.wake],
        )
        if answer == b"aborted":
            self.aborted += 1
            return
        job.status, job.error, job.completed = (Status.ABORTING, error, 0) if answer == b"aborting" else before

    async def _retry(self, job: SaqJob, error: str | None) -> None:  # noqa: ARG002 - SAQ's signature
        delay = 0 if job.attempts == 0 else job.next_retry_delay()
        score = time.time() + delay if delay else 0
        keys = self.keys
        await scripts.retry(
            self.redis,
            [keys.queued, keys.active, keys.incomplete, keys.claims, keys.aborts, keys.crashes, job.id],
            [self.serialize(job), score],
        )

    async def _update(self, job: SaqJob, status: Status | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        # Only a copy that knows the end may be written over it: any other lacks the result.
        knows_end = job.status in TERMINAL_STATUSES
        token = job.token if isinstance(job, Job) else ""
        if status is None and token and not knows_end:
            status = Status.ACTIVE  # it is written only while the claim stands
        elif status is None:
            stored = await self.job(job.key)
            status = stored.status if stored else None
        job.status = status or job.status
        ended = int(knows_end and job.status in TERMINAL_STATUSES)
        args = [self.serialize(job), ended, job.status.value, token]
        await scripts.update(self.redis, [self.keys.incomplete, self.keys.claims, job.id], args)

    def copy(self, job: SaqJob) -> Job[Any]:
        """Return a copy of a job, with its claim."""
        twin = cast("Job[Any]", super().copy(job))
        twin.token = job.token if isinstance(job, Job) else ""
        return twin

    async def job(self, job_key: str) -> Job[Any] | None:
        """Return the job of that key as Redis has it now, or None."""
        return self.deserialize(await self._reading.ask(self.job_id(job_key)))

    async def _read(self, job_ids: Sequence[str]) -> Sequence[bytes | None]:
        with broker_errors(self.settings.redacted_broker_url):
            return cast("Sequence[bytes | None]", await self.redis.mget(job_ids))

    async def sweep(self, lock: int = 60, abort: float = 5.0) -> list[str]:  # noqa: ARG002 - SAQ's signature
        """Put back or end the jobs of plain SAQ workers that nobody runs any more, and return their ids.

        Args:
            lock: Seconds in which nobody else sweeps; one of our workers holds the lock for as long as it lives.
            abort: Not used; SAQ waits so long for each job.
        """
        if not await self.redis.set(self.keys.saq_sweep_lock, 1, ex=lock, nx=True):
            return []
        return await self.sweeper.run_once()

    async def forget_worker(self, worker: str) -> None:
        """Take a worker that has stopped out of what ``info`` shows."""
        key = self.namespace(f"worker_info:{worker}")
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.zrem(self._stats, key)
            pipe.delete(key)
            await pipe.execute()

    async def disconnect(self) -> None:
        """Close the connections; one that Redis has closed already is as good."""
        with suppress(RedisError, OSError):
            await self._pushes.close()
            await super().disconnect()

    async def jobs(self, job_keys: Iterable[str]) -> list[Job[Any] | None]:  # type: ignore[override]
        """Return the jobs of these keys, with None for each that is not there."""
        ids = [self.job_id(key) for key in job_keys]
        return [self.deserialize(payload) for payload in (await self.redis.mget(ids) if ids else ())]

    async def wait_ended(self, job: Job[Any], timeout: float | None) -> None:
        """Return when the job has ended, with ``job`` brought up to date.

        Raises:
            TimeoutError: It has not ended in time.
            JobMissingError: It is not in Redis any more.
        """
        async with asyncio.timeout(timeout):
            while not await self._ended(job):  # noqa: ASYNC110 - an outage has no event to wait for
                # Redis is away; the job is not lost for that.
                await asyncio.sleep(LOOK_PAUSE)

    async def _ended(self, job: Job[Any]) -> bool:
        """Return True when the job has ended, False if Redis went away meanwhile."""
        try:
            async with self._pushes.on(job.id) as news:
                while True:
                    news.clear()
                    stored = await self.job(job.key)
                    if stored is None:
                        raise JobMissingError(job.function, job.key, "its record is gone; keep it longer with ttl")
                    job.replace(stored)
                    if stored.ended:
                        return True
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            await news.wait()
        except (BrokerError, RedisError, OSError) as error:
            cause = error.__cause__ if isinstance(error, BrokerError) else error
            if isinstance(cause, AWAY) and not isinstance(cause, AuthenticationError):
                return False
            with broker_errors(self.settings.redacted_broker_url):
                raise

    def decode_result(self, job: Job[Any]) -> Any:
        """Return the job's result as the task's annotated type; as it is stored where the task is not known here."""
        task = self.registry.find(job.function) if self.registry else None
        return job.result if task is None else task.signature.result(job.result)

    async def map(
        self,
        job_or_func: str | SaqJob,
        iter_kwargs: Sequence[dict[str, Any]],
        timeout: float | None = None,
        return_exceptions: bool = False,
        poll_interval: float = 0.5,  # noqa: ARG002 - SAQ's signature; we do not poll at a fixed interval
        **kwargs: Any,
    ) -> list[Any]:
        """Queue a job for each of ``iter_kwargs`` and return their results in order; see SAQ."""
        jobs = await asyncio.gather(*(self._enqueue_or_get(job_or_func, {**kwargs, **one}) for one in iter_kwargs))
        async with asyncio.timeout(timeout or None):
            return await asyncio.gather(*(self._result(job, return_exceptions) for job in jobs))

    async def _enqueue_or_get(self, name: str | SaqJob, kwargs: Mapping[str, Any]) -> Job[Any]:
        job = self._build(name, dict(kwargs)) if isinstance(name, str) else _updated(name, dict(kwargs))
        return await self.submit(cast("Job[Any]", job))

    async def _result(self, job: Job[Any], return_exceptions: bool) -> Any:
        await self.wait_ended(job, None)
        if job.status is Status.COMPLETE:
            return self.decode_result(job)
        if not return_exceptions:
            raise SaqJobError(job)
        return SaqJobError(job)


def _updated(job: SaqJob, kwargs: Mapping[str, Any]) -> SaqJob:
    """Set SAQ's fields on a job; what is no field is an argument of the function."""
    for name, value in kwargs.items():
        if name in FIELDS:
            setattr(job, name, value)
        else:
            job.kwargs = {**(job.kwargs or {}), name: value}
    return job
