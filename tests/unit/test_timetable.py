from __future__ import annotations

import itertools
import pickle
import re
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter, croniter_range
from cronsim import CronSim
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from knapsaq.cron import DAY, HOUR, MINUTE, MONTH, SECOND, WEEKDAY, Column, Fields, crontab
from knapsaq.errors import CronError
from knapsaq.timetable import Cron, Every
from knapsaq.wording import describe

ZONES = (
    "UTC",
    "Europe/Berlin",
    "Europe/Dublin",  # its winter is the one with the negative shift
    "America/New_York",
    "America/Sao_Paulo",  # until 2019 it changed at midnight
    "America/St_Johns",  # until 2011 it changed at one minute past midnight
    "Australia/Lord_Howe",  # it changes by half an hour
    "Africa/Casablanca",  # it changes around Ramadan
    "Africa/Cairo",  # it changes at midnight
    "Asia/Kolkata",
    "Asia/Tehran",
    "Antarctica/Casey",  # it changes by three hours
    "Antarctica/Troll",  # it changes by two
    "Pacific/Apia",  # it had no 30 December 2011
)
CHANGES = {
    "Europe/Berlin": ("2026-03-29T01:00", "2026-10-25T01:00"),
    "Europe/Dublin": ("2026-03-29T01:00", "2026-10-25T01:00"),
    "America/New_York": ("2026-03-08T07:00", "2026-11-01T06:00"),
    "America/Sao_Paulo": ("2018-11-04T03:00", "2019-02-17T02:00"),
    "America/St_Johns": ("2010-03-14T03:31", "2010-11-07T02:31"),
    "Australia/Lord_Howe": ("2026-04-04T15:00", "2026-10-03T15:30"),
    "Antarctica/Casey": ("2020-10-03T16:01", "2021-03-13T13:00"),
    "Antarctica/Troll": ("2026-03-29T01:00", "2026-10-25T01:00"),
    "Pacific/Apia": ("2010-09-26T11:00", "2011-12-30T10:00"),
}
NOT_FOR_CRONSIM = ("America/St_Johns", "Antarctica/Casey", "Australia/Lord_Howe")
MOMENTS = st.datetimes(datetime(1975, 1, 1), datetime(2060, 1, 1)).map(lambda naive: naive.replace(tzinfo=UTC))  # noqa: DTZ001 - the zone is added


def ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000


def shown(fire_ms: int, zone: str) -> str:
    return datetime.fromtimestamp(fire_ms / 1000, ZoneInfo(zone)).isoformat(timespec="seconds")


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
def near_changes(zone: str) -> st.SearchStrategy[datetime]:
    """Moments up to four hours around a change of the clocks."""
    changes = [datetime.fromisoformat(change).replace(tzinfo=UTC) for change in CHANGES[zone]]
    return st.builds(lambda at, off: at + timedelta(seconds=off), st.sampled_from(changes), st.integers(-14400, 14400))


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


class TestAgainstCronsim:
    @settings(max_examples=500, deadline=None)
    @given(expressions(), st.sampled_from(ZONES), st.data())
    def test_it_fires_when_cronsim_does(self, expression: str, zone: str, data: st.DataObject) -> None:
        """Any expression, in any zone, at any date, and most of all where clocks change."""
        moments = MOMENTS | near_changes(zone) if zone in CHANGES else MOMENTS
        start = data.draw(moments).replace(microsecond=0).astimezone(ZoneInfo(zone))
        cron = made(expression, zone)
        # cronsim's faults: it goes on from a second pass as if it were the first; in real time it steps in whole hours,
        # also over a change by half an hour, and it takes midnight for its first pass even in the second one.
        assume(start.fold == 0 if not cron.fields.real_time else zone not in NOT_FOR_CRONSIM)
        oracle = CronSim(expression, start)
        now = ms(start)
        for _ in range(6):
            now = cron.next_after(now)
            expected = next(oracle)
            # Where a day begins with a gap, cronsim may answer with a local time that does not exist.
            assume(
                expected.astimezone(UTC).astimezone(expected.tzinfo).replace(tzinfo=None)
                == expected.replace(tzinfo=None)
            )
            assert shown(now, zone) == expected.isoformat()


