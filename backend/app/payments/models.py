"""The payments' table."""

from __future__ import annotations

import enum

from advanced_alchemy.base import UUIDv7AuditBase
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column


class PaymentStatus(enum.StrEnum):
    """Where a payment stands; only ``PENDING`` ones are charged."""

    PENDING = "pending"
    CHARGED = "charged"
    DECLINED = "declined"


class Payment(UUIDv7AuditBase):
    """An amount that a user owes; its id is the provider's idempotency key.

    Attributes:
        account: What is charged; one charge at a time.
        idempotency_key: By which the client knows it; a second request with the key gets this payment.
    """

    __tablename__ = "payments"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    account: Mapped[str] = mapped_column(String(60))
    idempotency_key: Mapped[str | None] = mapped_column(String(100), unique=True, default=None)
    amount_cents: Mapped[int]
    currency: Mapped[str] = mapped_column(String(3))
    card_token: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(20), default=PaymentStatus.PENDING.value, index=True)
    charge_id: Mapped[str | None] = mapped_column(String(100), default=None)
    decline_reason: Mapped[str | None] = mapped_column(String(200), default=None)
