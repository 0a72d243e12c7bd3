"""What tests of cron expressions share: random ones, and when they fire."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from zoneinfo import ZoneInfo

from hypothesis import reject
from hypothesis import strategies as st

from knapsaq.cron import DAY, HOUR, MINUTE, MONTH, SECOND, WEEKDAY, Column
from knapsaq.errors import CronError
from knapsaq.timetable import Cron

MOMENTS = st.datetimes(datetime(1975, 1, 1), datetime(2060, 1, 1)).map(lambda naive: naive.replace(tzinfo=UTC))  # noqa: DTZ001 - the zone is added


def ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000


def fires(expression: str, zone: str, start: str, count: int) -> str:
    """Return the first fires later than a local time."""
    moment = datetime.fromisoformat(start)
    now = ms(moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone)))
    cron, found = Cron(expression, zone), []
    for _ in range(count):
        now = cron.next_after(now)
        found.append(datetime.fromtimestamp(now / 1000, ZoneInfo(zone)).strftime("%m-%d %H:%M:%S%z"))
    return ", ".join(found)


@cache
def values(column: Column) -> st.SearchStrategy[str]:
    """A value as digits or as a name."""
    highest = column.high + (column is WEEKDAY)
    numbers = st.integers(column.low, highest).map(str)
    return numbers | st.sampled_from([*column.names, *map(str.upper, column.names)]) if column.names else numbers


@cache
def upward(column: Column) -> st.SearchStrategy[str]:
    """A range that does not go over the end."""
    bounds = st.tuples(st.integers(column.low, column.high), st.integers(column.low, column.high + (column is WEEKDAY)))
    return bounds.map(lambda pair: f"{min(pair)}-{max(pair)}")


@cache
def texts(column: Column, *, star: bool = True) -> st.SearchStrategy[str]:
    """A field of the dialect that everybody shares."""
    steps = st.integers(1, column.high + 5)
    # cronsim reads 5-5/2 as 5/2, which goes to the end.
    stepped = st.builds("{}/{}".format, upward(column).filter(lambda text: len(set(text.split("-"))) > 1), steps)
    term = values(column) | upward(column) | stepped
    if column is not WEEKDAY:
        term |= st.builds("{}/{}".format, st.integers(column.low, column.high), steps)
    lists = st.lists(term, min_size=1, max_size=3).map(",".join)
    return lists | st.just("*") | steps.map("*/{}".format) if star else lists


@cache
def expressions(*, seconds: bool = False) -> st.SearchStrategy[str]:
    """Expressions on whose days all agree: ``*/n`` beside another restricted day is read in two ways."""
    star = st.just("*")
    day = texts(DAY, star=False) | st.just("L")
    weekday = texts(WEEKDAY, star=False) | st.builds("{}#{}".format, st.integers(0, 6), st.integers(1, 5))
    days = st.one_of(
        st.tuples(star, star),
        st.tuples(texts(DAY) | st.just("L"), star),
        st.tuples(star, texts(WEEKDAY) | weekday),
        st.tuples(day, weekday),
    )
    fields = st.tuples(texts(MINUTE), texts(HOUR), days, star | texts(MONTH), texts(SECOND) if seconds else st.just(""))
    return fields.map(lambda found: f"{found[0]} {found[1]} {found[2][0]} {found[3]} {found[2][1]} {found[4]}".strip())


def made(expression: str, zone: str) -> Cron:
    """Return the timetable; expressions that never come are left out."""
    try:
        return Cron(expression, zone)
    except CronError as error:
        if error.field in ("day of month", "cron"):
            reject()
        raise
