"""Wording: what a timetable means, in words, for those who check or watch it.

The words are complete: expressions with the same words name the same local times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from knapsaq.cron import LAST, Fields
from knapsaq.timetable import Cron, Every

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
WEEKS = ("last", "first", "second", "third", "fourth", "fifth")

_UNITS = (("day", 86_400_000), ("hour", 3_600_000), ("minute", 60_000), ("second", 1000))
_SIZES = {"second": 60, "minute": 60, "hour": 24, "day": 31}
_LISTED_TIMES = 6
_SHORTEST_RUN = 3


def describe(timetable: Cron | Every) -> str:
    """Return when a timetable fires: ``at 02:00 each day (Europe/Berlin)``, ``every 90 seconds``."""
    if isinstance(timetable, Cron):
        return f"{_time(timetable.fields)}{_date(timetable.fields)} ({timetable.zone})"
    ms = timetable.interval_ms
    unit, size = next((unit for unit in _UNITS if ms % unit[1] == 0), _UNITS[-1])
    return f"every {unit}" if ms == size else f"every {ms // size}{f'.{ms % size:03}'.rstrip('.0')} {unit}s"


def _time(fields: Fields) -> str:
    """Return ``at 08:00 and 18:00``, ``every 15 minutes of hours 9 to 17`` or ``at minute 5 of each hour``."""
    whole_minutes = fields.seconds == (0,)
    if len(fields.hours) * len(fields.minutes) * len(fields.seconds) <= _LISTED_TIMES:
        times = itertools.product(*(fields.hours, fields.minutes, fields.seconds)[: 2 if whole_minutes else 3])
        return "at " + _listed([":".join(f"{number:02}" for number in time) for time in times])
    units = [("second", fields.seconds), ("minute", fields.minutes), ("hour", fields.hours)][whole_minutes:]
    unit, numbers = units.pop(0)
    step = _SIZES[unit] // len(numbers)
    if len(numbers) >= _SHORTEST_RUN and numbers == tuple(range(0, _SIZES[unit], step)):
        text = f"every {unit}" if step == 1 else f"every {step} {unit}s"
        while units and len(units[0][1]) == _SIZES[units[0][0]]:
            units.pop(0)
    else:
        text = f"at {_counted(unit, numbers)}"
    for unit, numbers in units:
        text += f" of each {unit}" if len(numbers) == _SIZES[unit] else f" of {_counted(unit, numbers)}"
    return text


def _date(fields: Fields) -> str:
    """Return `` each day``, `` on Monday to Friday`` or `` on day 13 of the month or on Friday, in May``."""
    parts = []
    if len(fields.days) < _SIZES["day"]:
        parts.append(f" on {_month_days(fields)} of the month")
    if len(fields.weekdays) < len(WEEKDAYS):
        parts.append(f" on {_week_days(fields)}")
    if len(parts) == 1 and not fields.both:
        parts = []  # the other of the two fits each day, and either is enough
    if not parts and len(fields.hours) < _SIZES["hour"]:
        parts = [" each day"]
    if len(fields.months) < len(MONTHS):
        parts[-1:] = ["".join(parts[-1:]) + ", in " + _listed(_runs(fields.months, ("", *MONTHS)))]
    return " or".join(parts)


def _month_days(fields: Fields) -> str:
    """Return ``days 1 and 15``, ``the last day`` or ``the weekday nearest to day 15``."""
    moving = []
    for day, weekday in sorted(fields.moving_days):
        last = f"last {'weekday' if weekday else 'day'}"
        moving.append(f"the {last if day == LAST else f'weekday nearest to day {day}'}")
    return _counted("day", sorted(fields.days), *moving) if fields.days else _listed(moving)


def _week_days(fields: Fields) -> str:
    """Return ``Monday to Friday`` or ``the first Monday and the last Friday of the month``."""
    # From Monday on, so that a weekend is a run.
    order = (*WEEKDAYS[1:], WEEKDAYS[0])
    texts = _runs(sorted((day - 1) % len(order) for day in fields.weekdays), order)
    texts += [f"the {WEEKS[week]} {WEEKDAYS[day]} of the month" for day, week in sorted(fields.in_week)]
    return _listed(texts)


def _counted(unit: str, numbers: Sequence[int], *others: str) -> str:
    """Return ``day 1``, ``minutes 0 and 30``, ``hours 9 to 17`` or ``days 1, 15 and the last day``."""
    return f"{unit}{'s' if len(numbers) > 1 else ''} {_listed([*_runs(numbers), *others])}"


def _runs(numbers: Iterable[int], names: Sequence[str] = ()) -> list[str]:
    """Return numbers in order, or their names, with three and more that follow each other as ``9 to 17``."""
    texts: list[str] = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [names[number] if names else str(number) for _, number in group]
        texts += [f"{run[0]} to {run[-1]}"] if len(run) >= _SHORTEST_RUN else run
    return texts


def _listed(texts: Sequence[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
