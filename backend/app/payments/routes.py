"""Routes of the payments' domain.

A request with an ``Idempotency-Key`` may be sent again without a second charge: the
key is unique in the payments' table for good, and the charge's job is unique for
`SAME_JOB_FOR`, however it has ended. See the IETF's draft on the header.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated
from uuid import UUID

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.exceptions import ClientException, NotFoundException
from litestar.params import FromPath, HeaderParameter, JSONBody
from litestar.status_codes import HTTP_422_UNPROCESSABLE_ENTITY
from msgspec import Meta, Struct
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.views import EnqueuedJob
from app.payments.models import Payment
from app.payments.tasks import charge_key, charge_payment
from app.queue.registry import Unique
from app.users.models import User

SAME_JOB_FOR = timedelta(days=1)
"""How long a request that is sent again gets the job of the first one."""

ASKED = ("user_id", "account", "amount_cents", "currency", "card_token")
"""The columns in which a request that is sent again has to be the same."""

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        pattern=r"^[!-~]{1,100}$",
        description="1 to 100 visible ASCII characters; the same key gives the same payment and job back.",
    ),
]


class NewPayment(Struct, forbid_unknown_fields=True):
    """What is to be charged; to the user's own account unless another is named."""

    user_id: int
    amount_cents: Annotated[int, Meta(gt=0, le=10_000_000)]
    card_token: Annotated[str, Meta(pattern=r"^tok_[a-z0-9_:]+$", max_length=100)]
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}$")] = "EUR"
    account: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,60}$")] | None = None

    def payment(self, key: str | None) -> Payment:
        """Return what is asked for, as a row."""
        return Payment(
            user_id=self.user_id,
            account=self.account or f"user-{self.user_id}",
            idempotency_key=key,
            amount_cents=self.amount_cents,
            currency=self.currency,
            card_token=self.card_token,
        )


class PaymentView(Struct):
    """A payment as others see it."""

    id: UUID
    user_id: int
    account: str
    amount_cents: int
    currency: str
    status: str
    charge_id: str | None
    decline_reason: str | None

    @classmethod
    def of(cls, payment: Payment) -> PaymentView:
        """Leave out the card."""
        return cls(
            id=payment.id,
            user_id=payment.user_id,
            account=payment.account,
            amount_cents=payment.amount_cents,
            currency=payment.currency,
            status=payment.status,
            charge_id=payment.charge_id,
            decline_reason=payment.decline_reason,
        )


class PaymentCreated(Struct):
    """The new payment and the job that charges it."""

    payment: PaymentView
    job: EnqueuedJob


class PaymentController(Controller):
    """Payments; charged in the background."""

    path = "/payments"
    tags = ("Payments",)

    @post()
    async def create(
        self,
        data: JSONBody[NewPayment],
        db_session: NamedDependency[AsyncSession],
        idempotency_key: IdempotencyKey = None,
    ) -> PaymentCreated:
        """Create a payment and have it charged; if the broker is away, `check_pending_payments` queues it later."""
        if await db_session.get(User, data.user_id) is None:
            raise NotFoundException(f"there is no user {data.user_id}")
        # The worker may be faster than the end of this request, so the row has to be there before the job is.
        payment = await _stored(db_session, data.payment(idempotency_key))
        charge = charge_payment.using(key=charge_key(payment.id))
        if idempotency_key is not None:
            charge = charge.using(unique=Unique(until=SAME_JOB_FOR))
        job = await charge.enqueue(payment_id=payment.id, account=payment.account)
        return PaymentCreated(payment=PaymentView.of(payment), job=EnqueuedJob.of(job))

    @get("/{payment_id:uuid}")
    async def show(self, payment_id: FromPath[UUID], db_session: NamedDependency[AsyncSession]) -> PaymentView:
        """Show one payment."""
        payment = await db_session.get(Payment, payment_id)
        if payment is None:
            raise NotFoundException(f"there is no payment {payment_id}")
        return PaymentView.of(payment)


async def _stored(session: AsyncSession, wanted: Payment) -> Payment:
    """Store a payment, or return the one that has its key.

    Raises:
        ClientException: That one is another payment; answered as 422.
    """
    session.add(wanted)
    try:
        await session.commit()
    except IntegrityError:
        await session.rollback()
        stored = await session.scalar(select(Payment).where(Payment.idempotency_key == wanted.idempotency_key))
        if wanted.idempotency_key is None or stored is None:
            raise
    else:
        return wanted
    if any(getattr(stored, name) != getattr(wanted, name) for name in ASKED):
        detail = "this Idempotency-Key belongs to another payment; send the first request's body, or another key"
        raise ClientException(detail, status_code=HTTP_422_UNPROCESSABLE_ENTITY)
    return stored
