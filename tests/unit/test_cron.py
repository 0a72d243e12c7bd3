from __future__ import annotations

import pickle
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from croniter import croniter, croniter_range
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.expressions import MOMENTS, fires, made, ms, texts, values

from knapsaq.cron import DAY, HOUR, MINUTE, MONTH, SECOND, WEEKDAY, Column, Fields, crontab
from knapsaq.errors import CronError
from knapsaq.timetable import Cron


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
