"""What happens to campaigns in the background: one job fans out into one job a recipient."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import exists, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.campaigns.models import Campaign, Delivery
from app.mail import send_mail
from app.queue.registry import INJECTED, Context, Discard, scheduled_task, task
from app.users.models import User, UserStatus


@task(retries=3, timeout=900)
async def send_campaign(ctx: Context, *, campaign_id: UUID, db_session: AsyncSession = INJECTED) -> dict[str, Any]:
    """Queue one mail for every verified user.

    A second run adds no recipient twice, as each is a row of its own, and queues those alone whose mail is not
    out yet; the job of each does nothing once it is.
    """
    if await db_session.get(Campaign, campaign_id) is None:
        raise Discard(f"there is no campaign {campaign_id}")
    await _add_recipients(db_session, campaign_id)
    # The jobs look for their rows.
    await db_session.commit()
    waiting = await db_session.scalars(
        select(Delivery.user_id).where(Delivery.campaign_id == campaign_id, Delivery.sent_at.is_(None))
    )
    recipients = waiting.all()
    for number, user_id in enumerate(recipients, start=1):
        key = f"campaign-{campaign_id}-{user_id}"
        await send_campaign_email.using(key=key).enqueue(campaign_id=campaign_id, user_id=user_id)
        await ctx.set_progress(number, len(recipients))
    ctx.logger.info("queued %s mails of campaign %s", len(recipients), campaign_id)
    return {"queued": len(recipients)}


@task(retries=5, retry_delay=2, retry_backoff=60)
async def send_campaign_email(
    *, campaign_id: UUID, user_id: int, db_session: AsyncSession = INJECTED
) -> dict[str, Any]:
    """Send one campaign's mail to one user. A second run finds the delivery marked as sent."""
    claim = (
        update(Delivery)
        .where(Delivery.campaign_id == campaign_id, Delivery.user_id == user_id, Delivery.sent_at.is_(None))
        .values(sent_at=datetime.now(UTC))
        .returning(Delivery.user_id)
    )
    if (await db_session.scalars(claim)).one_or_none() is None:
        return {"sent": False}
    campaign = await db_session.get_one(Campaign, campaign_id)
    user = await db_session.get_one(User, user_id)
    reference = f"campaign-{campaign_id}-{user_id}"
    await send_mail(to=user.email, subject=campaign.subject, body=campaign.body, reference=reference)
    return {"sent": True}


@scheduled_task(cron="0 */6 * * *", timeout=1800, kwargs={"batch_size": 100})
async def resume_campaigns(
    ctx: Context, *, batch_size: int = 50, db_session: AsyncSession = INJECTED
) -> dict[str, Any]:
    """Queue the campaigns again that have mails waiting; `send_campaign` says why that is harmless."""
    is_unfinished = exists().where(Delivery.campaign_id == Campaign.id, Delivery.sent_at.is_(None))
    unfinished = await db_session.scalars(select(Campaign.id).where(is_unfinished).limit(batch_size))
    found = unfinished.all()
    for campaign_id in found:
        await send_campaign.using(key=campaign_key(campaign_id)).enqueue(campaign_id=campaign_id)
    ctx.logger.info("queued %s unfinished campaigns", len(found))
    return {"queued": len(found)}


def campaign_key(campaign_id: UUID) -> str:
    """Return the key of the job that fans a campaign out."""
    return f"campaign-{campaign_id}"


async def _add_recipients(session: AsyncSession, campaign_id: UUID) -> None:
    has_row = exists().where(Delivery.campaign_id == campaign_id, Delivery.user_id == User.id)
    recipients = select(literal(campaign_id, Delivery.campaign_id.type), User.id).where(
        User.status == UserStatus.VERIFIED.value, ~has_row
    )
    await session.execute(insert(Delivery).from_select(["campaign_id", "user_id"], recipients, include_defaults=False))
