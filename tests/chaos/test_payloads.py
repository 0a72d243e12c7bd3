"""What nobody should have put there: random bytes everywhere, unknown tasks, arguments and results that cannot be."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from saq.job import Status
from tests.chaos.site import (
    CONCURRENCY,
    PATIENCE,
    ROOT,
    Site,
    audit,
    nothing_open,
    pour,
    producing,
    sized,
    staffed,
    watched,
)
from tests.support import eventually

from knapsaq import Job, JobFailedError, PayloadTooLargeError, Queue, ResultError
from knapsaq.dead_letters import DeadJob

LOOPS = ROOT / "tests/chaos/loops_worker.py"
MEGABYTE = 1_048_576
ROUNDS = sized(20, 500)
CASES_A_ROUND = 20
PROMPT_SECONDS = sized(10.0, 1.0)
"""How long good jobs may take among all the damage."""
MEMORY_MB = 60

SOUND = {"function": "cut", "kwargs": {"length": 3}, "queue": "default", "status": "queued", "ttl": 60}
WRONG: tuple[dict[str, Any], ...] = (
    {"function": None}, {"function": 5}, {"key": None}, {"key": "another"}, {"queue": None}, {"queue": "elsewhere"},
    {"kwargs": [3]}, {"kwargs": "x"},
)  # fmt: skip
SHAPES = (b"", b"null", b"3", b'"text"', b"[]", b"{}", b"[" * 5000, b'{"a":' * 5000, b"NaN", b"\xef\xbb\xbf{}")
FIELDS = (
    "kwargs", "timeout", "heartbeat", "retries", "ttl", "retry_delay", "retry_backoff", "scheduled", "progress",
    "attempts", "completed", "queued", "started", "touched", "result", "error", "status", "priority", "group_key",
    "meta", "worker_id", "unheard_of",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, "", "x", "\x00", "\U0001f600", "x" * 100_000, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 0.5, 5e-324,
    -1e308, 1e308, [], [[]], {}, {"": None}, {"knapsaq": None}, {"knapsaq": {"headers": 3, "retries": []}},
)  # fmt: skip
SCORES = (0.0, -1.0, 1e-300, 1e18, 1e300, float("inf"), float("-inf"))
PREFIXES = (b"", b"saq:", b"saq:job:mail:", b"saq:job:default:")
PLACES = {
    "back": [("rpush", "queued")],
    "front": [("lpush", "queued")],
    "twice": [("rpush", "queued"), ("rpush", "queued")],
    "active": [("rpush", "active")],
    "delayed": [],
}
# Once a job has been claimed, what these hold about it is somebody's truth.
SET_WHILE_UNCLAIMED = """
if not redis.call('HGET', KEYS[1], ARGV[1]) then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
"""


@asynccontextmanager
async def waiting(site: Site, **settings: Any) -> AsyncIterator[Queue]:
    """Connect as a producer who waits for results."""
    async with producing(site, **settings) as queue:
        try:
            yield queue
        finally:
            await queue.disconnect()


class Damage:
    """Random bytes in every place of a queue in which bytes can be, out of a seed.

    Attributes:
        broken: Records that nobody can read, by the key of the job.
        odd: The keys of jobs of whose record a worker may make something.
        undo: The commands that take away what is no job.
    """

    def __init__(self, queue: Queue, seed: int) -> None:
        self.queue = queue
        self.random = Random(seed)  # noqa: S311 - a run is to be repeated
        self.broken: dict[str, bytes] = {}
        self.odd: set[str] = set()
        self.undo: list[tuple[Any, ...]] = []

    async def do(self, cases: int, bystanders: list[Job[Any]]) -> None:
        """Do some damage, also right beside good jobs, which have to be done all the same."""
        kinds = self.random.choices((self._record, self._member, self._stranger, self._beside), (5, 2, 1, 2), k=cases)
        async with self.queue.redis.pipeline(transaction=False) as pipe:
            for kind in kinds:
                kind(pipe, self.random.choice(bystanders))
            await pipe.execute()

    def _bytes(self) -> bytes:
        # Too long to be the key of a good job; and a line break would be a worker's death in the books of a job.
        return self.random.randbytes(self.random.randint(8, 40)).replace(b"\n", b"\r")

    def _record(self, pipe: Any, _: Job[Any]) -> None:
        """Put a record that cannot be right where a job's would be."""
        key, keys = f"damaged-{len(self.broken) + len(self.odd)}", self.queue.keys
        sound = {**SOUND, "key": key}
        places = set(PLACES)
        if self.random.random() < 0.5:
            record = self.broken[key] = self._unreadable(sound)
        else:
            record = self._strange(sound)
            self.odd.add(key)
            places.remove("active")  # it would be a job of a plain SAQ worker, which has all the time of its timeout
        place = self.random.choice(sorted(places))
        job_id = self.queue.job_id(key)
        pipe.set(job_id, record)
        pipe.zadd(keys.incomplete, {job_id: time.time() + 0.3 if place == "delayed" else 0})
        for push, name in PLACES[place]:
            getattr(pipe, push)(getattr(keys, name), job_id)

    def _unreadable(self, sound: dict[str, Any]) -> bytes:
        encoded = json.dumps(sound).encode()
        return self.random.choice(
            (
                b"\xff" + self._bytes(),
                encoded[: self.random.randrange(len(encoded))],
                self.random.choice(SHAPES),
                json.dumps({**sound, **self.random.choice(WRONG)}).encode(),
            )
        )

    def _strange(self, sound: dict[str, Any]) -> bytes:
        times = range(self.random.randint(1, 3))
        if self.random.random() < 0.7:
            changed = {self.random.choice(FIELDS): self.random.choice(VALUES) for _ in times}
            return json.dumps({**sound, **changed}).encode()
        flipped = bytearray(json.dumps(sound).encode())
        for _ in times:
            flipped[self.random.randrange(len(flipped))] ^= 1 << self.random.randrange(8)
        return bytes(flipped)

    def _member(self, pipe: Any, _: Job[Any]) -> None:
        """Put random bytes into one of the queue's own lists, sets and hashes."""
        keys, member = self.queue.keys, self.random.choice(PREFIXES) + self._bytes()
        kind = self.random.choice(("list", "set", "hash"))
        if kind == "list":
            key = self.random.choice((keys.queued, keys.active))
            pipe.rpush(key, member)
            self.undo.append(("LREM", key, 0, member))
        elif kind == "set":
            key = self.random.choice((keys.incomplete, keys.leases, keys.dead))
            pipe.zadd(key, {member: self.random.choice(SCORES)})
            self.undo.append(("ZREM", key, member))
        else:
            key = self.random.choice((keys.claims, keys.crashes, keys.aborts, keys.dead_records, keys.dead_reasons))
            pipe.hset(key, member, self._bytes())
            self.undo.append(("HDEL", key, member))

    def _stranger(self, pipe: Any, _: Job[Any]) -> None:
        """Queue an id of random bytes whose record is random bytes too, or no record at all."""
        keys, job_id = self.queue.keys, self.random.choice(PREFIXES) + self._bytes()
        if self.random.random() < 0.5:
            pipe.set(job_id, self._bytes())
        else:
            pipe.hset(job_id, "field", self._bytes())
        pipe.zadd(keys.incomplete, {job_id: 0})
        pipe.rpush(keys.queued, job_id)
        self.undo += [("DEL", job_id), ("ZREM", keys.incomplete, job_id)]

    def _beside(self, pipe: Any, one: Job[Any]) -> None:
        """Put random bytes where they concern a good job, or all workers."""
        keys, stats = self.queue.keys, self.queue.namespace("stats")
        kind = self.random.choice(("claims", "crashes", "push", "wake", "lock", "info"))
        if kind in ("claims", "crashes"):
            pipe.eval(SET_WHILE_UNCLAIMED, 2, keys.claims, getattr(keys, kind), one.id, self._bytes())
            self.undo.append(("HDEL", getattr(keys, kind), one.id))
        elif kind in ("push", "wake"):
            pipe.publish(one.id if kind == "push" else keys.wake, self._bytes())
        elif kind == "lock":
            pipe.set(self.random.choice((keys.saq_sweep_lock, keys.saq_schedule_lock)), self._bytes())
        else:
            name = self.queue.namespace(f"worker_info:{self.random.random()}")
            pipe.set(name, self._bytes())
            pipe.zadd(stats, {name: time.time() * 1000 + 600_000})
            self.undo += [("DEL", name), ("ZREM", stats, name)]


