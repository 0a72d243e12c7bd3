"""The queue as a few lists in Python: what each call has to give, and how things stand after it.

``test_model.py`` compares it with the true one step by step. It is written from the promises, not from the scripts:
no keys, no bytes, and the time is handed in as milliseconds. At the end stand the promises that hold without a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from knapsaq.claims import CRASH_LIMIT, Claim
from knapsaq.outcomes import Aborted, Dead, Failed, Outcome, Released, Retried, Snoozed, Succeeded

APART_MS = 100
"""How long a job at its last chance steps aside while its worker runs another one."""


@dataclass(frozen=True)
class Record:
    """What is stored of a job, as far as it changes."""

    ttl: int
    status: str = "queued"
    attempts: int = 0
    result: object = None
    error: str | None = None


@dataclass(frozen=True)
class Hold:
    """A worker's claim, and the worker's own copy of the record."""

    worker: str
    token: str
    copy: Record
    deaths: int


@dataclass(frozen=True)
class Letter:
    """A dead letter: when the job died, why, over whom, and its record as it was."""

    died_ms: int
    reason: str
    deaths: int
    record: Record


@dataclass(frozen=True)
class Move:
    """What a worker says of one of its claims; a stamp if there is no outcome."""

    claim: Claim
    outcome: Outcome | None

    @property
    def key(self) -> str:
        """The job's key."""
        return self.claim.job.key


@dataclass
class Model:
    """One queue. A job that has not ended is in exactly one of ``waiting``, ``delayed`` and ``held``."""

    lease_ms: int
    records: dict[str, Record] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    delayed: dict[str, int] = field(default_factory=dict)
    held: dict[str, Hold] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    aborts: dict[str, str] = field(default_factory=dict)
    letters: dict[str, Letter] = field(default_factory=dict)
    once: set[str] = field(default_factory=set)
    accepted: int = 0
    ended: int = 0

    def is_open(self, key: str) -> bool:
        """Whether the key belongs to a job that has not ended."""
        return key in self.waiting or key in self.delayed or key in self.held

    def enqueue(self, key: str, *, ttl: int, due_ms: int = 0, once: bool = False) -> bool:
        """Accept a job, unless its key is taken, or was to be accepted once and has been."""
        if self.is_open(key) or (once and key in self.once):
            return False
        if once:
            self.once.add(key)
        self._queue(key, Record(ttl), due_ms)
        return True

    def advance(self, now_ms: int, worker: str, moves: Iterable[Move], want: int) -> tuple[list[bool], list[str]]:
        """Settle, promote and claim; returns whether each move counted, and the keys to claim in their order."""
        settled = [self._settle(now_ms, move) for move in moves]
        self.waiting[:0] = self.released  # in the order in which they came
        self.released.clear()
        self._promote(now_ms)
        if self.waiting and want and self.leases.get(worker, 0) <= now_ms:
            self.leases[worker] = now_ms + self.lease_ms
        suspected = any(hold.worker == worker and self._is_suspect(key) for key, hold in self.held.items())
        claimed: list[str] = []
        while self.waiting and len(claimed) < want:
            key = self.waiting.pop(0)
            if suspected and self._is_suspect(key):
                self.delayed[key] = now_ms + APART_MS
                continue
            suspected = suspected or self._is_suspect(key)
            claimed.append(key)
        return settled, claimed

    def hold(self, key: str, worker: str, token: str) -> Hold:
        """Note who has a job that ``advance`` gave out, and what the worker makes of it when it begins."""
        copy, deaths = self.records[key], self.deaths.get(key, 0)
        if copy.status != "active":  # else its worker died, which spends no attempt
            copy = replace(copy, attempts=copy.attempts + 1)
        hold = self.held[key] = Hold(worker, token, copy, deaths)
        return hold

    def next_due_ms(self) -> int | None:
        """Return when the next delayed job is due."""
        return min(self.delayed.values(), default=None)

    def aborts_of(self, worker: str) -> dict[str, str]:
        """Return which of its jobs a worker is to abort, and why."""
        return {key: reason for key, reason in self.aborts.items() if key in self.held and self.holds(key, worker)}

    def holds(self, key: str, worker: str) -> bool:
        """Whether a job is that worker's."""
        return self.held[key].worker == worker

    def abort(self, key: str, reason: str) -> str:
        """End a job on purpose; returns the status that its caller sees."""
        if key in self.held:
            self.aborts[key] = reason
            self.records[key] = replace(self.records[key], status="aborting", error=reason)
            return "aborting"
        if not self.is_open(key):
            return self.records[key].status
        self._take_out(key)
        self._end(key, replace(self.records[key], status="aborted", error=reason))
        return "aborted"

    def retry(self, key: str) -> bool:
        """Queue a job again that has ended."""
        if self.is_open(key):
            return False
        self.letters.pop(key, None)
        self._queue(key, Record(self.records[key].ttl))
        return True

    def renew(self, now_ms: int, worker: str) -> set[str]:
        """Give a worker its lease; returns whose have run out."""
        self.leases[worker] = now_ms + self.lease_ms
        return self.expired(now_ms)

    def expired(self, now_ms: int) -> set[str]:
        """Return the workers whose leases have run out."""
        return {worker for worker, end in self.leases.items() if end <= now_ms}

    def rescue(self, now_ms: int) -> set[str]:
        """Take the jobs of dead workers from them; returns which, as their order at the queue's front is free."""
        gone = self.expired(now_ms)
        rescued = {key for key, hold in self.held.items() if hold.worker in gone}
        for key in rescued:
            del self.held[key]
            self.deaths[key] = self.deaths.get(key, 0) + 1
        for worker in gone:
            del self.leases[worker]
        return rescued

    def replay(self, keys: Sequence[str]) -> int:
        """Queue dead jobs again whose keys are free; returns how many."""
        replayed = 0
        for key in keys:
            if key in self.letters and not self.is_open(key):
                self._queue(key, Record(self.letters.pop(key).record.ttl))
                replayed += 1
        return replayed

    def discard(self, keys: Iterable[str]) -> int:
        """Forget dead letters; returns how many."""
        return len([self.letters.pop(key) for key in set(keys) if key in self.letters])

    def _queue(self, key: str, record: Record, due_ms: int = 0) -> None:
        self.accepted += 1
        self.deaths.pop(key, None)
        self.records[key] = record
        if due_ms:
            self.delayed[key] = due_ms
        else:
            self.waiting.append(key)

    def _take_out(self, key: str) -> None:
        self.delayed.pop(key, None)
        if key in self.waiting:
            self.waiting.remove(key)

    def _settle(self, now_ms: int, move: Move) -> bool:
        key, outcome = move.key, move.outcome
        hold = self.held.get(key)
        if hold is None or hold.token != move.claim.token:
            return False
        if outcome is None:
            copy = self.records[key] = replace(hold.copy, status="active")
            self.held[key] = replace(hold, copy=copy)
            return True
        del self.held[key]
        if isinstance(outcome, (Retried, Released)):
            self._put_back(now_ms, key, hold.copy, outcome)
        else:
            if isinstance(outcome, Dead):
                self.letters[key] = Letter(now_ms, outcome.error, self.deaths.get(key, 0), self.records[key])
            self._end(key, _ended(hold.copy, outcome))
        return True

    def _put_back(self, now_ms: int, key: str, copy: Record, outcome: Retried | Released) -> None:
        if isinstance(outcome, Retried):
            self.records[key] = replace(copy, status="queued", error=outcome.error)
        else:
            self.records[key] = replace(copy, status="queued", attempts=copy.attempts - 1)
        if isinstance(outcome, Snoozed):
            self.deaths.pop(key, None)
        if outcome.after and key not in self.aborts:
            self.delayed[key] = now_ms + int(outcome.after * 1000)
        elif isinstance(outcome, Retried):
            self.waiting.append(key)
        else:
            self.released.append(key)

    def _end(self, key: str, record: Record) -> None:
        self.ended += 1
        self.deaths.pop(key, None)
        self.aborts.pop(key, None)
        self.records[key] = record
        if record.ttl < 0:
            del self.records[key]

    def _promote(self, now_ms: int) -> None:
        due = sorted((due_ms, key) for key, due_ms in self.delayed.items() if due_ms <= now_ms)
        for _, key in due:
            del self.delayed[key]
            self.waiting.append(key)

    def _is_suspect(self, key: str) -> bool:
        """Whether the next worker that dies over the job is the last one."""
        return self.deaths.get(key, 0) == CRASH_LIMIT - 1


