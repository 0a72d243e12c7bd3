"""A worker's hold on jobs: one holder at a time, and no write without it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from redis.exceptions import ResponseError
from tests.support import left_behind, lists, store

from knapsaq import Job, Queue, Settings
from knapsaq.claims import CRASH_LIMIT, Claim
from knapsaq.outcomes import Aborted, Dead, Failed, Outcome, Released, Retried, Snoozed, Succeeded
from knapsaq.registry import AnyTask
from knapsaq.testing import ManualClock

ALL_OUTCOMES: list[Outcome] = [
    Succeeded("done"),
    Failed("broken"),
    Aborted("enough"),
    Retried("once more", 0.0),
    Retried("later", 60.0),
    Released("stopped"),
    Released("stopped", 60.0),
]
WRONG_RECORDS: list[Any] = [
    [],
    "text",
    17,
    None,
    {},
    {"function": "echo"},
    {"function": "echo", "key": "wrong", "queue": "mail"},
    {"function": "echo", "key": "another", "queue": "default"},
    {"function": "echo", "key": "wrong", "queue": "default", "status": "dancing"},
    {"function": "echo", "key": "wrong", "queue": "default", "attempts": "many"},
    {"function": "echo", "key": "wrong", "queue": "default", "ttl": "long"},
    {"function": "echo", "key": "wrong", "queue": "default", "ttl": None},
    {"function": "echo", "key": "wrong", "queue": "default", "retries": [1]},
    {"function": "echo", "key": "wrong", "queue": "default", "meta": 3},
    {"function": "echo", "key": "wrong", "queue": "default", "kwargs": "text"},
    {"function": ["echo"], "key": "wrong", "queue": "default"},
]


async def queued(queue: Queue, *, key: str = "one", **options: Any) -> Job[Any]:
    """Queue a job of the task ``echo``."""
    job = await queue.enqueue("echo", key=key, text="hi", **options)
    assert job is not None
    return job


@pytest.mark.usefixtures("echo")
class TestClaim:
    async def test_a_job_is_claimed_by_one_worker_at_a_time(self, queue: Queue) -> None:
        """Whoever asks second gets nothing."""
        job = await queued(queue)

        [claim] = await queue.claim(5, worker="first")
        assert claim.job.key == job.key
        assert claim.job.kwargs == {"text": "hi"}
        assert await queue.claim(5, worker="second") == []
        assert await queue.claim(5, worker="first") == []

    async def test_the_oldest_jobs_are_claimed_first_and_no_more_than_asked_for(self, queue: Queue) -> None:
        """First in, first out."""
        for key in "abcd":
            await queued(queue, key=key)

        assert [claim.job.key for claim in await queue.claim(3, worker="w")] == ["a", "b", "c"]
        assert await lists(queue) == {"queued": ["d"], "active": ["a", "b", "c"], "incomplete": ["a", "b", "c", "d"]}

    @pytest.mark.parametrize("name", ["claims", "active", "leases", "crashes", "aborts"])
    async def test_a_key_of_a_wrong_kind_costs_no_job(self, queue: Queue, name: str) -> None:
        """Whatever a foreign program has written there, the call ends before it takes a job from the queue."""
        job = await queued(queue)
        key = getattr(queue.keys, name)
        await queue.redis.set(key, "nonsense")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await queue.claim(1, worker="w")
        assert (await lists(queue) if name != "active" else {"queued": [job.key]})["queued"] == [job.key]
        await queue.redis.delete(key)
        assert [claim.job for claim in await queue.claim(1, worker="w")] == [job]

    async def test_a_queue_of_a_wrong_kind_costs_no_job_that_is_due_or_ends(self, settings: Settings) -> None:
        """The call ends before it promotes the one, or takes the other from its worker."""
        clock = ManualClock()
        queue = Queue.from_url(settings.broker_url, settings=settings, clock=clock)
        await queue.enqueue("any", key="runs")
        [claim] = await queue.claim(1, worker="w")
        await queue.accept(Job("any", key="late", scheduled=clock() // 1000 + 5))
        clock.advance(6)
        await queue.redis.set(queue.keys.queued, "nonsense")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await queue.settle(claim, Retried("once more", 0.0), worker="w")
        await queue.redis.delete(queue.keys.queued)
        assert await queue.settle(claim, Retried("once more", 0.0), worker="w")
        assert {claim.job.key for claim in await queue.claim(2, worker="w")} == {"late", "runs"}
        await queue.disconnect()

    async def test_a_job_is_not_claimed_before_it_is_due(self, settings: Settings, queue: Queue) -> None:
        """The wait until the next one is told; when it is over, the job can be claimed."""
        clock = ManualClock()
        timed = Queue(queue.redis, "default", registry=queue.registry, settings=settings, clock=clock)
        await queued(timed, scheduled=clock.now.timestamp() + 60)

        early = await timed.advance("w", [], 5)
        assert early.claims == []
        assert early.wait == pytest.approx(60, abs=0.01)
        clock.advance(59.9)
        assert await timed.claim(5, worker="w") == []
        clock.advance(0.2)
        [claim] = await timed.claim(5, worker="w")
        assert claim.job.key == "one"

    async def test_a_job_whose_record_has_gone_is_forgotten(self, queue: Queue) -> None:
        """Evicted or deleted by hand: its id leaves every list."""
        job = await queued(queue)
        await queue.redis.delete(job.id)

        assert await queue.claim(5, worker="w") == []
        assert await left_behind(queue) == []

    async def test_a_job_that_has_ended_meanwhile_is_not_claimed(self, queue: Queue) -> None:
        """Its id may still be in the queue when somebody finishes it by hand."""
        job = await queued(queue)
        await job.finish(job.status.COMPLETE, result="by hand")

        assert await queue.claim(5, worker="w") == []
        assert (await lists(queue))["active"] == []


@pytest.mark.usefixtures("echo")
class TestSnooze:
    async def test_a_snoozed_job_is_due_when_it_said_with_its_attempts_and_without_its_crashes(
        self, settings: Settings, queue: Queue
    ) -> None:
        """Workers that died over it before are forgotten, as it has run and ended in its own way."""
        clock = ManualClock()
        timed = Queue(queue.redis, "default", registry=queue.registry, settings=settings, clock=clock)
        job = await queued(timed)
        redis: Any = queue.redis
        await redis.hset(timed.keys.crashes, job.id, "1 dead\n" * (CRASH_LIMIT - 1))
        [claim] = await timed.claim(1, worker="w")
        assert claim.crashes == CRASH_LIMIT - 1
        claim.job.attempts += 1

        assert await timed.settle(claim, Snoozed("later", 60.0), worker="w")
        assert await redis.exists(timed.keys.crashes) == 0
        stored = await timed.job(job.key)
        assert stored is not None
        assert (stored.status.value, stored.attempts, stored.error) == ("queued", 0, None)
        assert await timed.claim(1, worker="w") == []
        clock.advance(60.1)
        [again] = await timed.claim(1, worker="w")
        assert again.crashes == 0
        await timed.settle(again, Succeeded("done"), worker="w")
        assert await left_behind(queue) == []

    @pytest.mark.parametrize("outcome", [Snoozed("later", 7200.0), Retried("error", 7200.0), Released("stop", 5.0)])
    async def test_one_that_is_to_be_aborted_does_not_wait_out_its_delay(self, queue: Queue, outcome: Outcome) -> None:
        """Its attempt ended before it heard of that; the next claim comes at once, and with the reason."""
        job = await queued(queue)
        [claim] = await queue.claim(1, worker="w")
        await job.abort("enough")
        assert await queue.settle(claim, outcome, worker="w")

        step = await queue.advance("other", [], 5)
        [again] = step.claims
        assert again.job.key == job.key
        assert list(step.aborts) == [job.id]
        await queue.settle(again, Succeeded("done"), worker="other")
        assert await left_behind(queue) == []


@pytest.mark.usefixtures("echo")
class TestLastChance:
    async def test_jobs_at_their_last_chance_are_claimed_one_at_a_time(self, settings: Settings, queue: Queue) -> None:
        """If the worker dies once more, it is clear over which one; the others wait a while for their turn."""
        clock = ManualClock()
        timed = Queue(queue.redis, "default", registry=queue.registry, settings=settings, clock=clock)
        redis: Any = queue.redis
        for key in ("a", "b", "fresh", "c"):
            await queued(timed, key=key)
        for key in "abc":
            await redis.hset(timed.keys.crashes, timed.job_id(key), "1 dead\n" * (CRASH_LIMIT - 1))

        first, fresh = await timed.claim(5, worker="w")
        assert (first.job.key, fresh.job.key) == ("a", "fresh")
        clock.advance(2)
        assert await timed.claim(5, worker="w") == []
        [elsewhere] = await timed.claim(1, worker="other") or await self._later(timed, clock, "other")
        await timed.settle(first, Succeeded("innocent"), worker="w")
        [last] = await self._later(timed, clock, "w")
        assert {elsewhere.job.key, last.job.key} == {"b", "c"}
        for claim, worker in ((fresh, "w"), (elsewhere, "other"), (last, "w")):
            await timed.settle(claim, Succeeded("innocent"), worker=worker)
        assert await left_behind(queue) == []

    async def _later(self, queue: Queue, clock: ManualClock, worker: str) -> list[Claim]:
        clock.advance(2)
        return await queue.claim(1, worker=worker)

    async def test_a_job_that_is_in_the_queue_twice_with_one_that_is_gone_is_claimed_once(self, queue: Queue) -> None:
        """Also by a call that looks a second time, in the place of what nobody can run."""
        job = await queued(queue)
        redis: Any = queue.redis
        await redis.rpush(queue.keys.queued, "saq:job:default:gone", job.id)
        assert [claim.job.key for claim in await queue.claim(2, worker="w")] == ["one"]
        assert await lists(queue) == {"queued": [], "active": ["one"], "incomplete": ["one"]}

    async def test_a_job_that_is_in_the_queue_twice_is_claimed_once(self, queue: Queue) -> None:
        """A worker of SAQ that retries a scheduled job puts it there a second time."""
        job = await queued(queue)
        redis: Any = queue.redis
        await redis.rpush(queue.keys.queued, job.id)
        [claim] = await queue.claim(5, worker="w")
        await queue.settle(claim, Succeeded("done"), worker="w")
        assert await left_behind(queue) == []


@pytest.mark.usefixtures("echo")
class TestSettle:
    @pytest.mark.parametrize("outcome", ALL_OUTCOMES, ids=str)
    async def test_a_settled_claim_is_gone(self, queue: Queue, outcome: Outcome) -> None:
        """Whatever the outcome, the job runs no longer, and nobody can settle it a second time."""
        await queued(queue)
        [claim] = await queue.claim(1, worker="w")

        assert await queue.settle(claim, outcome, worker="w")
        assert (await lists(queue))["active"] == []
        assert not await queue.redis.exists(queue.keys.claims)
        before = await queue.job("one")
        assert not await queue.settle(claim, Succeeded("again"), worker="w")
        after = await queue.job("one")
        assert before is not None
        assert after is not None
        assert before.to_dict() == after.to_dict()

    async def test_an_outcome_becomes_the_record(self, queue: Queue) -> None:
        """Status, result or reason are what a caller sees."""
        seen = []
        for number, outcome in enumerate(ALL_OUTCOMES):
            await queued(queue, key=str(number))
            [claim] = await queue.claim(1, worker="w")
            await queue.settle(claim, outcome, worker="w")
            job = await queue.job(str(number))
            assert job is not None
            seen.append((job.status.value, job.result, job.error))
            if not job.ended:
                await queue.abort(job, "next")
        assert seen == [
            ("complete", "done", None),
            ("failed", None, "broken"),
            ("aborted", None, "enough"),
            ("queued", None, "once more"),
            ("queued", None, "later"),
            ("queued", None, None),
            ("queued", None, None),
        ]

    async def test_a_lost_claim_cannot_settle(self, queue: Queue) -> None:
        """The job was handed to another worker: what the first one found changes nothing, not even a stamp."""
        await queued(queue)
        [lost] = await queue.claim(1, worker="first")
        await queue.settle(lost, Released("taken away"), worker="first")
        [claim] = await queue.claim(1, worker="second")

        stamp = queue.stamp(lost)
        late = queue.settlement(lost, Succeeded("too late"))
        assert (await queue.advance("first", [stamp, late], 0)).settled == [False, False]
        assert (await queue.advance("second", [late], 0)).settled == [False]
        assert await queue.settle(claim, Succeeded("in time"), worker="second")
        job = await queue.job("one")
        assert job is not None
        assert job.result == "in time"

    async def test_a_claim_on_a_job_that_was_finished_by_hand_ends_with_its_settlement(self, queue: Queue) -> None:
        """The outcome is refused, and no claim is left that would look like a running job."""
        await queued(queue)
        [claim] = await queue.claim(1, worker="w")
        job = await queue.job("one")
        assert job is not None
        await job.finish(job.status.COMPLETE, result="by hand")

        assert not await queue.settle(claim, Succeeded("too late"), worker="w")
        job = await queue.job("one")
        assert job is not None
        assert job.result == "by hand"
        assert await left_behind(queue) == []

    async def test_a_released_job_is_the_next_to_run_and_keeps_its_attempts(self, queue: Queue) -> None:
        """A stopping worker costs a job neither its place nor an attempt."""
        await queued(queue, key="a")
        await queued(queue, key="b")
        [claim] = await queue.claim(1, worker="w")
        claim.job.attempts += 1
        await queue.settle(claim, Released("stopped"), worker="w")

        [again] = await queue.claim(1, worker="w")
        assert (again.job.key, again.job.attempts) == ("a", 0)

    async def test_settlements_and_claims_share_a_call(self, queue: Queue) -> None:
        """One step ends what has ended and takes what may run, also the job that it has just put back."""
        for key in "abc":
            await queued(queue, key=key)
        first, second = await queue.claim(2, worker="w")
        settlements = [queue.settlement(first, Succeeded(1)), queue.settlement(second, Retried("again", 0.0))]

        step = await queue.advance("w", settlements, 2)
        assert step.settled == [True, True]
        assert [claim.job.key for claim in step.claims] == ["c", "b"]
        assert step.wait is None


@pytest.mark.usefixtures("echo")
class TestResults:
    async def test_a_result_that_json_cannot_carry_gives_way_to_the_reason(self, queue: Queue) -> None:
        """The job is complete, as its work is done, and the other jobs of the call are settled with it."""
        await queued(queue, key="a")
        await queued(queue, key="b")
        first, second = await queue.claim(2, worker="w")
        settlements = [queue.settlement(first, Succeeded(object())), queue.settlement(second, Succeeded("fine"))]

        assert (await queue.advance("w", settlements, 0)).settled == [True, True]
        a, b = await queue.jobs(["a", "b"])
        assert a is not None
        assert b is not None
        assert (a.status.value, a.result, b.result) == ("complete", None, "fine")
        assert "cannot be stored" in (a.error or "")

    async def test_a_result_over_the_limit_gives_way_to_the_reason(self, queue: Queue, settings: Settings) -> None:
        """Redis is not filled by one task."""
        await queued(queue)
        [claim] = await queue.claim(1, worker="w")
        await queue.settle(claim, Succeeded("x" * settings.max_payload_bytes), worker="w")

        job = await queue.job("one")
        assert job is not None
        assert (job.status.value, job.result) == ("complete", None)
        assert "KNAPSAQ_MAX_PAYLOAD_BYTES" in (job.error or "")

    @pytest.mark.parametrize(("ttl", "kept"), [(60, True), (59.9, True), (0, True), (-1, False), (10**17, True)])
    async def test_the_ttl_says_how_long_a_result_is_kept(self, queue: Queue, ttl: float, kept: bool) -> None:
        """Seconds, 0 for ever, -1 not at all; a fraction or a number that Redis refuses does not stop the worker."""
        job = await queued(queue, ttl=ttl)
        [claim] = await queue.claim(1, worker="w")
        assert await queue.settle(claim, Succeeded("done"), worker="w")

        assert bool(await queue.redis.exists(job.id)) is kept
        if kept:
            assert (await queue.redis.ttl(job.id) == -1) is (ttl == 0)


class TestUnreadableRecords:
    @pytest.mark.parametrize("record", [*map(json.dumps, WRONG_RECORDS), "{", "\x00\xff"])
    async def test_a_record_that_cannot_be_read_is_ended_and_harms_no_other(
        self, queue: Queue, echo: AnyTask, record: str
    ) -> None:
        """It is claimed with the others, told apart, and is a dead letter with its bytes; its neighbours run."""
        await queued(queue, key="before")
        await store(queue, "wrong", record.encode("latin-1"))
        await queued(queue, key="after")

        step = await queue.advance("w", [], 5)
        assert [claim.job.key for claim in step.claims if claim.job.key != "wrong"] == ["before", "after"]
        for claim in step.claims:
            claim.job.attempts += 1
        settlements = [queue.settlement(claim, Succeeded("fine")) for claim in step.claims] + step.unreadable
        assert all((await queue.advance("w", settlements, 0)).settled)
        assert await queue.redis.ttl(queue.job_id("wrong")) > 0
        for letter in await queue.dead():
            assert (letter.key, letter.payload) == ("wrong", record.encode("latin-1"))
            assert "cannot be read" in letter.reason
        assert await queue.discard("wrong") == len(step.unreadable)
        assert await left_behind(queue) == []

    async def test_who_only_claims_buries_them_too(self, queue: Queue, echo: AnyTask) -> None:
        """A worker that is stepped by hand leaves none behind among the active jobs."""
        await store(queue, "wrong", b"{")
        assert await queue.claim(1, worker="w") == []
        assert await queue.discard("wrong") == 1
        assert await left_behind(queue) == []

    async def test_random_bytes_never_stop_a_claim(self, queue: Queue, echo: AnyTask) -> None:
        """A hundred records of noise, and true ones with one byte changed; the last job comes through."""
        noise = random.Random(20261120)  # noqa: S311 - noise that is the same each time
        for number in range(100):
            fields = {"function": "echo", "key": f"noise-{number}", "queue": "default", "attempts": 1, "ttl": 600}
            whole = json.dumps(fields).encode()
            if number % 2:
                record = noise.randbytes(noise.randrange(1, 200))
            else:
                place = noise.randrange(len(whole))
                record = whole[:place] + noise.randbytes(1) + whole[place + 1 :]
            await store(queue, f"noise-{number}", record)
        await queued(queue, key="last")

        step = await queue.advance("w", [], 200)
        settlements = [queue.settlement(claim, Succeeded("fine")) for claim in step.claims] + step.unreadable
        assert all((await queue.advance("w", settlements, 0)).settled)
        last = await queue.job("last")
        assert last is not None
        assert last.result == "fine"
        dead = await queue.dead()
        assert await queue.count("dead") == len(dead) == len(step.unreadable) > 50
        assert await queue.discard(*(letter.key for letter in dead)) == len(dead)
        assert await left_behind(queue) == []

    async def test_a_field_of_a_newer_saq_is_no_obstacle(self, queue: Queue, echo: AnyTask) -> None:
        """In a rolling deployment records may hold fields that are not known here."""
        record = {"function": "echo", "key": "one", "queue": "default", "kwargs": {"text": "hi"}, "invented": 1}
        await store(queue, "one", json.dumps(record).encode())
        [claim] = await queue.claim(1, worker="w")
        assert claim.job.kwargs == {"text": "hi"}

    async def test_dead_letters_are_read_and_revived_in_the_queue_s_own_format(self, queue: Queue) -> None:
        """A program of SAQ may bring functions of its own that write and read records."""

        def dump(fields: Any) -> bytes:
            return b"#" + json.dumps(fields).encode()

        own = Queue(queue.redis, "default", dump=dump, load=lambda raw: json.loads(raw[1:]), settings=queue.settings)
        job = await own.enqueue("echo", key="one", text="hi")
        [claim] = await own.claim(1, worker="w")
        claim.job.attempts = 2
        await own.settle(claim, Dead("nobody can run it"), worker="w")

        [letter] = await own.dead()
        assert (letter.function, letter.reason) == ("echo", "nobody can run it")
        assert await own.replay("one") == 1
        [again] = await own.claim(1, worker="w")
        assert (again.job, again.job.attempts, again.job.error) == (job, 0, None)