class TestRandomBytes:
    async def test_random_bytes_everywhere_harm_no_good_job(self, site: Site) -> None:
        """Workers live, rescue and fire schedules; what cannot be read is a dead letter, to be seen and thrown away."""
        async with waiting(site) as queue:
            options = {"program": LOOPS, "unknown_task_limit": 0, "chaos_cron": 1}
            staying, victim = site.hire(**options), site.hire(**options)
            await staffed(queue, 2)
            damage, good = Damage(queue, 1), set[str]()

            async def until(condition: Callable[[], Any]) -> None:
                def look() -> Any:
                    assert staying.poll() is None, "the worker has ended"
                    return condition()

                await eventually(look, within=PATIENCE)

            async with asyncio.TaskGroup() as waits:
                for turn in range(ROUNDS):
                    numbers = range(turn * 8, turn * 8 + 8)
                    good |= await pour(queue, numbers[:4], seconds=0.02)
                    delayed = [await self._delayed(queue, number) for number in numbers[4:]]
                    good.update(job.key for job in delayed)
                    for job in delayed:
                        waits.create_task(job.wait())
                    await damage.do(CASES_A_ROUND, delayed)
                    if turn == ROUNDS // 2:
                        victim.kill()
                await until(lambda: good <= site.entries().keys())
            await until(lambda: self._closed(queue, damage))
            began = time.monotonic()
            last = await pour(queue, range(1_000_000, 1_000_020), seconds=0)
            await until(lambda: last <= site.entries().keys())
            assert time.monotonic() - began < PROMPT_SECONDS
            fired = slots(site)
            await until(lambda: slots(site) > fired + 1)
            await queue.info(jobs=True, limit=10_000)
            assert [job async for job in queue.iter_jobs()]
            await self._buried(queue, damage)
            for command in damage.undo:
                await queue.redis.execute_command(*command)
            # The slots that wait already are another worker's.
            site.hire(program=LOOPS)
            await staffed(queue, 2)
            staying.terminate()
            await watched(queue, lambda: nothing_open(queue))
            await self._endless(queue)
            await audit(site, queue, good | last, doubles=CONCURRENCY)

    async def _delayed(self, queue: Queue, number: int) -> Job[Any]:
        job = Job("note", key=str(number), kwargs={"number": number}, scheduled=time.time() + 0.2)  # type: ignore[arg-type]
        assert await queue.enqueue(job)
        return job

    async def _closed(self, queue: Queue, damage: Damage) -> bool:
        """Whether no damaged record waits or runs any more."""
        redis: Any = queue.redis
        async with redis.pipeline(transaction=True) as pipe:
            pipe.lrange(queue.keys.queued, 0, -1)
            pipe.lrange(queue.keys.active, 0, -1)
            pipe.zrange(queue.keys.incomplete, 0, -1)
            found = {job_id for ids in await pipe.execute() for job_id in ids}
        return found.isdisjoint(queue.job_id(key).encode() for key in (*damage.broken, *damage.odd))

    async def _buried(self, queue: Queue, damage: Damage) -> None:
        """Fail unless each unreadable record is a dead letter, byte for byte, and all can be thrown away."""
        dead: list[DeadJob] = []
        while page := await queue.dead(offset=len(dead)):
            dead += page
        assert await queue.count("dead") == len(dead)
        found = {letter.key: letter.payload for letter in dead if "cannot be read" in letter.reason}
        unburied = {key: record for key, record in damage.broken.items() if found.get(key) != record}
        assert not unburied, f"{len(unburied)} of {len(damage.broken)}: {list(unburied)[:20]}"
        assert await queue.discard(*(letter.key for letter in dead)) == len(dead)
        assert await queue.count("dead") == 0

    async def _endless(self, queue: Queue) -> None:
        """Fail on a record that is kept for ever, unless it says so itself; those go now."""
        async for key in queue.redis.scan_iter(match="saq:job:*"):
            if await queue.redis.ttl(key) == -1:
                record = json.loads(await queue.redis.getdel(key))
                assert record.get("ttl") == 0, (key, record)


