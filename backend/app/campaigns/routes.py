"""Routes of the campaigns' domain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated
from uuid import UUID

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.exceptions import ClientException, NotFoundException
from litestar.params import FromPath, JSONBody
from litestar.response import ServerSentEvent, ServerSentEventMessage
from litestar.status_codes import HTTP_200_OK, HTTP_409_CONFLICT
from msgspec import Meta, Struct, json
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.campaigns import deliveries
from app.campaigns.models import GOING_ON, Campaign, CampaignState
from app.campaigns.tasks import campaign_key, send_campaign
from app.database import session_scope
from app.jobs.views import EnqueuedJob
from app.queue.registry import WorkflowError, get_workflow
from app.settings import get_settings

LOOK_PAUSE = 0.25
"""Seconds between two looks for a stream: Redis pushes how jobs stand; how many mails are out is in the database."""


class NewCampaign(Struct, forbid_unknown_fields=True):
    """What is to be mailed to every verified user, and for which tenant."""

    subject: Annotated[str, Meta(pattern=r"^[^\r\n]+$", max_length=200)]
    body: Annotated[str, Meta(min_length=1, max_length=100_000)]
    tenant: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,40}$")] = "main"


class Report(Struct):
    """How a campaign went: whose mail is out, whose is not, and how long it took."""

    sent: int
    failed: int
    seconds: float


class CampaignView(Struct):
    """A campaign and how far it is; the report is there once it has ended by itself."""

    id: UUID
    tenant: str
    subject: str
    state: str
    recipients: int
    sent: int
    report: Report | None


class CampaignProgress(Struct):
    """How far a campaign is, ``progress`` in whole percent."""

    state: str
    progress: int
    recipients: int
    sent: int


class CampaignCreated(Struct):
    """The new campaign and the job that fans it out."""

    campaign: CampaignView
    job: EnqueuedJob


class CampaignController(Controller):
    """Campaigns; mailed in the background."""

    path = "/campaigns"
    tags = ("Campaigns",)

    @post()
    async def create(self, data: JSONBody[NewCampaign], db_session: NamedDependency[AsyncSession]) -> CampaignCreated:
        """Create a campaign and have it mailed; if the broker is away, `resume_campaigns` queues it later."""
        campaign = Campaign(tenant=data.tenant, subject=data.subject, body=data.body)
        db_session.add(campaign)
        # The worker may be faster than the end of this request, so the row has to be there before the job is.
        await db_session.commit()
        job = await send_campaign.using(key=campaign_key(campaign.id)).enqueue(campaign_id=campaign.id)
        return CampaignCreated(campaign=await _view(db_session, campaign), job=EnqueuedJob.of(job))

    @get("/{campaign_id:uuid}")
    async def show(self, campaign_id: FromPath[UUID], db_session: NamedDependency[AsyncSession]) -> CampaignView:
        """Show a campaign, how many it goes to, how many have it, and how it went."""
        return await _view(db_session, await _find(db_session, campaign_id))

    @get("/{campaign_id:uuid}/progress")
    async def progress(
        self, campaign_id: FromPath[UUID], db_session: NamedDependency[AsyncSession]
    ) -> CampaignProgress:
        """Show how far a campaign is."""
        return await _progress(db_session, await _find(db_session, campaign_id))

    @get("/{campaign_id:uuid}/updates")
    async def updates(self, campaign_id: FromPath[UUID], db_session: NamedDependency[AsyncSession]) -> ServerSentEvent:
        """Send how far a campaign is, as server-sent events: now, at each change, and at its end."""
        await _find(db_session, campaign_id)
        return ServerSentEvent(_events(campaign_id))

    @post("/{campaign_id:uuid}/cancel", status_code=HTTP_200_OK)
    async def cancel(self, campaign_id: FromPath[UUID], db_session: NamedDependency[AsyncSession]) -> CampaignView:
        """End a campaign: what is out stays so, what is being handed over is finished, nothing else goes out.

        Send the request again if it was answered with an error: it ends what is left.
        """
        campaign = await _find(db_session, campaign_id)
        await db_session.execute(
            update(Campaign)
            .where(Campaign.id == campaign_id, Campaign.state.in_(GOING_ON))
            .values(state=CampaignState.CANCELLED.value)
        )
        # From here on no mail is begun; what is left to do is to clear away what waits.
        await db_session.commit()
        await db_session.refresh(campaign)
        if campaign.state != CampaignState.CANCELLED.value:
            raise ClientException(f"the campaign has ended: it is {campaign.state}", status_code=HTTP_409_CONFLICT)
        if campaign.workflow_id is not None:
            await _clear_away(campaign.workflow_id)
        return await _view(db_session, campaign)


async def _clear_away(workflow_id: str) -> None:
    """End a workflow and wait for the mails that are being handed over."""
    flow = get_workflow(workflow_id)
    with suppress(WorkflowError, TimeoutError):
        await flow.revoke("the campaign was cancelled")
        await flow.wait(get_settings().smtp_timeout + 1)


async def _find(session: AsyncSession, campaign_id: UUID) -> Campaign:
    campaign = await session.get(Campaign, campaign_id)
    if campaign is None:
        raise NotFoundException(f"there is no campaign {campaign_id}")
    return campaign


async def _view(session: AsyncSession, campaign: Campaign) -> CampaignView:
    counts = await deliveries.count(session, campaign.id)
    return CampaignView(
        id=campaign.id,
        tenant=campaign.tenant,
        subject=campaign.subject,
        state=campaign.state,
        recipients=counts.recipients,
        sent=counts.sent,
        report=Report(**campaign.report) if campaign.report else None,
    )


async def _progress(session: AsyncSession, campaign: Campaign) -> CampaignProgress:
    recipients, sent = await deliveries.count(session, campaign.id)
    is_out = campaign.state == CampaignState.SENT.value
    return CampaignProgress(campaign.state, 100 if is_out else 100 * sent // max(recipients, 1), recipients, sent)


async def _events(campaign_id: UUID) -> AsyncIterator[ServerSentEventMessage]:
    told: CampaignProgress | None = None
    while True:
        async with session_scope() as session:
            seen = await _progress(session, await _find(session, campaign_id))
        if seen != told:
            told = seen
            yield ServerSentEventMessage(event=seen.state, data=json.encode(seen).decode())
        if seen.state not in GOING_ON:
            return
        await asyncio.sleep(LOOK_PAUSE)