class TestAgainstTheDefinition:
    """Every second around a change of the clocks is looked at, instead of being reckoned with."""

    @settings(max_examples=50, deadline=None)
    @given(st.sampled_from(sorted(CHANGES)), st.data())
    def test_it_fires_at_every_moment_that_it_should_and_at_no_other(self, zone: str, data: st.DataObject) -> None:
        """Fixed times in the first pass or at the gap's end, all others whenever a clock shows them."""
        fields = [data.draw(texts(MINUTE)), data.draw(texts(HOUR)), "* * *", data.draw(texts(SECOND))]
        cron = made(" ".join(fields), zone)
        start = int(data.draw(near_changes(zone)).timestamp())
        end = start + 3 * 3600
        expected = [second * 1000 for second in range(start + 1, end + 1) if is_due(cron, second)]
        assert list(cron.between(start * 1000, end * 1000)) == expected

    @settings(deadline=None)
    @given(expressions(seconds=True), st.sampled_from(ZONES), MOMENTS, st.data())
    def test_no_fire_lies_between_a_moment_and_the_next_fire(
        self, expression: str, zone: str, moment: datetime, data: st.DataObject
    ) -> None:
        """Asking late, early or twice changes nothing."""
        cron, now = made(expression, zone), ms(moment)
        fire = cron.next_after(now)
        assert fire > now
        assert fire % 1000 == 0
        assert cron.next_after(data.draw(st.integers(now, fire - 1))) == fire
        assert cron.next_after(fire) > fire


def is_due(cron: Cron, second: int) -> bool:
    """Say by the definition whether a timetable fires in a second."""
    zone = ZoneInfo(cron.zone)
    local, before = (datetime.fromtimestamp(moment, zone).replace(tzinfo=None) for moment in (second, second - 1))
    fits = (
        local.second in cron.fields.seconds and local.minute in cron.fields.minutes and local.hour in cron.fields.hours
    )
    if cron.fields.real_time:
        return fits
    skipped = (before + timedelta(seconds=n) for n in range(1, int((local - before).total_seconds())))
    first_pass = datetime.fromtimestamp(second, zone).fold == 0
    return (fits and first_pass) or any(
        time.second in cron.fields.seconds and time.minute in cron.fields.minutes and time.hour in cron.fields.hours
        for time in skipped
    )


class TestAgainstCroniter:
    @settings(deadline=None)
    @given(st.sampled_from([MINUTE, HOUR, DAY, MONTH, WEEKDAY, SECOND]), st.data())
    def test_a_field_is_read_as_croniter_reads_it(self, column: Column, data: st.DataObject) -> None:
        """A schedule that was SAQ's keeps its times; ranges may go over the end."""
        over = st.builds("{}-{}".format, values(column), values(column))
        text = data.draw(st.lists(texts(column) | over, min_size=1, max_size=3).map(",".join))
        assume(not is_odd(column, text))
        place = [MINUTE, HOUR, DAY, MONTH, WEEKDAY, SECOND].index(column)
        expected = croniter.expand(" ".join(text if n == place else "*" for n in range(6)))[0][place]
        assert numbers(column, text) == (numbers(column, "*") if "*" in expected else set(expected))

    @settings(deadline=None)
    @given(texts(DAY), texts(MONTH), texts(WEEKDAY), MOMENTS)
    def test_days_are_found_as_croniter_finds_them(self, day: str, month: str, weekday: str, moment: datetime) -> None:
        """Where both are restricted either is enough, also where one begins with a star."""
        assume(not is_odd(DAY, day) and not is_odd(WEEKDAY, weekday) and not is_odd(MONTH, month))
        cron, now = made(f"0 0 {day} {month} {weekday}", "UTC"), ms(moment)
        oracle = croniter(cron.expression, moment)
        for _ in range(5):
            now = cron.next_after(now)
            assert now == int(oracle.get_next(float)) * 1000

    @pytest.mark.parametrize(
        "days",
        ["L", "1,L", "15W", "w1", "31W", "30w", "L5", "L0", "L7", "mon#1", "5#5", "7#3", "sun#2,wed#4", "7#3,L1"],
    )
    def test_special_days_are_found_as_croniter_finds_them(self, days: str) -> None:
        """The last, the nearest and the n-th, over eight years with two leap days."""
        expression = f"0 0 * * {days}" if re.search(r"L\d|#", days) else f"0 0 {days} * ?"
        start, end = datetime(2024, 1, 1, tzinfo=UTC), datetime(2032, 1, 1, tzinfo=UTC)
        expected = [ms(fire) for fire in croniter_range(start, end, expression)]
        assert list(Cron(expression).between(ms(start) - 1, ms(end))) == expected


