from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.expressions import MOMENTS, expressions, fires, made, ms, texts

from knapsaq.cron import HOUR, MINUTE, SECOND
from knapsaq.errors import CronError
from knapsaq.timetable import Cron, Every

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


def shown(fire_ms: int, zone: str) -> str:
    return datetime.fromtimestamp(fire_ms / 1000, ZoneInfo(zone)).isoformat(timespec="seconds")


@cache
def near_changes(zone: str) -> st.SearchStrategy[datetime]:
    """Moments up to four hours around a change of the clocks."""
    changes = [datetime.fromisoformat(change).replace(tzinfo=UTC) for change in CHANGES[zone]]
    return st.builds(lambda at, off: at + timedelta(seconds=off), st.sampled_from(changes), st.integers(-14400, 14400))


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
