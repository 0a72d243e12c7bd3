"""Definitions: what a schedule fires when, reckoned from its record alone."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsaq import Concurrency, Registry
from knapsaq.definitions import LATE_MS, MOST_AT_ONCE, UNREADABLE, Definition, Record, bound, coded, reckon
from knapsaq.errors import InvalidArgumentsError, OptionError
from knapsaq.schedules import Misfire

NOON = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp() * 1000)
MINUTE = 60_000
HOUR = 60 * MINUTE


def every(seconds: float, **fields: Any) -> Definition:
    return Definition(every=seconds, **fields)


class TestReckon:
    @given(
        st.sampled_from(get_args(Misfire)),
        st.sampled_from([1.0, 7.0, 60.0, 90.5, 3600.0, 86_400.0]),
        st.integers(0, 2 * 86_400_000),
        st.sampled_from([0.0, 5.0, 61.0, 3600.0, 100_000.0]),
    )
    def test_it_decides_as_somebody_who_looks_at_each_moment(
        self, misfire: Misfire, seconds: float, late_ms: int, window: float
    ) -> None:
        """Whatever the policy, the interval, the window, and however late it is."""
        definition = every(seconds, misfire=misfire, misfire_window=window, overlap=True)
        step = definition.timetable.next_after(0)
        due = definition.timetable.next_after(NOON)
        now = due + late_ms
        moments = range(due, now + 1, step)
        newest = [moments[-1]] if now - moments[-1] <= LATE_MS else []
        inside = [moment for moment in moments[-2 * MOST_AT_ONCE :] if now - moment <= window * 1000]
        if misfire == "all":
            expected = inside if len(inside) <= MOST_AT_ONCE else None
            expected = newest if expected == [] else expected
        else:
            expected = newest or (inside[-1:] if misfire == "once" else [])

        found = reckon(definition, due, now)
        if expected is not None:
            assert list(found.fires) == expected
            assert (found.missed_ms is not None) == (set(moments) != set(expected))
        else:
            assert len(found.fires) == MOST_AT_ONCE
            assert found.dropped
        assert found.next_ms == moments[-1] + step > now

    def test_all_that_is_too_much_at_once_runs_from_the_oldest_on(self) -> None:
        """A thousand; the rest is dropped, and that is said."""
        found = reckon(every(1, misfire="all", misfire_window=7200, overlap=True), NOON, NOON + HOUR)
        assert found.fires == tuple(range(NOON, NOON + 1_000_000, 1000))
        assert (found.missed_ms, found.dropped, found.next_ms) == (NOON + 1_000_000, True, NOON + HOUR + 1000)

    def test_years_of_missed_seconds_are_decided_at_once(self) -> None:
        """Not one by one, as that would take a worker hours."""
        now = NOON + 10 * 365 * 24 * HOUR
        assert reckon(Definition(cron="* * * * * *"), NOON, now).fires == (now,)
        assert reckon(Definition(cron="0 3 29 2 *", misfire_window=10**9), NOON, now).fires == (
            int(datetime(2036, 2, 29, 3, tzinfo=UTC).timestamp() * 1000),
        )

    @pytest.mark.parametrize("misfire", get_args(Misfire))
    def test_a_minute_is_late_and_not_missed(self, misfire: Misfire) -> None:
        """Even with a window of nothing."""
        hourly = every(3600, misfire=misfire, misfire_window=0, overlap=True)
        assert reckon(hourly, NOON, NOON + MINUTE).fires == (NOON,)
        assert reckon(hourly, NOON, NOON + MINUTE + 1) == ((), NOON + HOUR, NOON, False)

    def test_a_night_in_which_the_clocks_change_is_no_misfire(self) -> None:
        """The local time that is missing fires at the gap's end, the one that repeats in the first pass."""
        nightly = Definition(cron="30 2 * * *", timezone="Europe/Berlin")
        for before, fire in (("2026-03-28T12:00", "2026-03-29T01:00"), ("2026-10-24T12:00", "2026-10-25T00:30")):
            start, end = (int(datetime.fromisoformat(f"{text}+00:00").timestamp() * 1000) for text in (before, fire))
            due = nightly.timetable.next_after(start)
            assert due == end
            assert reckon(nightly, due, due).fires == (due,)


class TestJitter:
    @given(st.text(max_size=20), st.integers(0, 2**42), st.floats(0, 86_400))
    def test_it_lies_within_its_limit(self, name: str, due: int, jitter: float) -> None:
        """From nothing to the whole of it."""
        assert 0 <= every(60, jitter=jitter).delay_ms(name, due) <= jitter * 1000

    def test_it_is_spread(self) -> None:
        """Two schedules of one time, and two times of one schedule, are not delayed alike."""
        definition = every(60, jitter=10)
        delays = [definition.delay_ms("a", NOON + number * MINUTE) for number in range(1000)]
        assert len(set(delays)) > 900
        assert 4500 < sum(delays) / 1000 < 5500
        assert definition.delay_ms("b", NOON) != definition.delay_ms("a", NOON)

    def test_every_process_comes_to_the_same(self) -> None:
        """It does not hang on Python's own hashes, which differ from process to process."""
        code = f"from knapsaq.definitions import *; print(Definition(every=60, jitter=10).delay_ms('a', {NOON}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
        assert int(done.stdout) == every(60, jitter=10).delay_ms("a", NOON)