def numbers(column: Column, text: str) -> frozenset[int]:
    return column.read(text, lambda _: set[int]())[0]


def is_odd(column: Column, text: str) -> bool:
    """Tell whether croniter takes ``5-5`` for the whole field, or goes by how a field that has it all is written."""
    ranges = re.findall(r"(\w+)-(\w+)", text)
    looped = any(numbers(column, first) == numbers(column, last) for first, last in ranges)
    return looped or (text != "*" and numbers(column, text) == numbers(column, "*"))


class TestWhenClocksChange:
    @pytest.mark.parametrize(
        ("expression", "zone", "start", "expected"),
        [
            # A fixed time on the day on which its hour repeats: the first pass.
            ("30 1 * * *", "America/New_York", "2026-11-01T00:00", "11-01 01:30:00-0400, 11-02 01:30:00-0500"),
            ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:00", "10-25 02:30:00+0200, 10-26 02:30:00+0100"),
            ("30 23 * * *", "America/Sao_Paulo", "2019-02-16T12:00", "02-16 23:30:00-0200, 02-17 23:30:00-0300"),
            ("45 1 * * *", "Australia/Lord_Howe", "2026-04-05T00:00", "04-05 01:45:00+1100, 04-06 01:45:00+1030"),
            # Asked in the second pass: that day's fire is over.
            ("30 2 * * *", "Europe/Berlin", "2026-10-25T02:10:00+01:00", "10-26 02:30:00+0100"),
            # On the day on which its hour is missing: at the end of the gap, once.
            ("30 2 * * *", "Europe/Berlin", "2026-03-29T00:00", "03-29 03:00:00+0200, 03-30 02:30:00+0200"),
            ("0,30 2 * * *", "Europe/Berlin", "2026-03-29T00:00", "03-29 03:00:00+0200, 03-30 02:00:00+0200"),
            ("30 2,3 * * *", "Europe/Berlin", "2026-03-29T00:00", "03-29 03:00:00+0200, 03-29 03:30:00+0200"),
            ("0 2,3 * * *", "Europe/Berlin", "2026-03-29T00:00", "03-29 03:00:00+0200, 03-30 02:00:00+0200"),
            ("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00", "11-04 01:00:00-0200, 11-05 00:00:00-0200"),
            ("15 2 * * *", "Australia/Lord_Howe", "2026-10-04T00:00", "10-04 02:30:00+1100, 10-05 02:15:00+1100"),
            ("0 12 * * *", "Pacific/Apia", "2011-12-29T13:00", "12-31 00:00:00+1400, 12-31 12:00:00+1400"),
            ("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00", "12-31 00:00:00+1400, 12-30 12:00:00+1400"),
            # Seconds do not make a fixed time another one; cronsim fires these twice, and not at all in the gap.
            ("30 1 * * * 15", "America/New_York", "2026-11-01T00:00", "11-01 01:30:15-0400, 11-02 01:30:15-0500"),
            ("30 2 * * * */20", "Europe/Berlin", "2026-03-29T00:00", "03-29 03:00:00+0200, 03-30 02:30:00+0200"),
            # Real time: intervals stay what they are.
            (
                "*/30 * * * *",
                "Europe/Berlin",
                "2026-10-25T02:10:00+02:00",
                "10-25 02:30:00+0200, 10-25 02:00:00+0100, 10-25 02:30:00+0100, 10-25 03:00:00+0100",
            ),
            (
                "*/30 * * * *",
                "Europe/Berlin",
                "2026-03-29T01:10",
                "03-29 01:30:00+0100, 03-29 03:00:00+0200, 03-29 03:30:00+0200",
            ),
            (
                "0 * * * *",
                "America/New_York",
                "2026-11-01T00:30",
                "11-01 01:00:00-0400, 11-01 01:00:00-0500, 11-01 02:00:00-0500",
            ),
            (
                "*/20 * * * *",
                "Australia/Lord_Howe",
                "2026-04-05T01:30",
                "04-05 01:40:00+1100, 04-05 01:40:00+1030, 04-05 02:00:00+1030",
            ),
            ("*/30 2 * * *", "Europe/Berlin", "2026-03-29T00:00", "03-30 02:00:00+0200"),
            (
                "0 */6 * * *",
                "America/St_Johns",
                "2010-11-06T23:50:00-02:30",
                "11-07 00:00:00-0230, 11-07 00:00:00-0330, 11-07 06:00:00-0330",
            ),
            ("* 2 25 10 *", "Europe/Berlin", "2026-10-25T02:59:00+02:00", "10-25 02:00:00+0100"),
        ],
    )
    def test_fixed_times_fire_once_and_real_time_goes_on(
        self, expression: str, zone: str, start: str, expected: str
    ) -> None:
        """What the head of the module says, case by case."""
        assert fires(expression, zone, start, expected.count(",") + 1) == expected

    @pytest.mark.parametrize("expression", ["30 1 * * *", "0-59/30 1 * * *", "30 1-1 * * *", "@daily", "0 3,9 * * 1"])
    def test_minute_and_hour_without_a_star_are_fixed(self, expression: str) -> None:
        """Lists, ranges and steps from a number are local times, too."""
        assert not Cron(expression).fields.real_time

    @pytest.mark.parametrize("expression", ["* 1 * * *", "30 * * * *", "*/30 1 * * *", "5 */2 * * *", "@hourly"])
    def test_a_star_in_front_of_either_makes_it_real_time(self, expression: str) -> None:
        """As in Vixie cron."""
        assert Cron(expression).fields.real_time


