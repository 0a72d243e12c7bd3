"""What has to hold of flow control at every moment, by what Redis says and by what its callers have seen.

``test_control_model.py`` asks after each step. No order of jobs is predicted here; what is promised is looked at
instead: where each job is, that no limit is ever exceeded, and that somebody will let go of each job that waits.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "slow": {"rates": [["r1", 1_000_000, 1]]},
    "burst": {"rates": [["r2", 500_000, 3]]},
    "two rates": {"rates": [["r1", 1_000_000, 1], ["r2", 500_000, 3]]},
    "one slot": {"slots": [["s1", 1]]},
    "two slots": {"slots": [["s2", 2]]},
    "rate and slot": {"rates": [["r2", 500_000, 3]], "slots": [["s1", 1]]},
    "slow, two slots": {"rates": [["r1", 1_000_000, 1]], "slots": [["s2", 2], ["s1", 1]]},
    "urgent": {"priority": 9},
    "soon": {"priority": 3},
    "tenant": {"fair": "x"},
    "urgent tenant": {"fair": "y", "priority": 5},
    "tenant with a rate": {"fair": "x", "rates": [["r2", 500_000, 3]]},
    "tenant with a slot": {"fair": "y", "priority": 2, "slots": [["s1", 1]]},
    "urgent with a slot": {"priority": 9, "slots": [["s2", 2]]},
    "unique until start": {"unique": ["u1", "start", "existing"]},
    "unique until end": {"unique": ["u2", "end", "existing"], "rates": [["r1", 1_000_000, 1]]},
    "unique for an hour": {"unique": ["u3", 3_600_000, "existing"]},
    "replaced": {"unique": ["u4", "start", "replace"], "rates": [["r2", 500_000, 3]]},
    "replaced elsewhere": {"unique": ["u4", "start", "replace"], "slots": [["s1", 1]]},
    "replaced by a tenant": {"unique": ["u4", "start", "replace"], "fair": "x"},
    "changed rate": {"rates": [["r3", 200_000, 4]]},
    "rate before it changed": {"rates": [["r3", 1_000_000, 1]]},
    "changed slots": {"slots": [["s3", 2]]},
    "slots before they changed": {"slots": [["s3", 1]]},
}
"""Controls that meet each other: some names are shared, and two are said otherwise by an older program."""

RATES = {"r1": (1_000_000, 1), "r2": (500_000, 3), "r3": (200_000, 4)}
SLOTS = {"s1": 1, "s2": 2, "s3": 2}


@dataclass
class Entry:
    """The newest job of a key.

    Attributes:
        control: What it was accepted with.
        what: Its task and argument.
        number: Its place in the order in which jobs were accepted.
        put_back: Whether it has waited a second time, or later, so that its order is free.
        begun: Whether an attempt has begun.
        stands: Whether it was accepted as a unique job, and not put back by an operator.
    """

    control: Mapping[str, Any]
    what: tuple[str, str]
    number: int
    put_back: bool = False
    begun: bool = False
    stands: bool = True

    @property
    def group(self) -> str:
        """What it has in common with the jobs among which it keeps its place."""
        shared = {name: value for name, value in self.control.items() if name != "unique"}
        return json.dumps([shared, self.what], sort_keys=True)

    def names(self, limits: str) -> set[str]:
        """The names of its rates or slots."""
        return {limit[0] for limit in self.control.get(limits, ())}


@dataclass
class Ledger:
    """What those have seen who send and run the jobs."""

    jobs: dict[str, Entry] = field(default_factory=dict)
    free: set[str] = field(default_factory=set)
    """Jobs that run only to be ended, and so use up nothing."""
    starts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By rate, the milliseconds at which jobs have begun."""
    accepted: int = 0

    def accept(self, key: str, control: Mapping[str, Any], what: tuple[str, str], *, put_back: bool) -> None:
        """A job was accepted."""
        self.accepted += 1
        self.jobs[key] = Entry(control, what, self.accepted, put_back)
        self.free.discard(key)

    def begin(self, key: str, now: int, *, over: bool) -> None:
        """A worker has taken a job."""
        entry = self.jobs[key]
        if over:
            self.free.add(key)
            return
        self.free.discard(key)
        entry.begun = True
        for name in entry.names("rates"):
            self.starts[name].append(now)
            self._within(name)

    def _within(self, name: str) -> None:
        interval_us, burst = RATES[name]
        starts = self.starts[name]
        for number, first in enumerate(starts, 1):
            count = len(starts) - number + 1
            assert count <= burst + (starts[-1] - first) * 1000 // interval_us, f"{name}: {starts}"

    def in_order(self, taken: str, waiting: Iterable[str]) -> None:
        """None that came before a job and is like it waits on as that one is taken."""
        entry = self.jobs[taken]
        for key in () if entry.put_back else waiting:
            other = self.jobs[key]
            if other.group == entry.group and not other.put_back:
                assert other.number > entry.number, f"{taken} was taken before {key}"


