"""What happens to payments in the background."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.payments.models import Payment, PaymentStatus
from app.payments.provider import CardDeclinedError, PaymentProvider, ProviderRefusedError, RateLimitedError
from app.queue.registry import INJECTED, Concurrency, Context, Discard, Snooze, scheduled_task, task

FORGOTTEN_AFTER = timedelta(minutes=1)
"""A payment that is still pending after so long may have lost its job: the broker was away when it was made."""

SOON = timedelta(milliseconds=100)
"""The least wait after a 429, whatever the provider says."""


@task(
    timeout=30,
    retries=8,
    retry_delay=1,
    retry_backoff=300,
    give_up_on=(ProviderRefusedError,),
    concurrency=Concurrency(1, key="account"),
)
async def charge_payment(
    ctx: Context,
    *,
    payment_id: UUID,
    account: str,
    db_session: AsyncSession = INJECTED,
    payment_provider: PaymentProvider = INJECTED,
) -> dict[str, Any]:
    """Charge a payment; of one account one at a time, in the whole fleet.

    A second run finds the payment no longer pending. One that comes between the charge and its note in the
    database asks the provider with the same idempotency key and is told of the charge already made. A provider that
    asks to come back later spends no attempt, and lets the account's other payments go first.
    """
    payment = await db_session.get(Payment, payment_id)
    if payment is None:
        raise Discard(f"there is no payment {payment_id}")
    if payment.account != account:
        raise Discard(f"payment {payment_id} is of another account than {account}")
    if payment.status != PaymentStatus.PENDING.value:
        return {"status": payment.status, "charge_id": payment.charge_id}
    try:
        charge_id = await payment_provider.charge(payment)
    except RateLimitedError as error:
        raise Snooze(after=max(error.after, SOON)) from error
    except CardDeclinedError as error:
        await _settle(db_session, payment_id, PaymentStatus.DECLINED, decline_reason=error.reason)
        return {"status": PaymentStatus.DECLINED.value, "reason": error.reason}
    await _settle(db_session, payment_id, PaymentStatus.CHARGED, charge_id=charge_id)
    ctx.logger.info("charged payment %s as %s", payment_id, charge_id)
    return {"status": PaymentStatus.CHARGED.value, "charge_id": charge_id}


@scheduled_task(cron="*/5 * * * *", misfire="skip", timeout=300, kwargs={"limit": 500})
async def check_pending_payments(
    ctx: Context, *, limit: int = 100, db_session: AsyncSession = INJECTED
) -> dict[str, Any]:
    """Queue the charge of every payment that was forgotten. Its key keeps a charge that waits from being doubled."""
    forgotten = await db_session.execute(
        select(Payment.id, Payment.account)
        .where(Payment.status == PaymentStatus.PENDING.value, Payment.created_at < datetime.now(UTC) - FORGOTTEN_AFTER)
        .order_by(Payment.created_at)
        .limit(limit)
    )
    found = forgotten.all()
    for payment_id, account in found:
        await charge_payment.using(key=charge_key(payment_id)).enqueue(payment_id=payment_id, account=account)
    ctx.logger.info("queued %s forgotten payments", len(found))
    return {"queued": len(found)}


def charge_key(payment_id: UUID) -> str:
    """Return the key of the job that charges a payment."""
    return f"charge-{payment_id}"


async def _settle(session: AsyncSession, payment_id: UUID, status: PaymentStatus, **facts: str) -> None:
    """Note how the charge ended, unless another run already has."""
    await session.execute(
        update(Payment)
        .where(Payment.id == payment_id, Payment.status == PaymentStatus.PENDING.value)
        .values(status=status.value, **facts)
    )
