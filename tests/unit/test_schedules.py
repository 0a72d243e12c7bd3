from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsaq import Registry, Schedule
from knapsaq.errors import InvalidArgumentsError, OptionError

BERLIN = ZoneInfo("Europe/Berlin")


def schedule(cron: Any = None, timezone: Any = None, **given: Any) -> Schedule:
    return Schedule.build("@scheduled_task of 'f'", cron=cron, timezone=timezone, **given)


def after(schedule: Schedule, moment: datetime, default: str = "UTC") -> datetime:
    moment_ms = int(moment.timestamp() * 1000)
    return datetime.fromtimestamp(schedule.timetable(default).next_after(moment_ms) / 1000, UTC)


class TestDefinition:
    @pytest.mark.parametrize("cron", ["", "* * * *", "* * * * * * *", "@nightly", "0 2"])
    def test_an_expression_that_has_not_cron_s_fields_is_refused_with_their_names(self, cron: str) -> None:
        """Five fields, or six with the second; or one of the words."""
        with pytest.raises(OptionError, match="minute, hour, day of month, month, day of week and") as caught:
            schedule(cron)
        assert (caught.value.option, caught.value.given) == ("cron", cron)

    @pytest.mark.parametrize("cron", [5, b"* * * * *", ["*"]])
    def test_what_is_no_text_is_refused(self, cron: Any) -> None:
        """With an expression to go by."""
        with pytest.raises(OptionError, match="an expression such as"):
            schedule(cron)

    @pytest.mark.parametrize(("given", "what"), [({}, "neither"), ({"cron": "@daily", "every": 5}, "both")])
    def test_it_is_either_an_expression_or_an_interval(self, given: dict[str, Any], what: str) -> None:
        """The error shows how each is written."""
        with pytest.raises(OptionError, match=f"either cron, such as '0 2 .*, or every, such as 30 .*; not {what}"):
            schedule(**given)

    @pytest.mark.parametrize(
        ("field", "value", "expected"),
        [
            ("every", 0.5, "from 1 second"),
            ("every", "1 h", "from 1 second"),
            ("every", True, "from 1 second"),
            ("jitter", -1, "from 0 to 86,400"),
            ("jitter", timedelta(days=1, seconds=1), "from 0 to 86,400"),
            ("misfire", "twice", "'skip', 'once' or 'all'"),
            ("misfire", "all", "or overlap=True with it"),
            ("misfire_window", -1, "seconds from 0"),
            ("misfire_window", "1 h", "seconds from 0"),
            ("overlap", "no", "True or False"),
            ("enabled", 1, "True or False"),
            ("args", "abc", "a list or tuple"),
            ("args", {1}, "a list or tuple"),
            ("kwargs", [("a", 1)], "arguments by name"),
            ("kwargs", {1: 2}, "arguments by name"),
            ("name", "with spaces", "letters, digits"),
            ("name", "", "letters, digits"),
        ],
    )
    def test_a_wrong_field_is_named_with_what_it_may_be(self, field: str, value: Any, expected: str) -> None:
        """Durations out of range, texts for flags, policies that do not exist or do not go together."""
        given = {field: value} if field == "every" else {"cron": "@daily", field: value}
        with pytest.raises(OptionError, match=expected) as caught:
            schedule(**given)
        assert (caught.value.option, caught.value.given) == (field, value)

    def test_an_interval_has_no_zone(self) -> None:
        """It is the same everywhere; a zone with it is a misunderstanding."""
        with pytest.raises(OptionError, match="the same in every zone"):
            schedule(every=5, timezone="Europe/Berlin")

    def test_an_interval_fires_on_its_multiples(self) -> None:
        """In milliseconds, and as a duration of either kind."""
        moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
        assert after(schedule(every=timedelta(minutes=5)), moment) == moment + timedelta(minutes=5)
        assert after(schedule(every=1.5), moment) == moment + timedelta(seconds=1.5)
        assert schedule(every=90).describe("UTC") == "every 90 seconds"

    @pytest.mark.parametrize(
        "cron", ["60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "a * * * *", "*/0 * * * *"]
    )
    def test_a_field_out_of_range_is_refused(self, cron: str) -> None:
        """The field is named, with what it may be: the worker never meets an expression that it cannot compute."""
        with pytest.raises(OptionError, match=r"expected as (minute|hour|day of month|month|day of week) .* such as"):
            schedule(cron)

    @pytest.mark.parametrize(
        ("cron", "moment", "due"),
        [
            ("@daily", datetime(2026, 1, 1, 12, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
            ("* * * * * */10", datetime(2026, 1, 1, 12, 0, 1, tzinfo=UTC), datetime(2026, 1, 1, 12, 0, 10, tzinfo=UTC)),
        ],
    )
    def test_words_and_seconds_are_understood(self, cron: str, moment: datetime, due: datetime) -> None:
        """Cron's own words, and a sixth field."""
        assert after(schedule(cron), moment) == due

    def test_a_local_time_fires_once_when_its_hour_repeats_and_once_when_it_is_missing(self) -> None:
        """On the last Sunday of October 02:30 comes twice in Berlin, on that of March never."""
        nightly = schedule("30 2 * * *", "Europe/Berlin")
        first = after(nightly, datetime(2026, 10, 24, 12, tzinfo=UTC))
        assert first == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
        assert after(nightly, first) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)
        assert after(nightly, datetime(2026, 3, 28, 12, tzinfo=UTC)) == datetime(2026, 3, 29, 1, tzinfo=UTC)

    @pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 4,6 *"])
    def test_a_day_that_never_comes_is_refused(self, cron: str) -> None:
        """Each field is in range, but no date has them all."""
        with pytest.raises(OptionError):
            schedule(cron)

    @pytest.mark.parametrize("timezone", ["Berlin", "America", "../UTC", "", 5])
    def test_an_unknown_zone_is_refused(self, timezone: Any) -> None:
        """A continent is no zone either."""
        with pytest.raises(OptionError, match="an IANA zone") as caught:
            schedule("0 2 * * *", timezone)
        assert (caught.value.option, caught.value.given) == ("timezone", timezone)

    def test_arguments_that_the_task_cannot_take_are_refused_and_nothing_is_registered(
        self, registry: Registry
    ) -> None:
        """The nightly job does not fail in the night, but at import."""
        with pytest.raises(InvalidArgumentsError, match="batch_size"):

            @registry.scheduled_task(cron="0 2 * * *", kwargs={"batch_size": "many"})
            async def clean_up(*, batch_size: int = 50) -> None: ...

        assert registry.names() == ()

    def test_the_arguments_cannot_be_changed_afterwards(self) -> None:
        """A schedule is a value."""
        given_arguments = {"n": 1}
        built = schedule("* * * * *", kwargs=given_arguments)
        given_arguments["n"] = 2
        assert built.kwargs == {"n": 1}


class TestNextDueTime:
    def test_the_fields_are_read_in_the_schedules_own_zone(self) -> None:
        """02:00 in Berlin is another moment in winter and in summer."""
        nightly = schedule("0 2 * * *", "Europe/Berlin")
        assert after(nightly, datetime(2026, 1, 10, 12, tzinfo=UTC)) == datetime(2026, 1, 11, 1, tzinfo=UTC)
        assert after(nightly, datetime(2026, 7, 10, 12, tzinfo=UTC)) == datetime(2026, 7, 11, 0, tzinfo=UTC)

    def test_without_a_zone_of_its_own_the_settings_one_counts(self) -> None:
        """One setting moves all schedules that name no zone."""
        nightly, moment = schedule("0 2 * * *"), datetime(2026, 1, 10, 12, tzinfo=UTC)
        assert after(nightly, moment, "UTC") == datetime(2026, 1, 11, 2, tzinfo=UTC)
        assert after(nightly, moment, "Asia/Tokyo") == datetime(2026, 1, 10, 17, tzinfo=UTC)

    def test_a_time_that_the_clocks_skip_comes_when_they_have_been_moved(self) -> None:
        """The night in which 02:30 does not exist is not left out."""
        due = after(schedule("30 2 * * *", "Europe/Berlin"), datetime(2026, 3, 28, 12, tzinfo=UTC))
        assert due.astimezone(BERLIN).isoformat() == "2026-03-29T03:00:00+02:00"

    def test_both_names_of_sunday_are_known(self) -> None:
        """0 and 7 are the same day."""
        moment = datetime(2026, 3, 2, tzinfo=UTC)
        assert after(schedule("0 0 * * 0"), moment) == after(schedule("0 0 * * 7"), moment)

    @given(
        st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)),  # noqa: DTZ001 - hypothesis adds the zone itself
        st.integers(1, 59),
    )
    def test_it_is_later_whole_and_in_reach(self, naive: datetime, minutes: int) -> None:
        """Due times go forwards, lie on whole minutes, and none is left out."""
        moment = naive.replace(tzinfo=UTC)
        due = after(schedule(f"*/{minutes} * * * *"), moment)
        assert moment < due <= moment + timedelta(minutes=minutes)
        assert (due.second, due.microsecond, due.minute % minutes) == (0, 0, 0)
