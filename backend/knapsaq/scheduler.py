"""Scheduler: fires the schedules of one queue when they are due; every worker has one, and none leads.

Where in the flow: beside the worker's loop. It sleeps until the earliest due time, asks what is due and fires it: two
calls, however many schedules. Who was first the last time goes at once; the others wait for some 25 ms more and hear
meanwhile that it has been done, so that a fleet makes no more calls than one worker, and a dead one is not missed.

Invariants, each a test in ``tests/redis/test_scheduler.py``:

* each due time fires once in the fleet, however many workers there are and whichever of them die;
* between fires nothing is asked, but for one look a minute;
* what the code says counts as soon as a worker starts; what operators have changed stays.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import msgspec

from knapsaq import events
from knapsaq.definitions import KEEP, UNREADABLE, Change, Held, Reckoning, Record, bound, coded, kept, reckon
from knapsaq.errors import InvalidArgumentsError, PayloadTooLargeError
from knapsaq.queue import Queue
from knapsaq.scheduling import Row
from knapsaq.task import Task
from knapsaq.timing import from_ms

NET_SECONDS = 60.0
"""How long nothing need be heard until it looks by itself."""
TURN_MS = (15, 35)
"""How much longer than who fired last the others wait."""
CLOCK_SECONDS = 0.02  # between two looks at a clock that a test moves
ROWS_A_CALL = 500
BYTES_A_CALL = 4 * 1024 * 1024
ATTEMPTS = 20  # how often what is stored may change while a worker brings it up to date
MISSED, TOO_MANY = "missed: no worker ran in time", "missed: too many at once"
FILE = "file:"
FIRED = re.compile(rb"fired (?P<earliest>\d*) (?P<now>\d+) (?P<worker>.+)")


class Scheduler:
    """Fires the schedules of one queue.

    Args:
        queue: The queue.
        tasks: The tasks whose schedules this program has; those of other queues are not fired.
        worker: Who fires, unlike all others.

    Raises:
        InvalidArgumentsError: A schedule gives its task too few arguments.
    """

    def __init__(self, queue: Queue, tasks: Iterable[Task[..., Any, Any]], worker: str = "") -> None:
        self._queue, self._store = queue, queue.schedules
        self._worker = worker or f"{id(self):x}"
        self._tasks = {one.name: task for task in tasks for one in task.schedules}
        every = {
            schedule.name: coded(task, schedule, self._store.timezone)
            for task in dict.fromkeys(self._tasks.values())
            for schedule in task.schedules
        }
        self._places = {name: self._tasks[name].options.queue for name in every}
        self._code = {name: code for name, code in every.items() if self._places[name] == queue.name}
        self._elsewhere = {name: code for name, code in every.items() if name not in self._code}
        self._reconciled = False
        self._birth = b""
        self._goes_first = False
        self._news = asyncio.Event()
        self._look = True
        self._earliest_ms: int | None = None
        self._seen_ms, self._seen_at = 0, 0.0
        self._unreadable: set[Held] = set()

    async def run(self) -> None:
        """Fire what is due, until cancelled."""
        while True:
            await self.run_once()
            while not await self._turn():
                pass

    async def run_once(self) -> int:
        """Fire all that is due and return how many jobs that gave."""
        if not self._reconciled:
            await self.reconcile()
        fired = 0
        while True:
            self._look = False
            due = await self._store.due(len(self._unreadable))
            held = [one for one in due.held if one not in self._unreadable]
            self._note(due.now_ms, due.later_ms)
            self._goes_first = False
            if self._code and not due.held and await self._store.birth() != self._birth:
                await self.reconcile()
            fired += await self._fire(due.now_ms, held)
            if not self._goes_first or not self._has_work():
                return fired

    def hear(self, message: bytes) -> None:
        """Take what other workers and operators say of the schedules; anything unknown makes it look."""
        match = FIRED.fullmatch(message)
        if match is None:
            self._look = True
        elif match["worker"] != self._worker.encode():
            self._goes_first = False
            self._note(int(match["now"]), int(match["earliest"]) if match["earliest"] else None)
        self._news.set()

    async def reconcile(self) -> None:
        """Store what the code says: new schedules, changed ones, and take away those that have left it."""
        self._birth = await self._store.birth() if self._code else b""
        for _ in range(ATTEMPTS):
            now_ms, held = await self._store.read()
            before = {one.name: one for one in held}
            if await self._move(now_ms, before):
                continue
            changes = [*self._changes(now_ms, before)]
            answers = await self._store.write(changes)
            for change, stored in zip(changes, answers, strict=True):
                if stored:
                    self._tell(change, before.get(change.name))
            if all(answers):
                break
        self._reconciled = True
        self._look = True

    async def _move(self, now_ms: int, held: dict[str, Held]) -> bool:
        """Let schedules whose tasks have changed their queue keep their due times and what operators have changed."""
        moved, here = False, self._queue.name
        arriving = [name for name in self._code if name not in held]
        for other in self._store.others if arriving else ():
            for one in await self._store.read_in(other, arriving):
                moved |= await self._moved(one, other, here, self._code[one.name], now_ms)
        for name in held.keys() & self._elsewhere.keys():
            if self._places[name] in self._store.others:
                moved |= await self._moved(held[name], here, self._places[name], self._elsewhere[name], now_ms)
        return moved

    async def _moved(self, held: Held, source: str, target: str, code: Record, now_ms: int) -> bool:
        before = _readable(held)
        if before is None or before.code is None or before.task != code.task or not _was_ours(before.module):
            return False
        record = kept(self._tasks[held.name], code, before.edit)
        change = Change(held.name, held.version, record, _next_due(record, before, held, now_ms))
        if not await self._store.move(source, target, change):
            return False
        events.schedule_moved(held.name, source, target)
        return True

    def _changes(self, now_ms: int, held: dict[str, Held]) -> Iterator[Change]:
        for name, code in self._code.items():
            one = held.get(name) or Held(name, b"", None)
            before = _readable(one)
            if before is None and _decodes(one):
                continue  # its moments cannot be reckoned here, as where the zones are older; others can
            # One that was added at run time, and is in the code now, is the code's.
            edit = before.edit if before is not None and before.code is not None else {}
            record = kept(self._tasks[name], code, edit)
            self._check(name, record)
            if self._is_too_large(name, record):
                continue
            due_ms = _next_due(record, before, one, now_ms)
            if record.encode() != one.raw or due_ms not in (KEEP, one.due_ms):
                yield Change(name, one.version, record, due_ms)
        for name in held.keys() - self._code.keys():
            before = _readable(held[name])
            if before is not None and before.code is not None and _was_ours(before.module):
                yield Change(name, held[name].version, None, None)

    def _tell(self, change: Change, held: Held | None) -> None:
        what = "gone" if change.record is None else "changed" if change.version else "new"
        events.schedule_reconciled(self._queue.name, change.name, what)
        before = _readable(held) if held else None
        if before is not None and before.edit and not (change.record and change.record.edit):
            events.schedule_edit_lost(self._queue.name, change.name, tuple(before.edit))

    def _is_too_large(self, name: str, record: Record) -> bool:
        size, limit = len(record.encode()), self._queue.settings.max_payload_bytes
        if size > limit:
            events.schedule_unreadable(self._queue.name, name, PayloadTooLargeError("its record", size, limit))
        return size > limit

    def _check(self, name: str, record: Record) -> None:
        """Tell where an operator's arguments do not fit the task any more."""
        if "kwargs" in record.edit:
            try:
                bound(self._tasks[name], (), {}, record.effective.kwargs)
            except InvalidArgumentsError as error:
                events.schedule_misfits(self._queue.name, name, error)

    async def _fire(self, now_ms: int, due: Iterable[Held]) -> int:
        """Fire schedules, as many in a call as it may carry, and return how many jobs that gave."""
        rows: list[Row] = []
        size = fired = 0
        for held in due:
            try:
                own = await self._rows(held, now_ms)
            except UNREADABLE as error:
                events.schedule_unreadable(self._queue.name, held.name, error)
                self._unreadable.add(held)
                continue
            weight = sum(len(row.payload) for row in own)
            if rows and (len(rows) + len(own) > ROWS_A_CALL or size + weight > BYTES_A_CALL):
                fired += await self._shoot(rows)
                rows, size = [], 0
            rows += own
            size += weight
        return fired + await self._shoot(rows) if rows else fired

    async def _shoot(self, rows: list[Row]) -> int:
        shot = await self._store.fire(rows, self._worker)
        self._note(shot.now_ms, shot.earliest_ms)
        self._goes_first |= any(shot.answers)
        for row, answer in zip(rows, shot.answers, strict=True):
            if answer == 1 and row.note in (MISSED, TOO_MANY):
                moment = from_ms(row.moment_ms).isoformat()
                events.schedule_missed(self._queue.name, row.held.name, moment, row.note == TOO_MANY)
            elif answer == 2:  # noqa: PLR2004 - see the script
                events.schedule_skipped(self._queue.name, row.held.name)
        return sum(answer == 1 and bool(row.payload) for row, answer in zip(rows, shot.answers, strict=True))

    async def _rows(self, held: Held, now_ms: int) -> list[Row]:
        """Return what is to be done about a schedule that is due."""
        record = Record.decode(held.raw)
        counts = record.effective
        reckoned = reckon(counts, held.due_ms or 0, now_ms)
        rows = self._missed(held, reckoned, overlap=counts.overlap)
        for moment_ms in reckoned.fires:
            row = Row(held, reckoned.next_ms, counts.overlap, moment_ms, key_of(held.name, moment_ms))
            run_ms = moment_ms + counts.delay_ms(held.name, moment_ms)
            job = record.job(row.key)
            job.scheduled = run_ms // 1000 if run_ms % 1000 == 0 else run_ms / 1000  # type: ignore[assignment]
            try:
                payload = await self._queue.prepare(job)
            except Exception as error:  # noqa: BLE001 - too large, or a hook's fault: it costs this one fire
                events.schedule_refused(self._queue.name, held.name, error)
                rows.append(row._replace(note=" ".join(f"refused: {error}".split())))
            else:
                rows.append(row._replace(payload=payload, score=run_ms / 1000))
        return rows

    def _missed(self, held: Held, reckoned: Reckoning, *, overlap: bool) -> list[Row]:
        if reckoned.missed_ms is None:
            return []
        note = TOO_MANY if reckoned.dropped else MISSED
        key = key_of(held.name, reckoned.missed_ms)
        return [Row(held, reckoned.next_ms, overlap, reckoned.missed_ms, key, note)]

    async def _turn(self) -> bool:
        """Wait until this worker should look; False where another one has been faster."""
        waited = 0.0
        while not self._look and waited < NET_SECONDS:
            pause = NET_SECONDS - waited
            if self._earliest_ms is not None:
                pause = min(pause, (self._earliest_ms - self._now_ms()) / 1000)
            if pause <= 0:
                break
            if self._queue.clock:
                pause = min(pause, CLOCK_SECONDS)
            began = asyncio.get_running_loop().time()
            if await self._heard_within(pause):
                waited = 0.0
            else:
                waited += asyncio.get_running_loop().time() - began
        if self._look or self._goes_first:
            return True
        await self._heard_within(random.uniform(*TURN_MS) / 1000)  # noqa: S311 - spreads load, keeps no secret
        return waited >= NET_SECONDS or self._has_work()

    def _has_work(self) -> bool:
        return self._look or (self._earliest_ms is not None and self._earliest_ms <= self._now_ms())

    async def _heard_within(self, seconds: float) -> bool:
        """Wait for news, but no longer than so many seconds, and tell whether there were any."""
        self._news.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _note(self, now_ms: int, earliest_ms: int | None) -> None:
        self._seen_ms, self._seen_at = now_ms, asyncio.get_running_loop().time()
        self._earliest_ms = earliest_ms

    def _now_ms(self) -> float:
        """Return Redis' time as far as it is known; never ahead of it."""
        if self._queue.clock:
            return self._queue.clock()
        return self._seen_ms + (asyncio.get_running_loop().time() - self._seen_at) * 1000


