"""The manual as code: saying when something fires, and reading it back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from knapsaq.cron import crontab
from knapsaq.errors import CronError
from knapsaq.timetable import Cron, Every
from knapsaq.wording import describe

BERLIN = ZoneInfo("Europe/Berlin")
MONDAY = datetime(2026, 6, 1, tzinfo=BERLIN)
"""The first day of a month, so that a day, a week and a month begin with it."""
PERIODS = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
    "month": timedelta(days=30),
}


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def fires(expression: str, start: datetime, length: timedelta) -> list[datetime]:
    """Return the fires from ``start`` on, in Berlin."""
    found = Cron(expression, "Europe/Berlin").between(ms(start) - 1, ms(start + length) - 1)
    return [datetime.fromtimestamp(fire / 1000, BERLIN) for fire in found]


class TestCrontab:
    @pytest.mark.parametrize(
        ("fields", "expression", "count", "period"),
        [
            # Common patterns.
            ({"minute": 0}, "0 * * * *", 24, "day"),
            ({"minute": 0, "hour": 0}, "0 0 * * *", 1, "day"),
            ({"minute": 0, "hour": 0, "day_of_week": 1}, "0 0 * * 1", 1, "week"),
            ({"minute": 0, "hour": 0, "day_of_month": 1}, "0 0 1 * *", 1, "month"),
            ({"minute": "*/15"}, "*/15 * * * *", 4, "hour"),
            ({"hour": "*/2"}, "0 */2 * * *", 12, "day"),
            ({"day_of_week": "1-5"}, "0 0 * * 1-5", 5, "week"),
            ({"day_of_week": "6-7"}, "0 0 * * 6-7", 2, "week"),
            ({"hour": 9, "day_of_week": 1}, "0 9 * * 1", 1, "week"),
            # More of them.
            ({"minute": "*/15"}, "*/15 * * * *", 96, "day"),
            ({"hour": 9, "minute": 0, "day_of_week": "1-5"}, "0 9 * * 1-5", 5, "week"),
            ({"hour": 10, "minute": 0, "day_of_week": "6-7"}, "0 10 * * 6-7", 2, "week"),
            ({"minute": "*/15", "hour": "9-17", "day_of_week": "1-5"}, "*/15 9-17 * * 1-5", 180, "week"),
            ({"hour": 0, "minute": 0, "day_of_month": 1}, "0 0 1 * *", 1, "month"),
            ({"minute": 0, "hour": "*/3"}, "0 */3 * * *", 8, "day"),
            ({"hour": "8,12,18", "minute": 0}, "0 8,12,18 * * *", 3, "day"),
            # The finest field that is given decides: what is finer starts at its beginning.
            ({"hour": 2}, "0 2 * * *", 1, "day"),
            ({"hour": 2, "minute": 0, "day_of_week": 0}, "0 2 * * 0", 1, "week"),
            ({"hour": 2, "minute": 0, "day_of_week": 7}, "0 2 * * 7", 1, "week"),
        ],
    )
    def test_it_fires_as_often_as_it_says(
        self, fields: dict[str, Any], expression: str, count: int, period: str
    ) -> None:
        """A day, a week and a month that begin on Monday, 1 June."""
        assert crontab(**fields) == expression
        assert len(fires(expression, MONDAY, PERIODS[period])) == count

    @pytest.mark.parametrize(
        ("fields", "days", "times"),
        [
            ({"minute": 0, "hour": 0, "day_of_week": 1}, "Mon", "00:00"),
            ({"day_of_week": "1-5"}, "Mon Tue Wed Thu Fri", "00:00"),
            ({"day_of_week": "6-7"}, "Sat Sun", "00:00"),
            ({"hour": 9, "day_of_week": 1}, "Mon", "09:00"),
            ({"hour": 10, "minute": 0, "day_of_week": "6-7"}, "Sat Sun", "10:00"),
            ({"hour": "8,12,18", "minute": 0, "day_of_week": "fri"}, "Fri", "08:00 12:00 18:00"),
        ],
    )
    def test_it_fires_on_the_days_and_at_the_times_that_it_says(
        self, fields: dict[str, Any], days: str, times: str
    ) -> None:
        """Monday is 1, and the weekend is 6 and 7."""
        found = fires(crontab(**fields), MONDAY, timedelta(weeks=1))
        assert " ".join(dict.fromkeys(fire.strftime("%a") for fire in found)) == days
        assert " ".join(dict.fromkeys(fire.strftime("%H:%M") for fire in found)) == times


class TestTimetables:
    def test_a_nightly_time_fires_once_in_each_night_also_when_the_clocks_change(self) -> None:
        """In spring there is no 02:30, in autumn there are two."""
        nightly = crontab(minute=30, hour=2)
        [spring] = fires(nightly, datetime(2026, 3, 29, tzinfo=BERLIN), timedelta(days=1))
        [autumn] = fires(nightly, datetime(2026, 10, 25, tzinfo=BERLIN), timedelta(days=1))
        assert spring.isoformat() == "2026-03-29T03:00:00+02:00"
        assert autumn.isoformat() == "2026-10-25T02:30:00+02:00"

    def test_every_half_hour_stays_every_half_hour(self) -> None:
        """The longest day of the year has 25 hours."""
        start, end = (ms(datetime(2026, 10, day, tzinfo=BERLIN)) for day in (25, 26))
        half_hours = range(start + 1_800_000, end + 1, 1_800_000)
        assert len(half_hours) == 50
        assert list(Cron("*/30 * * * *", "Europe/Berlin").between(start, end)) == list(half_hours)

    def test_a_sixth_field_is_the_second(self) -> None:
        """It comes last, as in SAQ."""
        assert len(fires("* * * * * */10", MONDAY, timedelta(minutes=1))) == 6
        assert fires("0 2 * * * 30", MONDAY, timedelta(days=1)) == [MONDAY.replace(hour=2, second=30)]

    def test_an_interval_fires_on_its_multiples(self) -> None:
        """So it does not matter when it was started, and all processes agree."""
        now = datetime(2026, 6, 1, 12, 0, 7, tzinfo=UTC)
        assert Every(timedelta(minutes=5)).next_after(ms(now)) == ms(datetime(2026, 6, 1, 12, 5, tzinfo=UTC))
        assert Every(90).next_after(0) == 90_000

    def test_what_is_wrong_is_named_with_what_would_be_right(self) -> None:
        """Before anything runs."""
        with pytest.raises(CronError, match=r"hour is '25'; expected 0 to 23, such as '2', '8,12,18', '9-17'"):
            Cron("0 25 * * *", "Europe/Berlin")
        with pytest.raises(CronError, match="day of month is '30'; expected a day that comes in month 2"):
            crontab(day_of_month=30, month_of_year=2)

    def test_a_timetable_can_be_told_in_words(self) -> None:
        """To see whether it means what was meant."""
        assert describe(Cron(crontab(hour=2), "Europe/Berlin")) == "at 02:00 each day (Europe/Berlin)"
        assert describe(Cron("0 9 * * mon#1")) == "at 09:00 on the first Monday of the month (UTC)"
        assert describe(Every(90)) == "every 90 seconds"
