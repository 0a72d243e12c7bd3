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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from saq.job import TERMINAL_STATUSES, Status
from saq.job import Job as SaqJob
from saq.queue.base import JobError as SaqJobError

from knapsaq import events
from knapsaq.claims import ClaimingQueue
from knapsaq.errors import InvalidArgumentsError, JobMissingError, PayloadTooLargeError, UnknownTaskError
from knapsaq.job import FIELDS, Job, check_fields
from knapsaq.options import CallOptions
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors, open_redis
from knapsaq.timing import now_ms

ENQUEUED_A_CALL = 500
FIRST_LOOK, LONGEST_LOOK = 0.002, 0.1  # seconds between two looks at a job that somebody waits for


class _Request(NamedTuple):
    """A job on its way to Redis, and where its caller waits for the answer."""

    job: SaqJob
    payload: bytes | str
    once: bool
    accepted: asyncio.Future[bool]


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
        self._waiting: list[_Request] = []
        self._sending: set[asyncio.Task[None]] = set()

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
            once: Whether an ended job of the same key, too, keeps this one out.

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
        request = _Request(job, self._payload(job), once, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if len(self._waiting) > 1:
            return await request.accepted
        try:
            await asyncio.sleep(0)  # whoever enqueues in this turn of the loop travels along
        except asyncio.CancelledError:
            request.accepted.cancel()
            raise
        finally:
            batch, self._waiting = [one for one in self._waiting if not one.accepted.cancelled()], []
            if batch != [request]:
                self._send(batch)
        return (await self._store(batch))[0] if len(batch) == 1 else await request.accepted

    async def submit(self, job: Job[Any]) -> Job[Any]:
        """Store a job, or return the one that has its key and has not ended."""
        while not await self.accept(job):
            existing = await self.job(job.key)
            if existing is not None and not existing.ended:
                return existing
        events.job_enqueued(job)
        return job

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

    def _send(self, batch: list[_Request]) -> None:
        """Send the requests of several callers, so that none of them, cancelled, takes the others along."""
        for start in range(0, len(batch), ENQUEUED_A_CALL):
            sending = asyncio.create_task(self._answer(batch[start : start + ENQUEUED_A_CALL]))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)

    async def _answer(self, batch: list[_Request]) -> None:
        try:
            answers = await self._store(batch)
        except BaseException as error:  # noqa: BLE001 - each caller gets it, cancellation too
            for request in batch:
                if not request.accepted.done():
                    request.accepted.set_exception(error)
            return
        for request, answer in zip(batch, answers, strict=True):
            if not request.accepted.done():
                request.accepted.set_result(answer)

    async def _store(self, batch: list[_Request]) -> list[bool]:
        keys = [self.keys.incomplete, self.keys.queued]
        args: list[scripts.Argument] = [self.keys.wake]
        for request in batch:
            keys += (request.job.id, request.job.abort_id)
            args += (request.payload, max(0, request.job.scheduled), int(request.once))
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
            [keys.queued, keys.active, keys.incomplete, keys.aborts, job.id],
            [error, self.serialize(job), self.whole_ttl(job), aborting, keys.wake],
        )
        if answer == b"aborted":
            self.aborted += 1
            return
        job.status, job.error, job.completed = (Status.ABORTING, error, 0) if answer == b"aborting" else before

    async def _retry(self, job: SaqJob, error: str | None) -> None:  # noqa: ARG002 - SAQ's signature
        delay = job.next_retry_delay()
        score = time.time() + delay if delay else 0
        keys = self.keys
        await scripts.retry(
            self.redis, [keys.queued, keys.active, keys.incomplete, job.id], [self.serialize(job), score]
        )

    async def _update(self, job: SaqJob, status: Status | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        if status is None:
            stored = await self.job(job.key)
            status = stored.status if stored else None
        job.status = status or job.status
        ended = int(job.status in TERMINAL_STATUSES)
        args = [self.serialize(job), ended, job.status.value]
        await scripts.update(self.redis, [self.keys.incomplete, job.id], args)

    async def job(self, job_key: str) -> Job[Any] | None:
        """Return the job of that key as Redis has it now, or None."""
        return cast("Job[Any] | None", await super().job(job_key))

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
            pause = FIRST_LOOK
            while True:
                stored = await self.job(job.key)
                if stored is None:
                    raise JobMissingError(job.function, job.key, "its record is gone; keep it longer with ttl")
                job.replace(stored)
                if stored.ended:
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, LONGEST_LOOK)

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