def slots(site: Site) -> int:
    """Return how many scheduled jobs have run."""
    return len([line for line in site.lines() if line.startswith("slot:")])


class TestUnknownTasks:
    async def test_a_job_that_comes_before_its_code_waits_for_it(self, site: Site) -> None:
        """A rolling deploy: old workers hold it back, spend no attempt and delay nobody; the new worker runs it."""
        async with waiting(site) as queue:
            old = site.hire(program=LOOPS)
            early = {str(number) for number in range(5)}
            for key in early:
                assert await queue.enqueue("newcomer", key=key, number=int(key))
            others = await pour(queue, range(5, 55), seconds=0)
            await eventually(lambda: others <= site.entries().keys(), within=PATIENCE)
            await eventually(lambda: self._held(queue, len(early)), within=PATIENCE)
            assert {(job.status, job.attempts) for job in await queue.jobs(early) if job} == {(Status.QUEUED, 0)}
            assert await queue.count("dead") == 0
            site.hire(program=LOOPS, chaos_new=1)
            await staffed(queue, 2)
            old.terminate()
            await audit(site, queue, early | others, doubles=0)
            assert {job.attempts for job in await queue.jobs(early) if job} == {1}

    async def _held(self, queue: Queue, jobs: int) -> bool:
        redis: Any = queue.redis
        return bool(await redis.zcount(queue.keys.incomplete, "(0", "+inf") == jobs)

    async def test_a_task_that_stays_unknown_is_a_dead_letter_until_somebody_knows_it(self, site: Site) -> None:
        """After the limit, with the reason; a replay by a worker that knows the task runs it from the start."""
        async with waiting(site) as queue:
            old = site.hire(program=LOOPS, unknown_task_limit=1)
            job = await queue.enqueue("newcomer", key="7", number=7)
            assert job is not None
            with pytest.raises(JobFailedError, match="newcomer"):
                await job.wait(PATIENCE)
            [dead] = await queue.dead()
            assert (dead.key, dead.function) == ("7", "newcomer")
            assert "newcomer" in dead.reason
            assert await nothing_open(queue)
            old.terminate()
            site.hire(program=LOOPS, chaos_new=1)
            assert await queue.replay("7") == 1
            await audit(site, queue, {"7"}, doubles=0)
            assert await queue.count("dead") == 0