def key_of(name: str, due_ms: int) -> str:
    """Return the key of the job that a due time gives."""
    return f"cron:{name}:{due_ms}"


def _readable(held: Held) -> Record | None:
    try:
        return Record.decode(held.raw)
    except UNREADABLE:
        return None


def _decodes(held: Held) -> bool:
    try:
        return bool(msgspec.json.decode(held.raw, type=Record).effective)
    except msgspec.MsgspecError:
        return False


def _next_due(record: Record, before: Record | None, held: Held, now_ms: int) -> int | str | None:
    """Return what becomes of the next due time when the code's record is stored."""
    counts = record.effective
    if not counts.enabled:
        return None
    if before is not None and before.effective.enabled and held.due_ms is not None and held.due_ms <= now_ms:
        return KEEP  # it has come, and is about to fire
    next_ms = counts.timetable.next_after(now_ms)
    same = before is not None and counts.fires_like(before.effective)
    # One that lies further ahead was reckoned while the clock was wrong.
    return KEEP if same and held.due_ms is not None and held.due_ms <= next_ms else next_ms


def _was_ours(module: str) -> bool:
    """Tell whether this program would have the schedules of a module if they were still in the code.

    Its modules are those that it has imported, and those that are gone from a package which it could import.
    """
    if module.startswith(FILE):
        own = getattr(sys.modules.get("__main__"), "__file__", None)
        return own is not None and Path(own).resolve() == Path(module.removeprefix(FILE)).resolve()
    if module in sys.modules:
        return True
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None:
        return False
    # Level by level, as find_spec would import the packages on the way.
    for name in below:
        found = PathFinder.find_spec(f"{spec.name}.{name}", spec.submodule_search_locations or [])
        if found is None:
            return True
        spec = found
    return False
