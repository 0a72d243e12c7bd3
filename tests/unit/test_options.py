from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from knapsaq import Batch, Concurrency, Debounce, Middleware, Rate, Registry, Throttle, Unique
from knapsaq.errors import OptionError
from knapsaq.options import CALL_CHECKS, CHECKS, CallKeywords, CallOptions, TaskKeywords, TaskOptions

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

QUIET = Middleware()
SECONDS_LEGAL = [(0, 0.0), (1.5, 1.5), (timedelta(minutes=2), 120.0), (315_360_000, 315_360_000.0)]
SECONDS_ILLEGAL = [-1, 315_360_001, math.nan, math.inf, True, "5", 10**400, timedelta(-1), timedelta.max, [1]]
NAMES_ILLEGAL = ["", "with space", "a" * 201, "new\nline", 5, ["a"]]
RETRIES_ILLEGAL = [-1, 10_001, 1.0, True, "3"]
EXPIRES_LEGAL = [(0.5, 0.5), (timedelta(minutes=2), 120.0), (NOW, NOW)]
EXPIRES_ILLEGAL = [0, timedelta(0), NOW.replace(tzinfo=None), NOW.date(), *SECONDS_ILLEGAL]
TTL_ILLEGAL = [-2, 1.5, False, "1", timedelta(1)]

LIMITS_LEGAL: dict[str, list[tuple[Any, Any]]] = {
    "priority": [(0, 0), (9, 9)],
    "rate_limit": [
        ("10/m", (Rate("10/m"),)),
        (Rate("10/m", key="a", burst=5), (Rate("10/m", key="a", burst=5),)),
        (["1/s", Rate("100/h")], (Rate("1/s"), Rate("100/h"))),
        ([], ()),
    ],
    "concurrency": [
        (3, (Concurrency(3),)),
        (Concurrency(1, key="a"), (Concurrency(1, key="a"),)),
        ((3, Concurrency(1)), (Concurrency(3), Concurrency(1))),
    ],
    "unique": [(True, Unique()), (False, False), (Unique(by="a"), Unique(by=("a",)))],
    "debounce": [(5, Debounce(5)), (timedelta(minutes=1), Debounce(60)), (Debounce(5, by=["a"]),) * 2, (False, False)],
    "throttle": [(0.5, Throttle(0.5)), (Throttle(timedelta(seconds=5)), Throttle(5)), (False, False)],
    "fair_key": [("tenant", "tenant"), (len, len)],
}
LIMITS_ILLEGAL: dict[str, list[Any]] = {
    "priority": [-1, 10, 1.0, True, "high"],
    "rate_limit": [
        "10",
        "10/min",
        "0/s",
        "1000001/s",
        "10 / m",
        "10/0m",
        "1/4000d",
        "\u0661/s",
        10,
        Concurrency(1),
        ["1/s", 5],
        {},
    ],
    "concurrency": [0, -1, 1_000_001, 1.5, True, "3", Rate("1/s"), [1, 0]],
    "unique": [1, "end", Unique, Debounce(5), ["a"]],
    "debounce": [0, True, Unique(), Throttle(5), *SECONDS_ILLEGAL],
    "throttle": [0, True, Unique(), Debounce(5), *SECONDS_ILLEGAL],
    "fair_key": ["", 5, ["tenant"], str],
}

