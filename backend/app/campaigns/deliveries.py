"""Deliveries: one row for each recipient of a campaign, which keeps anybody from being mailed twice.

| claimed_at | sent_at | refusal | the mail |
|---|---|---|---|
| | | | waits |
| set | | | is being handed over, or its worker was killed meanwhile, or the server did not answer |
| set | set | | is out |
| set | | set | was refused for good: there is no such address |

The claim is committed before the mail is handed over. A worker that is killed in
between leaves a claimed row that nobody touches again, and so does a server that gets
the mail and does not answer: as nobody can know whether the mail went out, it counts
as failed, and is not sent a second time.

A claim counts only while the campaign is being sent, and holds the campaign as it is
until it is committed. So once a cancellation is committed no mail is claimed any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import exists, func, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.campaigns.models import Campaign, CampaignState, Delivery
from app.mail import MailRefusedError, MailUncertainError, send_mail
from app.queue.registry import Discard
from app.users.models import User, UserStatus

WAITS = Delivery.claimed_at.is_(None)


class Counts(NamedTuple):
    """How many get a campaign, and how many have it."""

    recipients: int
    sent: int


async def add_recipients(session: AsyncSession, campaign_id: UUID) -> None:
    """Add every verified user that a campaign does not have yet."""
    has_row = exists().where(Delivery.campaign_id == campaign_id, Delivery.user_id == User.id)
    recipients = select(literal(campaign_id, Delivery.campaign_id.type), User.id).where(
        User.status == UserStatus.VERIFIED.value, ~has_row
    )
    await session.execute(insert(Delivery).from_select(["campaign_id", "user_id"], recipients, include_defaults=False))


async def waiting(session: AsyncSession, campaign_id: UUID) -> Sequence[int]:
    """Return the users whose mail waits."""
    found = await session.scalars(
        select(Delivery.user_id).where(Delivery.campaign_id == campaign_id, WAITS).order_by(Delivery.user_id)
    )
    return found.all()


async def count(session: AsyncSession, campaign_id: UUID) -> Counts:
    """Count a campaign's recipients."""
    counted = await session.execute(
        select(func.count(), func.count(Delivery.sent_at)).where(Delivery.campaign_id == campaign_id)
    )
    return Counts(*counted.one())


async def current(session: AsyncSession, campaign_id: UUID, run: int, *, held: bool = False) -> Campaign:
    """Return a campaign, if a run of it goes on.

    Args:
        session: The session.
        campaign_id: The campaign's id.
        run: The run.
        held: Whether it stays as it is until the session commits. SQLite has one writer at a time, and needs no lock.

    Raises:
        Discard: It was cancelled or has ended, or a newer run has taken over; the job has become pointless.
    """
    lock = {"read": True} if held else None
    campaign = await session.get_one(Campaign, campaign_id, populate_existing=True, with_for_update=lock)
    if (campaign.state, campaign.run) != (CampaignState.SENDING.value, run):
        raise Discard(f"run {run} of campaign {campaign_id} is over: it is {campaign.state}, in run {campaign.run}")
    return campaign


async def deliver(session: AsyncSession, campaign_id: UUID, user_id: int, run: int) -> dict[str, Any]:
    """Hand one recipient's mail over, unless that has been done or tried by somebody who is gone.

    Raises:
        Discard: The campaign's run is over.
        aiosmtplib.SMTPException: It was not taken this time; the mail waits again.
    """
    row = (Delivery.campaign_id == campaign_id, Delivery.user_id == user_id)
    claim = update(Delivery).where(*row, WAITS).values(claimed_at=datetime.now(UTC)).returning(Delivery.user_id)
    if (await session.scalars(claim)).one_or_none() is None:
        return {"sent": False}
    campaign = await current(session, campaign_id, run, held=True)
    user = await session.get_one(User, user_id)
    await session.commit()
    try:
        reference = f"campaign-{campaign_id}-{user_id}"
        await send_mail(to=user.email, subject=campaign.subject, body=campaign.body, reference=reference)
    except MailRefusedError as error:
        await session.execute(update(Delivery).where(*row).values(refusal=str(error)[:200]))
        return {"sent": False, "refused": str(error)}
    except MailUncertainError as error:
        return {"sent": False, "uncertain": str(error)}
    except Exception:
        await session.execute(update(Delivery).where(*row).values(claimed_at=None))
        await session.commit()
        raise
    await session.execute(update(Delivery).where(*row).values(sent_at=datetime.now(UTC)))
    return {"sent": True}
