"""Payments against the sandbox provider, over HTTP and with a real worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import update
from tests.app.conftest import System

from app.database import session_scope
from app.payments.models import Payment
from app.payments.provider import (
    CardDeclinedError,
    PaymentProvider,
    ProviderRefusedError,
    ProviderUnavailableError,
    RateLimitedError,
    retry_after,
)
from knapsaq import Client, JobRevokedError


@pytest.fixture(scope="module")
def user(system: System) -> dict[str, Any]:
    return system.sign_up("payer")


def pay(system: System, user: dict[str, Any], card: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a payment and the job that charged it, both as they ended."""
    body = {"user_id": user["id"], "amount_cents": 1999, "card_token": card}
    answer = system.api.post("/payments", json=body)
    assert answer.status_code == 201, answer.text
    job = system.ended(answer.json()["job"]["url"])
    payment = system.api.get(f"/payments/{answer.json()['payment']['id']}").json()
    return payment, job


def charges_of(system: System, payment: dict[str, Any]) -> list[dict[str, Any]]:
    charges: list[dict[str, Any]] = system.api.get("/sandbox/charges").json()
    return [charge for charge in charges if charge["idempotency_key"] == payment["id"]]


@pytest.mark.parametrize(
    ("card", "attempts"),
    [("tok_ok", 1), ("tok_rate_limited", 1), ("tok_unavailable", 2), ("tok_slow", 2)],
    ids=["at once", "after a 429", "after a 500", "after a time-out"],
)
def test_a_payment_is_charged_once(system: System, user: dict[str, Any], card: str, attempts: int) -> None:
    payment, job = pay(system, user, card)

    assert (job["status"], job["attempts"], job["result"]["status"]) == ("complete", attempts, "charged")
    [charge] = charges_of(system, payment)
    assert (payment["status"], payment["charge_id"]) == ("charged", charge["id"])


def test_the_wait_after_a_429_is_the_one_that_the_provider_asks_for(system: System, user: dict[str, Any]) -> None:
    _, job = pay(system, user, "tok_rate_limited")

    assert 1.0 <= job["seconds"] < 2.0


def test_a_provider_that_asks_for_patience_spends_no_attempt(system: System, user: dict[str, Any]) -> None:
    """However often it does; the retries are left for real errors."""
    payment, job = pay(system, user, "tok_rate_limited:3")

    assert (payment["status"], job["attempts"]) == ("charged", 1)
    assert job["seconds"] >= 3.0


def test_a_declined_card_is_not_tried_again(system: System, user: dict[str, Any]) -> None:
    payment, job = pay(system, user, "tok_declined")

    assert (job["status"], job["attempts"]) == ("complete", 1)
    assert (payment["status"], payment["decline_reason"]) == ("declined", "insufficient funds")
    assert not charges_of(system, payment)


def test_an_unknown_card_is_declined_with_the_providers_words(system: System, user: dict[str, Any]) -> None:
    payment, _ = pay(system, user, "tok_nonsense")

    assert payment["status"] == "declined"
    assert payment["decline_reason"].startswith("no such card: tok_nonsense")


def test_a_payment_of_nobody_is_refused(system: System) -> None:
    refused = system.api.post("/payments", json={"user_id": 987_654, "amount_cents": 1, "card_token": "tok_ok"})

    assert (refused.status_code, refused.json()["detail"]) == (404, "there is no user 987654")


async def test_a_second_run_charges_nothing(system: System, user: dict[str, Any], client: Client) -> None:
    payment, first = pay(system, user, "tok_ok")

    again = await client.queue().enqueue("charge_payment", payment_id=payment["id"], account=payment["account"])

    assert again is not None
    assert await again.wait(10) == first["result"]
    assert len(charges_of(system, payment)) == 1


def ask(system: System, body: dict[str, Any], key: str) -> httpx.Response:
    return system.api.post("/payments", json=body, headers={"Idempotency-Key": key})