class TestReading:
    @pytest.mark.parametrize(
        ("alias", "expression"),
        [
            ("@yearly", "0 0 1 1 *"),
            ("@Annually", "0 0 1 1 *"),
            ("@monthly", "0 0 1 * *"),
            ("@weekly", "0 0 * * 0"),
            ("@daily", "0 0 * * *"),
            (" @midnight ", "0 0 * * *"),
            ("@HOURLY", "0 * * * *"),
            ("0 0 * jan SUN", "0 0 * 1 7"),
            ("0  0\t? * MON", "0 0 * * 1"),
            ("0 0 * * sat-7", "0 0 * * 6,0"),
            ("0 0 * * 5L", "0 0 * * L5"),
            ("0 0 * * 7/3", "0 0 * * 0,3,6"),
            ("0 0 * * 5-7/2", "0 0 * * fri,sun"),
            ("0 0 */1 * mon", "0 0 * * mon"),
        ],
    )
    def test_there_is_more_than_one_way_to_write_it(self, alias: str, expression: str) -> None:
        """Aliases, names in any case, and both numbers of Sunday."""
        assert Fields.parse(alias) == Fields.parse(expression)

    @pytest.mark.parametrize(
        ("expression", "zone", "start", "expected"),
        [
            # The second comes last.
            ("0 2 * * * 30", "UTC", "2026-01-01T00:00", "01-01 02:00:30+0000, 01-02 02:00:30+0000"),
            ("* * * * * */20", "UTC", "2026-01-01T00:00:30", "01-01 00:00:40+0000, 01-01 00:01:00+0000"),
            # croniter reads these otherwise.
            ("0 5-5 * * *", "UTC", "2026-01-01T00:00", "01-01 05:00:00+0000, 01-02 05:00:00+0000"),
            (
                "0 23-5/3 * * *",
                "UTC",
                "2026-01-01T03:00",
                "01-01 05:00:00+0000, 01-01 23:00:00+0000, 01-02 02:00:00+0000",
            ),
            ("0 0 * * wed,fri#2", "UTC", "2026-01-07T00:00", "01-09 00:00:00+0000, 01-14 00:00:00+0000"),
            (
                "0 0 13 * fri#2",
                "UTC",
                "2026-01-01T00:00",
                "01-09 00:00:00+0000, 01-13 00:00:00+0000, 02-13 00:00:00+0000",
            ),
            ("0 0 LW * *", "UTC", "2026-01-01T00:00", "01-30 00:00:00+0000, 02-27 00:00:00+0000"),
            # cronsim reads these otherwise: days 1 and 31 *and* Monday, and 1/3 up to 7.
            (
                "0 0 */30 * mon",
                "UTC",
                "2026-01-25T00:00",
                "01-26 00:00:00+0000, 01-31 00:00:00+0000, 02-01 00:00:00+0000, 02-02 00:00:00+0000",
            ),
            ("0 0 * * 1/3", "UTC", "2026-01-01T00:00", "01-05 00:00:00+0000, 01-08 00:00:00+0000, 01-12 00:00:00+0000"),
        ],
    )
    def test_the_dialect(self, expression: str, zone: str, start: str, expected: str) -> None:
        """What other readers of cron expressions do differently, case by case."""
        assert fires(expression, zone, start, expected.count(",") + 1) == expected

    @pytest.mark.parametrize(
        ("expression", "field", "given", "expected"),
        [
            ("60 * * * *", "minute", "60", "0 to 59"),
            ("*/0 * * * *", "minute", "*/0", "0 to 59"),
            ("5, * * * *", "minute", "5,", "0 to 59"),
            ("*-5 * * * *", "minute", "*-5", "0 to 59"),
            ("1_0 * * * *", "minute", "1_0", "0 to 59"),
            ("\u0663 * * * *", "minute", "\u0663", "0 to 59"),
            ("-1 * * * *", "minute", "-1", "0 to 59"),
            ("99999999999 * * * *", "minute", "99999999999", "0 to 59"),
            ("H * * * *", "minute", "H", "0 to 59"),
            ("? * * * *", "minute", "?", "0 to 59"),
            ("* 24 * * *", "hour", "24", "0 to 23"),
            ("* R(1-5) * * *", "hour", "R(1-5)", "0 to 23"),
            ("* * 0 * *", "day of month", "0", "1 to 31"),
            ("* * 1-32 * *", "day of month", "1-32", "1 to 31"),
            ("* * L-3 * *", "day of month", "L-3", "1 to 31"),
            ("* * 32W * *", "day of month", "32W", "1 to 31"),
            ("* * * 13 *", "month", "13", "jan to dec"),
            ("* * * mon *", "month", "mon", "jan to dec"),
            ("* * * * 8", "day of week", "8", "0 and 7: Sunday"),
            ("* * * * mon#6", "day of week", "mon#6", "the first Monday"),
            ("* * * * L", "day of week", "L", "the last Friday"),
            ("* * * * * 60", "second", "60", "0 to 59"),
            ("0 0 30 2 *", "day of month", "30", "a day that comes in month 2"),
            ("0 0 31 apr,jun *", "day of month", "31", "a day that comes in month apr,jun"),
            ("", "cron", "", "minute, hour, day of month, month, day of week"),
            ("* * * *", "cron", "* * * *", "second"),
            ("0 0 1 1 * 0 2026", "cron", "0 0 1 1 * 0 2026", "second"),
            ("@reboot", "cron", "@reboot", "@daily"),
            (None, "cron", None, "minute"),
            (5, "cron", 5, "minute"),
        ],
    )
    def test_a_wrong_field_is_named_with_what_it_was_and_what_is_legal(
        self, expression: Any, field: str, given: object, expected: str
    ) -> None:
        """Checked when it is made, not when it is due."""
        with pytest.raises(CronError) as caught:
            Cron(expression)
        assert (caught.value.field, caught.value.given) == (field, given)
        assert expected in caught.value.expected
        assert str(caught.value) == f"{field} is {given!r}; expected {caught.value.expected}"
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own bytes

    @pytest.mark.parametrize("zone", ["Berlin", "America", "../UTC", "", 5, None])
    def test_an_unknown_zone_is_refused(self, zone: Any) -> None:
        """A continent is no zone either."""
        with pytest.raises(CronError, match="expected an IANA zone"):
            Cron("0 2 * * *", zone)

    def test_a_time_that_always_falls_into_the_gap_is_refused(self) -> None:
        """The last Sunday of March has no 02:05 in Berlin; a fixed time fires at the gap's end, and is allowed."""
        with pytest.raises(CronError, match="a local time that Europe/Berlin does not always skip"):
            Cron("*/5 2 * 3 L0", "Europe/Berlin")
        assert fires("5 2 * 3 L0", "Europe/Berlin", "2026-01-01T00:00", 1) == "03-29 03:00:00+0200"

    def test_it_is_a_value(self) -> None:
        """Equal, usable as a key, and fit for another process."""
        cron = Cron("*/5 9-17 * * mon-fri", "Europe/Berlin")
        assert cron == Cron("*/5 9-17 * * mon-fri", "Europe/Berlin") != Cron("*/5 9-17 * * mon-fri")
        assert len({cron, Cron("*/5 9-17 * * mon-fri", "Europe/Berlin")}) == 1
        assert pickle.loads(pickle.dumps(cron)) == cron  # noqa: S301 - our own bytes
        assert repr(cron) == "Cron(expression='*/5 9-17 * * mon-fri', zone='Europe/Berlin')"


