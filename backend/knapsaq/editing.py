"""Editing: schedules as operators see and change them, while everything runs.

Where in the flow: ``registry.schedules`` and ``knapsaq schedules``. A change names the record that it was made of and
is refused where that is another by now; then it is made anew. So no operator's change loses another's, and none is
lost to a worker that fires.

Invariants, each a test in ``tests/redis/test_schedules.py``:

* what is refused changes nothing;
* a change survives a deployment, until ``reset``;
* only what moves the due times moves the next one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeAlias, Unpack, runtime_checkable

import msgspec

from knapsaq import events
from knapsaq.checks import check, whole
from knapsaq.codec import shown, to_json_types
from knapsaq.definitions import KEEP, UNREADABLE, Change, Definition, Held, Record, Store, bound, coded, control_of
from knapsaq.entries import ScheduleEntry, ScheduleFire
from knapsaq.errors import (
    InvalidArgumentsError,
    NotConnectedError,
    OptionError,
    ScheduleError,
    UnknownQueueError,
    UnknownScheduleError,
    UnknownTaskError,
)
from knapsaq.home import Sender
from knapsaq.job import Job, new_key
from knapsaq.schedules import Schedule, ScheduleKeywords
from knapsaq.task import Task
from knapsaq.timing import from_ms

AnyTask = Task[..., Any, Any]
# By names of their own, as `list` is a method below.
Entries: TypeAlias = list[ScheduleEntry]
Fires: TypeAlias = list[ScheduleFire]
Moments: TypeAlias = list[datetime]
Looks: TypeAlias = list[tuple[str, int, Held]]
ATTEMPTS = 50
"""How often a change is made anew because somebody else was faster."""
MOST_SHOWN = 1000


@runtime_checkable
class Keeper(Sender, Protocol):
    """A connected client."""

    @property
    def schedule_stores(self) -> Mapping[str, Store]:
        """Where each queue keeps its schedules, by the queue's name."""


class Tasks(Protocol):
    """What the schedules ask of the registry."""

    @property
    def sender(self) -> Sender | None:
        """The connected client, if there is one."""

    def find(self, name: str) -> AnyTask | None:
        """Return the task of that name, or None."""

    def find_schedule(self, name: str) -> tuple[AnyTask, Schedule] | None:
        """Return the schedule of that name in the code, with its task, or None."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all tasks."""


class _Found(NamedTuple):
    """A schedule, and where it is kept."""

    queue: str
    store: Store
    now_ms: int
    held: Held
    record: Record


