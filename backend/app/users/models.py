"""The users' table."""

from __future__ import annotations

import enum
import secrets
from datetime import datetime

from advanced_alchemy.base import BigIntAuditBase
from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column


class UserStatus(enum.StrEnum):
    """Where a user stands."""

    UNVERIFIED = "unverified"
    VERIFIED = "verified"
    SUSPENDED = "suspended"


def _new_token() -> str:
    return secrets.token_urlsafe(24)


class User(BigIntAuditBase):
    """Somebody who signed up."""

    __tablename__ = "users"

    email: Mapped[str] = mapped_column(String(320), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(20), default=UserStatus.UNVERIFIED.value, index=True)
    verification_token: Mapped[str] = mapped_column(String(64), default=_new_token)
    welcome_sent_at: Mapped[datetime | None] = mapped_column(default=None)
