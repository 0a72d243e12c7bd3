"""Exchange: a worker gives outcomes and gets jobs, in one call.

Where in the flow: between the worker's slots and ``Queue.advance``. While jobs end as fast as they come, the next call
is on its way while the jobs of the last one run, so neither Redis nor the worker waits for the other.

Invariants, each a test in ``tests/redis/test_worker.py`` or ``test_fencing.py``:

* a worker never asks for more jobs than it has room for, calls on their way included;
* an outcome is kept until Redis has it, also through an outage;
* jobs that a call claimed but whose reply was lost are put back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from redis.exceptions import RedisError

from knapsaq import events
from knapsaq.claims import Advance, Settlement
from knapsaq.queue import Queue
from knapsaq.running import Running

CLAIMED_A_CALL = SETTLED_A_CALL = 500
BYTES_A_CALL = 4 * 1024 * 1024
COMPARED_SECONDS = 60.0  # between two comparisons of what the worker runs with its claims in Redis
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts to reach Redis


@dataclass(slots=True)
class _Call:
    want: int
    reply: asyncio.Task[Advance | None]


class Exchange:
    """The calls of one worker.

    Args:
        queue: The queue.
        worker: The worker's id.
        concurrency: How many jobs it runs at once.
        running: What it runs, by job id.
        stop: Set once it takes no more jobs.
    """

    def __init__(
        self, queue: Queue, worker: str, concurrency: int, running: Mapping[str, Running], stop: asyncio.Event
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._half = -(-concurrency // 2)
        self._running = running
        self.stop = stop
        self._outbox: list[Settlement] = []
        self._calls: deque[_Call] = deque()
        self._backlog = self._away = self._doubtful = False
        self._sent_again: set[str] = set()
        self._seen_updates = 0
        self._compared_at = 0.0
        self._pause_seconds = FIRST_PAUSE

    def post(self, *settlements: Settlement) -> None:
        """Take outcomes; they leave with the next call."""
        self._outbox += settlements

    @property
    def pending(self) -> bool:
        """Whether anything waits to be sent or to be heard."""
        return bool(self._outbox or self._calls or self._doubtful)

    async def next(self, room: int) -> tuple[Advance | None, bool]:
        """Send what there is and return what the oldest call gave; None without Redis, after a while.

        Args:
            room: How many jobs could be started.

        Returns:
            What the call gave, and whether it left the queue empty.
        """
        room -= sum(call.want for call in self._calls)
        if not self._calls:
            # A call that was given up may have been served later, by a proxy that had kept it.
            now = asyncio.get_running_loop().time()
            self._compared_at = self._compared_at or now
            self._doubtful |= now > self._compared_at + COMPARED_SECONDS
            room -= self._send(room)
        if self._backlog and not self._doubtful and len(self._calls) == 1:
            want = min(room, self._half)
            if want > 0 and len(self._outbox) + want >= self._half:
                self._send(room)
        call = self._calls.popleft()
        try:
            step = await call.reply
        except BaseException:
            self._doubtful = True  # it may have claimed jobs
            raise
        taken = len(step.claims) + len(step.unreadable) if step else 0
        self._backlog = 0 < call.want == taken
        return step, taken < call.want

    def _send(self, room: int) -> int:
        want = min(room, CLAIMED_A_CALL, self._half if self._backlog else room)
        size = count = 0
        for settlement in self._outbox[:SETTLED_A_CALL]:
            size += len(settlement.payload)
            if count and size > BYTES_A_CALL:
                break
            count += 1
        settlements, self._outbox = self._outbox[:count], self._outbox[count:]
        self._calls.append(_Call(want, asyncio.create_task(self._advance(settlements, want))))
        return want

    def _fresh(self, settlement: Settlement) -> Settlement:
        """Return a stamp as its job is now: the task may have written it since."""
        running = self._running.get(settlement.job_id)
        if settlement.verb != "stamp" or running is None or running.claim.token != settlement.token:
            return settlement
        return self._queue.stamp(running.claim) or settlement

    async def _advance(self, settlements: list[Settlement], want: int) -> Advance | None:
        """Make one call; without Redis keep the settlements, wait a while and return None."""
        # Looked at here, as a task may write its job in the turn between; from here on the line keeps the order.
        if self._sent_again or self._seen_updates != self._queue.updated:
            settlements = [self._fresh(settlement) for settlement in settlements]
        if not self._outbox:
            self._seen_updates = self._queue.updated
        try:
            step = await self._queue.advance(self._worker, settlements, want)
            if self._away:
                events.broker_back(f"worker {self._worker}")
                self._away = False
            if self._doubtful:
                known = {*self._running, *(claim.job_id for claim in step.claims)}
                known.update(settlement.job_id for settlement in self._outbox + step.unreadable)
                self._outbox += await self._queue.unknown_claims(self._worker, known)
                self._doubtful = False
                self._compared_at = asyncio.get_running_loop().time()
        except BaseException as error:
            # They may not have been written, and the call may have claimed jobs that we have not heard of.
            self._doubtful = True
            self._outbox = settlements + self._outbox
            self._sent_again.update(settlement.job_id for settlement in settlements)
            if not isinstance(error, (RedisError, OSError)):
                raise
            await self._pause(error)
            return None
        self._pause_seconds = FIRST_PAUSE
        for settlement, written in zip(settlements, step.settled, strict=True):
            # One that is refused the second time has been written the first time, as a rule.
            if not written and settlement.verb != "stamp" and settlement.job_id not in self._sent_again:
                events.claim_lost(settlement.job_id)
        if self._sent_again:
            self._sent_again.difference_update(settlement.job_id for settlement in settlements)
        return step

    async def _pause(self, error: BaseException) -> None:
        if not self._away:
            events.broker_lost(f"worker {self._worker}", error)
            self._away = True
        if self.stop.is_set() and not self._running and self._pause_seconds >= LONGEST_PAUSE:
            self._outbox.clear()  # Redis does not come back in time; the lease will hand the jobs back
            self._doubtful = False
        await asyncio.sleep(self._pause_seconds)
        self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE)
