"""Routes of the campaigns' domain."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.campaigns.models import Campaign, Delivery
from app.campaigns.tasks import campaign_key, send_campaign
from app.jobs.views import EnqueuedJob


class NewCampaign(Struct, forbid_unknown_fields=True):
    """What is to be mailed to every verified user."""

    subject: Annotated[str, Meta(pattern=r"^[^\r\n]+$", max_length=200)]
    body: Annotated[str, Meta(min_length=1, max_length=100_000)]


class CampaignView(Struct):
    """A campaign and how far it is."""

    id: UUID
    subject: str
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
        """Create a campaign and have it mailed."""
        campaign = Campaign(subject=data.subject, body=data.body)
        db_session.add(campaign)
        # The worker may be faster than the end of this request, so the row has to be there before the job is.
        await db_session.commit()
        job = await send_campaign.using(key=campaign_key(campaign.id)).enqueue(campaign_id=campaign.id)
        return CampaignCreated(campaign=await _view(db_session, campaign), job=EnqueuedJob.of(job))

    @get("/{campaign_id:uuid}")
    async def show(self, campaign_id: FromPath[UUID], db_session: NamedDependency[AsyncSession]) -> CampaignView:
        """Show a campaign, how many it goes to and how many have it."""
        campaign = await db_session.get(Campaign, campaign_id)
        if campaign is None:
            raise NotFoundException(f"there is no campaign {campaign_id}")
        return await _view(db_session, campaign)


async def _view(session: AsyncSession, campaign: Campaign) -> CampaignView:
    counted = await session.execute(
        select(func.count(), func.count(Delivery.sent_at)).where(Delivery.campaign_id == campaign.id)
    )
    recipients, sent = counted.one()
    return CampaignView(id=campaign.id, subject=campaign.subject, recipients=recipients, sent=sent)
