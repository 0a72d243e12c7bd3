"""Definitions: schedules as Redis holds them, and what follows from one at a moment.

Where in the flow: a worker that starts stores what the code says, operators put their changes on top, and whoever
fires needs nothing else. All is reckoned from the record, the due time and the present moment, so that all processes
come to the same.

Invariants, each a test in ``tests/unit/test_definitions.py``:

* a due time that is late by at most a minute fires, whatever the misfire policy;
* what fires is due, in order, and within the window; the next due time lies ahead;
* the delay by jitter is the same in every process.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import msgspec

from knapsaq.blueprint import NO_OPTIONS
from knapsaq.errors import CronError, InvalidArgumentsError, OptionError
from knapsaq.job import CONTROL, Job
from knapsaq.schedules import Misfire, Schedule, timetable
from knapsaq.task import Task
from knapsaq.timetable import Cron, Every
from knapsaq.wording import describe

LATE_MS = 60_000
"""A due time that passed no longer ago is late, and not missed."""
MOST_AT_ONCE = 1000
"""Missed due times of one schedule that ``misfire="all"`` makes up for at once; the rest is dropped."""


class Definition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a schedule fires, and with what; the fields of ``Schedule``, with the timezone and the arguments resolved.

    Attributes:
        kwargs: The arguments of its jobs by parameter name, as they are stored in a job.
        control: What its jobs carry of priority, limits and tenant; see ``Task.control_of``.
    """

    cron: str | None = None
    every: float | None = None
    timezone: str = "UTC"
    kwargs: dict[str, Any] = {}
    jitter: float = 0.0
    misfire: Misfire = "once"
    misfire_window: float = 3600.0
    overlap: bool = False
    enabled: bool = True
    control: dict[str, Any] = {}

    @classmethod
    def of(
        cls, schedule: Schedule, kwargs: Mapping[str, Any], control: Mapping[str, Any], default_timezone: str
    ) -> Definition:
        """Return a checked schedule as it is stored."""
        return cls(
            cron=schedule.cron,
            every=schedule.every,
            timezone=schedule.timezone or default_timezone,
            kwargs=dict(kwargs),
            jitter=schedule.jitter,
            misfire=schedule.misfire,
            misfire_window=schedule.misfire_window,
            overlap=schedule.overlap,
            enabled=schedule.enabled,
            control=dict(control),
        )

    @property
    def timetable(self) -> Cron | Every:
        """Its moments.

        Raises:
            CronError: This machine does not know the zone, or cannot read the expression.
        """
        return timetable(self.cron, self.every, self.timezone)

    @property
    def words(self) -> str:
        """When it fires, in words."""
        return describe(self.timetable)

    def fires_like(self, other: Definition) -> bool:
        """Tell whether the due times are the same."""
        return _moments(self) == _moments(other)

    def delay_ms(self, name: str, due_ms: int) -> int:
        """Return by how much the job of a due time is delayed."""
        jitter_ms = int(self.jitter * 1000)
        if not jitter_ms:
            return 0
        digest = hashlib.sha256(f"{name} {due_ms}".encode()).digest()
        return int.from_bytes(digest[:8]) * (jitter_ms + 1) >> 64


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, dict=True):
    """A schedule as it is stored.

    Attributes:
        task: The name of the task whose jobs it fires.
        fields: The fields of a job that the task's options set.
        module: Where the task's function is, by which a later program knows whether the schedule is its own.
        code: What the code says; None for one that was added at run time.
        edit: What an operator has changed, by field.
    """

    task: str
    fields: dict[str, Any] = {}
    module: str = ""
    code: Definition | None = None
    edit: dict[str, Any] = {}

    @functools.cached_property
    def effective(self) -> Definition:
        """What counts: the code's fields with the operator's on top."""
        code = msgspec.structs.asdict(self.code) if self.code else {}
        return msgspec.convert({**code, **self.edit}, Definition)

    @classmethod
    def decode(cls, raw: bytes) -> Record:
        """Return a stored record.

        Raises:
            msgspec.MsgspecError: It cannot be read.
            CronError: Its moments cannot be reckoned here.
        """
        record = msgspec.json.decode(raw, type=cls)
        _ = record.effective.timetable
        return record

    def encode(self) -> bytes:
        """Return it as it is stored."""
        return msgspec.json.encode(self)

    def edited(self, definition: Definition) -> Record:
        """Return the record with which a definition counts, whatever the code says."""
        fields = msgspec.structs.asdict(definition)
        if self.code is not None:
            changed = {field for field, value in fields.items() if value != getattr(self.code, field)}
            # One without the other would not go together with the next version of the code.
            changed |= {"cron", "every"} if changed & {"cron", "every"} else set()
            changed |= {"misfire", "overlap"} if changed & {"misfire", "overlap"} else set()
            fields = {field: value for field, value in fields.items() if field in changed}
        return msgspec.structs.replace(self, edit=fields)

    @property
    def edited_fields(self) -> tuple[str, ...]:
        """What an operator has made other than the code says."""
        code = self.code
        fields = self.edit.items() if code else ()
        return tuple(key for key, value in fields if key != CONTROL and value != getattr(code, key))

    def same_code(self, other: Record) -> bool:
        """Tell whether two programs say the same."""
        mine, yours = (msgspec.structs.replace(one, edit={}) for one in (self, other))
        return mine.encode() == yours.encode()

    def job(
        self, key: str, kwargs: Mapping[str, Any] | None = None, control: Mapping[str, Any] | None = None
    ) -> Job[Any]:
        """Return a job of the schedule, not queued yet; ``kwargs`` and ``control`` count instead of its own."""
        arguments = self.effective.kwargs if kwargs is None else kwargs
        fields = {"timeout": None, "ttl": None, **self.fields}
        job: Job[Any] = Job(function=self.task, key=key, kwargs=dict(arguments) or None, **fields)
        if obeyed := self.effective.control if control is None else control:
            job.note(**{CONTROL: dict(obeyed)})
        return job