class TestMoments:
    @pytest.mark.parametrize(
        ("expression", "year", "expected"), [("0 0 29 2 *", 2096, 2104), ("0 0 * 2 mon#5", 2072, 2112)]
    )
    def test_a_rare_day_is_waited_for(self, expression: str, year: int, expected: int) -> None:
        """A leap day stays out for eight years, one that is a Monday for forty."""
        fire = Cron(expression).next_after(ms(datetime(year, 3, 1, tzinfo=UTC)))
        assert fire == ms(datetime(expected, 2, 29, tzinfo=UTC))

    def test_a_fire_is_strictly_later_to_the_millisecond(self) -> None:
        """A scheduler that asks with the last fire never gets it again."""
        cron, fire = Cron("0 2 * * *"), ms(datetime(2026, 1, 5, 2, tzinfo=UTC))
        assert cron.next_after(fire - 1) == fire
        assert cron.next_after(fire) == fire + 86_400_000
        assert cron.next_after(fire + 1) == fire + 86_400_000

    def test_between_leaves_out_the_start_and_takes_in_the_end(self) -> None:
        """From the last fire that was handled up to now."""
        first = ms(datetime(2026, 1, 5, 2, tzinfo=UTC))
        day = 86_400_000
        assert list(Cron("0 2 * * *").between(first, first + 2 * day)) == [first + day, first + 2 * day]
        assert list(Cron("0 2 * * *").between(first, first + day - 1)) == []
        assert list(Every(3600).between(0, 7_200_000)) == [3_600_000, 7_200_000]

    def test_between_counts_only_as_far_as_it_is_asked(self) -> None:
        """A year of seconds costs nothing until somebody wants them."""
        fires = Cron("* * * * * *").between(0, 2**42)
        assert list(itertools.islice(fires, 3)) == [1000, 2000, 3000]

    def test_moments_before_1970_have_a_next_fire(self) -> None:
        """A clock that is set wrong does not stop a schedule."""
        assert Cron("0 2 * * *").next_after(-86_400_000) == -79_200_000
        assert Every(3600).next_after(-1) == 0


