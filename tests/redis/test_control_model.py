"""Jobs with every kind of control in every order of events; after each step the promises of flow control hold."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from tests.redis import test_model
from tests.redis.control_model import (
    KINDS,
    Ledger,
    Shown,
    in_one_place,
    let_go_by_somebody,
    nothing_left,
    one_for_all,
    within_limits,
)

from knapsaq import Job, OptionError, Registry, Settings, connect
from knapsaq.claims import CRASH_LIMIT, Advance, Claim, Settlement
from knapsaq.outcomes import Aborted, Dead, Failed, Outcome, Released, Retried, Snoozed, Succeeded
from knapsaq.steering import Tidier
from knapsaq.testing import ManualClock
from knapsaq.upkeep import Rescuer

T = TypeVar("T")

EXAMPLES = int(os.environ.get("KNAPSAQ_TEST_CONTROL_EXAMPLES", "0"))
KEYS = tuple("abcdefghijkl")
WORKERS = ("w1", "w2", "w3")
TASKS = ("echo", "other")
TEXTS = ("hi", "ho")
STRIKES = (("other", {}), ("echo", {"text": "ho"}))
DRAINED_AT_MOST = 600
OUTCOMES: dict[str, Callable[[], Outcome]] = {
    "succeeded": lambda: Succeeded("done"),
    "failed": lambda: Failed("no"),
    "retried": lambda: Retried("again", 0.0),
    "retried later": lambda: Retried("again", 1.5),
    "released": lambda: Released("stopped"),
    "released later": lambda: Released("stopped", 2.0),
    "snoozed": lambda: Snoozed("later", 0.7),
    "aborted": lambda: Aborted("no more"),
    "dead": lambda: Dead("dead"),
}
LOOK = """
local shown = {}
local reads = { list = { 'LRANGE', 0, -1 }, zset = { 'ZRANGE', 0, -1, 'WITHSCORES' }, hash = { 'HGETALL' },
  set = { 'SMEMBERS' }, string = { 'GET' } }
