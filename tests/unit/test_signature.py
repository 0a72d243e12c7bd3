from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from knapsaq.errors import InvalidArgumentsError, TaskDefinitionError
from knapsaq.signature import INJECTED, Signature

if TYPE_CHECKING:
    from collections import Missing  # type: ignore[attr-defined]

NOTHING: frozenset[str] = frozenset()


class Point(msgspec.Struct):
    x: int


class Opaque:
    """What a provider makes; JSON has no place for it."""


def signature(function: Callable[..., Any]) -> Signature:
    return Signature("t", function, takes_context=False)


def of_five(a: int, b: int, /, c: int, *, d: int, e: int = 0) -> None: ...


class TestShapeOfTheCall:
    @pytest.mark.parametrize(
        ("args", "kwargs", "parameter", "said"),
        [
            ((), {}, "a", "given nothing"),
            ((1,), {"c": 1, "d": 1}, "b", "given nothing"),
            ((1, 2), {"d": 1}, "c", "given nothing"),
            ((1, 2, 3), {}, "d", "given nothing"),
            ((1, 2, 3), {"d": 1, "f": 1}, "f", "one of a, b, c, d, e"),
            ((1, 2, 3), {"c": 1, "d": 1}, "*", "multiple values"),
            ((1, 2, 3, 4), {"d": 1}, "*", "too many positional"),
        ],
    )
    def test_a_call_of_the_wrong_shape_names_the_parameter(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], parameter: str, said: str
    ) -> None:
        """Missing, unknown and doubled arguments are told apart."""
        with pytest.raises(InvalidArgumentsError) as caught:
            signature(of_five).bind(args, kwargs, NOTHING)
        assert caught.value.parameter == parameter
        assert said in str(caught.value)

    def test_a_task_without_parameters_says_so(self) -> None:
        """The list of legal names is never empty."""
        with pytest.raises(InvalidArgumentsError, match="expected one of no arguments"):
            signature(lambda: None).bind((), {"x": 1}, NOTHING)

    def test_a_waiting_job_that_no_longer_fits_the_function_names_the_parameter(self) -> None:
        """After a deployment that changed the function, the job's error says how."""
        seen = signature(of_five)
        with pytest.raises(InvalidArgumentsError) as unknown:
            seen.unbind({"a": 1, "b": 2, "c": 3, "d": 4, "gone": 5}, {})
        with pytest.raises(InvalidArgumentsError) as missing:
            seen.unbind({"a": 1, "b": 2, "c": 3}, {})
        with pytest.raises(InvalidArgumentsError) as changed:
            seen.unbind({"a": "1", "b": 2, "c": 3, "d": 4}, {})
        assert [caught.value.parameter for caught in (unknown, missing, changed)] == ["gone", "d", "a"]


def with_two_injected(x: int, db: Opaque = INJECTED, *, cache: Opaque, y: int = 0) -> None: ...


class TestInjected:
    def test_what_has_the_default_or_a_provider_is_filled_by_providers(self) -> None:
        """Both spellings of an injected parameter count; ``*args`` and ``**kwargs`` never do."""
        assert signature(with_two_injected).injectable(["cache", "other"]) == {"db", "cache"}
        assert signature(lambda *args, **kwargs: None).injectable(["args", "kwargs"]) == NOTHING

    def test_a_caller_neither_gives_nor_misses_it(self) -> None:
        """For callers the parameter does not exist; giving it is refused by name."""
        seen = signature(with_two_injected)
        injected = seen.injectable(["cache"])
        assert seen.bind((1,), {"y": 2}, injected) == {"x": 1, "y": 2}
        with pytest.raises(InvalidArgumentsError, match="a provider fills it") as caught:
            seen.bind((1,), {"cache": 1}, injected)
        assert caught.value.parameter == "cache"

    def test_the_worker_puts_it_in_its_place(self) -> None:
        """Provided values are passed on as they are, by position or by name as the function asks."""
        value = Opaque()
        args, kwargs = signature(with_two_injected).unbind({"x": 1}, {"db": value, "cache": value})
        assert args == (1, value)
        assert kwargs == {"cache": value}


def typed_for_checkers_only(good: int, bad: Missing) -> Missing: ...


def with_a_wrong_annotation(bad: datetime.Missing) -> None: ...  # type: ignore[name-defined]


def with_an_uncheckable_annotation(fine: int, bad: list[Point] | list[int]) -> None: ...


class TestAnnotations:
    @pytest.mark.parametrize("function", [typed_for_checkers_only, with_a_wrong_annotation])
    def test_one_that_cannot_be_resolved_is_named_when_the_task_is_called_or_the_worker_starts(
        self, function: Callable[..., Any]
    ) -> None:
        """An import that only type checkers see costs the author one clear message."""
        seen = signature(function)
        arguments = dict.fromkeys(seen.parameters, 1)
        with pytest.raises(TaskDefinitionError, match=r"'bad' cannot be read: .*Missing"):
            seen.bind((), arguments, NOTHING)
        with pytest.raises(TaskDefinitionError, match=r"'bad' cannot be read: .*Missing"):
            seen.verify(NOTHING)

    def test_one_of_an_injected_parameter_need_not_exist_at_run_time(self) -> None:
        """What a provider makes is not checked, so its type may be imported for checkers only."""
        seen = signature(typed_for_checkers_only)
        assert seen.bind((), {"good": 1}, frozenset({"bad"})) == {"good": 1}
        assert seen.unbind({"good": 1}, {"bad": "made"}) == ((1, "made"), {})

    def test_one_that_nothing_can_be_checked_against_is_named_when_the_worker_starts(self) -> None:
        """No worker starts with a task whose every job would fail."""
        with pytest.raises(TaskDefinitionError, match="'bad' cannot be checked"):
            signature(with_an_uncheckable_annotation).verify(NOTHING)

    def test_results_arrive_as_annotated_or_are_refused(self) -> None:
        """The caller of ``wait`` gets what the function's author promised."""

        def function() -> None: ...

        function.__annotations__ = {"return": list[Point]}
        assert signature(function).result([{"x": 1}]) == [Point(1)]
        with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
            signature(function).result([{"x": "1"}])
        assert signature(typed_for_checkers_only).result({"any": 1}) == {"any": 1}