LEGAL: dict[str, list[tuple[Any, Any]]] = {
    "name": [("a", "a"), ("mail.send:v2/{eu}-1", "mail.send:v2/{eu}-1"), ("a" * 200, "a" * 200)],
    "queue": [("mail", "mail")],
    "timeout": SECONDS_LEGAL,
    "soft_timeout": [(0.5, 0.5), (timedelta(minutes=2), 120.0)],
    "retries": [(0, 0), (10_000, 10_000)],
    "retry_delay": SECONDS_LEGAL,
    "retry_backoff": [(True, True), (False, False), (60, 60.0), (timedelta(hours=1), 3600.0)],
    "retry_jitter": [(True, True), (False, False)],
    "retry_on": [(OSError, (OSError,)), ((OSError, KeyError), (OSError, KeyError)), ((), ())],
    "give_up_on": [(ValueError, (ValueError,))],
    "ttl": [(-1, -1), (0, 0), (60, 60)],
    "expires": EXPIRES_LEGAL,
    "run": [("async", "async"), ("thread", "thread"), ("process", "process")],
    "batch": [(Batch(2, 0.5), Batch(2, 0.5)), (Batch(size=10_000, wait=timedelta(hours=1)), Batch(10_000, 3600))],
    "middleware": [(QUIET, (QUIET,)), ([QUIET, QUIET], (QUIET, QUIET)), ((), ())],
    "dependencies": [({"db": print}, {"db": print})],
    **LIMITS_LEGAL,
}
ILLEGAL: dict[str, list[Any]] = {
    "name": NAMES_ILLEGAL,
    "queue": NAMES_ILLEGAL,
    "timeout": SECONDS_ILLEGAL,
    "soft_timeout": [0, timedelta(0), *SECONDS_ILLEGAL],
    "retries": RETRIES_ILLEGAL,
    "retry_delay": SECONDS_ILLEGAL,
    "retry_backoff": ["yes", -1, math.nan],
    "retry_jitter": [1, 0.5, "no"],
    "retry_on": ["OSError", [OSError], OSError("an instance"), (OSError, int)],
    "give_up_on": [5, ("ValueError",)],
    "ttl": TTL_ILLEGAL,
    "expires": EXPIRES_ILLEGAL,
    "run": ["fork", "", True, []],
    "batch": [100, True, (100, 0.5), {"size": 100, "wait": 0.5}, Batch],
    "middleware": [5, print, Middleware, [QUIET, "text"]],
    "dependencies": [5, ["db"], {1: print}, {"no name": print}],
    **LIMITS_ILLEGAL,
}
CALL_LEGAL: dict[str, list[tuple[Any, Any]]] = {
    "queue": [("mail", "mail")],
    "key": [("welcome:7", "welcome:7")],
    "delay": SECONDS_LEGAL,
    "eta": [(NOW, NOW.timestamp())],
    "timeout": SECONDS_LEGAL,
    "retries": [(3, 3)],
    "ttl": [(-1, -1)],
    "expires": EXPIRES_LEGAL,
    "headers": [({"trace": "1"}, {"trace": "1"}), ({}, {})],
    **LIMITS_LEGAL,
}
CALL_ILLEGAL: dict[str, list[Any]] = {
    "queue": NAMES_ILLEGAL,
    "key": NAMES_ILLEGAL,
    "delay": SECONDS_ILLEGAL,
    "eta": [NOW.replace(tzinfo=None), "2026-03-01", NOW.timestamp(), NOW.date(), timedelta(1)],
    "timeout": SECONDS_ILLEGAL,
    "retries": RETRIES_ILLEGAL,
    "ttl": TTL_ILLEGAL,
    "expires": EXPIRES_ILLEGAL,
    "headers": ["ab", ["ab"], 5, {"n": 1}, {1: "n"}],
    **LIMITS_ILLEGAL,
}


def pairs(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(option, value, id=f"{option}={value!r:.40}") for option in table for value in table[option]]


def test_every_option_has_a_check_and_every_check_an_option() -> None:
    """No option can be stored unchecked, and none is checked that nothing reads."""
    derived = {"names_queue", "controlled"}
    fields = {field.name for field in dataclasses.fields(TaskOptions)}
    assert fields - derived == CHECKS.keys() == LEGAL.keys() == ILLEGAL.keys()
    assert {field.name for field in dataclasses.fields(CallOptions)} - derived == CALL_CHECKS.keys()
    assert CALL_CHECKS.keys() == CALL_LEGAL.keys() == CALL_ILLEGAL.keys()


