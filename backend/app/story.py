"""The story that the demo tells: what is done to the API over HTTP, and what has to come of it.

Three people sign up and verify their address, payments meet every kind of answer
of the provider, one is sent twice under one key, two tenants' campaigns share the
mail provider's rate until one of them is cancelled, and a scheduled task is run by
hand. What comes of each step is known beforehand: results, attempts and mails.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from app.smtp_sink import read_mails

NAMES = ("Ada", "Grace", "Edsger")
REPORT_TO = "team@knapsaq.example"
POLL = 0.05
LONGEST_STEP = 25.0

PAYMENTS: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("Payment", "tok_ok", 1, {"status": "charged"}),
    ("Payment after a 429", "tok_rate_limited", 1, {"status": "charged"}),
    ("Payment after a 500", "tok_unavailable", 2, {"status": "charged"}),
    ("Payment declined", "tok_declined", 1, {"status": "declined"}),
)
"""What it shows, the card, the attempts that it takes and what the result holds."""

SENT_TWICE = "tok_ok"
"""The card of the payment that is sent again."""

NEWS, CANCELLED = "News from Knapsaq", "Not so fast"
"""The subjects of the two campaigns."""

Tell = Callable[[str], None]


class StoryError(Exception):
    """Something did not go as it has to; the text says what."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """One job as it went; ``number`` counts them as they were begun."""

    number: int
    what: str
    task: str
    attempts: int
    seconds: float
    outcome: str


@dataclass
class Story:
    """The story so far.

    Attributes:
        http: A client of the API.
        mails: The mail sink's folder.
        tell: Told of each step.
        chapters: The jobs that have ended, in the order of the story.
        problems: What did not go as it has to.
    """

    http: httpx.AsyncClient
    mails: Path
    tell: Tell
    chapters: list[Chapter] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _cancelled_after: int = 0

    async def run(self) -> None:
        """Tell it from beginning to end.

        Raises:
            StoryError: A step could not be done at all, so that the rest makes no sense.
        """
        self.tell(f"{len(NAMES)} people sign up")
        users = await asyncio.gather(*(self._sign_up(name) for name in NAMES))
        self.tell("they verify their addresses with the codes they were mailed")
        await asyncio.gather(*(self._verify(user) for user in users))
        self.tell("payments are charged, two campaigns go out by turns, and the weekly report is run by hand")
        report = self._job("Weekly report by hand", "/schedules/weekly_report/run", None, {"sent": 1})
        await asyncio.gather(
            *(self._pay(users[0]["id"], *payment) for payment in PAYMENTS),
            self._campaign(len(users)),
            self._cancelled_campaign(len(users)),
            report,
        )
        self.tell("what was promised is compared with what came of it")
        await self._check_charges()
        self._check_mails()

    def received(self) -> list[EmailMessage]:
        """Return the mails that have arrived."""
        return read_mails(self.mails)

    async def _sign_up(self, name: str) -> dict[str, Any]:
        body = {"email": f"{name.lower()}@example.com", "name": name}
        answer = await self._job(f"{name} signs up", "/users", body, {"status": "sent"})
        user: dict[str, Any] = answer["user"]
        return user

    async def _verify(self, user: Mapping[str, Any]) -> None:
        welcome = next((mail for mail in self.received() if mail["To"] == user["email"]), None)
        code = re.search(r"^ {4}(\S+)\s*$", str(welcome.get_content()) if welcome else "", re.MULTILINE)
        if code is None:
            raise StoryError(f"no welcome mail with a code has reached {user['email']}")
        verified = await self._ask("POST", f"/users/{user['id']}/verification", {"token": code[1]})
        if verified["status"] != "verified":
            raise StoryError(f"{user['email']} is {verified['status']} after verification")

    async def _pay(self, user_id: int, what: str, card: str, attempts: int, result: dict[str, Any]) -> None:
        body = {"user_id": user_id, "amount_cents": 1999, "card_token": card}
        key = {"Idempotency-Key": f"demo-{card}"}
        first = await self._job(what, "/payments", body, result, attempts, headers=key)
        if card != SENT_TWICE:
            return
        again = await self._ask("POST", "/payments", body, key)
        if (again["payment"]["id"], again["job"]) != (first["payment"]["id"], first["job"]):
            self.problems.append("a request that was sent again under its Idempotency-Key has made a second payment")
        self.tell("a payment is sent again under its Idempotency-Key: the same payment and job come back")

    async def _campaign(self, recipients: int) -> None:
        body = {"subject": NEWS, "body": "It ships.\n", "tenant": "acme"}
        answer = await self._job("Campaign of acme", "/campaigns", body, {"queued": recipients})
        campaign = await self._until_campaign(answer, lambda seen: seen["report"] is not None)
        report = campaign["report"]
        words = f"sent: {report['sent']} of {recipients}"
        self.chapters.append(Chapter(next(self._numbers), "Its report", "write_report", 1, report["seconds"], words))
        if (report["sent"], report["failed"]) != (recipients, 0):
            self.problems.append(f"the campaign was to reach {recipients}; its report says {words}")

    async def _cancelled_campaign(self, recipients: int) -> None:
        body = {"subject": CANCELLED, "body": "Stop!\n", "tenant": "beta"}
        answer = await self._job("Campaign of beta", "/campaigns", body, {"queued": recipients})
        await self._until_campaign(answer, lambda seen: seen["sent"] > 0)
        cancelled = await self._ask("POST", f"/campaigns/{answer['campaign']['id']}/cancel")
        self.tell(
            f"beta's campaign is cancelled: {cancelled['sent']} of {recipients} mails are out, the rest stay here"
        )
        self._cancelled_after = cancelled["sent"]

    async def _until_campaign(
        self, answer: Mapping[str, Any], holds: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """Return a campaign once something holds of it."""
        campaign_id = answer["campaign"]["id"]

        async def look() -> dict[str, Any] | None:
            campaign = await self._ask("GET", f"/campaigns/{campaign_id}")
            return campaign if holds(campaign) else None

        return await _until(f"campaign {answer['campaign']['subject']!r} is where it has to be", look)

    async def _job(
        self,
        what: str,
        url: str,
        body: dict[str, Any] | None,
        result: dict[str, Any],
        attempts: int = 1,
        *,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Have a job queued, wait for its end and compare; return the first answer."""
        number = next(self._numbers)
        answer = await self._ask("POST", url, body, headers)
        ticket = answer.get("job", answer)

        async def ended() -> dict[str, Any] | None:
            job = await self._ask("GET", ticket["url"])
            return job if job["status"] in ("complete", "failed", "aborted") else None

        job = await _until(f"job {ticket['key']} of {ticket['task']} has ended", ended)
        returned = job["result"] if isinstance(job["result"], dict) else {}
        seen = {name: returned.get(name) for name in result}
        shown = _in_words(seen) if returned else f"{job['status']}: {job['error']}"
        self.chapters.append(Chapter(number, what, job["task"], job["attempts"], job["seconds"], shown))
        if (job["status"], job["attempts"], seen) != ("complete", attempts, result):
            self.problems.append(
                f"{what}: expected {_in_words(result)} in {attempts} attempts; saw {shown} in {job['attempts']}"
            )
        return answer

    async def _ask(
        self, method: str, url: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            answer = await self.http.request(method, url, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise StoryError(f"{method} {url}: no answer ({error!r})") from error
        content: dict[str, Any] = answer.json()
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            raise StoryError(f"{method} {url} answered {answer.status_code}: {content.get('detail', content)}")
        return content

    async def _check_charges(self) -> None:
        charges = (await self.http.get("/sandbox/charges")).json()
        wanted = sum(result["status"] == "charged" for *_, result in PAYMENTS)
        if len(charges) != wanted:
            self.problems.append(f"the provider made {len(charges)} charges instead of {wanted}")

    def _check_mails(self) -> None:
        people = [f"{name.lower()}@example.com" for name in NAMES]
        wanted = Counter({**dict.fromkeys(people, 2), REPORT_TO: 1})
        mails = self.received()
        seen = Counter(str(mail["To"]) for mail in mails if mail["Subject"] != CANCELLED)
        if seen != wanted:
            self.problems.append(f"mails received: {dict(seen)}; expected {dict(wanted)}")
        late = Counter(str(mail["To"]) for mail in mails if mail["Subject"] == CANCELLED)
        if late.total() != self._cancelled_after or any(times > 1 for times in late.values()):
            self.problems.append(f"mails of the cancelled campaign: {dict(late)}; told were {self._cancelled_after}")


def _in_words(result: Mapping[str, Any]) -> str:
    return ", ".join(str(value) if isinstance(value, str) else f"{name}: {value}" for name, value in result.items())


async def _until(what: str, look: Callable[[], Awaitable[dict[str, Any] | None]]) -> dict[str, Any]:
    """Ask until there is an answer."""
    try:
        async with asyncio.timeout(LONGEST_STEP):
            while True:
                found = await look()
                if found is not None:
                    return found
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise StoryError(f"waited {LONGEST_STEP:g} s in vain until {what}") from None
