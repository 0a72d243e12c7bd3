"""What happens to campaigns in the background.

    send_campaign ──► send_chunk ──► one send_campaign_email a recipient ──┐
                 └──► send_chunk ──► one send_campaign_email a recipient ──┴──► write_report

**One mail is one job, and that job is what the limit counts.** The provider counts
mails, retries among them, and a limit counts how often a job starts: so it is exact,
a mail that fails holds up no other, and tenants take turns mail by mail. A chunk as
the limited job would be exact only if each of its mails cost a start of its own, by
snoozing in between; its mails would share their retries then, and wait behind the
first one that fails. So a chunk is the unit of fanning out: it puts its mails in its
own place, and the workflow of 100,000 mails begins with 2,000 nodes.

The report follows on the whole group and runs although mails have failed for good.
A campaign has one run at a time: what a killed worker has left of an older one, and
what a cancellation has not reached yet, finds that out by itself and does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.campaigns import deliveries
from app.campaigns.models import GOING_ON, Campaign, CampaignState, Delivery
from app.queue.registry import (
    INJECTED,
    Concurrency,
    Context,
    Discard,
    Rate,
    WorkflowMissingError,
    get_workflow,
    group,
    scheduled_task,
    task,
)
from app.settings import get_settings

T = TypeVar("T")

RESUMED_FOR = timedelta(days=3)
"""How long what has not gone out is tried again."""


@task(retries=3, timeout=900, concurrency=Concurrency(1, key="campaign_id"))
async def send_campaign(ctx: Context, *, campaign_id: UUID, db_session: AsyncSession = INJECTED) -> dict[str, Any]:
    """Send the workflow that mails every verified user and writes the report.

    A second run adds no recipient twice, as each is a row of its own. It leaves a workflow alone that goes on, and
    sends one of those mails alone that wait.
    """
    campaign = await db_session.get(Campaign, campaign_id)
    if campaign is None:
        raise Discard(f"there is no campaign {campaign_id}")
    if await _is_under_way(campaign):
        return {"queued": 0}
    await deliveries.add_recipients(db_session, campaign_id)
    users = await deliveries.waiting(db_session, campaign_id)
    await ctx.set_progress(0, len(users))
    if not users and campaign.report is not None:
        return {"queued": 0}
    run = await _begin_run(db_session, campaign_id)
    size = get_settings().campaign_chunk
    chunks = [
        send_chunk.si(campaign_id=campaign_id, users=[*users[at : at + size]], run=run)
        for at in range(0, len(users), size)
    ]
    report = write_report.si(campaign_id=campaign_id, run=run).set(on_failure="continue")
    flow = await (group(chunks) | report).enqueue()
    await db_session.execute(update(Campaign).where(Campaign.id == campaign_id).values(workflow_id=flow.id))
    await ctx.set_progress(len(users), len(users))
    ctx.logger.info("queued %s mails of campaign %s in %s chunks", len(users), campaign_id, len(chunks))
    return {"queued": len(users)}


@task(retries=3)
async def send_chunk(
    ctx: Context, *, campaign_id: UUID, users: list[int], run: int, db_session: AsyncSession = INJECTED
) -> Any:
    """Put the mails of some recipients in the place of this job. A second run finds that done."""
    campaign = await deliveries.current(db_session, campaign_id, run)
    mails = [
        send_campaign_email.si(campaign_id=campaign_id, user_id=user_id, run=run, tenant=campaign.tenant)
        for user_id in users
    ]
    return await ctx.replace(group(mails))


@task(
    retries=5,
    retry_delay=get_settings().mail_retry_delay,
    retry_backoff=60,
    rate_limit=Rate(get_settings().mail_rate),
    fair_key="tenant",
)
async def send_campaign_email(
    *,
    campaign_id: UUID,
    user_id: int,
    run: int,
    tenant: str,  # noqa: ARG001 - tenants take turns by it
    db_session: AsyncSession = INJECTED,
) -> dict[str, Any]:
    """Send one campaign's mail to one user. A second run finds the delivery claimed."""
    return await _to_the_end(deliveries.deliver(db_session, campaign_id, user_id, run))


@task(retries=5)
async def write_report(*, campaign_id: UUID, run: int, db_session: AsyncSession = INJECTED) -> dict[str, Any]:
    """Note how a campaign has gone. A second run finds it ended."""
    campaign = await deliveries.current(db_session, campaign_id, run)
    counts = await deliveries.count(db_session, campaign_id)
    now = datetime.now(UTC)
    report = {
        "sent": counts.sent,
        "failed": counts.recipients - counts.sent,
        "seconds": round((now - (campaign.started_at or now)).total_seconds(), 2),
    }
    state = CampaignState.INCOMPLETE if report["failed"] else CampaignState.SENT
    await db_session.execute(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.state == CampaignState.SENDING.value, Campaign.run == run)
        .values(state=state.value, report=report)
    )
    return report


@scheduled_task(cron="0 */6 * * *", timeout=1800, kwargs={"batch_size": 100})
async def resume_campaigns(
    ctx: Context, *, batch_size: int = 50, db_session: AsyncSession = INJECTED
) -> dict[str, Any]:
    """Queue the campaigns again that have not ended or have mails waiting; see `send_campaign` why it is harmless."""
    has_waiting = exists().where(Delivery.campaign_id == Campaign.id, deliveries.WAITS)
    is_unfinished = or_(Campaign.state.in_(GOING_ON), (Campaign.state == CampaignState.INCOMPLETE.value) & has_waiting)
    unfinished = await db_session.scalars(
        select(Campaign.id)
        .where(is_unfinished, Campaign.created_at > datetime.now(UTC) - RESUMED_FOR)
        .order_by(Campaign.created_at)
        .limit(batch_size)
    )
    found = unfinished.all()
    for campaign_id in found:
        await send_campaign.using(key=campaign_key(campaign_id)).enqueue(campaign_id=campaign_id)
    ctx.logger.info("queued %s unfinished campaigns", len(found))
    return {"queued": len(found)}


def campaign_key(campaign_id: UUID) -> str:
    """Return the key of the job that fans a campaign out."""
    return f"campaign-{campaign_id}"


async def _is_under_way(campaign: Campaign) -> bool:
    """Tell whether the workflow of a campaign goes on."""
    if campaign.workflow_id is None or campaign.state != CampaignState.SENDING.value:
        return False
    try:
        return (await get_workflow(campaign.workflow_id).status()).state == "running"
    except WorkflowMissingError:
        return False


async def _begin_run(session: AsyncSession, campaign_id: UUID) -> int:
    """Make a campaign's next run the one that counts, before any of its jobs asks.

    Raises:
        Discard: It was cancelled.
    """
    run: int | None = await session.scalar(
        update(Campaign)
        .where(Campaign.id == campaign_id, Campaign.state != CampaignState.CANCELLED.value)
        .values(state=CampaignState.SENDING.value, run=Campaign.run + 1, started_at=datetime.now(UTC))
        .returning(Campaign.run)
    )
    if run is None:
        raise Discard(f"campaign {campaign_id} was cancelled")
    await session.commit()
    return run


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await something that is not to be left half done: if the job is ended meanwhile, it counts all the same."""
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait({doing})
        return doing.result()
