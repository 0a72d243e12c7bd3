"""A whole system for the tests: broker, mail sink, API and worker, the latter two as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import httpx
import pytest
from aiosmtpd.controller import Controller

from app import leash
from app.database import get_database
from app.processes import WORKER, api_command, environment, free_port
from app.settings import get_settings
from app.smtp_sink import MailFolder, read_mails
from knapsaq import Client, Registry, Settings, connect, get_registry

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds after which what a test waits for will not come; far more than it takes."""


def eventually(what: str, look: Callable[[], T | None], *, within: float = PATIENCE) -> T:
    """Look until there is something to see, and return it."""
    deadline = time.monotonic() + within
    pause = Event()
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        pause.wait(0.02)
    pytest.fail(f"waited {within:g} s in vain until {what}")


@dataclass
class Program:
    """A process behind a leash; its output goes to a file."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        """Return what it has written."""
        return self.log.read_text(errors="replace")

    def stop(self) -> int:
        """End it and return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE)


@contextmanager
def program(command: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[Program]:
    """Run a command while the block runs; it ends with it, and with the test run however that ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            [sys.executable, leash.__file__, "10", *command],
            env=dict(env),
            cwd=log.parent,  # where no .env file is
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    running = Program(process, log)
    try:
        yield running
    finally:
        running.stop()


@dataclass
class System:
    """A system that runs.

    Attributes:
        api: A client of its API.
        mails: The folder of the mails sent.
        env: The environment of its processes.
        settings: The queue's settings, to connect with.
    """

    api: httpx.Client
    mails: Path
    env: dict[str, str]
    settings: Settings

    def ended(self, url: str) -> dict[str, Any]:
        """Return the job at a URL once it has ended."""

        def look() -> dict[str, Any] | None:
            job: dict[str, Any] = self.api.get(url).raise_for_status().json()
            return job if job["status"] in ("complete", "failed", "aborted") else None

        return eventually(f"{url} has ended", look)

    def campaign_ended(self, campaign_id: str) -> dict[str, Any]:
        """Return a campaign once it has ended."""

        def look() -> dict[str, Any] | None:
            campaign: dict[str, Any] = self.api.get(f"/campaigns/{campaign_id}").raise_for_status().json()
            return campaign if campaign["state"] not in ("queued", "sending") else None

        return eventually(f"campaign {campaign_id} has ended", look)

    def mails_to(self, address: str) -> list[EmailMessage]:
        """Return the mails that have reached an address."""
        return [mail for mail in read_mails(self.mails) if mail["To"] == address]

    def sign_up(self, name: str) -> dict[str, Any]:
        """Sign somebody up, wait for the welcome mail, and return the user."""
        body = {"email": f"{name}@example.com", "name": name.title()}
        answer = self.api.post("/users", json=body).raise_for_status().json()
        assert self.ended(answer["job"]["url"])["result"]["status"] == "sent"
        user: dict[str, Any] = answer["user"]
        return user

    def code_of(self, user: Mapping[str, Any]) -> str:
        """Return the verification code that a user was mailed."""
        [mail] = self.mails_to(user["email"])
        return str(mail.get_content()).split("address:")[1].strip()

    def verified(self, name: str) -> dict[str, Any]:
        """Sign somebody up, verify the address, and return the user."""
        user = self.sign_up(name)
        answer = self.api.post(f"/users/{user['id']}/verification", json={"token": self.code_of(user)})
        assert answer.json()["status"] == "verified"
        return user


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="session")
def mail_port(folder: Path) -> Iterator[int]:
    """A mail sink in this process."""
    controller = Controller(MailFolder(folder / "mails"), hostname="127.0.0.1", port=free_port())
    controller.start()
    yield controller.port
    controller.stop()


@pytest.fixture(scope="session")
def api_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def env(folder: Path, mail_port: int, api_port: int) -> dict[str, str]:
    """The environment of the system's processes; nothing of the developer's own settings reaches them."""
    clean = {name: value for name, value in environment().items() if not name.startswith(("KNAPSAQ_", "APP_"))}
    return clean | {
        "KNAPSAQ_EMBEDDED_DIR": str(folder / "broker"),
        "KNAPSAQ_SHUTDOWN_GRACE": "5",
        "APP_DEBUG": "true",
        "APP_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'app.db'}",
        "APP_SMTP_PORT": str(mail_port),
        "APP_MAIL_RATE": "200/s",
        "APP_MAIL_RETRY_DELAY": "0.05",
        "APP_PAYMENTS_URL": f"http://127.0.0.1:{api_port}/sandbox",
        "APP_PAYMENTS_TIMEOUT": "0.5",
    }


@contextmanager
def running_api(port: int, env: Mapping[str, str], log: Path) -> Iterator[tuple[httpx.Client, Program]]:
    """Serve the application while the block runs."""
    with program(api_command(port), env, log) as api, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

        def answers() -> bool | None:
            assert api.process.poll() is None, api.output()
            try:
                return client.get("/health").is_success or None
            except httpx.HTTPError:
                return None

        eventually("the API answers", answers)
        yield client, api


@pytest.fixture(scope="session")
def system(folder: Path, env: dict[str, str], api_port: int) -> Iterator[System]:
    """One system for all tests; each test uses users of its own."""
    settings = Settings(broker_url="embedded", embedded_dir=folder / "broker", _env_file=None)
    with (
        running_api(api_port, env, folder / "api.log") as (client, api),
        program(WORKER, env, folder / "worker.log") as worker,
    ):
        yield System(client, folder / "mails", env, settings)
        codes = (worker.stop(), api.stop())
    assert codes in ((0, 0), (0, 143)), worker.output() + api.output()


@pytest.fixture
def app_settings(env: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process has the application's settings, for code of the application that a test runs in place."""
    monkeypatch.chdir(folder)
    for name in os.environ:
        if name.startswith(("KNAPSAQ_", "APP_")):
            monkeypatch.delenv(name)
    for name, value in env.items():
        if name.startswith(("KNAPSAQ_", "APP_")):
            monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    get_database.cache_clear()
    yield
    get_settings.cache_clear()
    get_database.cache_clear()


_tasks: dict[str, Any] = {}


@pytest.fixture
def app_registry(app_settings: None) -> Iterator[Registry]:
    """The program's registry with the application's tasks, and with whatever was there before when the test is over."""
    registry = get_registry()
    before = (dict(registry._tasks), dict(registry._dependencies))
    registry.clear()
    from app.queue import config  # noqa: PLC0415 - the import is what fills the registry, so it waits for it

    if not _tasks:
        _tasks.update(registry._tasks)
    registry._tasks.update(_tasks)
    registry.provide(config.dependencies)
    yield registry
    registry.clear()
    registry._tasks.update(before[0])
    registry._dependencies.update(before[1])


@pytest.fixture
async def client(system: System, app_registry: Registry) -> AsyncIterator[Client]:
    """A connection to the system's broker from this process."""
    async with connect(system.settings, registry=app_registry) as client:
        yield client
