"""Cron expressions: text, and the local times that it stands for. Zones are ``timetable``'s matter.

An expression has five fields: minute, hour, day of month, month, day of week.
A sixth one is the second; it comes last, as in croniter and SAQ. ``crontab``
writes expressions from keyword arguments.

Terms are read as croniter reads them, so that a schedule moved from SAQ keeps
its days: ``fri-mon`` and ``22-2`` go over the end, ``10/5`` goes to the end,
``?`` is ``*``, ``L`` is the last day, ``15W`` the weekday nearest to the 15th,
``mon#1`` the first Monday, ``L5`` (or ``5L``) the last Friday. Where day of month
and day of week are both other than ``*``, either is enough. Deliberately not as
in croniter: ``5-5`` is 5 and not the whole field, ``23-5/3`` goes on in steps of
three over midnight (23, 2, 5), ``mon#1`` joins with other days like any weekday,
and ``H``, ``R`` and years are refused.
"""

from __future__ import annotations

import calendar
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, TypeVar

from knapsaq.errors import CronError

T = TypeVar("T")
CrontabField: TypeAlias = int | str | Iterable[int | str]
"""What ``crontab`` takes for a field: ``5``, ``"*/15"``, ``[0, 30]``, ``("mon", "fri")``."""

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
LAST = 0
"""The last day among the days of a month, and the last week among its weeks."""

_TERM = re.compile(r"(\*|[a-z0-9]{1,3})(?:-([a-z0-9]{1,3}))?(?:/([0-9]{1,3}))?")
_NEAR = re.compile(r"w([0-9]{1,2})|([0-9]{1,2})w")
_IN_WEEK = re.compile(r"([a-z0-9-]+)#([1-5])|l([0-7])|([0-7])l")
_CALENDAR_MONTHS = 12 * 400  # then the calendar repeats: what has not come never will


@dataclass(frozen=True, slots=True)
class Column:
    """What may stand in one of the fields."""

    name: str
    low: int
    high: int
    expected: str
    names: tuple[str, ...] = ()

    def read(self, text: str, special: Callable[[str], set[T]]) -> tuple[frozenset[int], frozenset[T]]:
        """Return the numbers of a field, and what ``special`` makes of the terms that it knows.

        Raises:
            CronError: A term cannot be read or is out of range.
        """
        numbers, others = set[int](), set[T]()
        try:
            for term in text.lower().split(","):
                found = special(term)
                others |= found
                numbers |= set() if found else self.numbers(term)
        except ValueError:
            raise CronError(self.name, text, self.expected) from None
        return frozenset(numbers), frozenset(others)

    def ordered(self, text: str) -> tuple[int, ...]:
        """Return the numbers of a field that has no special terms."""
        return tuple(sorted(self.read(text, lambda _: set[int]())[0]))

    def numbers(self, term: str) -> set[int]:
        """Return the numbers of ``5``, ``1-5``, ``fri-mon``, ``*/15``, ``10/5`` or ``10-40/5``."""
        match = _TERM.fullmatch(term)
        if match is None or (match[1] == "*" and match[2]):
            raise ValueError(term)
        size = self.high - self.low + 1
        if match[1] == "*":
            first, last = self.low, self.high
        elif match[2]:
            first, last = self._number(match[1]), self._number(match[2])
            last += size if last < first else 0
        else:
            first = self._number(match[1]) % (self.high + 1)
            last = self.high if match[3] else first
        return {self.low + (number - self.low) % size for number in range(first, last + 1, int(match[3] or 1))}

    def _number(self, text: str) -> int:
        number = self.low + self.names.index(text) if text in self.names else int(text)
        if not self.low <= number <= self.high + (self is WEEKDAY):
            raise ValueError(text)
        return number


