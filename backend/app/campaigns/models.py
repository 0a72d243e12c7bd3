"""The campaigns' tables."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from advanced_alchemy.base import DefaultBase, UUIDv7AuditBase
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column


class Campaign(UUIDv7AuditBase):
    """A mail to many."""

    __tablename__ = "campaigns"

    subject: Mapped[str] = mapped_column(String(200))
    body: Mapped[str]


class Delivery(DefaultBase):
    """One recipient of one campaign; the primary key is what keeps a second run from mailing again."""

    __tablename__ = "campaign_deliveries"

    campaign_id: Mapped[UUID] = mapped_column(ForeignKey("campaigns.id"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    sent_at: Mapped[datetime | None] = mapped_column(default=None)
