"""Explaining: what a job waits for.

Where in the flow: beside the other questions that a queue answers. One script looks at everything in one moment, so the
answer never mixes two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from knapsaq.claims import ClaimingQueue
from knapsaq.codec import SECRET
from knapsaq.environment import HIDDEN
from knapsaq.job import UNKNOWN_SINCE, Job
from knapsaq.reasons import Reason
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors
from knapsaq.redis.line import text
from knapsaq.timing import from_ms

SHOWN_HOLDERS = 5


class _Look(NamedTuple):
    """What ``lua/why.lua`` returns."""

    now: int
    record: bytes
    score: bytes
    claim: bytes
    active: int
    lane: bytes
    lane_due: bytes
    ahead: int
    holders: list[bytes]
    paused: int
    strike: bytes
    workers: int


class ExplainingQueue(ClaimingQueue):
    """SAQ's queue with claims, and why its jobs wait; ``Queue`` is the whole."""

    async def reasons(self, job: Job[Any]) -> list[Reason]:
        """Return why a job does not run, the most telling reason first; see ``Job.why``."""
        with broker_errors(self.settings.broker_url):
            reply = await scripts.why(self.line, [self.keys.incomplete, self.job_id(job.key)], [self.now_argument])
        look = _Look(*reply)
        stored = self.deserialize(look.record)
        if stored is not None:
            job.replace(stored)
        if look.claim:
            worker = text(look.claim).partition(" ")[0]
            return [Reason("running", f"worker {worker} runs it")]
        if look.active:
            return [Reason("running", "a worker of SAQ runs it")]
        if not look.score:
            how = job.status.value if stored is not None else "not in Redis any more"
            return [Reason("ended", f"it has ended: it is {how}")]
        return [*self._waits(job, look), *self._everywhere(look)]

    def _waits(self, job: Job[Any], look: _Look) -> Iterator[Reason]:
        due = float(look.score)
        if due > 0:
            yield self._scheduled(job, int(due * 1000))
        elif look.lane:
            yield self._parked(job, look)
        else:
            yield Reason("queued", f"{_jobs(look.ahead)} ahead of it in queue {self.name}", ahead=look.ahead)

    def _scheduled(self, job: Job[Any], due_ms: int) -> Reason:
        until = from_ms(due_ms)
        when = f"{until:%Y-%m-%d %H:%M:%S} UTC"
        if isinstance(since := job.extras.get(UNKNOWN_SINCE), int):
            words = f"no worker has known task {job.function!r} since {from_ms(since):%Y-%m-%d %H:%M:%S} UTC"
            return Reason("unknown task", f"{words}; the next one looks at {when}", until)
        what = "its next attempt is due" if job.attempts or job.error else "it is scheduled"
        return Reason("scheduled", f"{what} at {when}", until)

    def _parked(self, job: Job[Any], look: _Look) -> Reason:
        kind, _, name = text(look.lane).partition(":")
        behind = f", with {_jobs(look.ahead)} before it" if look.ahead else ""
        if kind == "s":
            rule = msgspec.json.decode(look.strike) if look.strike else {"task": job.function}
            words = f"task {rule['task']!r}{_argument(rule)} was struck; queue.restore() lets it run"
            return Reason("struck", words, ahead=look.ahead)
        if kind == "c":
            holders = tuple(self.job_key_from_id(text(job_id)) for job_id in sorted(look.holders))
            shown = ", ".join(holders[:SHOWN_HOLDERS]) + (", ..." if len(holders) > SHOWN_HOLDERS else "")
            words = f"the slots of {name!r} are held by job {shown}" if holders else f"it waits for a slot of {name!r}"
            return Reason("concurrency", words + behind, ahead=look.ahead, jobs=holders)
        intervals = [rate[1] for rate in job.control.get("rates", ()) if rate[0] == name]
        first = float(look.lane_due or look.now)
        until = from_ms(int(first + look.ahead * max(intervals, default=0) / 1000))
        words = f"the rate limit {name!r} lets it run at {until:%Y-%m-%d %H:%M:%S} UTC"
        return Reason("rate limit", words + behind, until, look.ahead)

    def _everywhere(self, look: _Look) -> Iterator[Reason]:
        """Yield what keeps every job of the queue waiting."""
        if look.paused:
            yield Reason("paused", f"queue {self.name} is paused; queue.resume() goes on")
        if not look.workers:
            yield Reason("no worker", f"no worker serves queue {self.name}")


def _argument(rule: Mapping[str, Any]) -> str:
    """Return the argument of a strike in words; a value that sounds secret is hidden."""
    if "parameter" not in rule:
        return ""
    return f" with {rule['parameter']}={HIDDEN if SECRET.search(rule['parameter']) else repr(rule['value'])}"


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number:,} jobs"
