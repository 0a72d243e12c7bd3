"""What callers of a batched task see, and which functions can be one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest

from knapsaq import INJECTED, Batch, Context, InvalidArgumentsError, Registry, Retry, Snooze, TaskDefinitionError
from knapsaq.registry import AnyTask

if TYPE_CHECKING:
    from decimal import Decimal

    Later = int

DAY = date(2026, 3, 1)


@dataclasses.dataclass
class Text:
    words: str
    day: date


def batched(registry: Registry, function: Callable[..., Any], **options: Any) -> AnyTask:
    return registry.task(batch=Batch(size=3, wait=1), **options)(function)  # type: ignore[no-any-return]


def stored(task: AnyTask, *args: Any, **kwargs: Any) -> Any:
    return task.signature.bind(args, kwargs, task.injected)


class TestCalls:
    def test_a_call_gives_one_item_under_the_parameters_name(self, registry: Registry) -> None:
        """By position or by name; it is checked against the type of the items."""

        async def embed(ctx: Context, texts: list[Text]) -> list[int]: ...

        task = batched(registry, embed)
        assert stored(task, Text("hi", DAY)) == {"texts": {"words": "hi", "day": "2026-03-01"}}
        assert stored(task, texts=Text("hi", DAY)) == stored(task, Text("hi", DAY))
        assert task.parameters == ("texts",)
        for wrong in ([Text("hi", DAY)], "hi", None):
            with pytest.raises(InvalidArgumentsError, match=r"task 'embed', argument 'texts': expected .*Text"):
                stored(task, wrong)
        for nothing_or_two in ((), ("a", "b")):
            with pytest.raises(InvalidArgumentsError):
                stored(task, *nothing_or_two)

    @pytest.mark.parametrize("given", [list[int], Sequence[int]])
    def test_a_list_may_be_any_sequence_in_the_annotation(self, registry: Registry, given: Any) -> None:
        """Which is what careful people write who do not change it."""

        def double(numbers: Any) -> list[int]:
            return [2 * number for number in numbers]

        double.__annotations__["numbers"] = given
        task = batched(registry, double)
        assert task.signature.annotation("numbers") is int

    def test_a_list_without_a_type_takes_anything(self, registry: Registry) -> None:
        """Also without a type of the results."""

        async def note(things: list):  # type: ignore[no-untyped-def, type-arg] # noqa: ANN202
            return things

        task = batched(registry, note)
        assert stored(task, {"a": [1]}) == {"things": {"a": [1]}}
        assert task.signature.result([1]) == [1]

    def test_the_worker_decodes_each_item_by_itself(self, registry: Registry) -> None:
        """What is stored and does not fit names no value, and is not the others' fault."""

        async def embed(texts: list[Text]) -> list[int]: ...

        signature: Any = batched(registry, embed).signature
        assert signature.item_in({"texts": {"words": "hi", "day": "2026-03-01"}}) == Text("hi", DAY)
        for wrong in ({"texts": {"words": "secret"}}, {}, {"texts": {}, "more": "secret"}):
            with pytest.raises(InvalidArgumentsError) as caught:
                signature.item_in(wrong)
            assert "secret" not in str(caught.value)

    def test_an_item_is_a_copy(self, registry: Registry) -> None:
        """A retry runs with what was queued."""

        async def change(rows: list[dict[str, Any]]) -> list[None]: ...

        signature: Any = batched(registry, change).signature
        kept = {"rows": {"ids": [1]}}
        signature.item_in(kept)["ids"].append(2)
        assert kept == {"rows": {"ids": [1]}}


class TestResults:
    @pytest.mark.parametrize(
        "annotation",
        [
            list[UUID],
            Sequence[UUID],
            list[UUID | Exception],
            list[UUID | Retry | Snooze | ValueError],
            list[UUID] | Retry,
        ],
    )
    def test_a_caller_gets_one_result_of_the_lists_type(self, registry: Registry, annotation: Any) -> None:
        """Errors and signals that may stand in its place are none."""

        async def store(texts: list[str]) -> Any: ...

        store.__annotations__["return"] = annotation
        task = batched(registry, store)
        assert task.signature.annotation("return") is UUID
        assert task.signature.result("12345678-1234-5678-1234-567812345678") == UUID(
            int=0x12345678123456781234567812345678
        )
        with pytest.raises(msgspec.ValidationError):
            task.signature.result("no id")

    def test_a_function_that_returns_errors_alone_has_no_result(self, registry: Registry) -> None:
        """As one that returns a list of ``None``."""

        async def check(texts: list[str]) -> list[Exception | None]: ...

        task = batched(registry, check)
        assert task.signature.result(None) is None


