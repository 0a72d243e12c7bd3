"""Claims: a worker's hold on jobs, from the moment it takes them until their outcomes are written.

Where in the flow: ``advance`` settles what has ended and claims what may run in one
script call. Each claim has a token; a settlement whose token is no longer the job's
changes nothing, so an attempt that lost its claim cannot write.

Invariants, each a test in ``tests/redis/test_claims.py``:

* a job is claimed by one worker at a time;
* a settlement counts only while its claim stands;
* a record that cannot be read, or a result that cannot be stored, harms no other job.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis
from saq.job import Job as SaqJob
from saq.job import Status
from saq.queue.redis import RedisQueue

from knapsaq import events
from knapsaq.codec import utf8
from knapsaq.errors import PayloadTooLargeError
from knapsaq.job import PROGRESS, Job
from knapsaq.nodes import MARK, place_of, told
from knapsaq.outcomes import Dead, Failed, Outcome, Released, Retried, Snoozed, Succeeded
from knapsaq.record import Record
from knapsaq.redis import scripts
from knapsaq.redis.cluster import redis_of
from knapsaq.redis.keys import Keys
from knapsaq.redis.line import Line, shared_line, text
from knapsaq.registry import Registry
from knapsaq.settings import TEN_YEARS, Settings
from knapsaq.timing import now_ms

CRASH_LIMIT = 3
"""How many workers may die over a job before it counts as their murderer and fails."""

DIED = "the worker that ran it died"
"""How the reason of such a death begins."""

Clock = Callable[[], int]
"""Returns milliseconds since 1970."""


class Claim(NamedTuple):
    """A worker's hold on a job, from a moment on by Redis' clock.

    ``deaths`` has a line for each worker that died while it ran it: when and who.
    """

    job_id: str
    job: Job[Any]
    token: str
    deaths: str = ""
    since_ms: int = 0

    @property
    def crashes(self) -> int:
        """How many workers died while they ran the job."""
        return self.deaths.count("\n")


class Settlement(NamedTuple):
    """What is to be written about a claimed job; see ``lua/advance.lua``."""

    job_id: str
    token: str
    verb: str
    payload: bytes | str
    number: float
    status: str

    @property
    def head(self) -> str:
        """All but the job and the payload, in one word: as a rule the same for all settlements of a call."""
        return f"{self.verb} {self.number} {self.status} {self.token}"


class Abort(NamedTuple):
    """Somebody's wish to end a claimed job: why, and whether at once."""

    reason: str
    terminate: bool

    @classmethod
    def of(cls, entry: bytes) -> Abort:
        """Return what an entry of the hash of aborts says."""
        terminate, _, reason = text(entry).partition(" ")
        return cls(utf8(reason), terminate == "1")


class Advance(NamedTuple):
    """What one step of the queue gave.

    Attributes:
        claims: The jobs that may run now.
        settled: For each settlement 1 if it was written, 0 where the claim was lost.
        wait: Seconds until the next delayed job is due, or None.
        aborts: Claimed jobs that somebody wants to end, by job id.
        unreadable: Settlements that end records which nobody can read.
        paused: Whether nothing is claimed until somebody resumes the queue.
        more: Whether the next call may find more jobs, though this one gave fewer than were wanted.
    """

    claims: list[Claim]
    settled: list[int]
    wait: float | None
    aborts: dict[str, Abort]
    unreadable: list[Settlement]
    paused: bool
    more: bool