for _, name in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local kind = redis.call('TYPE', name)['ok']
  local read = reads[kind]
  local value = redis.call(read[1], name, unpack(read, 2))
  shown[#shown + 1] = { string.sub(name, #ARGV[1] + 1), kind, value }
end
return shown
"""

keys = st.sampled_from(KEYS)
workers = st.sampled_from(WORKERS)
kinds = st.sampled_from(sorted(KINDS))
outcomes = st.sampled_from(sorted(OUTCOMES))


def one_of(pick: Callable[[ControlMachine], Sequence[T]]) -> st.SearchStrategy[T]:
    """Draw from what the machine has at this moment; a precondition says that there is something."""
    return st.runner().flatmap(lambda machine: st.sampled_from(pick(machine)))


class ControlMachine(RuleBasedStateMachine):
    """Drives one queue; each example begins on an empty server, and ends with everything run."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = ManualClock(datetime(2031, 5, 17, 12, tzinfo=UTC))
        chosen = Settings(broker_url=url, queues=("default",), _env_file=None)
        self.connection = connect(chosen, registry=Registry(), clock=self.clock)
        self.queue = self.run(self.connection.__aenter__()).queue()
        self.redis: Any = self.queue.redis
        self.run(self.redis.flushall())
        self.lease_ms = int(chosen.lease * 1000)
        self.tidier = Tidier(self.queue)
        self.ledger = Ledger()
        self.held: dict[str, tuple[str, Claim]] = {}
        self.vanished: set[str] = set()
        self.expiring: set[str] = set()
        self.numbers = itertools.count(1)
        self.shown = Shown({})
        self.wait: float | None = None
        self.aborting: set[str] = set()
        self.fine = True

    def teardown(self) -> None:
        """Let everything run that may, then what was struck; close everything."""
        try:
            if self.fine:
                self.finish()
        finally:
            self.run(self.connection.__aexit__(None, None, None))
            self.runner.close()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the machine's loop."""
        return self.runner.run(call)

    @initialize(wanted=st.lists(st.tuples(keys, kinds), min_size=1, max_size=6))
    def begin(self, wanted: list[tuple[str, str]]) -> None:
        """There is always something to do."""
        for key, kind in wanted:
            self.send(key, kind, "echo", "hi", 0)

    @rule(
        key=keys,
        kind=kinds,
        task=st.sampled_from(TASKS),
        text=st.sampled_from(TEXTS),
        after=st.sampled_from([0, 0, 0, 1]),
    )
    def enqueue(self, key: str, kind: str, task: str, text: str, after: int) -> None:
        """At once or for a moment."""
        self.send(key, kind, task, text, after)

    @rule(kind=kinds, wanted=st.lists(keys, min_size=2, max_size=5, unique=True))
    def enqueue_alike(self, kind: str, wanted: list[str]) -> None:
        """Several that share their limits."""
        for key in wanted:
            self.send(key, kind, "echo", "hi", 0)

    @rule(key=keys, kind=kinds, lasts=st.sampled_from([100, 1500]))
    def enqueue_expiring(self, key: str, kind: str, lasts: int) -> None:
        """It may not be started for long."""
        if self.send(key, kind, "echo", "hi", 0, expires_at=self.clock() + lasts):
            self.expiring.add(key)

    def send(self, key: str, kind: str, task: str, text: str, after: int, **extras: Any) -> bool:
        """Send a job; returns whether it was accepted under its own key."""
        if key in self.vanished:
            return False
        control = KINDS[kind]
        due = self.clock() / 1000 + after if after else 0
        job: Job[Any] = Job(task, key=key, kwargs={"text": text}, scheduled=due)  # type: ignore[arg-type]
        job.note(**({"control": control} if control else {}), **extras)
        try:
            if self.run(self.queue.submit(job)) is not job:
                return False
        except OptionError:  # a job of the other task has the key
            return False
        self.expiring.discard(job.key)
        self.ledger.accept(job.key, control, (task, text), put_back=bool(after) or job.key != key)
        return job.key == key

    @rule(worker=workers, want=st.sampled_from([1, 1, 2, 4, 10]))
    def claim(self, worker: str, want: int) -> None:
        """Take jobs."""
        self.advance(worker, [], want)

    @rule(worker=workers, said=st.lists(outcomes, min_size=1, max_size=4), want=st.sampled_from([0, 1, 4]))
    def take_a_turn(self, worker: str, said: list[str], want: int) -> None:
        """End jobs that run and take others, in one call."""
        if not self.own(worker):
            self.advance(worker, [], len(said))
        settlements = [self.settled(key, outcome) for key, outcome in zip(self.own(worker), said, strict=False)]
        self.advance(worker, settlements, want)

    @precondition(lambda self: self.held)
    @rule(key=one_of(lambda self: sorted(self.held)))
    def stamp(self, key: str) -> None:
        """Say that a job runs."""
        worker, claim = self.held[key]
        if key not in self.vanished and (stamp := self.queue.stamp(claim)):
            self.advance(worker, [stamp], 0)

    @precondition(lambda self: self.ledger.jobs)
    @rule(key=one_of(lambda self: sorted(self.ledger.jobs)))
    def abort(self, key: str) -> None:
        """Wherever it is."""
        if job := self.run(self.queue.job(key)):
            self.run(self.queue.abort(job, f"reason {next(self.numbers)}"))

    @precondition(lambda self: self.ledger.jobs)
    @rule(key=one_of(lambda self: sorted(self.ledger.jobs)))
    def retry(self, key: str) -> None:
        """Only what has ended runs again."""
        job = self.run(self.queue.job(key))
        if job is not None and job.ended:
            self.run(job.retry())
            self.accepted_again(key)

    @rule()
    def replay(self) -> None:
        """Queue dead jobs again."""
        for letter in self.run(self.queue.dead()):
            if self.run(self.queue.replay(letter.key)):
                self.accepted_again(letter.key)

    def accepted_again(self, key: str) -> None:
        """An operator has put a job back."""
        entry = self.ledger.jobs[key]
        self.ledger.accept(key, entry.control, entry.what, put_back=True)
        self.ledger.jobs[key].stands = False
        self.vanished.discard(key)

    @rule(worker=workers, want=st.sampled_from([1, 2, 4]), tidy=st.booleans())
    def crash(self, worker: str, want: int, tidy: bool) -> None:
        """A worker takes jobs and dies; all others that run none are late too."""
        self.advance(worker, [], want)
        for other in WORKERS:
            if other != worker and self.own(other):
                self.run(self.redis.zadd(self.queue.keys.leases, {other: self.clock() + 2 * self.lease_ms}))
        self.clock.advance((self.lease_ms + 1) / 1000)
        self.run(Rescuer(self.queue).run_once())
        for key in self.own(worker):
            del self.held[key]
            self.ledger.jobs[key].put_back = True
        if tidy:
            self.tidy()

    @precondition(lambda self: self.shown.waiting)
    @rule(key=one_of(lambda self: sorted(self.shown.waiting)))
    def vanish(self, key: str) -> None:
        """A record is evicted while its job waits."""
        self.run(self.redis.delete(self.queue.job_id(key)))
        self.vanished.add(key)

    @rule(seconds=st.sampled_from([0.05, 0.2, 0.5, 1, 1, 2.5]))
    def pass_time(self, seconds: float) -> None:
        """Something comes due."""
        self.clock.advance(seconds)

    @rule(pause=st.booleans())
    def pause(self, pause: bool) -> None:
        """Nothing is given out meanwhile."""
        self.run(self.queue.pause() if pause else self.queue.resume())  # type: ignore[arg-type]

    @rule(which=st.sampled_from(STRIKES), strike=st.booleans())
    def strike(self, which: tuple[str, dict[str, str]], strike: bool) -> None:
        """Jobs of a task wait, and go on."""
        task, argument = which
        self.run(self.queue.strike(task, **argument) if strike else self.queue.restore(task, **argument))  # type: ignore[arg-type]

    @rule(tenant=st.sampled_from(["x", "y", ""]), weight=st.sampled_from([0.5, 1, 3]))
    def weigh(self, tenant: str, weight: float) -> None:
        """A tenant gets another share."""
        self.run(self.queue.weigh(tenant, weight))

    @rule()
    def tidy(self) -> None:
        """There is nothing to forget, as nobody ends jobs but our scripts."""
        assert self.run(self.tidier.run_once()) == 0

    @invariant()
    def the_promises_hold(self) -> None:
        """All of them, by one look at everything."""
        self.fine = False
        self.look()
        in_one_place(self.shown)
        let_go_by_somebody(self.shown)
        within_limits(self.shown, self.ledger)
        one_for_all(self.shown, self.ledger, self.vanished)
        assert {key: claim.token for key, (_, claim) in self.held.items()} == self.shown.claims
        self.fine = True

    def own(self, worker: str) -> list[str]:
        """What a worker runs."""
        return [key for key, (owner, _) in sorted(self.held.items()) if owner == worker]

    def settled(self, key: str, outcome: str) -> Settlement:
        """Return what a worker says of a job that it ran: over one that has killed too many, that it is dead."""
        _, claim = self.held.pop(key)
        said = Dead("murderer") if claim.crashes >= CRASH_LIMIT else OUTCOMES[outcome]()
        self.ledger.jobs[key].put_back |= isinstance(said, (Retried, Released))
        return self.queue.settlement(claim, said)

    def advance(self, worker: str, settlements: list[Settlement], want: int) -> Advance:
        """Make a call, and look at what it gave."""
        self.fine = False
        aborts = self.aborting
        step = self.run(self.queue.advance(worker, settlements, want))
        self.wait = step.wait
        assert step.unreadable == []
        assert len(step.claims) <= (0 if "paused" in self.shown.values else want)
        assert all(step.settled)
        self.look()
        for claim in step.claims:
            key = claim.job.key
            assert key not in self.held, "it was given out twice"
            self.held[key] = (worker, claim)
            over = key in aborts or claim.job.expired(self.clock()) is not None
            self.ledger.begin(key, self.clock(), over=over)
            if not over:
                self.ledger.in_order(key, self.shown.waiting - self.vanished - self.expiring)
            claim.job.attempts += 1
        self.fine = True
        return step

    def look(self) -> None:
        """Read all there is, in one step."""
        self.shown = self.run(self._look())
        self.aborting = set(self.shown.values.get("aborts", ()))
        self.vanished &= self.shown.incomplete.keys()
        self.expiring &= self.shown.incomplete.keys()
        for key in self.shown.struck() | {key for key, due in self.shown.incomplete.items() if due}:
            self.ledger.jobs[key].put_back = True

    async def _look(self) -> Shown:
        rows = await self.queue.line.execute("EVAL", LOOK, 0, f"saq:{self.queue.name}:")
        return Shown({name.decode(): self._plain(kind, value) for name, kind, value in rows})

    def _plain(self, kind: bytes, value: Any) -> Any:
        if kind == b"string":
            return self._text(value)
        texts = [self._text(one) for one in value]
        if kind not in (b"hash", b"zset"):
            return texts
        pairs = dict(zip(texts[::2], texts[1::2], strict=True))
        return pairs if kind == b"hash" else {name: float(score) for name, score in pairs.items()}

    def _text(self, value: bytes) -> str:
        text = value.decode()
        return self.queue.job_key_from_id(text) if text.startswith("saq:job:") else text

    def finish(self) -> None:
        """Whatever may run runs, then all the rest, and nothing is left behind."""
        self.run(self.queue.resume())
        self.drain()
        assert set(self.shown.incomplete) == self.shown.struck(), f"{self.shown.values} never ran"
        for task, argument in STRIKES:
            self.run(self.queue.restore(task, **argument))
        self.drain()
        assert not self.shown.incomplete, f"{self.shown.values} never ran"
        nothing_left(self.shown)

    def drain(self) -> None:
        """Do what idle workers do: end what runs, take what they see in the queue, and wait for what they were told."""
        turns = itertools.cycle(WORKERS)
        for worker in WORKERS:
            self.advance(worker, [self.settled(key, "succeeded") for key in self.own(worker)], 0)
        self.advance("w1", [], 3)
        for worker in itertools.islice(turns, DRAINED_AT_MOST):
            ended = [self.settled(key, "succeeded") for one in WORKERS for key in self.own(one)]
            if not ended and not self.shown.queued:
                if self.wait is None:
                    return
                self.clock.advance(self.wait + 0.001)
            self.advance(worker, ended, 3)
            self.the_promises_hold()
        raise AssertionError(f"it never ends: {self.shown.values}")


def test_whatever_happens_limits_hold_and_no_job_is_stuck(broker_url: str) -> None:
    """Rates, slots, order, uniqueness and conservation at each step; and at the end every job has had its run."""
    profile = settings.get_profile("long" if test_model.LONG_FORM else "short")
    chosen = settings(profile, max_examples=EXAMPLES, derandomize=False) if EXAMPLES else profile
    run_machine(lambda: ControlMachine(broker_url), settings=chosen)