class Shown:
    """All that Redis has of a queue: values by what follows ``saq:<queue>:``, jobs by their keys."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.queued: list[str] = values.get("queued", [])
        self.active: list[str] = values.get("active", [])
        self.incomplete: dict[str, float] = values.get("incomplete", {})
        self.claims: dict[str, str] = values.get("claims", {})
        self.controls: dict[str, str] = values.get("controls", {})
        self.parked: dict[str, str] = values.get("parked", {})
        self.lanes: dict[str, float] = values.get("lanes", {})
        self.strikes: dict[str, str] = values.get("strikes", {})
        self.ready: list[str] = []
        self.pools: dict[str, list[str]] = defaultdict(list)
        for name, value in values.items():
            pool, _, part = name.partition(" ")
            if part in ("tenants", "turns"):
                continue
            if pool == "ready":
                self.ready += value
            elif pool.startswith("lane:"):
                self.pools[pool.removeprefix("lane:")] += value

    @property
    def waiting(self) -> set[str]:
        """The jobs that neither run nor are due later."""
        return {*self.queued, *self.ready, *(job for pool in self.pools.values() for job in pool)}

    def struck(self) -> set[str]:
        """The jobs that wait for a strike."""
        return {job for job, lane in self.parked.items() if lane.startswith("s:")}


def in_one_place(shown: Shown) -> None:
    """Each job that has not ended is in exactly one place, and what says where it is parked is right."""
    delayed = [key for key, due in shown.incomplete.items() if due > 0]
    pooled = [job for pool in shown.pools.values() for job in pool]
    assert Counter([*shown.queued, *shown.active, *delayed, *shown.ready, *pooled]) == Counter(shown.incomplete.keys())
    lanes = {job: lane for lane, pool in shown.pools.items() for job in pool}
    assert lanes == {job: lane for job, lane in shown.parked.items() if not lane.startswith(">")}
    let_go = {job for job, lane in shown.parked.items() if lane.startswith(">")}
    assert let_go <= {*shown.queued, *shown.ready}, "it was let go, and is not there"
    assert set(shown.controls) <= set(shown.incomplete)
    assert shown.queued or not shown.ready, "idle workers see nothing of what may run"


def let_go_by_somebody(shown: Shown) -> None:
    """Of each lane in which a job waits it is known who lets it go: the time, a job on its way, or one that runs."""
    on_their_way = Counter(lane[1:] for lane in shown.parked.values() if lane.startswith(">"))
    assert {lane: 1 for lane, due in shown.lanes.items() if due == inf} == on_their_way
    assert {lane for lane, due in shown.lanes.items() if due < inf} <= set(shown.pools), "nothing waits in it"
    for lane in shown.pools:
        kind, _, name = lane.partition(":")
        if kind == "s":
            assert name in shown.strikes
        else:
            held = kind == "c" and shown.values.get(f"slots:{name}")
            assert on_their_way[lane] or held or shown.lanes.get(lane, inf) < inf, f"nobody lets go of lane {lane}"


def within_limits(shown: Shown, ledger: Ledger) -> None:
    """The slots are held by those that run and have to hold them, and by no more than there are."""
    for name, most in SLOTS.items():
        held = set(shown.values.get(f"slots:{name}", ()))
        running = {job for job in shown.claims if name in ledger.jobs[job].names("slots")}
        assert held == running - ledger.free
        assert len(held) <= most


def one_for_all(shown: Shown, ledger: Ledger, vanished: Collection[str]) -> None:
    """Of what is unique there is one job that has not ended, or not begun, and can run."""
    standing: Counter[str] = Counter()
    for job in shown.incomplete.keys() - vanished:
        entry = ledger.jobs[job]
        if not entry.stands or not (unique := entry.control.get("unique")):
            continue
        if unique[1] != "start" or not entry.begun:
            standing[unique[0]] += 1
    assert not standing or max(standing.values()) == 1, f"{standing}"


def nothing_left(shown: Shown) -> None:
    """When all has ended, no key of it is there but those that expire, are letters, or are set by operators."""
    lasting = ("leases", "dead", "weights", "strikes", "rate:", "unique:u3", "fired:", "sweep", "schedule")
    left = [name for name in shown.values if not name.startswith(lasting)]
    assert left == []
