"""A system whose mail server obeys the test, and whose worker can be killed."""

from __future__ import annotations

import asyncio
import email
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from tests.app.conftest import PATIENCE, Program, System, eventually, program, running_api

from app.processes import WORKER, free_port
from app.smtp_sink import MailFolder
from knapsaq import Settings


class Postmaster(MailFolder):
    """A mail sink that refuses some addresses, and is slow to answer about others.

    Attributes:
        refusals: Answers by address, each given once; after the last one its mail is taken.
        held: Addresses whose mail is taken and kept, but not answered.
        holding: Those of them whose mail has come.
        taken: Subject and address of each mail that has come, the oldest first.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.refusals: dict[str, Iterator[str]] = {}
        self.held: set[str] = set()
        self.holding: set[str] = set()
        self.taken: list[tuple[str, str]] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self._released = asyncio.Event()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd finds the method by this name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Take a recipient, or do not."""
        if refusal := next(self.refusals.get(address, iter(())), None):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 known"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - likewise
        """Take a mail, and answer once it is not held."""
        answer = await super().handle_DATA(server, session, envelope)
        self.loop = asyncio.get_running_loop()
        address = envelope.rcpt_tos[0]
        subject = email.message_from_bytes(envelope.content or b"")["Subject"]  # type: ignore[arg-type]
        self.taken.append((subject, address))
        while address in self.held:
            self.holding.add(address)
            await self._released.wait()
        return answer

    def hold(self, address: str) -> None:
        """Take an address' mail, and do not answer until `release`."""
        self._released = asyncio.Event()
        self.held.add(address)

    def release(self) -> None:
        """Answer about all mails that are held."""
        self.held.clear()
        self.holding.clear()
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._released.set)


class Fleet(System):
    """A system with a mail server that obeys, and one worker at a time."""

    post: Postmaster
    folder: Path
    worker: Program
    _stack: ExitStack

    def start_worker(self) -> None:
        """Start a worker and wait until it works."""
        log = self.folder / f"worker-{free_port()}.log"
        worker = self.worker = self._stack.enter_context(program(WORKER, self.env, log))

        def works() -> bool | None:
            assert worker.process.poll() is None, worker.output()
            return " started: " in worker.output() or None

        eventually("the worker works", works, within=2 * PATIENCE)

    def kill_worker(self) -> None:
        """Kill the worker, and the leash that holds it, as a power failure does."""
        os.killpg(self.worker.process.pid, signal.SIGKILL)
        self.worker.process.wait()

    def verify(self, number: int) -> list[str]:
        """Let so many people be verified users, and nobody else; returns their addresses."""
        addresses = [f"reader{place:03}@example.com" for place in range(number)]
        with sqlite3.connect(self.folder / "app.db") as database:
            database.execute("UPDATE users SET status = 'suspended'")
            database.executemany(
                "INSERT INTO users (email, name, status, verification_token, created_at, updated_at) "
                "VALUES (?, 'Reader', 'verified', 'none', '2026-01-01', '2026-01-01') "
                "ON CONFLICT (email) DO UPDATE SET status = 'verified'",
                [(address,) for address in addresses],
            )
        database.close()
        return addresses

    def send(self, subject: str, tenant: str = "main") -> str:
        """Send a campaign; returns its id."""
        answer = self.api.post("/campaigns", json={"subject": subject, "body": "Hello.\n", "tenant": tenant})
        return str(answer.raise_for_status().json()["campaign"]["id"])

    def campaign(self, campaign_id: str) -> dict[str, Any]:
        """Return a campaign as it is now."""
        seen: dict[str, Any] = self.api.get(f"/campaigns/{campaign_id}").raise_for_status().json()
        return seen

    def fanned_out(self, campaign_id: str) -> dict[str, Any]:
        """Return the job that fans a campaign out, once it has ended."""
        return self.ended(f"/jobs/campaign-{campaign_id}")

    def arrived(self, subject: str) -> Counter[str]:
        """Return how many mails with a subject have come, by address."""
        return Counter(to for seen, to in self.post.taken if seen == subject)

    def await_mails(self, subject: str, number: int) -> None:
        """Wait until so many mails with a subject have come."""
        eventually(f"{number} mails {subject!r} have come", lambda: self.arrived(subject).total() >= number or None)


@contextmanager
def running_fleet(folder: Path, env: dict[str, str]) -> Iterator[Fleet]:
    """Run a fleet while the block runs."""
    post = Postmaster(folder / "mails")
    controller = Controller(post, hostname="127.0.0.1", port=free_port())
    controller.start()
    port = free_port()
    own = env | {
        "KNAPSAQ_EMBEDDED_DIR": str(folder / "broker"),
        "KNAPSAQ_LEASE": "2",
        "APP_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'app.db'}",
        "APP_SMTP_PORT": str(controller.port),
        "APP_SMTP_TIMEOUT": "20",
        "APP_MAIL_RATE": "80/s",
        "APP_CAMPAIGN_CHUNK": "20",
        "APP_PAYMENTS_URL": f"http://127.0.0.1:{port}/sandbox",
    }
    settings = Settings(broker_url="embedded", embedded_dir=folder / "broker", _env_file=None)
    with ExitStack() as stack:
        stack.callback(controller.stop)
        api, _ = stack.enter_context(running_api(port, own, folder / "api.log"))
        fleet = Fleet(api, folder / "mails", own, settings)
        fleet.post, fleet.folder, fleet._stack = post, folder, stack
        fleet.start_worker()
        yield fleet
