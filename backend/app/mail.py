"""Mail: handing one over by SMTP, and keeping it from being sent twice.

A task may run again after a crash, so a mail has a *reference* that names it for
good (``welcome-7``). The reference becomes the Message-ID, by which mail servers
tell a duplicate, and, with `send_once`, a row that is written in the same
transaction: the second run finds the row and sends nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import Any

import aiosmtplib
from advanced_alchemy.base import DefaultBase
from sqlalchemy import String, exists, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.settings import get_settings

REFUSED_FOR_GOOD = 500
"""SMTP's answers from here on are final (RFC 5321, 4.2.1); those below ask to come again."""


class MailRefusedError(Exception):
    """The server does not take mail for the address and never will; the text is what it said."""


class MailUncertainError(aiosmtplib.SMTPException):
    """The server got the whole mail and did not answer; it may be out, or may not."""


class MailReceipt(DefaultBase):
    """A mail that has been handed over."""

    __tablename__ = "mail_receipts"

    reference: Mapped[str] = mapped_column(String(200), primary_key=True)
    sent_at: Mapped[datetime] = mapped_column(index=True)


async def send_mail(*, to: str, subject: str, body: str, reference: str) -> None:
    """Hand one mail over to the SMTP server.

    Args:
        to: The recipient's address.
        subject: One line.
        body: Plain text.
        reference: What names this mail for good, without blanks; the Message-ID is made of it.

    Raises:
        MailRefusedError: There is no such address; no later attempt does better.
        MailUncertainError: Another attempt may send it twice.
        aiosmtplib.SMTPException: It was refused or there is no server; a later attempt may do better.
    """
    settings = get_settings()
    domain = parseaddr(settings.mail_from)[1].rpartition("@")[2]
    message = EmailMessage()
    message["From"] = settings.mail_from
    message["To"] = to
    message["Subject"] = subject
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = f"<{reference}@{domain}>"
    message.set_content(body)
    host, port, timeout = settings.smtp_host, settings.smtp_port, settings.smtp_timeout
    try:
        async with _Client(hostname=host, port=port, timeout=timeout) as client:
            await client.send_message(message)
    except aiosmtplib.SMTPRecipientsRefused as error:
        [refused] = error.recipients
        if refused.code >= REFUSED_FOR_GOOD:
            raise MailRefusedError(f"{refused.code} {refused.message}") from error
        raise


async def send_once(session: AsyncSession, *, to: str, subject: str, body: str, reference: str) -> bool:
    """Hand a mail over unless its reference has a receipt; the receipt is kept when the session commits.

    Returns:
        Whether it was sent now.

    Raises:
        aiosmtplib.SMTPException: As in `send_mail`; roll back, so that no receipt stays.
    """
    has_receipt = exists().where(MailReceipt.reference == reference)
    receipt = select(literal(reference), literal(datetime.now(UTC), MailReceipt.sent_at.type)).where(~has_receipt)
    written = await session.execute(
        insert(MailReceipt)
        .from_select(["reference", "sent_at"], receipt, include_defaults=False)
        .returning(MailReceipt.reference)
    )
    if written.scalar_one_or_none() is None:
        return False
    await send_mail(to=to, subject=subject, body=body, reference=reference)
    return True


class _Client(aiosmtplib.SMTP):
    async def data(self, *args: Any, **kwargs: Any) -> aiosmtplib.SMTPResponse:
        """Send the mail itself, behind sender and recipients."""
        try:
            return await super().data(*args, **kwargs)
        except aiosmtplib.SMTPResponseException:
            raise
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailUncertainError(f"the server did not say whether it has taken the mail: {error}") from error
