"""Schedules: when a task runs by itself.

A schedule is a cron expression of five fields in one timezone, with the
arguments of the job that it fires. It is checked when it is defined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadDateError, croniter

from knapsaq.errors import OptionError

CRON_FIELDS = ("minute", "hour", "day of month", "month", "day of week")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One cron schedule of a task.

    Attributes:
        cron: Five fields: minute, hour, day of month, month, day of week.
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
            OptionError: The expression has not five fields, names an impossible time, or the zone is unknown.
        """
        if len(str(cron).split()) != len(CRON_FIELDS):
            raise OptionError(place, "cron", cron, f"five fields: {', '.join(CRON_FIELDS)}, such as '0 2 * * *'")
        if not croniter.is_valid(cron) or not _comes(cron):
            raise OptionError(place, "cron", cron, "fields in range, such as '0 2 * * *' for 02:00 each day")
        if timezone is not None:
            try:
                ZoneInfo(timezone)
            except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
                raise OptionError(place, "timezone", timezone, "an IANA zone, such as 'Europe/Berlin'") from error
        return cls(cron=cron, timezone=timezone, kwargs=MappingProxyType(dict(kwargs or {})))

    def next_after(self, moment: datetime, default_timezone: str) -> int:
        """Return the first due time after an aware ``moment``, in whole seconds since 1970."""
        zone = ZoneInfo(self.timezone or default_timezone)
        return int(croniter(self.cron, moment.astimezone(zone)).get_next(float))


def _comes(cron: str) -> bool:
    """Tell whether the moment exists: the 30th of February is in range, but never comes."""
    try:
        croniter(cron).get_next(float)
    except CroniterBadDateError:
        return False
    return True
