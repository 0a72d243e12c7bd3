"""The payment provider's client: one charge over HTTP, and what its answers mean.

| answer | here | what the task does |
|---|---|---|
| 2xx | the charge's id | marks the payment charged |
| 402, 422 | `CardDeclinedError` | marks it declined; another attempt would not help |
| 429 | `RateLimitedError` | tries again when the provider says so |
| 5xx, no answer in time, no connection | `ProviderUnavailableError` | tries again with growing delays |
| any other | `ProviderRefusedError` | gives up: our side is set up wrongly |

Every request carries the payment's id as its Idempotency-Key, so that a charge
whose answer was lost is not made a second time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx

from app.payments.models import Payment
from app.settings import get_settings

LONGEST_WAIT = timedelta(hours=1)


class PaymentProviderError(Exception):
    """A charge was not made."""


class ProviderUnavailableError(PaymentProviderError):
    """The provider had a fault or did not answer; the charge may have been made all the same."""


class ProviderRefusedError(PaymentProviderError):
    """The provider does not accept our requests; check ``APP_PAYMENTS_URL`` and the account."""


class RateLimitedError(PaymentProviderError):
    """Too many requests; ``after`` says when to come back."""

    def __init__(self, after: timedelta) -> None:
        super().__init__(after)
        self.after = after

    def __str__(self) -> str:
        return f"rate limited for {self.after.total_seconds():g} s"


class CardDeclinedError(PaymentProviderError):
    """The card's bank said no; ``reason`` is what it said."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PaymentProvider:
    """The provider's interface over one pool of connections."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def charge(self, payment: Payment) -> str:
        """Charge a payment, once however often it is called.

        Returns:
            The charge's id at the provider.

        Raises:
            CardDeclinedError: The payment is over.
            RateLimitedError: Call again when its ``after`` has passed.
            ProviderUnavailableError: Call again later.
            ProviderRefusedError: Calling again does not help.
        """
        try:
            answer = await self._http.post(
                "/charges",
                headers={"Idempotency-Key": str(payment.id)},
                json={
                    "amount_cents": payment.amount_cents,
                    "currency": payment.currency,
                    "card_token": payment.card_token,
                },
            )
        except httpx.TimeoutException as error:
            raise ProviderUnavailableError(f"no answer within {get_settings().payments_timeout:g} s") from error
        except httpx.TransportError as error:
            raise ProviderUnavailableError(f"no connection: {error}") from error
        if answer.is_success:
            return str(answer.json()["id"])
        raise _refusal(answer)


async def provide_payment_provider() -> AsyncIterator[PaymentProvider]:
    """Provide ``payment_provider``; with scope ``worker`` its connections are reused from job to job."""
    settings = get_settings()
    async with httpx.AsyncClient(base_url=settings.payments_url, timeout=settings.payments_timeout) as http:
        yield PaymentProvider(http)


def retry_after(value: str | None, now: datetime) -> timedelta:
    """Return the wait that a Retry-After header asks for: seconds or a date; a second where it is unreadable."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        wait = timedelta(seconds=min(int(text), LONGEST_WAIT.total_seconds()))
    else:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return timedelta(seconds=1)
        wait = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now
    return min(max(wait, timedelta(0)), LONGEST_WAIT)


def _refusal(answer: httpx.Response) -> PaymentProviderError:
    if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        return RateLimitedError(retry_after(answer.headers.get("Retry-After"), datetime.now(UTC)))
    if answer.status_code in (HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.UNPROCESSABLE_ENTITY):
        return CardDeclinedError(_detail(answer))
    said = f"the provider answered {answer.status_code}: {_detail(answer)}"
    return ProviderUnavailableError(said) if answer.is_server_error else ProviderRefusedError(said)


def _detail(answer: httpx.Response) -> str:
    """Return what the answer says, at most 200 characters."""
    try:
        content = answer.json()
    except ValueError:
        return answer.text[:200]
    return str(content.get("detail", content) if isinstance(content, dict) else content)[:200]
