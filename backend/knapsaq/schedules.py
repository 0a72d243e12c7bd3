"""Schedules: when a task runs by itself.

A schedule is a cron expression in one timezone, with the arguments of the job that it
fires. It is checked when it is defined; ``timetable`` reckons its moments.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from knapsaq.errors import CronError, OptionError
from knapsaq.timetable import Cron
from knapsaq.wording import describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One cron schedule of a task.

    Attributes:
        cron: Five fields (minute, hour, day of month, month, day of week), six with the second as the last one, or an
            alias such as ``@daily``.
        timezone: The IANA zone of the fields; ``None`` takes ``Settings.timezone``.
        kwargs: The arguments of each job that the schedule fires.
    """

    cron: str
    timezone: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def build(cls, place: str, *, cron: str, timezone: str | None, kwargs: Mapping[str, Any] | None) -> Schedule:
        """Return a checked schedule.

        Raises:
            OptionError: A field of the expression is wrong, its moment never comes, or the zone is unknown.
        """
        if not isinstance(cron, str):
            raise OptionError(place, "cron", cron, "an expression such as '0 2 * * *' for 02:00 each day")
        try:
            Cron(cron, "UTC" if timezone is None else timezone)
        except CronError as error:
            if error.field == "timezone":
                raise OptionError(place, "timezone", timezone, error.expected) from error
            part = "" if error.field == "cron" else f"as {error.field} "
            raise OptionError(place, "cron", cron, part + error.expected) from error
        return cls(cron=cron, timezone=timezone, kwargs=MappingProxyType(dict(kwargs or {})))

    def next_after(self, moment: datetime, default_timezone: str) -> int:
        """Return the first due time after an aware ``moment``, in whole seconds since 1970.

        A local time fires once on the day on which its hour repeats, and right after the gap where it is missing.
        """
        timetable = _timetable(self.cron, self.timezone or default_timezone)
        return timetable.next_after(int(moment.timestamp() * 1000)) // 1000

    def describe(self, default_timezone: str) -> str:
        """Return when it fires, in words."""
        return describe(_timetable(self.cron, self.timezone or default_timezone))


@functools.lru_cache(maxsize=1024)
def _timetable(expression: str, zone: str) -> Cron:
    return Cron(expression, zone)
