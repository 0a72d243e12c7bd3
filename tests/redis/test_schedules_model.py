"""Every way in which schedules can be fired, changed and deployed, at random, against a model of what is owed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.chaos.site import LONG_FORM

from knapsaq import Queue, Registry, Settings, connect
from knapsaq.claims import Claim
from knapsaq.definitions import Definition, Held
from knapsaq.outcomes import Succeeded
from knapsaq.scheduler import Scheduler
from knapsaq.testing import ManualClock

T = TypeVar("T")

NAMES = ("a", "b")
START = datetime(2031, 3, 29, 23, 30, tzinfo=UTC)
"""Half an hour before Berlin's clocks change."""
WINDOW = 10_000
TIMES: dict[str, dict[str, Any]] = {
    "each 10 s": {"every": 10},
    "each 7 s": {"every": 7},
    "each half minute": {"cron": "* * * * * */30"},
    "at three in Berlin": {"cron": "0,20,40 3 * * *", "timezone": "Europe/Berlin"},
}
short = settings(
    max_examples=80,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

names = st.sampled_from(NAMES)
numbers = st.integers(0, 2)
times = st.sampled_from(sorted(TIMES))


class FleetMachine(RuleBasedStateMachine):
    """Three workers on one queue; ``all`` with overlap, so that every due time is owed.

    The model knows of each schedule since when it has had its present times; what is due since then, and has not been
    there before, has fired exactly once as soon as a worker has looked.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = ManualClock(START)
        self.registry = Registry()
        chosen = Settings(broker_url=url, queues=("default",), _env_file=None)
        self.connection = connect(chosen, registry=self.registry, clock=self.clock)
        self.queue: Queue = self.run(self.connection.__aenter__()).queue()
        self.run(self.queue.redis.flushall())
        self.schedulers: list[Scheduler] = []
        self.code: dict[str, str] = {}
        self.seen: dict[int, tuple[int, list[Held]]] = {}
        self.fired: dict[str, list[int]] = {name: [] for name in NAMES}
        self.since: dict[str, tuple[Definition, int]] = {}
        self.highest = 0

    def teardown(self) -> None:
        """Close everything."""
        self.run(self.queue.redis.flushall())
        self.run(self.connection.__aexit__(None, None, None))
        self.runner.close()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the machine's loop."""
        return self.runner.run(call)

    @initialize(first=times, second=times)
    def begin(self, first: str, second: str) -> None:
        """Deploy both."""
        self.deploy({"a": first, "b": second})

    @rule(names=st.sets(names, min_size=1), time=times)
    def deploy_some(self, names: set[str], time: str) -> None:
        """Deploy a version with some of them, of which the first one is changed."""
        self.deploy({name: time if name == min(names) else self.code.get(name, time) for name in sorted(names)})

    def deploy(self, code: dict[str, str]) -> None:
        """Start three workers of a version."""
        self.look()
        self.registry.clear()

        async def tick() -> None: ...

        task: Any = self.registry.task(tick)
        for name, time in code.items():
            given = {**TIMES[time], "misfire": "all", "misfire_window": WINDOW, "overlap": True}
            task = self.registry.scheduled_task(schedule=name, **given)(task)
        self.code = code
        self.schedulers = [Scheduler(self.queue, [task], f"w{number}") for number in range(3)]
        self.run(self.schedulers[0].reconcile())
        self.note()

    @rule(by=st.sampled_from([0.001, 3, 7, 10, 29.999, 60, 600, 3000]))
    def wait(self, by: float) -> None:
        """Let time pass; never so much that more than a thousand due times come at once."""
        self.clock.advance(by)

    @rule(by=st.sampled_from([7, 25]), number=numbers)
    def wait_and_look(self, by: float, number: int) -> None:
        """Let a worker do what it does most of the time."""
        self.clock.advance(by)
        self.look_by(number)

    @rule(by=st.sampled_from([0.001, 5, 15, 65]))
    def set_back(self, by: float) -> None:
        """Set the clock back."""
        self.clock.advance(-by)

    @rule(number=numbers)
    def look_by(self, number: int) -> None:
        """Let a worker fire what is due."""
        self.run(self.schedulers[number].run_once())
        self.look()

    @rule(number=numbers)
    def see(self, number: int) -> None:
        """Let a worker see what is due, and do nothing about it yet."""
        due = self.run(self.queue.schedules.due())
        self.seen[number] = due.now_ms, due.held

    @rule(number=numbers)
    def fire_late(self, number: int) -> None:
        """Let a worker fire what it has seen, whatever has happened since."""
        if number in self.seen:
            self.run(self.schedulers[number]._fire(*self.seen[number]))

    @rule(by=st.sampled_from([0, 7, 30]), number=numbers, other=numbers)
    def race(self, by: float, number: int, other: int) -> None:
        """Let a worker see what is due, and be slower than another one."""
        self.clock.advance(by)
        self.see(number)
        self.look_by(other)
        self.fire_late(number)

    @rule(by=st.sampled_from([5, 15, 65]))
    def start_set_back(self, by: float) -> None:
        """Set the clock back and start a worker, which reckons anew."""
        self.clock.advance(-by)
        self.run(self.schedulers[0].reconcile())

    @rule(name=names, time=times)
    def edit(self, name: str, time: str) -> None:
        """Give a schedule other times."""
        if name in self.code:
            self.look()
            self.run(self.registry.schedules.set(name, **TIMES[time]))
            self.note()

    @rule(name=names, action=st.sampled_from(["pause", "resume", "reset"]))
    def operate(self, name: str, action: str) -> None:
        """Pause, resume or reset a schedule."""
        if name in self.code:
            self.look()
            self.run(getattr(self.registry.schedules, action)(name))
            self.note()

    def look(self) -> None:
        """Fire all, take what has been fired, and compare it with what is owed."""
        if self.schedulers:
            self.run(self.schedulers[0].run_once())
        self.take()
        now = self.clock()
        for name, (definition, start) in self.since.items():
            owed = set(definition.timetable.between(start, now)) if definition.enabled else set()
            assert owed <= set(self.fired[name]), f"{name} has missed some"

    def note(self) -> None:
        """Note the times that the schedules have from now on."""
        self.highest = max(self.highest, self.clock())
        for entry in self.run(self.registry.schedules.list()):
            definition = Definition(
                cron=entry.cron,
                every=entry.every.total_seconds() if entry.every else None,
                timezone=entry.timezone,
                enabled=entry.enabled,
            )
            known = self.since.get(entry.name)
            if known is None or not known[0].fires_like(definition):
                # Where the clock was set back, times before the newest fire count as fired.
                start = max([self.clock(), *self.fired[entry.name]])
                self.since[entry.name] = definition, start
        for name in self.since.keys() - self.code.keys():
            del self.since[name]
            self.fired[name] = []  # one that comes back is another one

    @invariant()
    def take(self) -> None:
        """Run the jobs that wait; none comes twice."""
        claims: list[Claim] = self.run(self.queue.claim(10_000, worker="w"))
        for claim in claims:
            _, name, due = claim.job.key.split(":")
            assert int(due) not in self.fired[name], f"{claim.job.key} twice"
            assert int(due) <= max(self.highest, self.clock()), f"{claim.job.key} early"
            self.fired[name].append(int(due))
            self.run(self.queue.settle(claim, Succeeded(None), worker="w"))
        self.highest = max(self.highest, self.clock())


def test_whatever_happens_each_due_time_fires_once(broker_url: str) -> None:
    """Looks, fires that come late, changes, deployments and clocks that are set back, in any order."""
    chosen = settings(short, max_examples=600, derandomize=False) if LONG_FORM else short
    run_state_machine_as_test(lambda: FleetMachine(broker_url), settings=chosen)
