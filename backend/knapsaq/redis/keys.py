"""Keys: every Redis key of a queue. SAQ's own names first, then ours under the same prefix.

| key | type | holds | ends |
|---|---|---|---|
| `saq:<queue>:queued` | list | ids of jobs that may run, oldest first | empty |
| `saq:<queue>:active` | list | ids of jobs that run | empty |
| `saq:<queue>:incomplete` | sorted set | ids of jobs that have not ended, by due second; 0 waits or runs | empty |
| `saq:job:<queue>:<key>` | string | the job's record | its ttl |
| `saq:<queue>:sweep`, `:schedule` | string | SAQ's locks, held by our workers | lease |
| `saq:<queue>:leases` | sorted set | workers by the millisecond at which their lease runs out | rescue |
| `saq:<queue>:claims` | hash | worker and token of each job that runs on one of ours | settle, rescue |
| `saq:<queue>:crashes` | hash | deaths of workers that ran a job, a line each | finish, abort, a new job of the key |
| `saq:<queue>:dead` | sorted set | ids of dead letters by the millisecond of their death | replay, discard, retry |
| `saq:<queue>:dead:records` | hash | what each dead job's record was | replay, discard |
| `saq:<queue>:dead:reasons` | hash | why it died, and the deaths of its workers | replay, discard |
| `saq:<queue>:aborts` | hash | whether a running job is to end at once, and why | finish, one hour |
| `saq:<queue>:controls` | hash | number and control of jobs: `lua/shared/control.lua` | finish, abort |
| `saq:<queue>:orders` | hash | the last number that was given | with the last control |
| `saq:<queue>:ready` | sorted set | jobs with a priority that may run; ` tenants`, ` turns`, ` tenant <...>` | empty |
| `saq:<queue>:parked` | hash | the lane in which a job waits | the job is taken |
| `saq:<queue>:lanes` | sorted set | lanes by the ms at which their next job is let go; inf while one is going | empty |
| `saq:<queue>:lane:<lane>` | sorted set | the jobs that wait there; ` tenants`, ` turns`, ` tenant <tenant>` | empty |
| `saq:<queue>:rate:<name>` | string | up to which microsecond a rate is used | a minute later |
| `saq:<queue>:slots:<name>` | set | ids of the jobs that hold the slots of a concurrency | settle, rescue |
| `saq:<queue>:unique:<what>` | string | id of the job that stands for others | its period, or finish, abort |
| `saq:<queue>:weights` | hash | shares of tenants that an operator has set | set to 1 |
| `saq:<queue>:paused` | string | when the queue was paused, in milliseconds | resume |
| `saq:<queue>:strikes` | hash | tasks, or values of their arguments, that do not run | restore |
| `saq:<queue>:flows` | set | ids of workflows that have not ended | empty |
| `saq:<queue>:flow:<key>` | hash | a workflow's nodes and edges, see `lua/shared/flow.lua` | its ttl, after its end |
| `saq:<queue>:flow:<key>:states` | hash | the state of each of its nodes | with it |
| `saq:<queue>:flow:<key>:results` | hash | what its nodes returned, or failed with | with it |
| `saq:<queue>:relay` | stream | what workflows have to tell other slots of a cluster, see `relay.py` | empty |
| `saq:<queue>:relay:lock` | string | the worker that tells it | 5 s |
| `saq:<queue>:run:<key>` | string | the run of a node whose workflow is in another slot | one day after its end |
| `saq:<queue>:fired:<key>` | string | that a cron job of SAQ was queued for its due time | one day |
| `saq:<queue>:schedules` | hash | what the code says of each schedule, and what operators changed | removed |
| `saq:<queue>:schedules:due` | sorted set | schedules by the millisecond they are due at; no paused ones | removed |
| `saq:<queue>:schedules:fires` | hash | newest job and last ten due times of each, a line each | removed |
| `saq:<queue>:wake` | channel | a due time or an abort is new | - |
| `saq:<queue>:schedules:birth` | string | by which workers see that Redis has lost its data | one day |
| `saq:<queue>:schedules:wake` | channel | when the next schedule is due, after a fire; that one was changed | - |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Self


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one queue."""

    queue: str
    queued: str = field(init=False)
    active: str = field(init=False)
    incomplete: str = field(init=False)
    leases: str = field(init=False)
    claims: str = field(init=False)
    crashes: str = field(init=False)
    aborts: str = field(init=False)
    dead: str = field(init=False)
    dead_records: str = field(init=False)
    dead_reasons: str = field(init=False)
    controls: str = field(init=False)
    parked: str = field(init=False)
    weights: str = field(init=False)
    paused: str = field(init=False)
    strikes: str = field(init=False)
    schedules: str = field(init=False)
    schedules_due: str = field(init=False)
    schedules_fires: str = field(init=False)
    schedules_birth: str = field(init=False)
    schedules_wake: str = field(init=False)
    flows: str = field(init=False)
    relay: str = field(init=False)
    relay_lock: str = field(init=False)
    wake: str = field(init=False)
    saq_sweep_lock: str = field(init=False)
    saq_schedule_lock: str = field(init=False)

    def __post_init__(self) -> None:
        names = {"saq_sweep_lock": "sweep", "saq_schedule_lock": "schedule"}
        for name in self.__slots__:
            if name != "queue":
                ending = names.get(name, name.replace("_", ":"))
                object.__setattr__(self, name, f"saq:{self.queue}:{ending}")

    @property
    def of_advance(self) -> list[str]:
        """The keys of ``advance.lua``, without jobs."""
        shared = [self.queued, self.active, self.incomplete, self.leases, self.claims, self.aborts, self.crashes]
        return [*shared, self.dead, self.dead_records, self.dead_reasons]

    @property
    def of_rescue(self) -> list[str]:
        """The keys of ``rescue.lua``."""
        return [self.queued, self.active, self.incomplete, self.leases, self.claims, self.crashes]

    @property
    def of_fire(self) -> list[str]:
        """The keys of ``schedules_fire.lua``, without jobs."""
        return [self.schedules, self.schedules_due, self.schedules_fires, self.incomplete]

    def fired(self, key: str) -> str:
        """Return the key that remembers a job which is to be accepted once."""
        return f"saq:{self.queue}:fired:{key}"

    def run(self, key: str) -> str:
        """Return the key that says which run of a node was accepted."""
        return f"saq:{self.queue}:run:{key}"

    def abort_mark(self, key: str) -> str:
        """Return the key of SAQ's abort mark, as ``Job.abort_id`` has it."""
        return f"saq:abort:{self.queue}:{key}"


class FlowKeys(NamedTuple):
    """The keys of one workflow, and of all that have not ended."""

    flow: str
    states: str
    results: str
    flows: str

    @classmethod
    def of(cls, flow: str) -> Self:
        """Return the keys of the workflow ``<queue>:<key>``."""
        queue, _, key = flow.partition(":")
        name = f"saq:{queue}:flow:{key}"
        return cls(name, f"{name}:states", f"{name}:results", f"saq:{queue}:flows")