MINUTE = Column("minute", 0, 59, "0 to 59, such as '5', '0,30', '10-20' or '*/15'")
HOUR = Column("hour", 0, 23, "0 to 23, such as '2', '8,12,18', '9-17' or '*/2'")
DAY = Column(
    "day of month", 1, 31, "1 to 31, such as '1,15' or '*/2'; 'L' is the last day, '15W' the weekday nearest to a day"
)
MONTH = Column(
    "month",
    1,
    12,
    "1 to 12 or jan to dec, such as '1,7' or 'nov-feb'",
    ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
)
WEEKDAY = Column(
    "day of week",
    0,
    6,
    "0 to 7 (0 and 7: Sunday) or sun to sat, such as 'mon-fri'; 'mon#1' is the first Monday, 'L5' the last Friday",
    ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
)
SECOND = Column("second", 0, 59, "0 to 59, such as '30' or '*/10'")


@dataclass(frozen=True, slots=True)
class Fields:
    """An expression as numbers.

    Attributes:
        minutes: In order, as are ``hours``, ``months`` and ``seconds``.
        days: Days of the month.
        moving_days: Days of the month, 1 to 31 or ``LAST``, and whether the weekday nearest to it is meant.
        weekdays: Days of the week; 0 is Sunday.
        in_week: Days of the week with their week in the month, 1 to 5 or ``LAST``.
        both: A date has to fit by day of month and by day of week; otherwise either is enough.
        real_time: Minute or hour begins with ``*``; see ``timetable``.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: tuple[int, ...]
    seconds: tuple[int, ...]
    days: frozenset[int]
    moving_days: frozenset[tuple[int, bool]]
    weekdays: frozenset[int]
    in_week: frozenset[tuple[int, int]]
    both: bool
    real_time: bool

    @classmethod
    def parse(cls, expression: str) -> Fields:
        """Read an expression.

        Raises:
            CronError: The number of fields is wrong, one of them cannot be read, or no date fits.
        """
        given = str(expression).strip()
        texts = ALIASES.get(given.lower(), given).split()
        if len(texts) not in (5, 6):
            names = ", ".join(column.name for column in (MINUTE, HOUR, DAY, MONTH, WEEKDAY))
            raise CronError("cron", expression, f"{names} and, if wanted, second; or one of {', '.join(ALIASES)}")
        minute, hour, day, month, weekday, second = (*texts, "0")[:6]
        day, weekday = ("*" if text in ("?", "*/1") else text for text in (day, weekday))
        days, moving_days = DAY.read(day, _moving_day)
        weekdays, in_week = WEEKDAY.read(weekday, _in_week)
        fields = cls(
            minutes=MINUTE.ordered(minute),
            hours=HOUR.ordered(hour),
            months=MONTH.ordered(month),
            seconds=SECOND.ordered(second),
            days=days,
            moving_days=moving_days,
            weekdays=weekdays,
            in_week=in_week,
            both="*" in (day, weekday),
            real_time=minute[0] == "*" or hour[0] == "*",
        )
        try:
            fields.first_from(datetime(2000, 1, 1))  # noqa: DTZ001 - any will do
        except OverflowError:
            raise CronError("day of month", day, f"a day that comes in month {month}") from None
        return fields

    def first_from(self, local: datetime) -> datetime:
        """Return the first local time that fits, not before ``local``; neither has a zone.

        Raises:
            OverflowError: None ever does.
        """
        today = self._time_from(local.hour, local.minute, local.second)
        for count in range(_CALENDAR_MONTHS + 1):
            years, month = divmod(local.month - 1 + count, 12)
            if month + 1 not in self.months:
                continue
            for day in self._days_in(local.year + years, month + 1):
                later = count > 0 or day > local.day
                time = (self.hours[0], self.minutes[0], self.seconds[0]) if later else today
                if time and (later or day == local.day):
                    return datetime(local.year + years, month + 1, day, *time)  # noqa: DTZ001 - zones come later
        raise OverflowError

    def _days_in(self, year: int, month: int) -> list[int]:
        """Return the days of a month that fit, in order."""
        start, length = calendar.monthrange(year, month)
        by_month = {day for day in self.days if day <= length}
        by_month |= {_moved(min(day or length, length), weekday, start, length) for day, weekday in self.moving_days}
        by_week = {
            day
            for day in range(1, length + 1)
            if (weekday := (start + day) % 7) in self.weekdays
            or (weekday, (day + 6) // 7) in self.in_week
            or (day + 7 > length and (weekday, LAST) in self.in_week)
        }
        return sorted(by_month & by_week if self.both else by_month | by_week)

    def _time_from(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        """Return the first time of day that fits, not before the one given."""
        if hour in self.hours:
            if minute in self.minutes and second <= self.seconds[-1]:
                return hour, minute, self.seconds[bisect_left(self.seconds, second)]
            if minute < self.minutes[-1]:
                return hour, self.minutes[bisect_right(self.minutes, minute)], self.seconds[0]
        if hour < self.hours[-1]:
            return self.hours[bisect_right(self.hours, hour)], self.minutes[0], self.seconds[0]
        return None


def crontab(
    minute: CrontabField | None = None,
    hour: CrontabField | None = None,
    day_of_week: CrontabField | None = None,
    day_of_month: CrontabField | None = None,
    month_of_year: CrontabField | None = None,
) -> str:
    """Return a cron expression of five fields.

    What is finer than the finest field given starts at its beginning, what is coarser does not matter:
    ``crontab(hour=2)`` is ``0 2 * * *``, and ``crontab(month_of_year=6)`` is ``0 0 1 6 *``. Without any field it is
    every minute.

    Args:
        minute: 0 to 59. Each field takes a number, a string as in an expression, or several of them.
        hour: 0 to 23.
        day_of_week: 0 to 7 (0 and 7 are Sunday), or names.
        day_of_month: 1 to 31.
        month_of_year: 1 to 12, or names.

    Raises:
        CronError: A field is wrong, or no date fits.
    """
    no_time, no_day = minute is None and hour is None, day_of_week is None and day_of_month is None
    if no_time and no_day and month_of_year is not None:
        day_of_month = 1
    if no_time and not (day_of_week is None and day_of_month is None):
        hour = 0
    if minute is None and hour is not None:
        minute = 0
    columns = ((MINUTE, minute), (HOUR, hour), (DAY, day_of_month), (MONTH, month_of_year), (WEEKDAY, day_of_week))
    expression = " ".join(_text(column, given) for column, given in columns)
    Fields.parse(expression)
    return expression


def _text(column: Column, given: CrontabField | None) -> str:
    """Return one field of an expression."""
    if given is None:
        return "*"
    terms = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    text = ",".join("" if isinstance(term, bool) else str(term).strip() for term in terms)
    text = ",".join(term.strip() for term in text.split(","))
    if len(text.split()) != 1:
        raise CronError(column.name, given, column.expected)
    return text


def _moving_day(term: str) -> set[tuple[int, bool]]:
    """Read ``L``, ``LW``, ``15W`` or ``W15``; empty for other terms."""
    if term in ("l", "lw"):
        return {(LAST, term == "lw")}
    match = _NEAR.fullmatch(term)
    return {(day, True) for day in DAY.numbers(match[1] or match[2])} if match else set()


def _in_week(term: str) -> set[tuple[int, int]]:
    """Read ``mon#1``, ``L5`` or ``5L``; empty for other terms."""
    match = _IN_WEEK.fullmatch(term)
    if match is None:
        return set()
    week = int(match[2] or LAST)
    return {(day, week) for day in WEEKDAY.numbers(match[1] or match[3] or match[4])}


def _moved(day: int, weekday: bool, start: int, length: int) -> int:
    """Return ``day``, or the day from Monday to Friday nearest to it in a month that begins on weekday ``start``."""
    if not weekday or (place := (start + day - 1) % 7) < calendar.SATURDAY:
        return day
    if place == calendar.SATURDAY:
        return day - 1 if day > 1 else day + 2
    return day + 1 if day < length else day - 2
