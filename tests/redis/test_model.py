"""Every way a job can go, at random, against a model; after each step Redis has to be as the model says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.chaos.site import LONG_FORM
from tests.redis.model import Hold, Letter, Model, Move, Record, Snapshot, conserved, kept, owned

from knapsaq import Job, Registry, Settings, connect
from knapsaq.claims import CRASH_LIMIT, Abort, Claim
from knapsaq.dead_letters import DeadJob
from knapsaq.liveness import LeaseKeeper
from knapsaq.outcomes import Aborted, Dead, Failed, Outcome, Released, Retried, Snoozed, Succeeded
from knapsaq.sweeping import rescue
from knapsaq.testing import ManualClock
from knapsaq.upkeep import Rescuer

T = TypeVar("T")

settings.register_profile(
    "short",
    max_examples=120,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.register_profile("long", settings.get_profile("short"), max_examples=1000, derandomize=False)

KEYS = ("a", "b", "c", "d", "e", "f")
WORKERS = ("w1", "w2", "w3")
STALE_KEPT = 3
START = datetime(2031, 5, 17, 12, tzinfo=UTC)

OUTCOMES: dict[str, Callable[[str], Outcome | None]] = {
    "stamp": lambda _text: None,
    "succeeded": Succeeded,
    "failed": Failed,
    "retried": lambda text: Retried(text, 0.0),
    "retried later": lambda text: Retried(text, 1.5),
    "released": Released,
    "released later": lambda text: Released(text, 30.0),
    "snoozed": lambda text: Snoozed(text, 20.0),
    "aborted": Aborted,
    "dead": Dead,
}
FINAL = [name for name in OUTCOMES if name != "stamp"]
SAID = ["stamp", "stamp", *OUTCOMES]

keys = st.sampled_from(KEYS)
several_keys = st.lists(keys, min_size=1, max_size=5)
workers = st.sampled_from(WORKERS)
ttls = st.sampled_from([600, 600, 600, -1])


def one_of(pick: Callable[[QueueMachine], Sequence[T]]) -> st.SearchStrategy[T]:
    """Draw from what the machine has at this moment; a precondition says that there is something."""
    return st.runner().flatmap(lambda machine: st.sampled_from(pick(machine)))


class QueueMachine(RuleBasedStateMachine):
    """Drives one queue and its model; each example begins on an empty server."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = ManualClock(START)
        registry = Registry()

        @registry.task(retries=5, retry_delay=0)
        async def echo(text: str) -> str:
            return text

        self.echo = echo
        chosen = Settings(broker_url=url, queues=("default",), _env_file=None)
        self.connection = connect(chosen, registry=registry, clock=self.clock)
        self.queue = self.run(self.connection.__aenter__()).queue()
        self.redis: Any = self.queue.redis
        self.run(self.redis.flushall())
        self.keepers = {worker: LeaseKeeper(self.queue, worker, lambda: None) for worker in WORKERS}
        self.model = Model(lease_ms=int(chosen.lease * 1000))
        self.claims: dict[str, Claim] = {}
        self.stale: list[Claim] = []
        self.tokens: set[str] = set()
        self.numbers = itertools.count(1)

    def teardown(self) -> None:
        """Close everything."""
        for keeper in self.keepers.values():
            keeper.stop()
        self.keepers.clear()
        self.run(self.connection.__aexit__(None, None, None))
        self.runner.close()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the machine's loop."""
        return self.runner.run(call)

    def text(self) -> str:
        """A text that no other step has."""
        return f"text {next(self.numbers)}"

    def held_by(self, worker: str) -> list[Claim]:
        """What a worker runs, in an order that does not change from run to run."""
        return [claim for key, claim in sorted(self.claims.items()) if self.model.holds(key, worker)]

    @initialize(wanted=several_keys)
    def begin(self, wanted: list[str]) -> None:
        """There is always something to do."""
        self.enqueue_many(wanted)

    @rule(key=keys, ttl=ttls, after=st.sampled_from([None, None, -5.0, 0.5, 30.0]), once=st.booleans())
    def enqueue(self, key: str, ttl: int, after: float | None, once: bool) -> None:
        """At once or for a moment, which may have passed; and as a schedule does, never again in a day."""
        due_ms = 0 if after is None else self.clock() + int(after * 1000)
        job: Job[Any] = Job("echo", key=key, kwargs={"text": "hi"}, ttl=ttl, scheduled=due_ms / 1000)
        found = self.run(self.queue.accept(job, once=True)) if once else bool(self.run(self.queue.enqueue(job)))
        assert found is self.model.enqueue(key, ttl=ttl, due_ms=due_ms, once=once)

    @rule(key=keys, delay=st.sampled_from([0, 0.05, 2, 3600]))
    def enqueue_task(self, key: str, delay: float) -> None:
        """Through the task, which gives the job that has the key already."""
        self.model.enqueue(key, ttl=600, due_ms=self.clock() + int(delay * 1000) if delay else 0)
        job = self.run(self.echo.using(key=key, delay=delay, ttl=600).enqueue(text="hi"))
        record = self.model.records[key]
        assert (job.key, job.status, job.attempts) == (key, record.status, record.attempts)
        assert (job.result, job.error) == (record.result, record.error)

    @rule(wanted=several_keys)
    def enqueue_many(self, wanted: list[str]) -> None:
        """In one call, also with a key twice."""
        for key in wanted:
            self.model.enqueue(key, ttl=600)
        calls = [{"key": key, "ttl": 600, "text": "hi"} for key in wanted]
        jobs = self.run(self.queue.enqueue_many("echo", calls))
        expected = [(key, self.model.records[key].status) for key in wanted]
        assert [(job.key, job.status) for job in jobs] == expected

    @rule(worker=workers, want=st.sampled_from([1, 1, 2, 4]))
    def claim(self, worker: str, want: int) -> None:
        """Take jobs."""
        if not want:
            return
        claims = self.run(self.queue.claim(want, worker=worker))
        _, claimed = self.model.advance(self.clock(), worker, [], want)
        self.took(worker, claims, claimed)

    @rule(worker=workers, outcome=st.sampled_from(FINAL))
    def settle(self, worker: str, outcome: str) -> None:
        """End a job that runs; if the worker has none, it takes one."""
        if not self.held_by(worker):
            self.claim(worker, 1)
        if not (own := self.held_by(worker)):
            return
        key = own[0].job.key
        move = self.move(self.claims[key], outcome)
        assert move.outcome is not None
        assert self.run(self.queue.settle(move.claim, move.outcome, worker=worker))
        assert self.model.advance(self.clock(), worker, [move], 0) == ([True], [])
        self.lost(key)

    @precondition(lambda self: self.stale)
    @rule(claim=one_of(lambda self: self.stale), outcome=st.sampled_from(FINAL), worker=workers)
    def settle_too_late(self, claim: Claim, outcome: str, worker: str) -> None:
        """A claim that was lost is refused, whoever comes with it."""
        move = self.move(claim, outcome)
        assert move.outcome is not None
        assert not self.run(self.queue.settle(claim, move.outcome, worker=worker))
        self.model.advance(self.clock(), worker, [], 0)

    @rule(worker=workers, want=st.integers(0, 4), data=st.data())
    def take_a_turn(self, worker: str, want: int, data: st.DataObject) -> None:
        """One turn of a worker's loop: stamps, outcomes and stale outcomes in any order, and new jobs."""
        if not self.held_by(worker):
            self.claim(worker, 2)
        own = self.held_by(worker)
        moves: list[Move] = []
        if own or self.stale:
            drawn = st.tuples(st.sampled_from([*own * 3, *self.stale]), st.sampled_from(SAID))
            moves = [self.move(*one) for one in data.draw(st.lists(drawn, max_size=5))]
        settlements = [
            self.queue.settlement(move.claim, move.outcome) if move.outcome else self.queue.stamp(move.claim)
            for move in moves
        ]
        step = self.run(self.queue.advance(worker, [one for one in settlements if one], want))
        settled, claimed = self.model.advance(self.clock(), worker, moves, want)
        assert [bool(one) for one in step.settled] == settled
        for key in [key for key in self.claims if key not in self.model.held]:
            self.lost(key)
        self.took(worker, step.claims, claimed)
        assert step.unreadable == []
        wanted = self.model.aborts_of(worker).items()
        assert step.aborts == {self.queue.job_id(key): Abort(why, terminate=True) for key, why in wanted}
        due_ms = self.model.next_due_ms()
        assert step.wait == (pytest.approx((due_ms - self.clock()) / 1000, abs=0.001) if due_ms else None)

    @precondition(lambda self: self.model.records)
    @rule(key=one_of(lambda self: [*sorted(self.claims) * 2, *sorted(self.model.records)]))
    def abort(self, key: str) -> None:
        """Wherever it is, oftener where it runs."""
        job, reason = self.stored(key), self.text()
        self.run(self.queue.abort(job, reason))
        assert job.status == self.model.abort(key, reason)

    @precondition(lambda self: self.model.records)
    @rule(key=one_of(lambda self: sorted(self.model.records)))
    def retry(self, key: str) -> None:
        """Only what has ended runs again."""
        self.run(self.stored(key).retry())
        self.model.retry(key)

    @precondition(lambda self: self.model.letters)
    @rule(key=one_of(lambda self: sorted(self.model.letters)), more=several_keys, again=st.booleans())
    def answer_letters(self, key: str, more: list[str], again: bool) -> None:
        """Dead jobs whose keys are free wait again, or go for ever."""
        wanted = [key, *more]
        if again:
            assert self.run(self.queue.replay(*wanted)) == self.model.replay(wanted)
        else:
            assert self.run(self.queue.discard(*wanted)) == self.model.discard(wanted)

    @rule(worker=workers, want=st.sampled_from([2, 2, 1, 0]), deaths=st.sampled_from([2, 2, 1, 3]), late=st.booleans())
    def crash(self, worker: str, want: int, deaths: int, late: bool) -> None:
        """Workers take jobs and give no more signs of life while the others go on; perhaps one after the other."""
        place = WORKERS.index(worker)
        for victim in (*WORKERS[place:], *WORKERS[:place])[:deaths]:
            self.claim(victim, want)
            self.clock.advance((self.model.lease_ms + 1) / 1000)
            for other in sorted(self.model.leases.keys() - {victim}):
                self.renew(other)
            if deaths > 1 or not late:
                self.rescue()

    @rule(seconds=st.sampled_from([0.05, 0.1, 1, 2, 31, 4000]), living=st.sets(workers))
    def pass_time(self, seconds: float, living: set[str]) -> None:
        """Delayed jobs come due, and leases run out but for those of the living."""
        self.clock.advance(seconds)
        for worker in sorted(living):
            self.renew(worker)

    @rule()
    def clean_up(self) -> None:
        """Whatever a worker does on a timer; there is nothing that plain SAQ workers have left behind."""
        assert self.run(self.queue.sweeper.run_once()) == []
        assert self.run(self.queue.sweep(lock=1)) == []
        for worker in WORKERS:
            if self.model.leases.get(worker, 0) > self.clock():
                assert self.run(rescue(self.queue, worker)) == [], "it is alive"
        self.rescue()

    def renew(self, worker: str) -> None:
        """Give a sign of life."""
        self.keepers[worker].renew()
        self.model.renew(self.clock(), worker)

    def rescue(self) -> None:
        """Let the jobs of the dead wait again, before all others."""
        rescued = self.model.rescue(self.clock())
        assert self.run(Rescuer(self.queue).run_once()) == len(rescued)
        front = self.run(self.redis.lrange(self.queue.keys.queued, 0, len(rescued) - 1)) if rescued else []
        found = [self.queue.job_key_from_id(job_id.decode()) for job_id in front]
        assert sorted(found) == sorted(rescued)
        self.model.waiting[:0] = found
        for key in rescued:
            self.lost(key)

    @invariant()
    def redis_keeps_the_promises(self) -> None:
        """Each of them by what Redis says alone, then all that it says against the model."""
        snapshot = self.run(self.snapshot())
        conserved(snapshot)
        owned(snapshot)
        kept(snapshot)
        self.as_the_model_says(snapshot)
        self.dead_as_the_model_says()

    def as_the_model_says(self, snapshot: Snapshot) -> None:
        """Compare everything."""
        model = self.model
        assert snapshot.queued == model.waiting
        assert sorted(snapshot.active) == sorted(model.held)
        assert {key: round(due * 1000) for key, due in snapshot.incomplete.items() if due} == model.delayed
        assert snapshot.claims == {key: hold.token for key, hold in model.held.items()}
        assert snapshot.leases == model.leases
        assert snapshot.crashes == model.deaths
        assert snapshot.aborts == model.aborts
        assert {key: _record(record) for key, record in snapshot.records.items()} == model.records
        assert model.accepted == model.ended + len(snapshot.incomplete)

    def dead_as_the_model_says(self) -> None:
        """Compare the dead letters, the newest first."""
        letters = sorted(self.model.letters.items(), key=lambda item: (item[1].died_ms, item[0]), reverse=True)
        assert [(job.key, _letter(job)) for job in self.run(self.queue.dead())] == letters
        assert self.run(self.queue.count("dead")) == len(letters)

    def move(self, claim: Claim, outcome: str) -> Move:
        """Return what a worker says of a claim: over a job that has killed too many, that it is dead."""
        if claim.crashes >= CRASH_LIMIT:
            return Move(claim, Dead(f"the worker that ran it died {claim.crashes} times"))
        return Move(claim, OUTCOMES[outcome](self.text()))

    def took(self, worker: str, claims: list[Claim], expected: list[str]) -> None:
        """Check what a call gave, and begin the jobs as a worker does."""
        assert [claim.job.key for claim in claims] == expected
        assert len({claim.token for claim in claims}) <= 1
        for claim in claims:
            assert claim.token not in self.tokens, "a token was given twice"
            hold: Hold = self.model.hold(claim.job.key, worker, claim.token)
            job = claim.job
            job.attempts += job.status != "active"
            assert claim.crashes == hold.deaths
            assert (job.attempts, job.result, job.error) == (hold.copy.attempts, hold.copy.result, hold.copy.error)
            self.claims[job.key] = claim
        self.tokens.update(claim.token for claim in claims)

    def lost(self, key: str) -> None:
        """Keep a claim that is none any more, to try it later."""
        self.stale = [*self.stale, self.claims.pop(key)][-STALE_KEPT:]

    def stored(self, key: str) -> Job[Any]:
        """Return a job as Redis has it."""
        job = self.run(self.queue.job(key))
        assert job is not None
        return job

    async def snapshot(self) -> Snapshot:
        """Read everything in one step."""
        own = self.queue.keys
        ids = [self.queue.job_id(key) for key in KEYS]
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.lrange(own.queued, 0, -1).lrange(own.active, 0, -1)
            pipe.zrange(own.incomplete, 0, -1, withscores=True).zrange(own.leases, 0, -1, withscores=True)
            pipe.hgetall(own.claims).hgetall(own.crashes).hgetall(own.aborts)
            pipe.zrange(own.dead, 0, -1).hkeys(own.dead_records).hkeys(own.dead_reasons)
            pipe.mget(ids).keys()
            queued, active, incomplete, leases, claims, crashes, aborts, dead, *rest = await pipe.execute()
            dead_records, dead_reasons, records, names = rest
        assert set(dead) == set(dead_records) == set(dead_reasons)
        for name in names:
            pipe.ttl(name)
        left = {name.decode(): ttl for name, ttl in zip(names, await pipe.execute(), strict=True)}
        known = {own.queued, own.active, own.incomplete, own.leases, own.claims, own.crashes, own.dead}
        known |= {own.dead_records, own.dead_reasons, *ids}
        key_of = self.queue.job_key_from_id
        return Snapshot(
            queued=[key_of(one.decode()) for one in queued],
            active=[key_of(one.decode()) for one in active],
            incomplete={key_of(one.decode()): score for one, score in incomplete},
            leases={worker.decode(): int(end) for worker, end in leases},
            claims={key_of(one.decode()): token.decode() for one, token in claims.items()},
            crashes={key_of(one.decode()): lines.count(b"\n") for one, lines in crashes.items()},
            aborts={key_of(one.decode()): Abort.of(entry).reason for one, entry in aborts.items()},
            records={key: msgspec.json.decode(one) for key, one in zip(KEYS, records, strict=True) if one},
            ttls={key: left[job_id] for key, job_id in zip(KEYS, ids, strict=True) if job_id in left},
            others=[name for name, ttl in left.items() if ttl == -1 and name not in known],
        )


def _record(record: dict[str, Any]) -> Record:
    return Record(
        ttl=record.get("ttl", 600),
        status=record["status"],
        attempts=record.get("attempts", 0),
        result=record.get("result"),
        error=record.get("error"),
    )


def _letter(job: DeadJob) -> Letter:
    died_ms = round(job.died_at.timestamp() * 1000)
    return Letter(died_ms, job.reason, len(job.history), _record(msgspec.json.decode(job.payload)))


def test_whatever_happens_the_queue_does_as_the_model_says(broker_url: str) -> None:
    """Conservation, one owner a job, fencing, first in first out, dead letters: through every order of events."""
    run_state_machine_as_test(
        lambda: QueueMachine(broker_url), settings=settings.get_profile("long" if LONG_FORM else "short")
    )
