"""The payment sandbox: a provider to develop against, served by the application itself under ``/sandbox``.

The card's token chooses what happens, per Idempotency-Key:

| token | the answer |
|---|---|
| ``tok_ok`` | 201 |
| ``tok_declined`` | 402 |
| ``tok_rate_limited`` | 429 with ``Retry-After: 1`` once, then 201 |
| ``tok_unavailable`` | 500 once, then 201 |
| ``tok_slow`` | an answer that comes too late once, then 201 |

``tok_rate_limited:3`` has the fault three times; so for the others. As at a real
provider the slow charge is made, although nobody waits for the answer, and a key
that was charged before is answered with the same charge.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from typing import Annotated

from litestar import Controller, Response, Router, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import HeaderParameter, JSONBody
from litestar.status_codes import (
    HTTP_201_CREATED,
    HTTP_402_PAYMENT_REQUIRED,
    HTTP_422_UNPROCESSABLE_ENTITY,
    HTTP_429_TOO_MANY_REQUESTS,
    HTTP_500_INTERNAL_SERVER_ERROR,
)
from msgspec import Meta, Struct

from app.settings import get_settings


class Card(enum.StrEnum):
    """The cards that there are."""

    OK = "tok_ok"
    DECLINED = "tok_declined"
    RATE_LIMITED = "tok_rate_limited"
    UNAVAILABLE = "tok_unavailable"
    SLOW = "tok_slow"


CARDS = tuple(card.value for card in Card)


class ChargeRequest(Struct, forbid_unknown_fields=True):
    """What is to be charged to which card."""

    amount_cents: Annotated[int, Meta(gt=0)]
    currency: str
    card_token: str


class Charge(Struct):
    """A charge that was made."""

    id: str
    idempotency_key: str
    amount_cents: int
    currency: str


class Refusal(Struct):
    """Why no charge was made."""

    detail: str


class Sandbox:
    """The provider's memory, as long as the process lives."""

    def __init__(self) -> None:
        self.charges: dict[str, Charge] = {}
        self._faults: Counter[str] = Counter()

    def has_fault_left(self, key: str, times: int) -> bool:
        """Tell whether this call is among the first ``times`` of its key."""
        self._faults[key] += 1
        return self._faults[key] <= times

    def charge(self, key: str, request: ChargeRequest) -> Charge:
        """Charge once per key."""
        if key not in self.charges:
            name = f"ch_{len(self.charges) + 1}"
            self.charges[key] = Charge(name, key, request.amount_cents, request.currency)
        return self.charges[key]


class SandboxController(Controller):
    """The provider's two routes."""

    path = "/charges"
    tags = ("Sandbox",)

    @post()
    async def charge(
        self,
        data: JSONBody[ChargeRequest],
        key: Annotated[str, HeaderParameter(name="Idempotency-Key")],
        sandbox: NamedDependency[Sandbox],
    ) -> Response[Charge | Refusal]:
        """Charge a card, or have the fault that its token names."""
        name, _, times = data.card_token.partition(":")
        if name not in CARDS or not (times.isdecimal() or not times):
            known = ", ".join(CARDS)
            return _refusal(HTTP_422_UNPROCESSABLE_ENTITY, f"no such card: {data.card_token}; there are: {known}")
        card = Card(name)
        if card is Card.DECLINED:
            return _refusal(HTTP_402_PAYMENT_REQUIRED, "insufficient funds")
        if card is not Card.OK and sandbox.has_fault_left(key, int(times or 1)):
            if card is Card.RATE_LIMITED:
                return _refusal(HTTP_429_TOO_MANY_REQUESTS, "slow down", {"Retry-After": "1"})
            if card is Card.UNAVAILABLE:
                return _refusal(HTTP_500_INTERNAL_SERVER_ERROR, "out of order")
            sandbox.charge(key, data)
            await asyncio.sleep(get_settings().payments_timeout + 0.5)
        return Response(sandbox.charge(key, data), status_code=HTTP_201_CREATED)

    @get()
    async def list(self, sandbox: NamedDependency[Sandbox]) -> list[Charge]:
        """List the charges made."""
        return [*sandbox.charges.values()]


def sandbox_router() -> Router:
    """Return the sandbox's routes with a memory of their own."""
    sandbox = Sandbox()
    return Router(
        path="/sandbox",
        route_handlers=[SandboxController],
        dependencies={"sandbox": Provide(lambda: sandbox, sync_to_thread=False)},
    )


def _refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> Response[Charge | Refusal]:
    return Response(Refusal(detail), status_code=status, headers=headers)
