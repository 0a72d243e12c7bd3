"""Looking: how many jobs a queue has, where they are, and which of them nobody will let go.

Where in the flow: beside the queue's writes, for people and their tools. Each answer is one script's, so it is of one
moment.

Invariants, each a test in ``tests/redis/test_looking.py``:

* each job that has not ended is counted once, and is on one page;
* a lane whose next job somebody will let go is never called stranded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from knapsaq.claims import ClaimingQueue
from knapsaq.errors import OptionError
from knapsaq.job import Job
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors
from knapsaq.redis.line import text
from knapsaq.timing import from_ms

Place = Literal["active", "queued", "parked", "scheduled"]

PLACES: tuple[Place, ...] = ("active", "queued", "parked", "scheduled")
ALL_PLACES = "".join(place[0] for place in PLACES)
MAX_PAGE = 10_000
LOOKED_AT_ONCE = 10_000
JUDGED_AT_ONCE = 100_000
LAST_SECOND = 253_402_300_799  # of the year 9999


@dataclass(frozen=True, slots=True)
class Counts:
    """How many jobs a queue has.

    Attributes:
        queued: They may run as soon as a worker has room, those with a priority or a tenant included.
        active: They run.
        scheduled: They are due later.
        parked: They wait for a rate, a concurrency, or the end of a strike. Of more than 10,000 those count too that
            were let go a moment ago.
        incomplete: All that have not ended.
        dead: Dead letters.
    """

    queued: int
    active: int
    scheduled: int
    parked: int
    incomplete: int
    dead: int


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job that has not ended, and where it is.

    Attributes:
        key: Its key.
        place: ``"active"``, ``"queued"``, ``"parked"`` or ``"scheduled"``.
        job: The job; None where its record is gone or cannot be read.
        worker: The worker that runs it, if it is known.
        lane: What a parked one waits for: ``r:`` and the name of a rate, ``c:`` and the name of a concurrency, ``s:``
            and the id of a strike.
        due: When a scheduled one may run.
    """

    key: str
    place: Place
    job: Job[Any] | None
    worker: str | None = None
    lane: str | None = None
    due: datetime | None = None


class LookingQueue(ClaimingQueue):
    """SAQ's queue with claims, and what there is to see of its jobs; ``Queue`` is the whole."""

    async def counts(self) -> Counts:
        """Return how many jobs there are, by where they are.

        Raises:
            BrokerError: Redis cannot be reached.
        """
        own = self.keys
        keys = [own.queued, own.active, own.incomplete, own.dead]
        with broker_errors(self.settings.broker_url):
            return Counts(*await scripts.counts(self.line, keys, [LOOKED_AT_ONCE]))

    async def open_jobs(self, place: Place | None = None, *, offset: int = 0, limit: int = 100) -> list[OpenJob]:
        """Return a page of the jobs that have not ended: active, then queued, parked and scheduled ones.

        Active ones come as they began and scheduled ones as they are due. Queued ones with a priority come first, those
        of tenants last. Parked ones come in no order, and of more than 10,000 only some.

        Args:
            place: Only those of one place.
            offset: How many are left out, from 0.
            limit: How many at most, 1 to 10,000.

        Raises:
            OptionError: One is none of these.
            BrokerError: Redis cannot be reached.
        """
        if place is not None and place not in PLACES:
            raise OptionError("open_jobs()", "place", place, ", ".join(map(repr, PLACES)))
        _check_number("offset", offset, 0)
        _check_number("limit", limit, 1, MAX_PAGE)
        return await self.page(place[0] if place else ALL_PLACES, offset, limit)

    async def page(self, letters: str, offset: int, limit: int) -> list[OpenJob]:
        """Do the same for places by their first letters, with no look at the numbers."""
        args: list[scripts.Argument] = [letters, offset, limit, LOOKED_AT_ONCE]
        with broker_errors(self.settings.broker_url):
            found = await scripts.page(self.line, [self.keys.queued, self.keys.active, self.keys.incomplete], args)
        return [self._open_job(*found[at : at + 4]) for at in range(0, len(found), 4)]

    async def stranded(self) -> Mapping[str, int]:
        """Return the lanes whose jobs nobody lets go, and how many each has; a worker mends them within a minute.

        A lane, as in ``OpenJob``, is one of them if it has no due time, no job holds it, and none was let go from it.
        Where more than 100,000 jobs are parked, nothing is looked at.

        Raises:
            BrokerError: Redis cannot be reached.
        """
        with broker_errors(self.settings.broker_url):
            found = await scripts.stranded(self.line, [self.keys.incomplete], [JUDGED_AT_ONCE])
        return {text(lane): int(number) for lane, number in zip(found[::2], found[1::2], strict=True)}

    def _open_job(self, job_id: bytes, letter: bytes, record: bytes, detail: bytes) -> OpenJob:
        key = self.job_key_from_id(text(job_id))
        place = next(each for each in PLACES if each[0] == text(letter))
        job = self.deserialize(record)
        if place == "active":
            worker = text(detail).partition(" ")[0] or (job.worker_id if job else None)
            return OpenJob(key, place, job, worker=worker or None)
        if place == "scheduled":
            return OpenJob(key, place, job, due=from_ms(int(min(float(detail), LAST_SECOND) * 1000)))
        return OpenJob(key, place, job, lane=text(detail) or None)


def _check_number(name: str, given: Any, least: int, most: int | None = None) -> None:
    whole = isinstance(given, int) and not isinstance(given, bool)
    if not whole or given < least or (most is not None and given > most):
        expected = f"a whole number from {least}" + (f" to {most:,}" if most else "")
        raise OptionError("open_jobs()", name, given, expected)