async def none_at_all() -> list[int]: ...


async def context_alone(ctx: Context) -> list[int]: ...


async def no_list(texts: str) -> list[int]: ...


async def a_tuple(texts: tuple[str, ...]) -> list[int]: ...


async def perhaps_a_list(texts: list[str] | None) -> list[int]: ...


async def without_annotation(texts) -> list[int]: ...  # type: ignore[no-untyped-def] # noqa: ANN001


async def with_default(texts: list[str] = []) -> list[int]: ...  # noqa: B006


async def by_name(*, texts: list[str]) -> list[int]: ...


async def open_ended(*texts: list[str]) -> list[int]: ...


async def one_more(texts: list[str], count: int) -> list[int]: ...


async def one_more_with_default(texts: list[str], count: int = 1) -> list[int]: ...


async def anything_more(texts: list[str], **more: int) -> list[int]: ...


async def returns_one(texts: list[str]) -> int: ...


async def returns_none(texts: list[str]) -> None: ...


async def returns_a_dict(texts: list[str]) -> dict[str, int]: ...


class TestRefused:
    @pytest.mark.parametrize(
        ("function", "said"),
        [
            (none_at_all, "it has no such parameter"),
            (context_alone, "it has no such parameter"),
            (no_list, "'texts' is annotated str"),
            (a_tuple, "'texts' is annotated tuple[str, ...]"),
            (perhaps_a_list, "'texts' is annotated list[str] | None"),
            (without_annotation, "'texts' is annotated Any"),
            (with_default, "has a default, and each call gives an item"),
            (by_name, "is none that is given by position"),
            (open_ended, "is none that is given by position"),
            (one_more, "'count' is one more parameter; one that a provider fills is marked `= INJECTED`"),
            (one_more_with_default, "'count' is one more parameter"),
            (anything_more, "'more' is one more parameter"),
            (returns_one, "returns a list with one result for each item, `-> list[...]`; it is annotated int"),
            (returns_none, "it is annotated None"),
            (returns_a_dict, "it is annotated dict[str, int]"),
        ],
    )
    def test_a_function_that_is_not_written_for_it_is_refused_where_it_is_defined(
        self, registry: Registry, function: Callable[..., Any], said: str
    ) -> None:
        """With what it would have to be."""
        with pytest.raises(TaskDefinitionError) as caught:
            batched(registry, function)
        assert str(caught.value).startswith(f"task {function.__name__!r}: with batch=... ")
        assert said in str(caught.value)
        assert registry.names() == ()

    def test_what_providers_fill_stands_beside_the_list(self, registry: Registry) -> None:
        """Marked, or named by a provider of the task's own."""

        async def embed(texts: list[str], db: bytes, *, client: bytes = INJECTED) -> list[int]: ...

        task = batched(registry, embed, dependencies={"db": bytes, "client": bytes})
        task.verify(0)
        assert task.parameters == ("texts",)

    def test_a_provider_under_the_lists_name_is_refused(self, registry: Registry) -> None:
        """Where the task is defined, if it is known there; else where the worker starts."""

        async def embed(texts: list[str]) -> list[int]: ...

        with pytest.raises(TaskDefinitionError, match="'texts' takes the list, and a provider would fill it"):
            batched(registry, embed, dependencies={"texts": list})
        task = batched(registry, embed)
        registry.provide({"texts": list})
        with pytest.raises(TaskDefinitionError, match="'texts' takes the list, and a provider would fill it"):
            task.verify(0)

    def test_a_type_that_is_defined_later_is_looked_at_later(self, registry: Registry) -> None:
        """As for every task."""

        async def embed(texts: list[Later]) -> list[Later]: ...

        async def count(texts: list[Decimal]) -> list[int]: ...

        task, never = batched(registry, embed), batched(registry, count)
        globals()["Later"] = int
        try:
            task.verify(0)
            assert stored(task, 3) == {"texts": 3}
        finally:
            del globals()["Later"]
        with pytest.raises(TaskDefinitionError, match="the annotation of 'texts' cannot be read: name 'Decimal'"):
            never.verify(0)