def _ended(copy: Record, outcome: Outcome) -> Record:
    if isinstance(outcome, Succeeded):
        return replace(copy, status="complete", result=outcome.result, error=None)
    if isinstance(outcome, Failed):
        return replace(copy, status="failed", error=outcome.error)
    assert isinstance(outcome, Aborted)
    return replace(copy, status="aborted", error=outcome.reason)


class Snapshot(NamedTuple):
    """All that Redis has of the queue, by jobs' keys."""

    queued: list[str]
    active: list[str]
    incomplete: dict[str, float]
    leases: dict[str, int]
    claims: dict[str, str]
    crashes: dict[str, int]
    aborts: dict[str, str]
    records: dict[str, dict[str, Any]]
    ttls: dict[str, int]
    others: list[str]
    """Keys that nobody knows and that do not expire."""


def conserved(snapshot: Snapshot) -> None:
    """Nothing is in two places, and nothing that has not ended is nowhere."""
    delayed = [key for key, due in snapshot.incomplete.items() if due > 0]
    assert Counter([*snapshot.queued, *snapshot.active, *delayed]) == Counter(snapshot.incomplete.keys())


def owned(snapshot: Snapshot) -> None:
    """Each job that runs has one owner, somebody watches each owner, and no job that has ended has one."""
    assert snapshot.claims.keys() == set(snapshot.active)
    assert snapshot.claims.keys() <= snapshot.incomplete.keys()
    assert {token.split()[0] for token in snapshot.claims.values()} <= snapshot.leases.keys()


def kept(snapshot: Snapshot) -> None:
    """What has ended expires, what has not does not, and notes are about jobs that have not ended."""
    assert snapshot.incomplete.keys() <= snapshot.records.keys()
    for key, ttl in snapshot.ttls.items():
        assert (ttl == -1) is (key in snapshot.incomplete), f"{key} expires in {ttl} s"
    assert snapshot.crashes.keys() | snapshot.aborts.keys() <= snapshot.incomplete.keys()
    assert snapshot.others == []