UNREADABLE = (msgspec.MsgspecError, CronError, ValueError, TypeError)
"""What ``Record.decode`` raises, whatever the bytes are."""


class Held(NamedTuple):
    """What Redis holds of one schedule.

    Attributes:
        name: Its name.
        raw: Its record as it is stored; empty where there is none.
        due_ms: Its next due time; None while it is paused.
    """

    name: str
    raw: bytes
    due_ms: int | None

    @property
    def version(self) -> str:
        """What a change has to name so that it overwrites no other; empty where nothing is stored."""
        return hashlib.sha1(self.raw, usedforsecurity=False).hexdigest() if self.raw else ""


class Change(NamedTuple):
    """A record to be stored, if nobody has changed the one before.

    Attributes:
        name: The schedule's name.
        version: That of the record before.
        record: The new one; None removes the schedule.
        due_ms: The next due time; None pauses it, and ``KEEP`` leaves it.
    """

    name: str
    version: str
    record: Record | None
    due_ms: int | str | None


KEEP = "keep"


class Fired(NamedTuple):
    """A due time that has passed: the key of the job that it gave, or the reason why there is none."""

    due_ms: int
    key: str
    reason: str


class Reckoning(NamedTuple):
    """What is to be done about a due time.

    Attributes:
        fires: The due times that give a job, the oldest first.
        next_ms: The next due time, later than now.
        missed_ms: The oldest due time that gives none although it should have; None if there is none.
        dropped: Whether there were more than ``misfire="all"`` makes up for at once.
    """

    fires: tuple[int, ...]
    next_ms: int
    missed_ms: int | None = None
    dropped: bool = False


class Store(Protocol):
    """Where a queue keeps its schedules; ``timezone`` is that of cron expressions which name none."""

    timezone: str

    async def read(self, *names: str) -> tuple[int, list[Held]]:
        """Return now in milliseconds and what is held of the names; of all that there are unless some are given."""

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        """Store changes, each for itself, and tell which were not refused."""

    async def history(self, name: str) -> list[Fired]:
        """Return the last due times that have passed, the newest first."""

    async def jobs(self, keys: Sequence[str]) -> list[Job[Any] | None]:
        """Return the jobs of these keys, with None for each that is not there."""


@contextmanager
def naming(task: Task[..., Any, Any], schedule: str) -> Iterator[None]:
    """Let the error of arguments that do not fit, or that make no key, say whose they are."""
    try:
        yield
    except InvalidArgumentsError as error:
        place = f"schedule {schedule!r}, defined at {task.location}"
        raise InvalidArgumentsError(error.task, error.parameter, error.expected, error.given, place) from None
    except OptionError as error:
        place = f"schedule {schedule!r}, defined at {task.location}"
        raise OptionError(place, error.option, error.given, error.expected) from error.__cause__


