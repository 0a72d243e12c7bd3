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
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError
from saq.job import Job as SaqJob
from saq.job import Status
from saq.queue.base import JobError as SaqJobError

from knapsaq import events
from knapsaq.batching import Batcher
from knapsaq.blueprint import NO_OPTIONS
from knapsaq.calls import each_call
from knapsaq.changing import ChangingQueue
from knapsaq.errors import InvalidArgumentsError, OptionError, PayloadTooLargeError, UnknownTaskError
from knapsaq.job import FIELDS, Job, new_key
from knapsaq.job_errors import DuplicateJobError, JobMissingError
from knapsaq.lineage import inherit, origin
from knapsaq.options import CallOptions
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors, open_redis
from knapsaq.redis.line import text
from knapsaq.scheduling import ScheduleStore
from knapsaq.timing import now_ms

Answer = bool | bytes
"""Whether a job was accepted; the id of the one that stands for it if it is unique and was not."""

STORED_A_CALL = 250
SUBMITTED_TIMES = 3  # the job that has the key may end between two looks

_batches: ContextVar[tuple[tuple[Queue, list[_Request]], ...]] = ContextVar("batches", default=())
"""The open ``Queue.batch()`` blocks of the running code, and the jobs that were sent in each."""


class _Request(NamedTuple):
    """A job on its way to Redis."""

    job: SaqJob
    job_id: str
    payload: bytes | str
    once: bool


