"""The manual as code: arguments arrive as what the annotations say."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pydantic
import pytest
from saq.types import Context as SaqContext

from knapsaq import Client, Queue, Registry
from knapsaq.testing import running_worker


class Status(enum.Enum):
    OPEN = "open"
    PAID = "paid"


class Item(msgspec.Struct):
    name: str
    price: Decimal


class Address(pydantic.BaseModel):
    street: str
    since: date


@dataclass
class Order:
    id: uuid.UUID
    placed: datetime
    status: Status
    address: Address
    items: list[Item] = field(default_factory=list)
    reminder: timedelta | None = None


ORDER = Order(
    id=uuid.uuid4(),
    placed=datetime(2026, 3, 1, 12, tzinfo=UTC),
    status=Status.OPEN,
    address=Address(street="Main St", since=date(2020, 1, 1)),
    items=[Item("book", Decimal("9.90"))],
)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Order, ORDER),
        (Item, ORDER.items[0]),
        (Address, ORDER.address),
        (datetime, ORDER.placed),
        (uuid.UUID, ORDER.id),
        (Decimal, Decimal("0.10")),
        (Status, Status.PAID),
        (bytes, b"\x00\xff"),
        (set[date], {date(2026, 3, 1)}),
        (dict[uuid.UUID, tuple[int, ...]], {ORDER.id: (1, 2)}),
        (int, 2**100),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_values_arrive_and_return_as_their_types(
    client: Client, registry: Registry, annotation: Any, value: Any
) -> None:
    """Dataclasses, Structs, pydantic models and the standard library's types; the result, too, is typed."""
    seen: list[Any] = []

    async def keep(value: Any) -> Any:
        seen.append(value)
        return value

    keep.__annotations__ = {"value": annotation, "return": annotation}
    task: Any = registry.task(keep)
    async with running_worker(registry=registry):
        result = await (await task.enqueue(value=value)).wait(5)
    assert result == seen[0] == value
    assert type(result) is type(seen[0]) is type(value)


async def test_parameters_may_be_named_like_a_jobs_own_fields(queue: Queue, registry: Registry) -> None:
    """SAQ takes ``timeout``, ``key`` and the like for itself; here they reach the task, typed, by both ways."""

    @registry.task
    async def charge(
        *, timeout: timedelta, key: uuid.UUID, priority: Decimal, meta: dict[str, date], status: Status, queue: str
    ) -> list[str]:
        return [type(value).__name__ for value in (timeout, key, priority, meta["day"], status, queue)]

    arguments: dict[str, Any] = {
        "timeout": timedelta(seconds=1),
        "key": ORDER.id,
        "priority": Decimal(1),
        "meta": {"day": date(2026, 3, 1)},
        "status": Status.OPEN,
        "queue": "of people",
    }
    expected = ["timedelta", "UUID", "Decimal", "date", "Status", "str"]
    async with running_worker(registry=registry):
        by_task = await charge.enqueue(**arguments)
        by_name = await queue.enqueue("charge", **arguments, retries=2)
        assert by_name is not None
        assert await by_task.wait(5) == await by_name.wait(5) == expected
        assert (by_name.timeout, by_name.retries) == (300, 2)


async def test_saqs_context_annotation_works_too(client: Client, registry: Registry) -> None:
    """Tasks written for SAQ run as they are."""

    @registry.task
    async def process(ctx: SaqContext, *, user_id: int) -> str:
        return f"{ctx['job'].function} {user_id}"

    async with running_worker(registry=registry):
        assert await (await process.enqueue(user_id=1)).wait(5) == "process 1"