class ClaimingQueue(RedisQueue):
    """SAQ's queue with claims; ``Queue`` is the whole."""

    def __init__(
        self,
        redis: Redis,
        name: str = "default",
        *,
        registry: Registry | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
        **saq_options: Any,
    ) -> None:
        self._own_dump = "dump" in saq_options
        saq_options = {"dump": msgspec.json.encode, "load": msgspec.json.decode, **saq_options}
        super().__init__(redis_of(redis, name), name, **saq_options)
        self.registry = registry
        self.settings = settings or Settings()
        self.keys = Keys(name)
        self.clock = clock
        self.line = shared_line(self.redis)
        self._calls = 0
        self.updated = 0
        """How often a running job's record was written in between; stamps made before that are stale."""

    @property
    def now_argument(self) -> int | str:
        """The first argument of scripts that need the time: the clock's, or nothing for Redis' own."""
        return self.clock() if self.clock else ""

    def now_ms(self) -> int:
        """Return the clock's time, or this machine's, in milliseconds since 1970."""
        return self.clock() if self.clock else now_ms()

    async def advance(
        self, worker: str, settlements: Sequence[Settlement], want: int, line: Line | None = None
    ) -> Advance:
        """Settle, promote what is due, and claim: one call.

        Args:
            worker: The id of the worker that claims.
            settlements: What is to be written about jobs that the worker has claimed.
            want: How many jobs it can start; below 0 as many, but only while its lease stands.
            line: The way to Redis; the one that all callers share unless given.
        """
        self._calls += 1
        token = f"{worker} {now_ms()}.{self._calls}"
        reply = await scripts.advance(
            line or self.line,
            self.keys.of_advance + [settlement.job_id for settlement in settlements],
            [self.now_argument, worker, want, token, int(self.settings.lease * 1000), CRASH_LIMIT - 1]
            + [field for settlement in settlements for field in (settlement.head, settlement.payload)],
        )
        now, next_due, settled, claimed, aborts, paused, more = reply
        claims: list[Claim] = []
        unreadable: list[Settlement] = []
        for raw_id, payload, deaths in zip(claimed[::3], claimed[1::3], claimed[2::3], strict=True):
            job_id = text(raw_id)
            try:
                job = self._decoded(payload, job_id)
            except Exception as error:  # noqa: BLE001 - whatever the bytes are, only this record is affected
                events.record_unreadable(self.name, payload, error)
                unreadable.append(self._buried(job_id, token, f"its record cannot be read: {error}"))
                continue
            job.token = token
            claims.append(Claim(job_id, job, token, text(deaths), now))
        wait = max(0.0, float(next_due) - now / 1000) if next_due else None
        wanted = {text(job_id): Abort.of(entry) for job_id, entry in zip(aborts[::2], aborts[1::2], strict=True)}
        return Advance(claims, settled, wait, wanted, unreadable, bool(paused), bool(more))

    async def claim(self, n: int, *, worker: str) -> list[Claim]:
        """Claim up to ``n`` jobs for a worker; records that cannot be read are buried."""
        step = await self.advance(worker, [], n)
        if step.unreadable:
            await self.advance(worker, step.unreadable, 0)
        return step.claims

    async def settle(self, claim: Claim, outcome: Outcome, *, worker: str) -> bool:
        """Write an outcome; False where the claim was lost and nothing was written."""
        return bool((await self.advance(worker, [self.settlement(claim, outcome)], 0)).settled[0])

    async def unknown_claims(self, worker: str, known: Collection[str]) -> list[Settlement]:
        """Return what puts back the jobs that a call claimed for a worker which never saw the reply.

        Args:
            worker: The worker's id.
            known: The ids of the jobs that it knows of.
        """
        redis: Any = self.redis
        lost = {
            job_id: token
            for job_id, token in (await redis.hgetall(self.keys.claims)).items()
            if belongs_to(token, worker) and text(job_id) not in known
        }
        payloads = await redis.mget(lost) if lost else ()
        return [
            Settlement(text(job_id), token.decode(), "release", payload, 0, "queued")
            for (job_id, token), payload in zip(lost.items(), payloads, strict=True)
            if payload
        ]

    def stamp(self, claim: Claim) -> Settlement | None:
        """Return the settlement that shows a claimed job as active; None if its task has made it unstorable."""
        claim.job.status = Status.ACTIVE
        try:
            record = self.serialize(claim.job)
        except Exception:  # noqa: BLE001 - whatever the task put there, its settlement tells
            return None
        return Settlement(claim.job_id, claim.token, "stamp", record, 0, "active")

    def settlement(self, claim: Claim, outcome: Outcome) -> Settlement:
        """Return what is to be written for an outcome; the job itself is brought up to date.

        It never raises: a task may have put anything into its own job.
        """
        try:
            return self._settlement(claim, outcome)
        except Exception as error:  # noqa: BLE001
            job = claim.job
            job.status = Status.COMPLETE if isinstance(outcome, Succeeded) else Status.FAILED
            job.error = f"the job cannot be stored as its task left it: {utf8(str(error))}"
            record = self._bare(claim.job_id, str(job.function), job.status, job.error)
            end = Settlement(claim.job_id, claim.token, "finish", record, self.settings.result_ttl, job.status.value)
            return self._telling(end, None, job.error)

    async def _finish(self, job: SaqJob, status: Status, **outcome: Any) -> None:
        await super()._finish(job, status, **outcome)
        if place_of(job.key):
            state, value = told(status.value, job.result, job.error)
            await scripts.flow_tell(self.line, [self.keys.incomplete, job.id], [self.now_argument, state, value])

    def _buried(self, job_id: str, token: str, reason: str) -> Settlement:
        why = _one_line(reason)
        record = _with_reason(reason, self._bare(job_id, "unknown", Status.FAILED, why))
        return self._telling(Settlement(job_id, token, "bury", record, self.settings.result_ttl, "failed"), None, why)

    def _telling(self, end: Settlement, result: Any, error: str | None) -> Settlement:
        """Return how a job ends so that its workflow goes on; as it is where the job is of none."""
        if MARK not in end.job_id:
            return end
        record = end.payload.encode() if isinstance(end.payload, str) else end.payload
        state, value = told(end.status, result, error)
        return end._replace(verb=f"{end.verb}/{state}{len(record)}", payload=record + value)

    def _bare(self, job_id: str, function: str, status: Status, error: str) -> bytes | str:
        key = utf8(self.job_key_from_id(job_id))
        return self.serialize(Job(function, key=key, queue=self, status=status, error=error))

    def _settlement(self, claim: Claim, outcome: Outcome) -> Settlement:
        job = claim.job
        if isinstance(outcome, (Retried, Released)):
            _wait_again(job, outcome)
            verb = "retry" if isinstance(outcome, Retried) else "release"
            verb = "snooze" if isinstance(outcome, Snoozed) else verb
            self.retried += verb == "retry"
            return Settlement(claim.job_id, claim.token, verb, self._record(job), outcome.after, "queued")
        job.completed = now_ms()
        verb, status = "finish", "failed"
        if isinstance(outcome, Succeeded):
            job.status, job.result, job.error, job.progress = Status.COMPLETE, outcome.result, outcome.problem, 1.0
            self.complete += 1
            status = "complete"
        elif isinstance(outcome, Failed):
            job.status, job.error = Status.FAILED, outcome.error
            self.failed += 1
            verb = "bury" if isinstance(outcome, Dead) else verb
        else:
            job.status, job.error = Status.ABORTED, outcome.reason
            self.aborted += 1
            status = "aborted"
        record = self._final(job)
        if verb == "bury":
            record = _with_reason(job.error or "", record)
        end = Settlement(claim.job_id, claim.token, verb, record, self.whole_ttl(job), status)
        return self._telling(end, job.result, job.error) if MARK in claim.job_id else end

    def whole_ttl(self, job: SaqJob) -> int:
        """Return for how many seconds an ended job is kept, as Redis takes them; 0 is for ever, below 0 not at all."""
        ttl: float | None = job.ttl  # SAQ stores None where its `map` is given no timeout
        ttl = self.settings.result_ttl if ttl is None else ttl
        return -1 if ttl < 0 else min(math.ceil(ttl), TEN_YEARS)

    def _final(self, job: Job[Any]) -> bytes | str:
        """Return an ended job's record; a result that is too large gives way to the reason."""
        payload, limit = self._record(job), self.settings.max_payload_bytes
        if len(payload) <= limit or (size := len(self.dump(job.result))) <= limit:
            return payload
        job.error = str(PayloadTooLargeError(f"the result of task {job.function!r}", size, limit))
        job.result = None
        return self._record(job)

    def _record(self, job: Job[Any]) -> bytes | str:
        """Return the record of a job; what a task has put into its ``meta`` and JSON cannot carry is dropped."""
        try:
            return self.serialize(job)
        except Exception:  # noqa: BLE001 - the second attempt tells what else is wrong
            job.meta, job.error = {}, None if job.error is None else utf8(job.error)
            return self.serialize(job)

    def deserialize(
        self, payload: dict[str, Any] | str | bytes | None, status: Status | str | None = None
    ) -> Job[Any] | None:
        """Return a stored job; None where there is none, or where the record cannot be read, which is logged."""
        if not payload:
            return None
        try:
            job = self._decoded(payload)
        except Exception as error:  # noqa: BLE001 - whatever the bytes are, only this record is affected
            events.record_unreadable(self.name, payload, error)
            return None
        if status:
            job.status = Status(status)
        return job

    def load(self, payload: bytes | str) -> dict[str, Any]:
        """Return a record's fields."""
        return dict(self._load(payload))

    def dump(self, fields: Any) -> bytes | str:
        """Return fields as they are stored."""
        dumped: bytes | str = self._dump(fields)
        return dumped

    def _decoded(self, payload: dict[str, Any] | str | bytes, job_id: str = "") -> Job[Any]:
        record = dict(payload) if isinstance(payload, dict) else self.load(payload)
        job: Job[Any] = Job.from_record(record)
        if record.get("queue") != self.name:
            msg = f"it belongs to queue {record.get('queue')!r}"
            raise ValueError(msg)
        job.queue = self
        if job_id and self.job_id(job.key) != job_id:
            msg = "it has the key of another job"
            raise ValueError(msg)
        return job

    def serialize(self, job: SaqJob) -> bytes | str:
        """Return the record of a job as it is stored.

        Raises:
            msgspec.ValidationError: A field is of a wrong kind.
            TypeError: It holds what JSON cannot carry.
        """
        record = Record.of(job.__dict__)
        if self._own_dump:
            return self._dump(job.to_dict())
        record.queue = job.queue.name if job.queue else None
        return msgspec.json.encode(record)


def belongs_to(claim: bytes, worker: str) -> bool:
    """Tell whether an entry of the hash of claims is a worker's."""
    return claim.startswith(f"{worker} ".encode())


def _one_line(text: str) -> str:
    return " ".join(utf8(text).split())


def _with_reason(reason: str, record: bytes | str) -> bytes:
    """Return a dead job's record behind the reason of its death."""
    return f"{_one_line(reason)}\n".encode() + (record.encode() if isinstance(record, str) else record)


def _wait_again(job: Job[Any], outcome: Retried | Released) -> None:
    job.status = Status.QUEUED
    job.started = job.completed = 0
    job.progress = 0.0
    job.forget(PROGRESS)
    job.touched = now_ms()
    if isinstance(outcome, Released):
        job.attempts -= 1
    else:
        job.error = outcome.error