class TestOptionsOfATask:
    @pytest.mark.parametrize(("option", "value"), pairs(LEGAL))
    def test_a_legal_value_is_stored_in_one_form(self, option: str, value: tuple[Any, Any]) -> None:
        """Durations become seconds and single exceptions tuples, so that readers know one form."""
        given, stored = value
        assert getattr(TaskOptions.build("@task of 'f'", {option: given}), option) == stored

    @pytest.mark.parametrize(("option", "value"), pairs(ILLEGAL))
    def test_an_illegal_value_is_refused_with_what_would_be_right(self, option: str, value: Any) -> None:
        """The error says where, which option, what was given and what is expected."""
        with pytest.raises(OptionError) as caught:
            TaskOptions.build("@task of 'f'", {option: value})
        error = caught.value
        assert (error.place, error.option, error.given) == ("@task of 'f'", option, value) or value != value  # noqa: PLR0124 - NaN
        assert error.expected.startswith(CHECKS[option][0])
        assert str(error).startswith(f"@task of 'f': option {option!r} is ")

    @pytest.mark.parametrize("option", CHECKS)
    def test_none_is_as_good_as_not_given(self, option: str) -> None:
        """A program may hand on an option that it does not have."""
        assert TaskOptions.build("here", {option: None}) == TaskOptions()

    def test_a_mistyped_option_is_refused_with_the_nearest_and_all_legal_ones(self) -> None:
        """Options of other task queues are not silently ignored."""
        with pytest.raises(OptionError, match="did you mean 'retries'") as caught:
            TaskOptions.build("here", {"retrys": 3})
        assert all(option in caught.value.expected for option in CHECKS)
        with pytest.raises(OptionError) as unlike:
            TaskOptions.build("here", {"acks_late": True})
        assert unlike.value.expected.startswith("one of the options name, queue")

    def test_a_wrong_option_is_found_at_definition_and_nothing_is_registered(self, registry: Registry) -> None:
        """The import fails, not the first job."""
        with pytest.raises(OptionError, match="@task of 'f'"):

            @registry.task(timeout=-1)
            def f() -> None: ...

        assert registry.names() == ()

    @pytest.mark.parametrize("soft", [60, 61, timedelta(minutes=2)])
    def test_a_soft_limit_is_below_the_hard_one(self, soft: Any) -> None:
        """It would never be raised; without a hard one any will do."""
        with pytest.raises(OptionError, match="expected less than timeout, which is 60 s"):
            TaskOptions.build("here", {"timeout": 60, "soft_timeout": soft})
        TaskOptions.build("here", {"timeout": 0, "soft_timeout": soft})
        TaskOptions.build("here", {"timeout": 121, "soft_timeout": soft})

    def test_a_job_is_one_with_others_in_one_way_alone(self) -> None:
        """Two answers to one question are refused; one that is switched off is none."""
        with pytest.raises(OptionError, match=r"option 'debounce' .* expected nothing beside unique"):
            TaskOptions.build("here", {"unique": True, "debounce": 5})
        with pytest.raises(OptionError, match=r"option 'throttle' .* expected nothing beside debounce"):
            TaskOptions.build("here", {"throttle": 5, "debounce": 5})
        assert TaskOptions.build("here", {"unique": False, "debounce": 5}).debounce == Debounce(5)

    def test_a_batch_runs_in_no_process(self) -> None:
        """The list would have to travel there and back; also where a preset says that its tasks run in one."""
        with pytest.raises(OptionError, match=r"option 'batch' is .*expected no run='process' with it"):
            TaskOptions.build("here", {"batch": Batch(2, 1), "run": "process"})

    def test_options_do_not_change_with_the_dictionary_they_were_given_in(self) -> None:
        """Options are frozen, providers included."""
        providers = {"db": print}
        options = TaskOptions.build("here", {"dependencies": providers})
        providers["more"] = print
        assert set(options.dependencies) == {"db"}
        with pytest.raises(dataclasses.FrozenInstanceError):
            options.retries = 5  # type: ignore[misc]