class TestEvery:
    @settings(deadline=None)
    @given(st.integers(1000, 10**10), st.integers(0, 2**42))
    def test_it_fires_on_the_multiples_of_the_interval(self, interval_ms: int, now: int) -> None:
        """All workers agree, whenever they started, and none is left out."""
        fire = Every(timedelta(milliseconds=interval_ms)).next_after(now)
        assert now < fire <= now + interval_ms
        assert fire % interval_ms == 0

    def test_seconds_and_timedeltas_are_the_same(self) -> None:
        """It is a value, and milliseconds are its unit."""
        assert Every(90) == Every(90.0) == Every(timedelta(minutes=1.5)) != Every(91)
        assert Every(1.5).interval_ms == 1500
        assert Every(2.3).interval_ms == 2300

    @pytest.mark.parametrize(
        "interval", [0, 0.999, -5, True, "60", None, float("nan"), float("inf"), 10**400, timedelta(0), timedelta.max]
    )
    def test_what_is_no_duration_or_out_of_range_is_refused(self, interval: Any) -> None:
        """One second is the shortest."""
        with pytest.raises(CronError, match="from 1 second to 100 years") as caught:
            Every(interval)
        assert caught.value.field == "every"


class TestCrontab:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, "* * * * *"),
            ({"minute": "*"}, "* * * * *"),
            ({"minute": 5}, "5 * * * *"),
            ({"hour": 2}, "0 2 * * *"),
            ({"day_of_week": "mon-fri"}, "0 0 * * mon-fri"),
            ({"day_of_month": 15}, "0 0 15 * *"),
            ({"month_of_year": 6}, "0 0 1 6 *"),
            ({"month_of_year": 6, "day_of_week": 1}, "0 0 * 6 1"),
            ({"month_of_year": 6, "minute": 30}, "30 * * 6 *"),
            ({"hour": "*", "day_of_week": 7}, "0 * * * 7"),
            ({"minute": [0, 30], "hour": range(9, 12)}, "0,30 9,10,11 * * *"),
            ({"day_of_week": ("mon", "fri"), "hour": "8, 18"}, "0 8,18 * * mon,fri"),
        ],
    )
    def test_what_is_finer_starts_at_its_beginning_and_what_is_coarser_does_not_matter(
        self, fields: dict[str, Any], expected: str
    ) -> None:
        """What nobody gave follows from what somebody did."""
        assert crontab(**fields) == expected

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"minute": 60}, "minute"),
            ({"minute": ""}, "minute"),
            ({"minute": "1 5"}, "minute"),
            ({"minute": True}, "minute"),
            ({"hour": []}, "hour"),
            ({"hour": 1.5}, "hour"),
            ({"day_of_week": 8}, "day of week"),
            ({"day_of_week": ["mon", None]}, "day of week"),
            ({"day_of_month": "x"}, "day of month"),
            ({"day_of_month": 30, "month_of_year": 2}, "day of month"),
            ({"month_of_year": 0}, "month"),
        ],
    )
    def test_a_wrong_field_is_named(self, fields: dict[str, Any], field: str) -> None:
        """At the call, not at the first fire."""
        with pytest.raises(CronError) as caught:
            crontab(**fields)
        assert caught.value.field == field


