"""Tasks that belong to no domain."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, select

from app.database import session_scope
from app.mail import MailReceipt, send_mail, send_once
from app.queue.registry import Context, scheduled_task, task

KEEP_RECEIPTS = timedelta(days=90)
"""Longer than any job may be retried, so that no receipt is missed."""


@task
async def my_task(ctx: Context, *, user_id: int) -> dict[str, Any]:
    """Process something for a user: the smallest task. It changes nothing, so it may run any number of times."""
    ctx.logger.info("processing user %s", user_id)
    return {"status": "success", "user_id": user_id}


@task(retries=5, retry_delay=2, retry_backoff=60)
async def send_email(
    ctx: Context, *, to: str, subject: str = "A message for you", body: str = "Hello from Knapsaq."
) -> dict[str, Any]:
    """Send one mail. The job's id is the mail's reference, so that a second run of the job sends nothing."""
    if ctx.called_directly:
        reference = f"direct-{datetime.now(UTC):%Y%m%d%H%M%S%f}"
        await send_mail(to=to, subject=subject, body=body, reference=reference)
        return {"sent": True}
    async with session_scope() as session:
        sent = await send_once(session, to=to, subject=subject, body=body, reference=f"job-{ctx.id}")
    return {"sent": sent}


@task
async def enqueue_follow_up(ctx: Context, *, user_id: int) -> dict[str, Any]:
    """Queue another task. The follow-up's key names the user: while it waits, a second run adds none."""
    queue = ctx["queue"]
    await queue.enqueue("send_email", to=f"user{user_id}@example.com", key=f"follow-up-{user_id}")
    return {"enqueued": True}


@task
async def process_data(ctx: Context, *, data_id: int) -> dict[str, Any]:
    """Work out the fingerprint of a data set. It depends on the id alone, so a second run finds the same."""
    # A second of arithmetic belongs in a thread: on the event loop it would hold up every other job.
    digest = await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", str(data_id).encode(), b"data", 50_000)
    ctx.logger.info("processed data set %s", data_id)
    return {"processed": data_id, "fingerprint": digest.hex()}


@scheduled_task(cron="0 2 * * *", timeout=900, jitter=300, kwargs={"batch_size": 500})
async def cleanup_old_records(ctx: Context, *, batch_size: int = 100) -> dict[str, Any]:
    """Delete old mail receipts, a batch a transaction. A second run finds none left."""
    before = datetime.now(UTC) - KEEP_RECEIPTS
    deleted = 0
    while True:
        async with session_scope() as session:
            old = select(MailReceipt.reference).where(MailReceipt.sent_at < before).limit(batch_size)
            gone = await session.scalars(
                delete(MailReceipt).where(MailReceipt.reference.in_(old)).returning(MailReceipt.reference)
            )
            count = len(gone.all())
        deleted += count
        if count < batch_size:
            ctx.logger.info("deleted %s mail receipts", deleted)
            return {"deleted": deleted}
