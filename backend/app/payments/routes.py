"""Routes of the payments' domain."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, JSONBody
from litestar_saq import TaskQueues
from msgspec import Meta, Struct
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.views import EnqueuedJob
from app.payments.models import Payment
from app.payments.tasks import charge_key
from app.users.models import User


class NewPayment(Struct, forbid_unknown_fields=True):
    """What is to be charged."""

    user_id: int
    amount_cents: Annotated[int, Meta(gt=0, le=10_000_000)]
    card_token: Annotated[str, Meta(pattern=r"^tok_[a-z0-9_:]+$", max_length=100)]
    currency: Annotated[str, Meta(pattern=r"^[A-Z]{3}$")] = "EUR"


class PaymentView(Struct):
    """A payment as others see it."""

    id: UUID
    user_id: int
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
        task_queues: NamedDependency[TaskQueues],
    ) -> PaymentCreated:
        """Create a payment and have it charged; if the broker is away, `check_pending_payments` queues it later."""
        if await db_session.get(User, data.user_id) is None:
            raise NotFoundException(f"there is no user {data.user_id}")
        payment = Payment(
            user_id=data.user_id, amount_cents=data.amount_cents, currency=data.currency, card_token=data.card_token
        )
        db_session.add(payment)
        # The worker may be faster than the end of this request, so the row has to be there before the job is.
        await db_session.commit()
        queue = task_queues.get("default")
        job = await queue.enqueue("charge_payment", key=charge_key(payment.id), payment_id=payment.id)
        return PaymentCreated(payment=PaymentView.of(payment), job=EnqueuedJob.of(job))

    @get("/{payment_id:uuid}")
    async def show(self, payment_id: FromPath[UUID], db_session: NamedDependency[AsyncSession]) -> PaymentView:
        """Show one payment."""
        payment = await db_session.get(Payment, payment_id)
        if payment is None:
            raise NotFoundException(f"there is no payment {payment_id}")
        return PaymentView.of(payment)