def coded(task: Task[..., Any, Any], schedule: Schedule, default_timezone: str) -> Record:
    """Return the record of a schedule in the code.

    Raises:
        InvalidArgumentsError: The schedule gives its task too few arguments, or wrong ones.
        OptionError: The key of a limit cannot be made of them.
    """
    with naming(task, schedule.name):
        kwargs = task.signature.bind(schedule.args, schedule.kwargs, task.injected)
        control = control_of(task, kwargs)
    definition = Definition.of(schedule, kwargs, control, default_timezone)
    return Record(
        task=task.name, fields=dict(task.blueprint.fields), module=schedule.module or task.module, code=definition
    )


def control_of(task: Task[..., Any, Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what jobs of a schedule with these arguments carry; they are not unique, as ``overlap`` says that.

    Raises:
        OptionError: The key of a limit cannot be made of them.
    """
    return task.blueprint.control(NO_OPTIONS, kwargs, unique=False) or {}


def kept(task: Task[..., Any, Any], code: Record, edit: Mapping[str, Any]) -> Record:
    """Return what the code says with what an operator has changed on top; other arguments make other keys."""
    record = msgspec.structs.replace(code, edit={field: value for field, value in edit.items() if field != CONTROL})
    if "kwargs" in edit:
        with suppress(InvalidArgumentsError, OptionError):  # whoever keeps it tells that they do not fit any more
            control = dict(control_of(task, record.edit["kwargs"]))
            record.edit.update({CONTROL: control} if code.code and control != code.code.control else {})
    return record


def bound(
    task: Task[..., Any, Any], args: Sequence[Any], base: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return arguments as they are stored: those of ``base``, which are stored ones, with others instead.

    Raises:
        InvalidArgumentsError: They do not fit the task.
    """
    parameters = [one for one in task.signature.parameters.values() if one.name not in task.injected]
    places = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    rest = next((one.name for one in parameters if one.kind is one.VAR_POSITIONAL), None)
    for name in set(kwargs).intersection(places[: len(args)]):
        raise InvalidArgumentsError(task.name, name, "one value", "a second one by position")
    values = {**base, **dict(zip(places, args, strict=False)), **kwargs}
    further = [*args[len(places) :]] or (list(values.pop(rest, ())) if rest else [])
    if rest:
        values.pop(rest, None)
    by_place = []
    for name in places if further or any(one.kind is one.POSITIONAL_ONLY for one in parameters) else ():
        if name not in values:
            break
        by_place.append(values.pop(name))
    return task.signature.bind((*by_place, *further), values, task.injected)


def reckon(definition: Definition, due_ms: int, now_ms: int) -> Reckoning:
    """Decide about a due time that has come, and about all after it up to now."""
    table = definition.timetable
    next_ms = table.next_after(due_ms)
    if next_ms > now_ms:
        newest = due_ms
    else:
        newest = _newest(table, due_ms, now_ms)
        next_ms = table.next_after(now_ms)
    if definition.misfire == "all":
        return _all(definition, due_ms, now_ms, newest, next_ms)
    limit = max(LATE_MS, int(definition.misfire_window * 1000) if definition.misfire == "once" else 0)
    if now_ms - newest > limit:
        return Reckoning((), next_ms, missed_ms=due_ms)
    return Reckoning((newest,), next_ms, missed_ms=due_ms if newest != due_ms else None)


def _all(definition: Definition, due_ms: int, now_ms: int, newest: int, next_ms: int) -> Reckoning:
    table, oldest_ms = definition.timetable, now_ms - int(definition.misfire_window * 1000)
    fires: list[int] = []
    moment = due_ms if due_ms >= oldest_ms else table.next_after(oldest_ms - 1)
    while moment <= now_ms and len(fires) < MOST_AT_ONCE:
        fires.append(moment)
        moment = table.next_after(moment)
    dropped = moment <= now_ms
    if not fires and now_ms - newest <= LATE_MS:
        fires = [newest]
    missed = due_ms if not fires or fires[0] != due_ms else None
    return Reckoning(tuple(fires), next_ms, missed_ms=moment if dropped and missed is None else missed, dropped=dropped)


def _newest(table: Cron | Every, due_ms: int, now_ms: int) -> int:
    """Return the newest moment up to now; ``due_ms`` is one."""
    # The smallest moment after which there is none up to now: found by halves, as years of seconds may lie between.
    low, high = due_ms, now_ms
    while low < high:
        middle = (low + high) // 2
        if table.next_after(middle) > now_ms:
            high = middle
        else:
            low = middle + 1
    return low


def _moments(definition: Definition) -> tuple[object, ...]:
    zone = definition.timezone if definition.cron is not None else ""
    return definition.cron, definition.every, zone, definition.enabled
