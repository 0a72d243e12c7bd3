from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.expressions import ms

from knapsaq.timetable import Cron, Every
from knapsaq.wording import describe


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