class Queue(ChangingQueue):
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
        self._storing = Batcher(self._store, STORED_A_CALL, _weight)
        self.schedules = ScheduleStore(self)

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
            The job; None while a job of the same key has not ended, or another one stands for it as it is unique.

        Raises:
            UnknownTaskError: No task has the name.
            DuplicateJobError: Likewise, where its options say that this is an error.
            InvalidArgumentsError: The arguments do not fit the task.
            PayloadTooLargeError: They are too large.
            BrokerError: Redis cannot be reached.
        """
        job = self._build(job_or_func, kwargs) if isinstance(job_or_func, str) else _updated(job_or_func, kwargs)
        answer = await self._offer(job)
        if isinstance(answer, bytes):
            answer = await self._stand_in(cast("Job[Any]", job), answer) is job
        return cast("Job[Any]", job) if answer else None

    async def enqueue_many(self, name: str, calls: Iterable[Mapping[str, Any]]) -> list[Job[Any]]:
        """Queue a job by its task's name for each mapping of arguments, hundreds with one round trip.

        Raises:
            The same as ``enqueue``; nothing is queued unless all calls are right.
        """
        return await self.submit_many([self._build(name, dict(kwargs)) for kwargs in each_call(name, calls)])

    async def accept(self, job: SaqJob, *, once: bool = False, asked: bool = False) -> bool:
        """Store a job; calls of one turn of the loop travel together.

        Args:
            job: The job; its queue, status and missing limits are filled in.
            once: Whether a job of this key is accepted once and, for a day, never again.
            asked: Whether those who may refuse it have been asked already.

        Returns:
            Whether it was stored; False while a job of its key has not ended, or another one stands for it.
        """
        return await self._offer(job, once=once, asked=asked) is True

    async def _offer(self, job: SaqJob, *, once: bool = False, asked: bool = False) -> Answer:
        self._address(job)
        if self._guarded and not asked and not await self._ask(job, once=once):
            return False
        request = _Request(job, self.job_id(job.key), self._payload(job), once)
        batches = [requests for queue, requests in _batches.get() if queue is self]
        for requests in batches:
            requests.append(request)
        answer = await self._storing.ask(request)
        for requests in () if answer is True else batches:
            requests.remove(request)
        return answer

    async def submit(self, job: Job[Any], *, asked: bool = False) -> Job[Any]:
        """Store a job, or return the one that has its key and has not ended, or that stands for it as it is unique.

        Raises:
            JobMissingError: The key belongs to a record that cannot be read.
            DuplicateJobError: Another job stands for it, and its options say that this is an error.
            OptionError: The key is that of another task's job.
        """
        for number in range(SUBMITTED_TIMES):
            answer = await self._offer(job, asked=asked or number > 0)
            if answer is True:
                events.job_enqueued(job)
                return job
            if existing := await (self._stand_in(job, answer) if answer else self._standing(job)):
                return existing
        raise JobMissingError(job.function, job.key, "its key belongs to a record that cannot be read; use another key")

    async def submit_many(self, jobs: Sequence[Job[Any]]) -> list[Job[Any]]:
        """Store jobs; for each the one that has its key and has not ended takes its place."""
        for job in jobs:
            self._address(job)
            if self._guarded:
                await self._ask(job)
        requests = [_Request(job, self.job_id(job.key), self._payload(job), once=False) for job in jobs]
        batches = [sent for queue, sent in _batches.get() if queue is self]
        for sent in batches:
            sent.extend(requests)
        answers = await self._storing.ask_all(requests)
        submitted = list(jobs)
        for place, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
            if answer is True:
                events.job_enqueued(job)
                continue
            for sent in batches:
                sent.remove(requests[place])
            existing = await (self._stand_in(job, answer) if answer else self._standing(job))
            submitted[place] = existing or await self.submit(job, asked=True)
        return submitted

    async def _stand_in(self, job: Job[Any], holder_id: bytes) -> Job[Any] | None:
        """Return what becomes of a unique job whose place is taken; None if it is not taken any more.

        Raises:
            DuplicateJobError: Its options say that this is an error.
        """
        what, until, clash = job.control["unique"]
        key = self.job_key_from_id(text(holder_id))
        if clash == "raise":
            raise DuplicateJobError(job.function, key)
        if clash == "replace":
            own, job.key = job.key, key
            args = [self.now_argument, self._payload(job), _score(job), what]
            with broker_errors(self.settings.broker_url):
                if await scripts.replace(self.line, [self.keys.incomplete, text(holder_id)], args):
                    events.job_enqueued(job)
                    return job
            job.key = own
            if until == "start":
                return None  # it has begun
        existing = await self.job(key)
        return None if existing is None or (until == "end" and existing.ended) else _same_task(job, existing)

    async def _standing(self, job: Job[Any]) -> Job[Any] | None:
        """Return the job that has this one's key and has not ended."""
        existing = await self.job(job.key)
        return _same_task(job, existing) if existing is not None and not existing.ended else None

    @property
    def _guarded(self) -> bool:
        """Whether anybody may refuse jobs."""
        return bool(self._before_enqueues) or (self.registry is not None and self.registry.layers.in_use)

    async def _ask(self, job: SaqJob, *, once: bool = False) -> bool:
        """Show a job to those who may refuse it; False where that was a scheduled one, which no caller waits for."""
        if self._before_enqueues:
            await self._before_enqueue(job)
        return self.registry is None or await self.registry.stack(job.function, self.name).admits(job, once=once)

    def _address(self, job: SaqJob) -> None:
        """Fill in a job's queue, status and missing limits."""
        if job.queue is not None and job.queue.name != self.name:
            msg = f"Job {job} registered to a different queue"
            raise ValueError(msg)
        fields = job.__dict__
        if fields["key"] is None:  # SAQ's programs write it where they want none in particular
            fields["key"] = new_key()
        fields["queue"], fields["queued"], fields["status"] = self, now_ms(), Status.QUEUED
        if fields["timeout"] is None:
            limit = self.settings.task_timeout
            fields["timeout"] = int(limit) if limit.is_integer() else limit  # as SAQ's own, whole seconds
        if fields["ttl"] is None:
            ttl, least = self.settings.result_ttl, getattr(job, "keep", 0)
            fields["ttl"] = least if ttl and ttl < least else ttl
        if "expires" in fields:
            cast("Job[Any]", job).set_expiry(self.now_ms())
        if (source := origin.get()) is not None:
            inherit(job, source)

    async def prepare(self, job: SaqJob) -> bytes | str:
        """Fill in what a job needs to be queued here by another script, and return its record.

        Raises:
            Exception: Whatever a hook raises that refuses the job.
        """
        self._address(job)
        if self._guarded:
            await self._ask(job)
        return self._payload(job)

    async def record(self, job: Job[Any]) -> bytes | str:
        """Return the record of a job that is accepted later, by its workflow, without its status and that moment.

        Raises:
            InvalidArgumentsError: JSON cannot carry its arguments.
            PayloadTooLargeError: They are too large.
            Exception: Whatever a hook raises that refuses the job.
        """
        job.expire_later()
        self._address(job)
        if self._guarded:
            await self._ask(job)
        job.status, job.queued = Status.NEW, 0
        return self._payload(job)

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[None]:
        """Abort the jobs that were accepted within the block, if it raises or is cancelled.

        Jobs that others enqueue meanwhile are not concerned; those of tasks that were started in the block are.
        """
        requests: list[_Request] = []
        token = _batches.set((*_batches.get(), (self, requests)))
        try:
            yield
        except BaseException:
            await asyncio.gather(*(self._take_back(request) for request in requests), return_exceptions=True)
            raise
        finally:
            _batches.reset(token)

    async def _take_back(self, request: _Request) -> None:
        """Abort a job unless its key belongs to another: one whose enqueue was cancelled may not have been stored."""
        stored = await self.job(request.job.key)
        if stored is not None and stored.queued == request.job.queued:
            await self.abort(request.job, "cancelled")

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
        key = fields.get("key")
        job = task.build_job(CallOptions(key=key) if key else NO_OPTIONS, (), arguments)
        for key, value in fields.items():
            setattr(job, key, value)
        return job

    async def _store(self, batch: Sequence[_Request]) -> list[Answer]:
        own = self.keys
        keys = [own.incomplete]
        args: list[scripts.Argument] = [self.now_argument]
        for job, job_id, payload, once in batch:
            keys += (job_id, own.fired(job.key) if once else own.abort_mark(job.key))
            args += (payload, _score(job), 1 if once else 0)
        with broker_errors(self.settings.broker_url):
            answers = await scripts.enqueue(self.line, keys, args)
        return [answer if answer.__class__ is bytes else answer == 1 for answer in answers]

    def _payload(self, job: SaqJob) -> bytes | str:
        try:
            payload = self.serialize(job)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentsError(job.function, "*", "what JSON can carry", str(error)) from error
        limit = self.settings.max_payload_bytes
        if len(payload) > limit:
            raise PayloadTooLargeError(f"arguments of task {job.function!r}", len(payload), limit)
        return payload

    async def disconnect(self) -> None:
        """Close the connections; one that Redis has closed already is as good."""
        with suppress(RedisError, OSError):
            await self._pushes.close()
            await self.line.close()
            await super().disconnect()

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
        try:
            await self.wait_ended(job, None)
        except JobMissingError:  # it keeps no result; as in SAQ
            return None
        if job.status is Status.COMPLETE:
            return self.decode_result(job)
        if not return_exceptions:
            raise SaqJobError(job)
        return SaqJobError(job)


def _weight(request: _Request) -> float:
    """Return a job's part of a call, which carries 250 small ones or 4 MiB."""
    return 1 + len(request.payload) / 16_384


def _same_task(job: Job[Any], existing: Job[Any]) -> Job[Any]:
    """Return the job that stands for another, unless it is of another task, whose result nobody has asked for.

    Raises:
        OptionError: It is.
    """
    if existing.function != job.function:
        expected = f"a key of its own, as a job of task {existing.function!r} has this one"
        raise OptionError(f"a call of task {job.function!r}", "key", existing.key, expected)
    return existing


def _score(job: SaqJob) -> str | float:
    """Return when a job is due, as ``lua/enqueue.lua`` takes it."""
    delay = getattr(job, "delay", 0.0)
    return f"+{delay}" if delay else max(0, job.scheduled)


def _updated(job: SaqJob, kwargs: Mapping[str, Any]) -> SaqJob:
    """Set SAQ's fields on a job; what is no field is an argument of the function."""
    for name, value in kwargs.items():
        if name in FIELDS:
            setattr(job, name, value)
        else:
            job.kwargs = {**(job.kwargs or {}), name: value}
    return job
