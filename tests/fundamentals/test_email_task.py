"""Seed: "Email Task" of the common task patterns. A real mail server, which is not always well."""

from __future__ import annotations

import smtplib
from collections.abc import AsyncIterator, Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from tests.support import eventually, free_port

from app.smtp_sink import MailFolder, read_mails
from knapsaq import Client, Context, Job, JobFailedError, Registry, Settings, Task, connect
from knapsaq.testing import ManualClock, running_worker

SendEmail = Task[[str, str, str], None]


class MailServer(MailFolder):
    """The application's mail sink, which turns mails away for a while.

    Args:
        folder: Where it puts the mails.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.refusals = self.refused = 0

    async def handle_DATA(  # noqa: N802 - aiosmtpd finds the method by this name
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Take a mail, or turn it away."""
        if self.refused < self.refusals:
            self.refused += 1
            return "451 come back later"
        return await super().handle_DATA(server, session, envelope)


@pytest.fixture
def mail_server(tmp_path: Path) -> Iterator[MailServer]:
    """A server that listens."""
    handler = MailServer(tmp_path / "mails")
    controller = Controller(handler, hostname="127.0.0.1", port=handler.port)
    controller.start()
    yield handler
    controller.stop()


@pytest.fixture
def send_email(registry: Registry, mail_server: MailServer) -> SendEmail:
    """The seed's task. A plain function, so smtplib may block its thread."""

    @registry.task(retries=3)
    def send_email(ctx: Context, to: str, subject: str, body: str) -> None:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = "shop@example.com", to, subject
        message.set_content(body)
        try:
            with smtplib.SMTP("127.0.0.1", mail_server.port, timeout=5) as smtp:
                smtp.send_message(message)
        except Exception as exc:
            raise ctx.retry(after=60, cause=exc) from exc

    return send_email


@pytest.fixture
async def at(settings: Settings, registry: Registry, client: Client, clock: ManualClock) -> AsyncIterator[ManualClock]:
    """A clock by which a worker goes."""

    @registry.task
    async def nothing() -> None: ...

    async with connect(settings, registry=registry, clock=clock), running_worker(registry=registry):
        yield clock


async def test_a_mail_arrives(at: ManualClock, mail_server: MailServer, send_email: SendEmail) -> None:
    """Through a real server, as it was written."""
    await (await send_email.enqueue("ada@example.com", "Hi", "Good to have you.\n")).wait(10)
    [mail] = read_mails(mail_server.folder)
    assert (mail["To"], mail["Subject"]) == ("ada@example.com", "Hi")
    assert mail.get_content().splitlines() == ["Good to have you."]


async def test_a_mail_that_is_turned_away_is_sent_a_minute_later(
    at: ManualClock, mail_server: MailServer, send_email: SendEmail, registry: Registry
) -> None:
    """Not before, and once."""
    mail_server.refusals = 1
    job = await send_email.enqueue("ada@example.com", "Hi", "Good to have you.\n")
    await put_back(job, mail_server, refused=1)
    await pass_by(at, 59.8, registry)
    assert read_mails(mail_server.folder) == []
    await pass_by(at, 0.3, registry)
    await job.wait(10)
    assert job.attempts == 2
    assert [mail["To"] for mail in read_mails(mail_server.folder)] == ["ada@example.com"]


async def test_after_three_retries_it_is_given_up(
    at: ManualClock, mail_server: MailServer, send_email: SendEmail, registry: Registry
) -> None:
    """The job's error is what the server said last."""
    mail_server.refusals = 4
    job = await send_email.enqueue("ada@example.com", "Hi", "Good to have you.\n")
    for refused in (1, 2, 3):
        await put_back(job, mail_server, refused)
        await pass_by(at, 60.1, registry)
    with pytest.raises(JobFailedError, match="451, b'come back later'"):
        await job.wait(10)
    assert (job.attempts, mail_server.refused, read_mails(mail_server.folder)) == (4, 4, [])


async def put_back(job: Job[None], mail_server: MailServer, refused: int) -> None:
    """Wait until the server has turned so many mails away, and the job waits again."""

    async def waits() -> bool:
        return mail_server.refused == refused and await job.get_queue().count("active") == 0

    await eventually(waits)


async def pass_by(clock: ManualClock, seconds: float, registry: Registry) -> None:
    """Let time pass, and the worker look at the clock."""
    clock.advance(seconds)
    await (await registry.get("nothing").enqueue()).wait(5)
