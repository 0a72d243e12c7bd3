"""The database: one engine a process, one session a request or job.

Sessions commit when their block ends well and roll back when it raises, in
route handlers and tasks alike. The tables are created at the first session of
a process, so that a worker started before the API finds them too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from advanced_alchemy.base import orm_registry
from advanced_alchemy.config import AsyncSessionConfig, EngineConfig, SQLAlchemyAsyncConfig
from litestar.di import NamedDependency
from sqlalchemy import event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

# Importing the models is what puts their tables into the metadata.
from app import mail  # noqa: F401
from app.campaigns import models as campaign_models  # noqa: F401
from app.payments import models as payment_models  # noqa: F401
from app.settings import get_settings
from app.users import models as user_models  # noqa: F401

_SCHEMA_LOCK = 7_364_001
"""The number of the PostgreSQL advisory lock under which the tables are created; any constant does."""


class Database:
    """An engine with its sessions.

    Args:
        url: An async SQLAlchemy URL; a SQLite file's folder is created.
    """

    def __init__(self, url: str) -> None:
        self._is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self._config = SQLAlchemyAsyncConfig(
            connection_string=url,
            session_config=AsyncSessionConfig(expire_on_commit=False),
            # Opening a SQLite file takes under a millisecond; a pool would keep a thread for each connection.
            engine_config=EngineConfig(poolclass=NullPool) if self._is_sqlite else EngineConfig(pool_pre_ping=True),
        )
        self._new_session = self._config.create_session_maker()
        self._schema = asyncio.Lock()
        self._has_schema = False
        if self._is_sqlite:
            _make_folder(url)
            event.listen(self._engine.sync_engine, "connect", _share_sqlite_file)

    @property
    def _engine(self) -> AsyncEngine:
        return self._config.get_engine()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Open a session that commits when the block ends well, and rolls back when it raises."""
        await self.create_schema()
        async with self._new_session() as session:
            try:
                yield session
            except BaseException:
                await session.rollback()
                raise
            await session.commit()

    async def create_schema(self) -> None:
        """Create the missing tables; API and worker may do so at the same moment."""
        async with self._schema:
            if self._has_schema:
                return
            lock = "BEGIN IMMEDIATE" if self._is_sqlite else f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})"
            async with self._engine.begin() as connection:
                await connection.execute(text(lock))
                await connection.run_sync(orm_registry.metadata.create_all)
            self._has_schema = True

    async def close(self) -> None:
        """Close the connections; the next session opens new ones."""
        await self._engine.dispose()


@cache
def get_database() -> Database:
    """Return this process' database."""
    return Database(get_settings().database_url)


@asynccontextmanager
async def session_scope() -> AsyncIterator[AsyncSession]:
    """Open a session where nobody injects one: in scripts, and in tasks that are also called directly."""
    async with get_database().session() as session:
        yield session


async def provide_database() -> AsyncIterator[Database]:
    """Provide ``database``; with scope ``worker`` its connections are closed when the worker has ended."""
    database = get_database()
    yield database
    await database.close()


async def provide_db_session(database: NamedDependency[Database]) -> AsyncIterator[AsyncSession]:
    """Provide ``db_session`` to route handlers and tasks."""
    async with database.session() as session:
        yield session


def _make_folder(url: str) -> None:
    database = make_url(url).database
    if database and database != ":memory:":
        Path(database).parent.mkdir(parents=True, exist_ok=True)


def _share_sqlite_file(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    """Let API and workers use one SQLite file: readers do not block, writers wait for their turn."""
    cursor = connection.cursor()
    # The wait comes first: changing the journal mode needs the file for itself.
    for pragma in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