class TestIdempotencyKey:
    """A request that may be sent again."""

    def test_the_same_key_gives_the_same_payment_and_job_back(self, system: System, user: dict[str, Any]) -> None:
        """While the job waits or runs, and after it has ended; the card is charged once."""
        body = {"user_id": user["id"], "amount_cents": 500, "card_token": "tok_unavailable"}
        first = ask(system, body, "order-7")
        assert first.status_code == 201, first.text
        again = ask(system, body, "order-7")
        job = system.ended(first.json()["job"]["url"])
        after = ask(system, body, "order-7")

        for answer in (again, after):
            assert answer.status_code == 201
            assert answer.json()["payment"]["id"] == first.json()["payment"]["id"]
            assert answer.json()["job"] == first.json()["job"]
        assert after.json()["payment"]["status"] == "charged"
        assert system.api.get(first.json()["job"]["url"]).json() == job, "it has not run again"
        assert len(charges_of(system, first.json()["payment"])) == 1

    def test_requests_at_the_same_moment_make_one_payment(self, system: System, user: dict[str, Any]) -> None:
        """The database decides which is the first."""
        body = {"user_id": user["id"], "amount_cents": 600, "card_token": "tok_ok"}
        with ThreadPoolExecutor(8) as pool:
            answers = [*pool.map(lambda _: ask(system, body, "order-8"), range(8))]

        assert {answer.status_code for answer in answers} == {201}
        [payment_id] = {answer.json()["payment"]["id"] for answer in answers}
        assert len({answer.json()["job"]["key"] for answer in answers}) == 1
        system.ended(answers[0].json()["job"]["url"])
        assert len(charges_of(system, {"id": payment_id})) == 1

    @pytest.mark.parametrize(
        "change", [{"amount_cents": 701}, {"card_token": "tok_declined"}, {"currency": "USD"}, {"account": "other"}]
    )
    def test_another_body_under_the_same_key_is_refused(
        self, system: System, user: dict[str, Any], change: dict[str, Any]
    ) -> None:
        """It says what to do, and nothing of what the first request held."""
        body = {"user_id": user["id"], "amount_cents": 700, "card_token": "tok_ok"}
        first = ask(system, body, "order-9")

        refused = ask(system, body | change, "order-9")

        assert (first.status_code, refused.status_code) == (201, 422)
        detail = "this Idempotency-Key belongs to another payment; send the first request's body, or another key"
        assert refused.json()["detail"] == detail

    @pytest.mark.parametrize("key", ["", "two words", "x" * 101, "caf\u00e9".encode()])
    def test_a_key_that_is_none_is_refused(self, system: System, user: dict[str, Any], key: str) -> None:
        """As any wrong input is."""
        refused = ask(system, {"user_id": user["id"], "amount_cents": 1, "card_token": "tok_ok"}, key)

        assert refused.status_code == 400
        assert refused.headers["content-type"] == "application/problem+json"


async def test_payments_of_one_account_are_charged_one_after_the_other(
    system: System, user: dict[str, Any], client: Client
) -> None:
    """A retry lets others go first, and the account is free again with each outcome."""
    body = {"user_id": user["id"], "amount_cents": 100, "card_token": "tok_ok", "account": "company-1"}
    answers = [system.api.post("/payments", json=body).json() for _ in range(8)]
    jobs = [await client.queue().job(answer["job"]["key"]) for answer in answers]
    for job in jobs:
        assert job is not None
        assert (await job.wait(30))["status"] == "charged"

    spans = sorted((job.started, job.completed) for job in jobs if job)
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(spans))


async def test_a_payment_is_charged_for_its_own_account_alone(
    system: System, user: dict[str, Any], client: Client
) -> None:
    """A call with another account's name would go past the limit."""
    payment, _ = pay(system, user, "tok_ok")

    job = await client.queue().enqueue("charge_payment", payment_id=payment["id"], account="someone")

    assert job is not None
    with pytest.raises(JobRevokedError, match="is of another account than someone"):
        await job.wait(10)


async def test_the_check_finds_a_payment_whose_job_was_lost(
    system: System, user: dict[str, Any], client: Client
) -> None:
    payment, _ = pay(system, user, "tok_ok")
    async with session_scope() as session:
        values = {"status": "pending", "charge_id": None, "created_at": datetime.now(UTC) - timedelta(hours=1)}
        await session.execute(update(Payment).where(Payment.id == UUID(payment["id"])).values(**values))

    job = system.api.post("/schedules/check_pending_payments/run").json()

    assert system.ended(job["url"])["result"] == {"queued": 1}
    charge = await client.queue().job(f"charge-{payment['id']}")
    assert charge is not None
    assert (await charge.wait(10))["status"] == "charged"
    assert len(charges_of(system, payment)) == 1


NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0),
        ("99999999999999999999", 3600),
        ("-3", 1),
        ("soon", 1),
        ("", 1),
        (None, 1),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float) -> None:
    assert retry_after(header, NOW) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (402, CardDeclinedError, "no money"),
        (429, RateLimitedError, "rate limited for 3 s"),
        (503, ProviderUnavailableError, "the provider answered 503: no money"),
        (401, ProviderRefusedError, "the provider answered 401: no money"),
    ],
)
async def test_each_answer_has_its_meaning(app_settings: None, status: int, error: type[Exception], text: str) -> None:
    """A provider on the other side of the wire answers what the sandbox does not."""

    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json={"detail": "no money"}, headers={"Retry-After": "3"})

    payment = Payment(amount_cents=1, currency="EUR", card_token="tok_ok")
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://provider") as http:
        with pytest.raises(error) as caught:
            await PaymentProvider(http).charge(payment)
    assert str(caught.value) == text