class TestRecord:
    def test_what_an_operator_changed_lies_on_top_of_the_code(self) -> None:
        """Field by field; an interval takes the place of an expression."""
        record = Record(task="t", code=Definition(cron="0 2 * * *", jitter=3), edit={"cron": None, "every": 5.0})
        assert record.effective == Definition(every=5, jitter=3)
        assert Record.decode(record.encode()) == record

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"task":1}',
            b'{"task":"t"}',
            b'{"task":"t","code":{"cron":"x"}}',
            b'{"task":"t","code":{"every":0}}',
            b'{"task":"t","code":{"every":5},"edit":{"misfire":"twice"}}',
            b'{"task":"t","code":{"cron":"* * * * *","timezone":"Mars/Base"}}',
        ],
    )
    def test_what_cannot_be_read_is_told(self, raw: bytes) -> None:
        """By errors that those who read look for."""
        with pytest.raises(UNREADABLE):
            Record.decode(raw)

    def test_a_job_has_what_the_task_s_options_say(self, registry: Registry) -> None:
        """So that whoever fires need not know the task."""

        @registry.scheduled_task(
            cron="0 2 * * *", timezone="Asia/Tokyo", kwargs={"day": "2026-01-01"}, timeout=9, ttl=5
        )
        async def report(day: date, copies: int = 1) -> None: ...

        record = coded(report, report.schedules[0], "UTC")
        assert record.fields == {"timeout": 9.0, "ttl": 5}
        assert record.module == __name__
        assert record.effective.timezone == "Asia/Tokyo"
        fired, sent = record.job("k"), report.build_job(report.using(key="k").options, (), {"day": "2026-01-01"})
        assert fired.to_dict() == sent.to_dict()

    def test_a_retried_task_s_jobs_are_retried(self, registry: Registry) -> None:
        """Delay and backoff too."""

        @registry.scheduled_task(every=60, retries=3, retry_delay=timedelta(seconds=5), retry_backoff=90)
        async def report() -> None: ...

        job = coded(report, report.schedules[0], "UTC").job("k")
        assert (job.retries, job.retry_delay, job.retry_backoff, job.timeout) == (4, 5, 90, None)

    def test_its_jobs_have_priority_limits_and_tenant_of_its_arguments(self, registry: Registry) -> None:
        """They are not unique, as ``overlap`` says what becomes of a second one; no two share what they carry."""

        @registry.scheduled_task(
            every=60,
            kwargs={"shop": 7},
            priority=5,
            concurrency=Concurrency(1, key="shop"),
            fair_key="shop",
            unique=True,
        )
        async def report(shop: int) -> None: ...

        record = Record.decode(coded(report, report.schedules[0], "UTC").encode())
        first, second = record.job("k"), record.job("l")
        assert first.control == {"priority": 5, "fair": "7", "slots": [["report/shop=7", 1]]}
        assert first.control == second.control
        assert first.control is not second.control
        assert record.job("m", {"shop": 8}, {"priority": 1}).control == {"priority": 1}

    def test_a_key_that_its_arguments_do_not_make_is_told_with_the_schedule(self, registry: Registry) -> None:
        """When a worker starts, and by ``doctor``."""

        @registry.scheduled_task(every=60, schedule="often", fair_key=lambda arguments: arguments["shops"])
        async def report(shop: int = 1) -> None: ...

        with pytest.raises(OptionError, match=r"schedule 'often', defined at .*: option 'fair_key' .* raised KeyError"):
            coded(report, report.schedules[0], "UTC")

    def test_too_few_arguments_are_told(self, registry: Registry) -> None:
        """When the providers are known, as for a worker."""

        @registry.scheduled_task(every=60)
        async def report(day: int) -> None: ...

        with pytest.raises(InvalidArgumentsError, match="'day'"):
            coded(report, report.schedules[0], "UTC")


class TestBound:
    @pytest.mark.parametrize(
        ("args", "kwargs", "expected"),
        [
            ((), {}, {"x": 1, "y": 2, "rest": [3], "z": 4, "more": 5}),
            ((7,), {}, {"x": 7, "y": 2, "rest": [3], "z": 4, "more": 5}),
            ((7, 8, 9, 9), {}, {"x": 7, "y": 8, "rest": [9, 9], "z": 4, "more": 5}),
            ((), {"z": 0, "other": 1}, {"x": 1, "y": 2, "rest": [3], "z": 0, "more": 5, "other": 1}),
        ],
    )
    def test_arguments_take_the_place_of_those_of_their_names(
        self, registry: Registry, args: tuple[Any, ...], kwargs: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        """By position or by name; the others stay."""

        @registry.task
        def add(x: int, y: int = 0, *rest: int, z: int, **more: int) -> None: ...

        base = add.signature.bind((1, 2, 3), {"z": 4, "more": 5}, frozenset())
        assert base == {"x": 1, "y": 2, "rest": [3], "z": 4, "more": 5}
        assert bound(add, args, base, kwargs) == expected

    @pytest.mark.parametrize(("args", "kwargs"), [((1, 2), {}), ((1,), {"x": 1}), (("a",), {}), ((), {"y": 1})])
    def test_what_does_not_fit_is_refused(
        self, registry: Registry, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """As at any call."""

        @registry.task
        def add(x: int) -> None: ...

        with pytest.raises(InvalidArgumentsError):
            bound(add, args, {"x": 1}, kwargs)

    def test_stored_values_stay_as_they_are(self, registry: Registry) -> None:
        """Text that stands for a moment is still one after a change of another argument."""

        @registry.task
        def report(day: datetime, /, copies: int) -> None: ...

        base = report.signature.bind((datetime(2026, 1, 1, tzinfo=UTC), 1), {}, frozenset())
        assert bound(report, (), base, {"copies": 2}) == {"day": "2026-01-01T00:00:00Z", "copies": 2}
