"""Exchange: a worker gives outcomes and gets jobs, in one call.

Where in the flow: between the worker's slots and ``Queue.advance``. While jobs end as fast as they come, the next call
is on its way while the jobs of the last one run, so neither Redis nor the worker waits for the other.

Invariants, each a test in ``tests/redis/test_exchange.py``, ``test_worker.py`` or ``test_fencing.py``:

* a worker never asks for more jobs than it has room for, calls on their way included;
* an outcome is kept until Redis has it, also through an outage;
* an outcome that Redis has is never reported as lost;
* jobs that a call claimed but whose reply was lost are put back;
* a job that was claimed ahead never waits for another job of its worker.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

from redis.exceptions import RedisError

from knapsaq import events
from knapsaq.claims import Advance, Settlement
from knapsaq.errors import OptionError
from knapsaq.queue import Queue
from knapsaq.running import Running
from knapsaq.wakeup import Wakeup

CLAIMED_A_CALL = SETTLED_A_CALL = 500
BYTES_A_CALL = 4 * 1024 * 1024
COMPARED_SECONDS = 60.0  # between two comparisons of what the worker runs with its claims in Redis
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0  # seconds between attempts to reach Redis

_at_work: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakSet[Exchange]] = WeakKeyDictionary()
"""The exchanges of the workers on each loop: a task of one may block the others."""


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
        wakeup: Tells it of pushes.

    Attributes:
        stop: Set once it takes no more jobs.
        stop_by: The loop's time after which outcomes are given up then, if Redis is away.
        ahead: The claim of an idle worker that waits for the next push. While it stands, no other call claims.
        lapses: Returns how often the worker's lease may have run out.
    """

    def __init__(
        self, queue: Queue, worker: str, concurrency: int, running: Mapping[str, Running], wakeup: Wakeup
    ) -> None:
        if not worker or worker.split() != [worker]:
            raise OptionError("Worker", "id", worker, "text without blanks, as claims tell workers apart by them")
        self._queue = queue
        self._worker = worker
        self._half = -(-concurrency // 2)
        self._running = running
        self._wakeup = wakeup
        self.stop = asyncio.Event()
        self.stop_by = 0.0
        self.ahead: asyncio.Task[Advance | None] | None = None
        self.lapses: Callable[[], int] = lambda: 0
        self._lapses_then = self._told_of_work = 0
        self._neighbours: WeakSet[Exchange] = WeakSet()
        self._is_free: Callable[[], bool] = lambda: True
        self._outbox: list[Settlement] = []
        self._calls: deque[_Call] = deque()
        self._backlog = self._away = self._doubtful = False
        self._sent_again: set[tuple[str, str]] = set()  # job and head of what may have been written before
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

    def begin(self, is_free: Callable[[], bool]) -> None:
        """Begin to work on the running loop; ``is_free`` tells whether nothing of the worker's could block it."""
        self._neighbours = _at_work.setdefault(asyncio.get_running_loop(), WeakSet())
        self._neighbours.add(self)
        self._is_free = is_free

    def end(self) -> None:
        """Leave the loop to the other workers."""
        self._neighbours.discard(self)

    def watch(self) -> None:
        """Hear of the next push; a worker alone on its loop, with nothing to run, claims what it brings in one step."""
        is_alone = len(self._neighbours) <= 1 and not self._running and self._is_free()
        if not is_alone or self._queue.clock is not None:
            self._wakeup.watch()
        elif self.ahead is None:
            self._told_of_work = 0
            self._lapses_then = self.lapses()
            self.ahead = self._wakeup.claim_ahead(self._worker)

    def hear_of_work(self) -> None:
        """Take word that a job waits. A claim ahead that has not got it the second time has lost its line."""
        self._told_of_work += 1
        self._wakeup.signal.set()

    async def next(self, room: int) -> tuple[Advance | None, bool]:
        """Send what there is and return what the oldest call gave; None without Redis, after a while.

        Args:
            room: How many jobs could be started.

        Returns:
            What the call gave, and whether it left the queue empty.
        """
        if self.ahead is not None:
            if self.stop.is_set() or self._doubtful or self._told_of_work > 1 or self.ahead.cancelled():
                await self._wakeup.unblock()
            if self.ahead.done():
                return self._come_ahead(self.ahead)
            room = 0
        room -= sum(call.want for call in self._calls)
        if not self._calls:
            # A call that was given up may have been served later, by a proxy that had kept it.
            now = asyncio.get_running_loop().time()
            self._compared_at = self._compared_at or now
            self._doubtful |= self.ahead is None and now > self._compared_at + COMPARED_SECONDS
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
        drained = taken < call.want and not (step and step.more)
        return step, drained or self.ahead is not None

    def _come_ahead(self, ahead: asyncio.Task[Advance | None]) -> tuple[Advance | None, bool]:
        self.ahead = None
        step = None if ahead.cancelled() else ahead.result()
        if step is None or self.lapses() != self._lapses_then:
            # The answer was lost; or the process stood still with it, and somebody else may have the job by now.
            self._doubtful = True
            return None, False
        return (step if step.claims or step.unreadable else None), False

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
            if self._doubtful:
                await self._put_back_unknown()
            step = await self._queue.advance(self._worker, settlements, want)
            if self._away:
                events.broker_back(f"worker {self._worker}")
                self._away = False
        except BaseException as error:
            # They may not have been written, and the call may have claimed jobs that we have not heard of.
            self._doubtful = True
            self._outbox = settlements + self._outbox
            self._sent_again.update((settlement.job_id, settlement.head) for settlement in settlements)
            if not isinstance(error, (RedisError, OSError)):
                raise
            await self._pause(error)
            return None
        self._pause_seconds = FIRST_PAUSE
        self._tell_refused(settlements, step)
        if self._sent_again:
            self._sent_again.difference_update((settlement.job_id, settlement.head) for settlement in settlements)
        return step

    def _tell_refused(self, settlements: list[Settlement], step: Advance) -> None:
        again = 0
        for settlement, written in zip(settlements, step.settled, strict=True):
            if written or settlement.verb == "stamp":
                continue
            if (settlement.job_id, settlement.head) not in self._sent_again:
                events.claim_lost(settlement.job_id)
            elif settlement.verb != "release":  # which is refused behind the outcome of the same claim
                again += 1  # it has been written the first time, as a rule
        if again:
            events.refused_again(self._worker, again)

    async def _put_back_unknown(self) -> None:
        """Look which claims the worker has without knowing; before it claims more, as lost replies may go on."""
        # Where an outcome of the same claim is on its way, that is written and the release refused.
        found = await self._queue.unknown_claims(self._worker, self._running.keys())
        lost = [one for one in found if (one.job_id, one.head) not in self._sent_again]  # nor released already
        self._sent_again.update((settlement.job_id, settlement.head) for settlement in lost)
        self._outbox += lost
        self._doubtful = False
        self._compared_at = asyncio.get_running_loop().time()

    async def _pause(self, error: BaseException) -> None:
        if not self._away:
            events.broker_lost(f"worker {self._worker}", error)
            self._away = True
        patient = self._outbox and asyncio.get_running_loop().time() < self.stop_by
        if self.stop.is_set() and not self._running and not patient:
            if lost := [settlement.job_id for settlement in self._outbox if settlement.verb != "stamp"]:
                events.outcomes_given_up(self._worker, lost)
            self._outbox.clear()  # Redis does not come back in time; the lease will hand the jobs back
            self._sent_again.clear()
            self._doubtful = False
            return
        await asyncio.sleep(self._pause_seconds)
        self._pause_seconds = min(self._pause_seconds * 2, LONGEST_PAUSE)