class TestWords:
    @pytest.mark.parametrize(
        ("expression", "words"),
        [
            ("0 2 * * *", "at 02:00 each day"),
            ("0 8,12,18 * * *", "at 08:00, 12:00 and 18:00 each day"),
            ("0 2 * * * 30", "at 02:00:30 each day"),
            ("* * * * *", "every minute"),
            ("* * * * * *", "every second"),
            ("*/15 * * * *", "every 15 minutes"),
            ("* * * * * */10", "every 10 seconds"),
            ("0,30 * * * *", "at minutes 0 and 30 of each hour"),
            ("5 * * * *", "at minute 5 of each hour"),
            ("*/25 * * * *", "at minutes 0, 25 and 50 of each hour"),
            ("*/15 9-17 * * 1-5", "every 15 minutes of hours 9 to 17 on Monday to Friday"),
            ("* 3 * * * *", "every second of hour 3 each day"),
            ("*/7 * * * * 30", "at second 30 of minutes 0, 7, 14, 21, 28, 35, 42, 49 and 56 of each hour"),
            ("5 * * * * *", "every second of minute 5 of each hour"),
            ("0 0 * * 6,0", "at 00:00 on Saturday and Sunday"),
            ("0 0 1,15,L * *", "at 00:00 on days 1, 15 and the last day of the month"),
            ("0 0 LW * *", "at 00:00 on the last weekday of the month"),
            ("0 0 15W * ?", "at 00:00 on the weekday nearest to day 15 of the month"),
            ("0 9 * * mon#1,L5", "at 09:00 on the first Monday of the month and the last Friday of the month"),
            ("0 9 * * wed,fri#2", "at 09:00 on Wednesday and the second Friday of the month"),
            ("30 8 13 * fri", "at 08:30 on day 13 of the month or on Friday"),
            ("0 0 1-31 * mon", "at 00:00 each day"),
            ("@yearly", "at 00:00 on day 1 of the month, in January"),
            ("* * * 5 *", "every minute, in May"),
            ("0 0 1 nov-feb *", "at 00:00 on day 1 of the month, in January, February, November and December"),
            ("30 8 13 6-8 fri", "at 08:30 on day 13 of the month or on Friday, in June to August"),
        ],
    )
    def test_a_cron_expression_is_told_in_words(self, expression: str, words: str) -> None:
        """With the zone whose clocks are meant."""
        assert describe(Cron(expression, "Europe/Berlin")) == f"{words} (Europe/Berlin)"

    @pytest.mark.parametrize(
        ("interval", "words"),
        [
            (1, "every second"),
            (90, "every 90 seconds"),
            (60, "every minute"),
            (1.5, "every 1.5 seconds"),
            (100.05, "every 100.05 seconds"),
            (3600, "every hour"),
            (timedelta(hours=36), "every 36 hours"),
            (timedelta(weeks=2), "every 14 days"),
        ],
    )
    def test_an_interval_is_told_in_the_largest_unit_that_fits(self, interval: Any, words: str) -> None:
        """Whole numbers, as long as there are any."""
        assert describe(Every(interval)) == words

    @settings(deadline=None)
    @given(st.data())
    def test_the_same_words_mean_the_same_local_times(self, data: st.DataObject) -> None:
        """Nothing that an expression says is left out."""
        choices = (
            ["0", "5", "0,30", "*/15", "0-59", "*", "0-2"],
            ["0", "2", "9-17", "*/2", "0-23", "*", "1,2"],
            ["1", "1-31", "*", "L", "LW", "1W", "1,L"],
            ["1", "*", "1-12", "1-3", "1,3"],
            ["1", "*", "0-6", "mon#1", "L1", "1,mon#1", "6-7"],
            ["0", "*", "*/15", "30"],
        )
        one = [data.draw(st.sampled_from(texts)) for texts in choices]
        place = data.draw(st.integers(0, len(choices) - 1))
        other = [*one[:place], data.draw(st.sampled_from(choices[place])), *one[place + 1 :]]
        first, second = Cron(" ".join(one)), Cron(" ".join(other))
        if describe(first) == describe(second):
            start = ms(datetime(2025, 12, 20, tzinfo=UTC))
            fires = [list(itertools.islice(cron.between(start, 2**42), 100)) for cron in (first, second)]
            assert fires[0] == fires[1]