class TestBatch:
    @pytest.mark.parametrize("size", [1, 0, -5, 10_001, 2.0, True, "100", None])
    def test_a_size_out_of_range_is_refused(self, size: Any) -> None:
        """A list of one is what every task gets."""
        with pytest.raises(OptionError, match=r"option 'size' is .*expected a whole number from 2 to 10,000"):
            Batch(size, 1)

    @pytest.mark.parametrize(
        "wait", [0, -1, 3600.1, math.nan, math.inf, True, "1", None, 10**400, timedelta(0), timedelta(days=1)]
    )
    def test_a_wait_out_of_range_is_refused(self, wait: Any) -> None:
        """Without one a lonely call would never run."""
        with pytest.raises(OptionError, match=r"option 'wait' is .*expected seconds above 0 up to 3,600"):
            Batch(2, wait)


class TestOptionsOfACall:
    @pytest.mark.parametrize(("option", "value"), pairs(CALL_LEGAL))
    def test_a_legal_value_is_stored_in_one_form(self, option: str, value: tuple[Any, Any]) -> None:
        """A moment becomes seconds since 1970, a duration seconds."""
        given, stored = value
        assert getattr(CallOptions().merged("here", {option: given}), option) == stored

    @pytest.mark.parametrize(("option", "value"), pairs(CALL_ILLEGAL))
    def test_an_illegal_value_is_refused_with_what_would_be_right(self, option: str, value: Any) -> None:
        """A moment without a zone, above all, is not guessed."""
        with pytest.raises(OptionError) as caught:
            CallOptions().merged("here", {option: value})
        assert (caught.value.option, caught.value.expected) == (option, CALL_CHECKS[option][0])

    def test_a_delay_and_a_moment_are_not_both_to_be_had(self) -> None:
        """Two answers to one question are refused, also in two steps."""
        with pytest.raises(OptionError, match="either delay or eta"):
            CallOptions().merged("here", {"delay": 1, "eta": NOW})
        with pytest.raises(OptionError, match="either delay or eta"):
            CallOptions().merged("here", {"eta": NOW}).merged("there", {"delay": 1})

    def test_a_job_cannot_expire_before_it_is_due(self) -> None:
        """It would never run."""
        with pytest.raises(OptionError, match="a moment after eta"):
            CallOptions().merged("here", {"expires": NOW}).merged("there", {"eta": NOW})
        CallOptions().merged("here", {"expires": NOW + timedelta(1), "eta": NOW})

    def test_a_debounced_job_has_no_moment_of_its_own(self) -> None:
        """The newest call says when it runs, also where the options come in two steps."""
        with pytest.raises(OptionError, match=r"option 'delay' is 5\.0; expected nothing beside debounce"):
            CallOptions().merged("here", {"debounce": 5, "delay": 5})
        with pytest.raises(OptionError, match="option 'eta'"):
            CallOptions().merged("here", {"debounce": 5}).merged("there", {"eta": NOW})

    def test_of_the_ways_to_be_one_the_last_counts(self) -> None:
        """As with every other option that is named again."""
        first = CallOptions().merged("here", {"unique": True})
        second = first.merged("there", {"debounce": 5})
        assert (second.unique, second.debounce) == (None, Debounce(5))
        with pytest.raises(OptionError, match="beside unique"):
            CallOptions().merged("here", {"unique": True, "throttle": 5})

    def test_a_call_that_says_nothing_of_limits_is_not_looked_at_for_them(self) -> None:
        """It costs nothing; also after a step that says no more."""
        assert not CallOptions().merged("here", {"delay": 5, "priority": None}).controlled
        assert CallOptions().merged("here", {"priority": 0}).merged("there", {"delay": 5}).controlled

    def test_later_options_lie_on_top_of_earlier_ones(self) -> None:
        """``.using(...)`` can be chained; what is not named again stays, and the first is not changed."""
        first = CallOptions().merged("here", {"queue": "mail", "timeout": 5})
        second = first.merged("there", {"timeout": 6, "key": "k"})
        assert (second.queue, second.timeout, second.key) == ("mail", 6.0, "k")
        assert first.timeout == 5.0


def test_type_checkers_know_each_option() -> None:
    """What is checked at run time is what editors complete; ``batch`` changes the task's type, and has overloads."""
    assert {*TaskKeywords.__annotations__, "batch"} == set(CHECKS)
    assert set(CallKeywords.__annotations__) == set(CALL_CHECKS)
