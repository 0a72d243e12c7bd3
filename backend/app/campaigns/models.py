"""The campaigns' tables."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Any
from uuid import UUID

from advanced_alchemy.base import DefaultBase, UUIDv7AuditBase
from sqlalchemy import JSON, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column


class CampaignState(enum.StrEnum):
    """Where a campaign stands; ``INCOMPLETE`` has ended like ``SENT``, but some did not get their mail."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    INCOMPLETE = "incomplete"
    CANCELLED = "cancelled"


GOING_ON = (CampaignState.QUEUED.value, CampaignState.SENDING.value)


class Campaign(UUIDv7AuditBase):
    """A mail to many.

    Attributes:
        tenant: Whose it is; tenants take turns where their mails wait for the provider.
        run: How often it was fanned out; what belongs to an older run does nothing any more.
        workflow_id: The workflow of that run.
        started_at: When that run began.
        report: How that run ended: ``sent`` and ``failed``, both of all recipients, and ``seconds``.
    """

    __tablename__ = "campaigns"

    tenant: Mapped[str] = mapped_column(String(40), index=True)
    subject: Mapped[str] = mapped_column(String(200))
    body: Mapped[str]
    state: Mapped[str] = mapped_column(String(20), default=CampaignState.QUEUED.value, index=True)
    run: Mapped[int] = mapped_column(default=0)
    workflow_id: Mapped[str | None] = mapped_column(String(100), default=None)
    started_at: Mapped[datetime | None] = mapped_column(default=None)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), default=None)


class Delivery(DefaultBase):
    """One recipient of one campaign; see ``deliveries`` for what the columns mean together."""

    __tablename__ = "campaign_deliveries"

    campaign_id: Mapped[UUID] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    claimed_at: Mapped[datetime | None] = mapped_column(default=None)
    sent_at: Mapped[datetime | None] = mapped_column(default=None)
    refusal: Mapped[str | None] = mapped_column(String(200), default=None)
