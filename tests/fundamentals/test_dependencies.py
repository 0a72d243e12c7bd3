"""The manual as code: what a task needs is given to it by parameter name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from knapsaq import INJECTED, Client, Context, JobFailedError, MissingProviderError, Provide, Registry
from knapsaq.testing import running_worker


class Base(DeclarativeBase):
    """The tables of this test."""


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(String(20))


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """A database with one user."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        session.add(User(id=1, status="new"))
    yield engine
    await engine.dispose()


async def status(engine: AsyncEngine) -> str:
    async with AsyncSession(engine) as session:
        return (await session.execute(select(User.status))).scalar_one()


@pytest.fixture
def database(registry: Registry, engine: AsyncEngine) -> None:
    """Every task of the registry may ask for ``db_session``: committed after success, rolled back after failure."""

    async def db_session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as session, session.begin():
            yield session

    registry.provide({"db_session": db_session})


async def test_a_task_gets_a_database_session(
    client: Client, registry: Registry, engine: AsyncEngine, database: None
) -> None:
    """As in the seed: the parameter's name is enough."""

    @registry.task
    async def update_user_status(
        ctx: Context, *, user_id: int, status: str, db_session: AsyncSession
    ) -> dict[str, int]:
        user = await db_session.get_one(User, user_id)
        user.status = status
        return {"updated": user.id}

    async with running_worker(registry=registry):
        job = await update_user_status.enqueue(user_id=1, status="active")  # type: ignore[call-arg]
        assert await job.wait(5) == {"updated": 1}
    assert await status(engine) == "active"


async def test_a_failed_job_leaves_nothing_in_the_database(
    client: Client, registry: Registry, engine: AsyncEngine, database: None
) -> None:
    """The provider sees the exception; with ``INJECTED`` as default, type checkers know that callers do not give it."""

    @registry.task
    async def half_done(*, user_id: int, db_session: AsyncSession = INJECTED) -> None:
        user = await db_session.get_one(User, user_id)
        user.status = "half"
        await db_session.flush()
        raise KeyError

    async with running_worker(registry=registry):
        with pytest.raises(JobFailedError):
            await (await half_done.enqueue(user_id=1)).wait(5)
    assert await status(engine) == "new"


async def test_a_provider_may_live_as_long_as_the_worker(client: Client, registry: Registry) -> None:
    """A pool is opened once and closed when the worker stops; other providers build on it."""
    log: list[str] = []

    async def pool() -> AsyncIterator[list[str]]:
        log.append("opened")
        yield log
        log.append("closed")

    async def connection(pool: list[str]) -> str:
        pool.append("connected")
        return "connection"

    registry.provide({"pool": Provide(pool, scope="worker"), "connection": connection})

    @registry.task
    async def use(*, connection: Any = INJECTED) -> None: ...

    async with running_worker(["default"], registry=registry):
        for _ in range(2):
            await (await use.enqueue()).wait(5)
    assert log == ["opened", "connected", "connected", "closed"]


async def test_a_task_may_bring_a_provider_of_its_own(client: Client, registry: Registry) -> None:
    """It wins over the registry's of the same name."""
    registry.provide({"greeting": lambda: "Hello"})

    @registry.task
    async def everybodys(*, greeting: str = INJECTED) -> str:
        return greeting

    @registry.task(dependencies={"greeting": lambda: "Moin"})
    async def own(*, greeting: str = INJECTED) -> str:
        return greeting

    async with running_worker(registry=registry):
        assert await (await everybodys.enqueue()).wait(5) == "Hello"
        assert await (await own.enqueue()).wait(5) == "Moin"


async def test_a_worker_does_not_start_with_a_task_that_nobody_can_serve(client: Client, registry: Registry) -> None:
    """The deployment fails, not the jobs."""

    @registry.task
    async def f(*, db_session: AsyncSession = INJECTED) -> None: ...

    with pytest.raises(MissingProviderError, match="'db_session', which nobody provides"):
        async with running_worker(registry=registry):
            pass
