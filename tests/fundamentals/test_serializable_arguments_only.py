"""Seed: "Serializable Arguments Only". What JSON can carry, what annotations add to it, and what is refused."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from knapsaq import Client, InvalidArgumentsError, Registry
from knapsaq.testing import running_worker


class Action(enum.Enum):
    ACTIVATE = "activate"


@dataclass
class Options:
    notify: bool
    credit: Decimal = Decimal(0)


async def test_primitive_types_are_handed_over_as_they_are(client: Client, registry: Registry) -> None:
    """Numbers, text, truth values, lists and dictionaries."""

    @registry.task
    async def process(user_id: int, action: str, options: dict[str, bool] | None = None) -> list[Any]:
        return [user_id, action, options]

    async with running_worker(registry=registry):
        assert await (await process.delay(123, "activate", {"notify": True})).wait(5) == [
            123,
            "activate",
            {"notify": True},
        ]
        assert await (await process.delay(123, "activate")).wait(5) == [123, "activate", None]


async def test_an_annotation_makes_further_types_of_them(client: Client, registry: Registry) -> None:
    """They are written as text and arrive as what they were, without pickle; the result does likewise."""

    @registry.task
    async def process(user_id: UUID, action: Action, options: Options, days: set[date]) -> tuple[date, Decimal]:
        assert action is Action.ACTIVATE
        assert isinstance(user_id, UUID)
        return max(days) + timedelta(days=1), options.credit * 2

    async with running_worker(registry=registry):
        options = Options(notify=True, credit=Decimal("0.10"))
        job = await process.delay(UUID(int=7), Action.ACTIVATE, options, {date(2031, 1, 1), date(2031, 1, 2)})
        assert await job.wait(5) == (date(2031, 1, 3), Decimal("0.20"))


async def test_what_cannot_be_carried_is_refused_at_the_call(client: Client, registry: Registry) -> None:
    """A function, an object, or one of them deep inside: the error has the parameter, and nothing is queued."""

    class User: ...

    @registry.task
    async def annotated(user_id: int, callback_func: Callable[[int], None]) -> None: ...

    @registry.task
    async def anything(user_id: int, callback_func: Any) -> None: ...

    for task, value in ((annotated, print), (anything, lambda _: None), (anything, User()), (anything, [{"a": print}])):
        with pytest.raises(InvalidArgumentsError, match="made of what JSON can carry") as caught:
            await task.delay(123, value)  # type: ignore[arg-type]
        assert caught.value.parameter == "callback_func"
    assert await client.queue().count("incomplete") == 0


async def test_a_follow_up_takes_the_place_of_a_callback(client: Client, registry: Registry) -> None:
    """What was to be called at the end is a task of its own, handed over as a signature."""

    @registry.task
    async def process(user_id: int) -> str:
        return f"user {user_id}"

    @registry.task
    async def notify(result: str) -> str:
        return f"{result} is done"

    async with running_worker(registry=registry):
        assert await (await (process.s(123) | notify.s()).enqueue()).wait(5) == "user 123 is done"