class Schedules:
    """The schedules in Redis, of all connected queues; ``registry.schedules``.

    Every method raises ``NotConnectedError`` outside a connection and ``BrokerError`` if Redis cannot be reached, and
    each that takes the name of a schedule ``UnknownScheduleError`` if no connected queue has it.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def list(self) -> Entries:
        """Return all schedules, sorted by name."""
        stores = self._keeper().schedule_stores
        answers = await asyncio.gather(*(store.read() for store in stores.values()))
        entries = []
        for queue, (_, held) in zip(stores, answers, strict=True):
            for one in held:
                try:
                    entries.append(self._entry(queue, one, Record.decode(one.raw)))
                except UNREADABLE as error:
                    events.schedule_unreadable(queue, one.name, error)
        return sorted(entries, key=lambda entry: (entry.name, entry.queue))

    async def get(self, name: str) -> ScheduleEntry:
        """Return one schedule."""
        found = await self._find(name)
        return self._entry(found.queue, found.held, found.record)

    async def pause(self, name: str) -> ScheduleEntry:
        """Let a schedule fire no more, until ``resume``; due times that pass meanwhile are not made up for."""
        return await self._edit(name, {"enabled": False})

    async def resume(self, name: str) -> ScheduleEntry:
        """Let a paused schedule fire again, from its next due time on."""
        return await self._edit(name, {"enabled": True})

    async def set(self, name: str, **changes: Unpack[ScheduleKeywords]) -> ScheduleEntry:
        """Change a schedule, until ``reset``; deployments leave it as it is.

        Args:
            name: The schedule.
            changes: What ``@scheduled_task`` takes for a schedule. ``args`` and ``kwargs`` replace all arguments,
                ``cron`` replaces ``every`` and the other way round.

        Raises:
            OptionError: One is wrong, or there is none.
            InvalidArgumentsError: The task cannot take the arguments.
            ScheduleError: The task is not known here, so that positional arguments have no names.
        """
        given = {field: value for field, value in changes.items() if value is not None}
        if not given:
            legal = ", ".join(ScheduleKeywords.__annotations__)
            raise OptionError(f"schedule {name!r}", "*", "nothing", f"one of the fields {legal}")
        return await self._edit(name, given)

    async def reset(self, name: str) -> ScheduleEntry:
        """Drop what operators have changed, so that the code counts again.

        Raises:
            ScheduleError: It was added at run time, so there is no code to go back to.
        """

        def without_edit(found: _Found) -> Record:
            if found.record.code is None:
                raise ScheduleError(
                    name, "it was added at run time, so no code says anything else; change or remove it"
                )
            return msgspec.structs.replace(found.record, edit={})

        await self._change(name, without_edit)
        return await self.get(name)

    async def run(self, name: str, /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Queue a job of a schedule now, whether it is paused or not.

        Args:
            name: The schedule.
            args: Positional arguments instead of the schedule's.
            kwargs: Arguments instead of the schedule's of these names; the others stay.

        Raises:
            InvalidArgumentsError: They do not fit the task; nothing was queued.
            ScheduleError: The task is not known here, so that positional arguments have no names.
        """
        found = await self._find(name)
        arguments = self._arguments(name, found.record, args, {**found.record.effective.kwargs}, kwargs)
        job = found.record.job(new_key(), arguments, self._control(found.record, arguments))
        return await self._keeper().send(found.queue, job)

    async def next(self, name: str, n: int = 5) -> Moments:
        """Return when the next ``n`` jobs, 1 to 1,000, may run: due times with their jitter, in UTC.

        Those of a paused schedule are what they were if it were resumed now.
        """
        check(f"schedule {name!r}", {"n": n}, {"n": (f"a whole number from 1 to {MOST_SHOWN:,}", whole(1, MOST_SHOWN))})
        found = await self._find(name)
        effective, moments, now_ms = found.record.effective, [], found.now_ms
        for _ in itertools.repeat(None, n):
            try:
                now_ms = effective.timetable.next_after(now_ms)
                moments.append(from_ms(now_ms + effective.delay_ms(name, now_ms)))
            except (ValueError, OverflowError):
                break  # after the year 9999
        return moments

    async def fires(self, name: str, queue: str | None = None) -> Fires:
        """Return the last ten due times that have passed, the newest first, with what became of their jobs.

        Args:
            name: The schedule's name.
            queue: Where it is; needed only while several queues have one of the name.
        """
        found = await self._find(name, queue)
        history = await found.store.history(name)
        jobs = iter(await found.store.jobs([fired.key for fired in history if fired.key]))
        return [ScheduleFire.of(fired, next(jobs) if fired.key else None) for fired in history]

    async def add(
        self, name: str, task: AnyTask | str, *, queue: str | None = None, **given: Unpack[ScheduleKeywords]
    ) -> ScheduleEntry:
        """Add a schedule at run time; it stays until ``remove``, whatever is deployed.

        Args:
            name: Its name, unlike all others'.
            task: The task or its name; a name that is not known here needs ``queue``.
            queue: The queue that its jobs go to; the task's own unless given.
            given: What ``@scheduled_task`` takes for a schedule.

        Raises:
            OptionError: One is wrong.
            UnknownTaskError: The task is not known here, and no queue is given.
            UnknownQueueError: The queue is not connected.
            InvalidArgumentsError: The task cannot take the arguments.
            ScheduleError: There is a schedule of that name.
        """
        if not isinstance(task, (str, Task)):
            raise OptionError(f"schedule {name!r}", "task", task, "a task, or the name of one")
        own = self._tasks.find(task) if isinstance(task, str) else task
        place = queue or (own.options.queue if own else None)
        if place is None:
            raise UnknownTaskError(str(task), self._tasks.names())
        stores = self._keeper().schedule_stores
        if place not in stores:
            raise UnknownQueueError(place, tuple(stores))
        schedule = Schedule.build(f"schedule {name!r}", **{**given, "name": name})
        record = Record(task=own.name if own else str(task), fields=dict(own.blueprint.fields) if own else {})
        kwargs = self._arguments(name, record, schedule.args, {}, schedule.kwargs)
        definition = Definition.of(schedule, kwargs, self._control(record, kwargs), stores[place].timezone)
        record = msgspec.structs.replace(record, edit=msgspec.structs.asdict(definition))
        if self._tasks.find_schedule(name):
            raise ScheduleError(name, "the code has one of this name; use another name")
        moments = {holder: now_ms for holder, now_ms, held in await self._look(name) if not held.raw}
        due_ms = definition.timetable.next_after(moments.get(place, 0)) if definition.enabled else None
        # One that somebody else adds at the same moment is refused by the script.
        if moments.keys() < stores.keys() or not (await stores[place].write([Change(name, "", record, due_ms)]))[0]:
            raise ScheduleError(name, "there is one of this name already; change it, or use another name")
        events.schedule_changed(place, name, tuple(record.edit))
        return await self.get(name)

    async def remove(self, name: str) -> None:
        """Remove a schedule that was added at run time, or that this program's code does not have any more.

        Raises:
            ScheduleError: It is in the code of this program.
        """

        def nothing(found: _Found) -> None:
            if found.record.code is not None and self._tasks.find_schedule(name):
                where = found.record.module or "the code"
                raise ScheduleError(name, f"it is defined in {where}; pause it, or take it out there")

        await self._change(name, nothing)

    async def _edit(self, name: str, given: Mapping[str, Any]) -> ScheduleEntry:
        def with_edit(found: _Found) -> Record:
            return found.record.edited(self._edited(name, found.record, given))

        await self._change(name, with_edit)
        return await self.get(name)

    def _edited(self, name: str, record: Record, given: Mapping[str, Any]) -> Definition:
        """Return what counts after a change.

        Raises:
            OptionError: It is wrong.
            InvalidArgumentsError: The task cannot take the arguments.
        """
        counts = record.effective
        fields = msgspec.structs.asdict(counts)
        if "cron" in given or "every" in given:
            fields["cron"] = fields["every"] = None
        if "every" in given or (counts.every is not None and "cron" not in given):
            fields["timezone"] = None  # an interval has none
        kwargs, control = fields.pop("kwargs"), fields.pop("control")
        schedule = Schedule.build(f"schedule {name!r}", **{**fields, **given})
        if "args" in given or "kwargs" in given:
            kwargs = self._arguments(name, record, schedule.args, {}, schedule.kwargs)
            control = self._control(record, kwargs)
        return Definition.of(schedule, kwargs, control, counts.timezone)

    async def _change(self, name: str, change: Callable[[_Found], Record | None]) -> None:
        """Store what is made of a schedule, however many change it at the same moment."""
        for _ in range(ATTEMPTS):
            found = await self._find(name)
            record = change(found)
            due_ms = None if record is None else _due(found, record)
            if record == found.record and due_ms in (KEEP, found.held.due_ms):
                return
            if (await found.store.write([Change(name, found.held.version, record, due_ms)]))[0]:
                events.schedule_changed(found.queue, name, tuple(record.edit) if record else None)
                return
        raise ScheduleError(name, "others change it all the time; try again")

    async def _find(self, name: str, queue: str | None = None) -> _Found:
        holders = [found for found in await self._look(name) if found[2].raw and queue in (None, found[0])]
        if not holders:
            raise UnknownScheduleError(name, tuple(entry.name for entry in await self.list()))
        if len(holders) > 1:
            code = self._tasks.find_schedule(name)
            own = [found for found in holders if code and found[0] == code[0].options.queue]
            if not own:
                queues = " and ".join(repr(found[0]) for found in holders)
                raise ScheduleError(name, f"queues {queues} have one each; connect with one of them in KNAPSAQ_QUEUES")
            events.schedule_ambiguous(name, own[0][0], tuple(found[0] for found in holders if found not in own))
            holders = own
        queue, now_ms, held = holders[0]
        try:
            record = Record.decode(held.raw)
        except UNREADABLE as error:
            raise ScheduleError(name, f"its record in queue {queue!r} cannot be read here: {error}") from error
        return _Found(queue, self._keeper().schedule_stores[queue], now_ms, held, record)

    async def _look(self, name: str) -> Looks:
        """Return what each queue holds of a name, with the queue's time."""
        stores = self._keeper().schedule_stores
        answers = await asyncio.gather(*(store.read(name) for store in stores.values()))
        return [(queue, now_ms, held) for queue, (now_ms, (held,)) in zip(stores, answers, strict=True)]

    def _entry(self, queue: str, held: Held, record: Record) -> ScheduleEntry:
        code = self._tasks.find_schedule(held.name)
        if code is None:
            return ScheduleEntry.of(queue, held, record, None)
        if code[0].options.queue != queue:
            entry = ScheduleEntry.of(queue, held, record, None)
            return replace(entry, differs=not entry.added and record.task == code[0].name)
        timezone = self._keeper().schedule_stores[queue].timezone
        return ScheduleEntry.of(queue, held, record, coded(*code, timezone))

    def _keeper(self) -> Keeper:
        sender = self._tasks.sender
        if not isinstance(sender, Keeper):
            raise NotConnectedError("")
        return sender

    def _control(self, record: Record, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what jobs with these arguments carry; the record's where the task is not known here."""
        task = self._tasks.find(record.task)
        return record.effective.control if task is None else control_of(task, kwargs)

    def _arguments(
        self, name: str, record: Record, args: Sequence[Any], base: Mapping[str, Any], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return a job's arguments as they are stored: those of ``base`` with ``args`` and ``kwargs`` instead.

        Raises:
            InvalidArgumentsError: They do not fit the task.
            ScheduleError: There are positional ones, and the task is not known here.
        """
        task = self._tasks.find(record.task)
        if task is not None:
            return bound(task, args, base, kwargs)
        if args:
            raise ScheduleError(name, f"task {record.task!r} is not known here; give its arguments by name")
        try:
            return {**base, **to_json_types(dict(kwargs))}
        except (TypeError, ValueError) as error:
            raise InvalidArgumentsError(record.task, "*", f"what JSON can carry ({error})", shown(kwargs)) from None


def _due(found: _Found, record: Record) -> int | str | None:
    """Return what becomes of the next due time when a record is stored."""
    counts = record.effective
    if not counts.enabled:
        return None
    if counts.fires_like(found.record.effective) and found.held.due_ms is not None:
        return KEEP
    if found.record.effective.enabled and found.held.due_ms is not None and found.held.due_ms <= found.now_ms:
        return KEEP  # it has come, and is about to fire
    return counts.timetable.next_after(found.now_ms)
