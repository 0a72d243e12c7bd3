"""What happens to users in the background."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.database import session_scope
from app.mail import send_mail, send_once
from app.payments.models import Payment, PaymentStatus
from app.queue.registry import INJECTED, Context, Discard, scheduled_task, task
from app.settings import get_settings
from app.users.models import User, UserStatus

WELCOME = """Hello {name},

good to have you. This code verifies your address:

    {token}
"""


@task(retries=5, retry_delay=2, retry_backoff=60)
async def send_welcome_email(ctx: Context, *, user_id: int) -> dict[str, Any]:
    """Send the mail with the verification code, once.

    A second run finds `User.welcome_sent_at` set and sends nothing. Claim and mail share a transaction: a refused
    mail rolls the claim back, and a run at the same time waits for the row.
    """
    claim = (
        update(User)
        .where(User.id == user_id, User.welcome_sent_at.is_(None))
        .values(welcome_sent_at=datetime.now(UTC))
        .returning(User)
    )
    async with session_scope() as session:
        user = (await session.scalars(claim)).one_or_none()
        if user is None:
            if await session.get(User, user_id) is None:
                raise Discard(f"there is no user {user_id}")
            return {"status": "already sent", "user_id": user_id}
        body = WELCOME.format(name=user.name, token=user.verification_token)
        await send_mail(to=user.email, subject=f"Welcome, {user.name}", body=body, reference=f"welcome-{user_id}")
    ctx.logger.info("welcomed user %s", user_id)
    return {"status": "sent", "user_id": user_id}


@task
async def update_user_status(
    ctx: Context, *, user_id: int, status: UserStatus, db_session: AsyncSession = INJECTED
) -> dict[str, Any]:
    """Update a user's status. It is set, not toggled, so a second run changes nothing."""
    change = update(User).where(User.id == user_id).values(status=status.value).returning(User.id)
    if (await db_session.scalars(change)).one_or_none() is None:
        raise Discard(f"there is no user {user_id}")
    ctx.logger.info("user %s is now %s", user_id, status)
    return {"updated": user_id, "status": status.value}


@scheduled_task(cron="0 2 * * *", timeout=900, jitter=300, kwargs={"older_than_days": 7})
async def cleanup_unverified_users(
    ctx: Context, *, older_than_days: int = 7, db_session: AsyncSession = INJECTED
) -> dict[str, Any]:
    """Delete who never verified and never paid. A second run finds none left."""
    before = datetime.now(UTC) - timedelta(days=older_than_days)
    gone = await db_session.scalars(
        delete(User)
        .where(
            User.status == UserStatus.UNVERIFIED.value,
            User.created_at < before,
            ~exists().where(Payment.user_id == User.id),
        )
        .returning(User.id)
    )
    deleted = len(gone.all())
    ctx.logger.info("deleted %s unverified users", deleted)
    return {"deleted": deleted}


@scheduled_task(cron="0 9 * * 1", misfire_window=86_400, timeout=1800, retries=5, retry_delay=60)
async def weekly_report(ctx: Context, *, db_session: AsyncSession = INJECTED) -> dict[str, Any]:
    """Mail the week's figures to the team. The reference names the week, so a second run sends nothing."""
    since = datetime.now(UTC) - timedelta(days=7)
    users = await db_session.scalar(select(func.count()).select_from(User).where(User.created_at >= since))
    payments = await db_session.scalar(
        select(func.count())
        .select_from(Payment)
        .where(Payment.created_at >= since, Payment.status == PaymentStatus.CHARGED.value)
    )
    year, week, _ = datetime.now(UTC).isocalendar()
    sent = await send_once(
        db_session,
        to=get_settings().report_to,
        subject=f"Weekly report: week {week} of {year}",
        body=f"New users: {users}\nPayments charged: {payments}\n",
        reference=f"weekly-report-{year}-{week:02}",
    )
    ctx.logger.info("report of week %s: %s users, %s payments", week, users, payments)
    return {"sent": int(sent), "users": users, "payments": payments}
