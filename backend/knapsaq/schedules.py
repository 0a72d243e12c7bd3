"""Schedules: when a task runs by itself, as ``@scheduled_task`` is told.

A schedule is a cron expression in one timezone, or an interval, with the arguments of the jobs that it fires and what
becomes of fires that were missed. It is checked completely when it is defined; ``timetable`` reckons its moments.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypedDict, cast

from knapsaq.checks import NAME, SECONDS, Check, check, duration, flag, name, text
from knapsaq.errors import ConfigurationError, CronError, OptionError, TaskDefinitionError
from knapsaq.timetable import Cron, Every
from knapsaq.timing import Duration
from knapsaq.wording import describe

Misfire = Literal["skip", "once", "all"]
MISFIRES = ("skip", "once", "all")
LONGEST_JITTER = 86_400.0


class ScheduleKeywords(TypedDict, total=False):
    """What a schedule may be told, for type checkers and editors; None is as if not given."""

    cron: str | None
    every: Duration | None
    timezone: str | None
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    jitter: Duration | None
    misfire: Misfire | None
    misfire_window: Duration | None
    overlap: bool | None
    enabled: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One schedule of a task; either ``cron`` or ``every`` is given.

    Attributes:
        cron: Five fields (minute, hour, day of month, month, day of week), six with the second as the last one, or an
            alias such as ``@daily``.
        every: Seconds between two fires, from 1 on; they lie on the multiples of the interval since 1970.
        name: Its name, unique in a registry; the task's unless given.
        timezone: The IANA zone of the fields of ``cron``; ``None`` takes ``Settings.timezone``.
        args: The positional arguments of each job that it fires.
        kwargs: Its arguments by name.
        jitter: Seconds, up to a day, by a part of which each job is delayed; the part follows from name and due time.
        misfire: What becomes of due times that passed while no worker ran: none of them runs (``"skip"``), the newest
            (``"once"``), or each (``"all"``).
        misfire_window: Seconds; older due times are never made up for.
        overlap: Whether it fires while the job that it fired before has not ended.
        enabled: Whether it fires at all.
        module: Where it is defined; the module of the task's function unless given.
    """

    cron: str | None = None
    every: float | None = None
    name: str = ""
    timezone: str | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    jitter: float = 0.0
    misfire: Misfire = "once"
    misfire_window: float = 3600.0
    overlap: bool = False
    enabled: bool = True
    module: str = ""

    @classmethod
    def build(cls, place: str, **given: Any) -> Schedule:
        """Return a checked schedule.

        Args:
            place: Where it was given, for the error's text.
            given: The attributes by name; None is as if not given, durations may be a ``timedelta``.

        Raises:
            OptionError: One is unknown or out of range, a field of the expression is wrong, its moment never comes,
                the zone is unknown, or two do not go together.
        """
        built = cls(**check(place, given, CHECKS))
        if (built.cron is None) == (built.every is None):
            both = given.get("cron"), given.get("every")
            raise OptionError(place, "cron", both[0], _one_of_two(both))
        if built.every is not None and built.timezone is not None:
            raise OptionError(place, "timezone", built.timezone, "none, as an interval is the same in every zone")
        if built.misfire == "all" and not built.overlap:
            expected = "'skip' or 'once', or overlap=True with it: several missed fires run at the same time"
            raise OptionError(place, "misfire", built.misfire, expected)
        built._reckoned(place)
        return built

    def _reckoned(self, place: str) -> None:
        """Refuse what names no moment."""
        try:
            timetable(self.cron, self.every, "UTC" if self.timezone is None else self.timezone)
        except CronError as error:
            if error.field in ("timezone", "every"):
                raise OptionError(place, error.field, getattr(self, error.field), error.expected) from error
            part = "" if error.field == "cron" else f"as {error.field} "
            raise OptionError(place, "cron", self.cron, part + error.expected) from error

    def timetable(self, default_timezone: str) -> Cron | Every:
        """Return its moments; ``default_timezone`` counts where it has no zone of its own."""
        return timetable(self.cron, self.every, self.timezone or default_timezone)

    def describe(self, default_timezone: str) -> str:
        """Return when it fires, in words."""
        return describe(self.timetable(default_timezone))


def without_name(given: object) -> ConfigurationError:
    """Return the error of ``@scheduled_task`` without brackets, or with a value that names no option."""
    remedy = "write @scheduled_task(cron='0 2 * * *') or @scheduled_task(every=30)"
    if callable(given):
        return TaskDefinitionError(str(getattr(given, "__name__", given)), f"nothing says when it runs; {remedy}")
    return OptionError("@scheduled_task", "cron", given, f"it by its name; {remedy}")


def _one_of_two(given: tuple[object, object]) -> str:
    what = "neither" if given == (None, None) else "both"
    return f"either cron, such as '0 2 * * *' for 02:00 each day, or every, such as 30 for each half minute; not {what}"


def _interval(value: Any) -> float:
    length = duration(value)
    Every(length)
    return length


def _sequence(value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise TypeError(value)


def _arguments(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return MappingProxyType(dict(value))
    raise TypeError(value)


def _jitter(value: Any) -> float:
    length = duration(value)
    if length <= LONGEST_JITTER:
        return length
    raise ValueError(value)


def _misfire(value: Any) -> Misfire:
    if value in MISFIRES:
        return cast("Misfire", value)
    raise ValueError(value)


CHECKS: dict[str, tuple[str, Check]] = {
    "cron": ("an expression such as '0 2 * * *' for 02:00 each day", text),
    "every": ("seconds or a timedelta, from 1 second to ten years", _interval),
    "name": (NAME, name),
    "timezone": ("an IANA zone, such as 'Europe/Berlin'", text),
    "args": ("a list or tuple of positional arguments", _sequence),
    "kwargs": ("arguments by name", _arguments),
    "jitter": ("seconds from 0 to 86,400, or a timedelta", _jitter),
    "misfire": ("'skip', 'once' or 'all'", _misfire),
    "misfire_window": (SECONDS, duration),
    "overlap": ("True or False", flag),
    "enabled": ("True or False", flag),
}


@functools.lru_cache(maxsize=16_384)
def timetable(cron: str | None, every: float | None, zone: str) -> Cron | Every:
    """Return the moments of an expression in a zone, or of an interval in seconds.

    Raises:
        CronError: They name none.
    """
    return Cron(cron, zone) if cron is not None else Every(cast("float", every))
