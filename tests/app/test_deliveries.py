"""Deliveries against a server that fails in the middle of a mail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import ORMExecuteState

from app.campaigns import deliveries
from app.campaigns.models import Campaign, CampaignState, Delivery
from app.database import Database
from app.settings import get_settings
from app.users.models import User

ANSWERS = {b"EHLO": b"250 here", b"MAIL": b"250 sender", b"RCPT": b"250 known", b"DATA": b"354 go on"}
POSTGRESQL: Any = postgresql.dialect()  # type: ignore[no-untyped-call]


@pytest.fixture
async def mails(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[bytes]]:
    """The mails that have come to a server which hangs up on each instead of answering."""
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        while line := await reader.readline():
            writer.write(ANSWERS[line[:4].upper()] + b"\r\n")
            if line[:4].upper() == b"DATA":
                came.append(await reader.readuntil(b"\r\n.\r\n"))
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        monkeypatch.setenv("APP_SMTP_PORT", str(server.sockets[0].getsockname()[1]))
        get_settings.cache_clear()
        yield came
    get_settings.cache_clear()


async def test_a_mail_whose_taking_was_not_answered_is_not_sent_again(mails: list[bytes], tmp_path: Path) -> None:
    """It may be out; so it counts as failed rather than coming twice."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    campaign, user = await _campaign(database)

    for _ in range(2):
        async with database.session() as session:
            outcome = await deliveries.deliver(session, campaign.id, user.id, 1)
            assert outcome["sent"] is False

    assert len(mails) == 1
    async with database.session() as session:
        assert await deliveries.waiting(session, campaign.id) == []
    await database.close()


async def test_a_claim_holds_its_campaign_on_postgresql(mails: list[bytes], tmp_path: Path) -> None:
    """Else a mail could be claimed after a cancellation was committed; SQLite has one writer at a time."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    campaign, user = await _campaign(database)
    asked: list[str] = []

    async with database.session() as session:

        @event.listens_for(session.sync_session, "do_orm_execute")
        def note(state: ORMExecuteState) -> None:
            statement: Any = state.statement
            asked.append(str(statement.compile(dialect=POSTGRESQL)))

        await deliveries.deliver(session, campaign.id, user.id, 1)

    assert any("FROM campaigns" in one and "FOR SHARE" in one for one in asked)
    assert len(mails) == 1
    await database.close()


async def _campaign(database: Database) -> tuple[Campaign, User]:
    """Store a campaign that is being sent, and its one recipient."""
    async with database.session() as session:
        user = User(email="ada@example.com", name="Ada")
        campaign = Campaign(tenant="acme", subject="News", body="Hello.", state=CampaignState.SENDING.value, run=1)
        session.add_all([user, campaign])
        await session.flush()
        session.add(Delivery(campaign_id=campaign.id, user_id=user.id))
        return campaign, user
