"""Seed: "Pass IDs, Not Objects". A row is looked up where it is needed; an object of a database is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from knapsaq import INJECTED, Client, InvalidArgumentsError, PayloadTooLargeError, Registry
from knapsaq.testing import running_worker


class Base(DeclarativeBase):
    """The tables of this test."""


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]


@pytest.fixture
async def engine(tmp_path: Path, registry: Registry) -> AsyncIterator[AsyncEngine]:
    """A database with one order; tasks may ask for ``db_session``."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        session.add(Order(id=7, status="new"))

    async def db_session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as session, session.begin():
            yield session

    registry.provide({"db_session": db_session})
    yield engine
    await engine.dispose()


async def test_the_task_looks_up_what_its_id_names(client: Client, registry: Registry, engine: AsyncEngine) -> None:
    """So it sees the row as it is when the job runs, not as it was when somebody queued it."""

    @registry.task
    async def process_order(order_id: int, *, db_session: AsyncSession = INJECTED) -> str:
        order = await db_session.get_one(Order, order_id)
        before, order.status = order.status, "processed"
        return before

    job = await process_order.enqueue(7)
    async with AsyncSession(engine) as session, session.begin():
        (await session.get_one(Order, 7)).status = "paid"
    async with running_worker(registry=registry):
        assert await job.wait(5) == "paid"
    async with AsyncSession(engine) as session:
        assert (await session.get_one(Order, 7)).status == "processed"


async def test_an_object_of_a_database_is_refused_where_it_is_handed_over(
    client: Client, registry: Registry, engine: AsyncEngine
) -> None:
    """The caller is told which parameter, and nothing is queued; whatever the annotation says."""

    @registry.task
    async def annotated(order: Order) -> None: ...

    @registry.task
    async def anything(order: Any) -> None: ...

    async with AsyncSession(engine) as session:
        order = await session.get_one(Order, 7)
        for task in (annotated, anything):
            with pytest.raises(InvalidArgumentsError, match="objects of type Order are not supported") as caught:
                await task.enqueue(order)
            assert caught.value.parameter == "order"
    assert await client.queue().count("incomplete") == 0


async def test_a_dictionary_with_all_of_a_user_is_refused_when_it_is_too_large(
    client: Client, registry: Registry
) -> None:
    """What is small enough is taken, and is as old as the call."""

    @registry.task
    async def process_user(user: dict[str, Any]) -> str:
        return str(user["name"])

    async with running_worker(registry=registry):
        assert await (await process_user.enqueue({"name": "Ada"})).wait(5) == "Ada"
    with pytest.raises(PayloadTooLargeError, match="pass an id instead"):
        await process_user.enqueue({"name": "Ada", "picture": "x" * 2_000_000})
    assert await client.queue().count("incomplete") == 0