class TestResults:
    async def test_a_result_that_cannot_be_stored_does_not_run_its_job_again(self, site: Site) -> None:
        """Once executed, complete with the reason; who waits for the result gets it as an error."""
        async with waiting(site) as queue:
            site.hire()
            jobs = [
                await queue.enqueue("unstorable", key="1", number=1, retries=4),
                await queue.enqueue("large", key="2", number=2, size=2 * MEGABYTE, retries=4),
            ]
            for job, reason in zip(jobs, ("object", "limit"), strict=True):
                assert job is not None
                with pytest.raises(ResultError, match=reason):
                    await job.wait(PATIENCE)
                assert (job.status, job.result, job.attempts) == (Status.COMPLETE, None, 1)
            await audit(site, queue, set(), doubles=0)
            assert (site.entries()["1"], site.entries()["2"]) == (1, 1)


class TestLargeArguments:
    async def test_what_is_too_large_is_refused_where_it_is_enqueued(self, site: Site) -> None:
        """With size and limit, and nothing reaches the server; a call with one such argument queues none."""
        async with waiting(site) as queue:
            text = "x" * (5 * MEGABYTE)
            with pytest.raises(PayloadTooLargeError) as refused:
                await queue.enqueue("swallow", number=1, text=text)
            assert refused.value.limit == MEGABYTE
            assert 5 * MEGABYTE < refused.value.size < 5 * MEGABYTE + 1000
            with pytest.raises(PayloadTooLargeError):
                await queue.enqueue_many("swallow", [{"number": 1, "text": "x"}, {"number": 2, "text": text}])
            assert await queue.redis.dbsize() == 0

    async def test_large_arguments_do_not_stay_in_the_workers_memory(self, site: Site) -> None:
        """With a raised limit: of ten jobs of 5 MB, one after another, none leaves much behind for the next."""
        raised = {"max_payload_bytes": 8 * MEGABYTE}
        async with waiting(site, **raised) as queue:
            site.hire(program=LOOPS, concurrency=1, **raised)
            await queue.enqueue("swallow", key="0", number=0, text="x")
            await eventually(site.entries, within=PATIENCE)
            for number in range(1, 11):
                await queue.enqueue("swallow", key=str(number), number=number, text="x" * (5 * MEGABYTE))
            await watched(queue, lambda: nothing_open(queue))
            before, *peaks = [int(line.split(":")[1]) for line in site.lines() if line.startswith("peak:")]
            site.figures.append(f"10 x 5 MB: at most {max(peaks) - before} MB more")
            assert max(peaks) - before < MEMORY_MB
            await audit(site, queue, {str(number) for number in range(11)}, doubles=0)


class TestTwoVersions:
    async def test_jobs_of_an_older_version_run_with_defaults_or_fail_with_the_field(self, site: Site) -> None:
        """A missing argument takes its default; one that is missing, new or of another type fails the job, once."""
        async with waiting(site) as queue:
            site.hire(program=LOOPS)
            assert await queue.enqueue("greet", key="1", number=1, retries=4)
            failing = {
                "address": await queue.enqueue("ship", order=1, retries=4),
                "length": await queue.enqueue("cut", length="3 m", retries=4),
                "colour": await queue.enqueue("cut", length=3, colour="red", retries=4),
            }
            for field, job in failing.items():
                assert job is not None
                with pytest.raises(JobFailedError, match=field):
                    await job.wait(PATIENCE)
                assert job.attempts == 1
                assert "3 m" not in (job.error or "")
            await audit(site, queue, {"1"}, doubles=0)
            assert [line for line in site.lines() if line.startswith("began:")] == ["began:greet:hello:0"]
