"""Timetables: the moments at which something fires, as milliseconds since 1970.

A ``Cron`` names local times of a zone, an ``Every`` cuts the time since 1970
into equal parts. Both are values: they read no clock and keep no state, so all
processes agree on them.

When the clocks change, what counts is how minute and hour of a ``Cron`` are
written, as in Vixie cron:

* Neither begins with ``*``: fixed local times. They fire once where the hour
  repeats, in its first pass, and right after the gap where they are missing.
* One begins with ``*``: real time. It fires in both passes of an hour that
  repeats, and not in an hour that is missing.

Invariants, each a test in ``tests/unit/test_timetable.py``:

* a fire is later than the moment asked about, and none lies between the two;
* it shows a local time that the fields name, or stands at the end of a gap;
* a timetable that could be made can always tell its next fire.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from knapsaq.cron import Fields
from knapsaq.errors import CronError
from knapsaq.timing import Duration

_SECOND = timedelta(seconds=1)
_LONGEST = 36_500 * 86_400
# In 2026. What fires after that goes on firing, since zones then follow their present rule.
_TODAY_MS = 1_790_000_000_000
# How many changes of the clocks in a row may swallow a time before it counts as one that never comes.
_CHANGES = 100


class Timetable(ABC):
    """The moments at which something fires."""

    __slots__ = ()

    @abstractmethod
    def next_after(self, ms: int) -> int:
        """Return the first fire later than ``ms``; both are milliseconds since 1970."""

    def between(self, start_ms: int, end_ms: int) -> Iterator[int]:
        """Yield the fires later than ``start_ms`` and not later than ``end_ms``, in order."""
        while (start_ms := self.next_after(start_ms)) <= end_ms:
            yield start_ms


@dataclass(frozen=True, slots=True)
class Every(Timetable):
    """Fires on the multiples of an interval since 1970-01-01 00:00 UTC.

    Args:
        interval: Seconds or a ``timedelta``, from 1 second to 100 years, rounded to whole milliseconds.

    Raises:
        CronError: The interval is no duration, or out of range.
    """

    interval: Duration = field(repr=False, compare=False)
    interval_ms: int = field(init=False)

    def __post_init__(self) -> None:
        given: object = self.interval
        length = given.total_seconds() if isinstance(given, timedelta) else given
        if isinstance(length, bool) or not isinstance(length, int | float) or not 1 <= length <= _LONGEST:
            raise CronError("every", given, "seconds or a timedelta, from 1 second to 100 years")
        object.__setattr__(self, "interval_ms", round(length * 1000))

    def next_after(self, ms: int) -> int:
        """Return the first multiple of the interval later than ``ms``."""
        return (ms // self.interval_ms + 1) * self.interval_ms


@dataclass(frozen=True, slots=True)
class Cron(Timetable):
    """Fires at the local times of a zone that a cron expression names.

    Args:
        expression: Five fields (minute, hour, day of month, month, day of week), six with the second as the last
            one, or an alias such as ``@daily``. Upper and lower case are the same.
        zone: The IANA zone whose local times the fields are.

    Raises:
        CronError: A field is wrong, the zone is unknown, or the moment never comes.
    """

    expression: str
    zone: str = "UTC"
    fields: Fields = field(init=False, repr=False, compare=False)
    _tz: ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", Fields.parse(self.expression))
        try:
            object.__setattr__(self, "_tz", ZoneInfo(self.zone))
        except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
            raise CronError("timezone", self.zone, "an IANA zone, such as 'Europe/Berlin'") from error
        self.next_after(_TODAY_MS)

    def next_after(self, ms: int) -> int:
        """Return the first fire later than ``ms``, on a whole second."""
        first_s = ms // 1000 + 1
        return (self._real(first_s) if self.fields.real_time else self._fixed(first_s)) * 1000

    def _fixed(self, start: int) -> int:
        """Return the first fire not before ``start``, of local times that fire once each."""
        reached = start
        while True:
            # From the second before, as local times that a gap has swallowed fire at its end.
            now = datetime.fromtimestamp(reached - 1, self._tz).replace(tzinfo=None, fold=0)
            first, second = self._passes(self.fields.first_from(now + _SECOND))
            fire = self._change(second, first) if second < first else first
            if fire >= start:
                return fire
            # This is the second pass, whose local times have fired in the first: go on where that ended.
            reached = self._change(first, second)

    def _real(self, start: int) -> int:
        """Return the first fire not before ``start``, of local times that fire whenever a clock shows them."""
        for _ in range(_CHANGES):
            now = datetime.fromtimestamp(start, self._tz)
            local = now.replace(tzinfo=None, fold=0)
            first, second = self._passes(self.fields.first_from(local))
            again = self._passes(local)[1] if now.fold == 0 else start
            if again > start and first >= (change := self._change(start, again)):
                start = change  # what is left of the first pass has none: look at the second
            elif second < first:
                start = self._change(second, first)
            else:
                return first if first >= start else second
        raise CronError("cron", self.expression, f"a local time that {self.zone} does not always skip")

    def _passes(self, local: datetime) -> tuple[int, int]:
        """Return when clocks show a local time first and last; for one that a gap swallows, the second is earlier."""
        aware = local.replace(tzinfo=self._tz)
        return int(aware.timestamp()), int(aware.replace(fold=1).timestamp())

    def _change(self, before: int, after: int) -> int:
        """Return the first second on which the clocks are set as they are at ``after``."""
        old = datetime.fromtimestamp(before, self._tz).utcoffset()
        while after - before > 1:
            middle = (before + after) // 2
            if datetime.fromtimestamp(middle, self._tz).utcoffset() == old:
                before = middle
            else:
                after = middle
        return after
