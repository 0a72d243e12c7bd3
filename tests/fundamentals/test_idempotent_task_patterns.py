"""Seed: "Idempotent Task Patterns". A task may run twice; these change the world once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from knapsaq import INJECTED, Client, Context, Job, Registry
from knapsaq.testing import running_worker


class Base(DeclarativeBase):
    """The tables of this test."""


class Counter(Base):
    __tablename__ = "counters"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


class OrderItem(Base):
    __tablename__ = "order_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(unique=True)
    order_id: Mapped[int]
    product_id: Mapped[int]
    quantity: Mapped[int]


@pytest.fixture
async def engine(tmp_path: Path, registry: Registry) -> AsyncIterator[AsyncEngine]:
    """A database with one counter; tasks may ask for ``engine``."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        session.add(Counter(id=1, value=0))
    registry.provide({"engine": lambda: engine})
    yield engine
    await engine.dispose()


def fail_once(ctx: Context) -> None:
    """Fail after the work has been committed, as when the connection breaks just then; not in a later attempt."""
    if ctx.retries == 0:
        raise ConnectionError("the answer was lost")


async def run_again(job: Job[Any]) -> None:
    """Wait for the job, which has two attempts, and then replay it by hand as somebody who looks for a fault does."""
    await job.wait(5)
    assert job.attempts == 2
    await job.retry()
    await job.wait(5)


async def test_a_read_and_a_write_apart_count_each_run(client: Client, registry: Registry, engine: AsyncEngine) -> None:
    """The seed's bad example: four attempts, four times."""

    @registry.task(retries=1, retry_delay=0)
    async def increment_counter(ctx: Context, counter_id: int, *, engine: AsyncEngine = INJECTED) -> None:
        async with AsyncSession(engine) as session, session.begin():
            counter = await session.get_one(Counter, counter_id)
            counter.value += 1
        fail_once(ctx)

    async with running_worker(registry=registry):
        await run_again(await increment_counter.enqueue(1))
    assert await value(engine) == 4


async def test_a_state_check_in_the_same_statement_counts_once(
    client: Client, registry: Registry, engine: AsyncEngine
) -> None:
    """It changes the row only while that is as the caller saw it."""

    @registry.task(retries=1, retry_delay=0)
    async def increment_counter(
        ctx: Context, counter_id: int, expected_value: int, *, engine: AsyncEngine = INJECTED
    ) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(
                update(Counter)
                .where(Counter.id == counter_id, Counter.value == expected_value)
                .values(value=Counter.value + 1)
            )
        fail_once(ctx)

    async with running_worker(registry=registry):
        await run_again(await increment_counter.enqueue(1, expected_value=0))
    assert await value(engine) == 1


async def test_a_unique_constraint_keeps_the_second_row_out(
    client: Client, registry: Registry, engine: AsyncEngine
) -> None:
    """The key comes with the call; what the task itself can always tell is its job's key, ``ctx.id``."""

    @registry.task(retries=1, retry_delay=0)
    async def create_order_item(
        ctx: Context,
        order_id: int,
        product_id: int,
        quantity: int,
        idempotency_key: str = "",
        *,
        engine: AsyncEngine = INJECTED,
    ) -> None:
        row = {"order_id": order_id, "product_id": product_id, "quantity": quantity}
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(
                insert(OrderItem)
                .values(idempotency_key=idempotency_key or ctx.id, **row)
                .on_conflict_do_nothing(index_elements=["idempotency_key"])
            )
        fail_once(ctx)

    async with running_worker(registry=registry):
        await run_again(await create_order_item.enqueue(7, 1, 2, idempotency_key="order-7-line-1"))
        await run_again(await create_order_item.enqueue(7, 1, 2, idempotency_key="order-7-line-1"))
        await run_again(await create_order_item.enqueue(7, 2, 1))
    async with AsyncSession(engine) as session:
        assert await session.scalar(select(func.count()).select_from(OrderItem)) == 2


async def value(engine: AsyncEngine) -> int:
    """Return the counter's value."""
    async with AsyncSession(engine) as session:
        return (await session.get_one(Counter, 1)).value
