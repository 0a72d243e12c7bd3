from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsaq import Concurrency, Debounce, OptionError, Rate, Throttle, Unique
from knapsaq.limits import MICROSECONDS, Way, without_limits


def by_hand(arguments: Any) -> str:
    return str(arguments)


class TestRates:
    @pytest.mark.parametrize(
        ("limit", "interval_us"),
        [
            ("1/s", 1_000_000),
            ("10/m", 6_000_000),
            ("7/s", 142_858),
            ("1000000/s", 1),
            ("999999/s", 2),
            ("3/h", 1_200_000_000),
            ("5/15m", 180_000_000),
            ("1/3650d", 3650 * 86_400_000_000),
        ],
    )
    def test_the_interval_is_in_whole_microseconds_rounded_up(self, limit: str, interval_us: int) -> None:
        """What does not come out even is a little slower than it says."""
        assert Rate(limit).interval_us == interval_us

    @given(st.integers(1, 1_000_000), st.integers(1, 3650), st.sampled_from("smhd"))
    def test_a_rate_is_never_faster_than_it_says(self, count: int, number: int, unit: str) -> None:
        """Nor slower than by a microsecond a start."""
        period = Fraction(number * MICROSECONDS[unit], count)
        assert 0 <= Rate(f"{count}/{number}{unit}").interval_us - period < 1

    @pytest.mark.parametrize(
        ("arguments", "option", "expected"),
        [
            ({"limit": "10/min"}, "limit", "such as '10/s', '100/h' or '5/15m'"),
            ({"limit": "0/s"}, "limit", "a count from 1 to 1,000,000"),
            ({"limit": None}, "limit", "a count from 1"),
            ({"limit": "5/m", "burst": 6}, "burst", "a whole number from 1 to 5, the rate's count"),
            ({"limit": "5/m", "burst": 0}, "burst", "a whole number from 1"),
            ({"limit": "5/m", "burst": None}, "burst", "a whole number from 1"),
            ({"limit": "5/m", "key": ""}, "key", "the name of a parameter, or a function"),
            ({"limit": "5/m", "key": str}, "key", "the name of a parameter, or a function"),
        ],
    )
    def test_a_wrong_one_is_refused_where_it_is_written(self, arguments: Any, option: str, expected: str) -> None:
        """With what would be right."""
        with pytest.raises(OptionError) as caught:
            Rate(**arguments)
        assert (caught.value.place, caught.value.option) == ("Rate()", option)
        assert expected in caught.value.expected
        assert "given" not in str(caught.value)

    @pytest.mark.parametrize("limit", [0, 1_000_001, True, 1.0, None, "3"])
    def test_so_is_a_wrong_number_of_jobs_at_once(self, limit: Any) -> None:
        """None is no number either."""
        with pytest.raises(OptionError, match=f"option 'limit' is {limit!r}; expected a whole number from 1 to 1,000"):
            Concurrency(limit)


class TestWaysToBeOne:
    @pytest.mark.parametrize(
        ("limit", "way"),
        [
            (Unique(), Way(None, "end", "existing")),
            (Unique(by="a", until="start", clash="replace"), Way(("a",), "start", "replace")),
            (Unique(by=["a", "b"], until=1.0005), Way(("a", "b"), 1001, "existing")),
            (Unique(by=(), until=timedelta(days=1), clash="raise"), Way((), 86_400_000, "raise")),
            (Unique(until=1e-9), Way(None, 1, "existing")),
            (Debounce(5), Way(None, "start", "replace", 5.0)),
            (Debounce(timedelta(minutes=1), by="a"), Way(("a",), "start", "replace", 60.0)),
            (Throttle(0.0001), Way(None, 1, "existing")),
            (Throttle(timedelta(hours=1), by=["a"]), Way(("a",), 3_600_000, "existing")),
        ],
    )
    def test_each_comes_to_the_same_few_facts(self, limit: Any, way: Way) -> None:
        """A debounce and a throttle are kinds of uniqueness."""
        assert limit.way == way

    @pytest.mark.parametrize(
        ("make", "option"),
        [
            (lambda: Unique(by=5), "by"),
            (lambda: Unique(by=""), "by"),
            (lambda: Unique(by=["a", 1]), "by"),
            (lambda: Unique(until="never"), "until"),
            (lambda: Unique(until=0), "until"),
            (lambda: Unique(until=None), "until"),
            (lambda: Unique(until=timedelta(days=3651)), "until"),
            (lambda: Unique(clash="ignore"), "clash"),
            (lambda: Unique(clash=None), "clash"),
            (lambda: Debounce(0), "seconds"),
            (lambda: Debounce(None), "seconds"),
            (lambda: Throttle(seconds=True), "seconds"),
            (lambda: Throttle(5, by=[None]), "by"),
        ],
    )
    def test_a_wrong_one_is_refused_where_it_is_written(self, make: Any, option: str) -> None:
        """Not when a job is queued."""
        with pytest.raises(OptionError) as caught:
            make()
        assert caught.value.option == option

    def test_they_are_stored_in_one_form_and_compare(self) -> None:
        """However they were written."""
        assert Unique(by="a", until=timedelta(seconds=5)) == Unique(by=["a"], until=5)
        assert len({Debounce(5), Debounce(5.0), Debounce(timedelta(seconds=5))}) == 1


class TestWords:
    @pytest.mark.parametrize(
        ("limit", "words"),
        [
            (Rate("10/m"), "10/m"),
            (Rate("10/m", key="user_id", burst=3), "10/m by user_id, 3 at once"),
            (Rate("10/m", key=by_hand), "10/m by by_hand"),
            (Concurrency(3), "3"),
            (Concurrency(3, key="a"), "3 by a"),
            (Unique(), "until end, else existing"),
            (Unique(by=["a", "b"], until=60, clash="raise"), "until 60 s by a, b, else raise"),
            (Unique(by=()), "until end by nothing, else existing"),
            (Debounce(5, by="a"), "5 s by a"),
            (Throttle(0.5), "0.5 s"),
        ],
    )
    def test_lists_show_them_in_short(self, limit: object, words: str) -> None:
        """As ``knapsaq tasks`` does."""
        assert str(limit) == words


class TestAnnotations:
    @pytest.mark.parametrize(
        ("annotation", "plain", "limits"),
        [
            (int, int, ()),
            (Any, Any, ()),
            (Annotated[int, Rate("1/s")], int, (Rate("1/s"),)),
            (Annotated[int, Rate("1/s"), Concurrency(2)], int, (Rate("1/s"), Concurrency(2))),
            (
                Annotated[int, msgspec.Meta(ge=0), Rate("1/s")],
                Annotated[int, msgspec.Meta(ge=0)],
                (Rate("1/s"),),
            ),
            (
                Annotated[Annotated[int, Rate("1/s")] | None, msgspec.Meta(description="a user")],
                Annotated[Annotated[int, Rate("1/s")] | None, msgspec.Meta(description="a user")],
                (Rate("1/s"),),
            ),
            (Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)], ()),
            (Annotated[int, Rate("1/s")] | None, Annotated[int, Rate("1/s")] | None, (Rate("1/s"),)),
        ],
    )
    def test_limits_are_taken_out_and_what_else_there_is_stays(self, annotation: Any, plain: Any, limits: Any) -> None:
        """So that values are checked as before."""
        assert without_limits(annotation) == (plain, limits)
