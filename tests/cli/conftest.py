"""An application to point the command line at, and the command line itself."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis import Redis as BlockingRedis

from knapsaq import Client, Settings, connect
from knapsaq.cli import main
from knapsaq.cli.loading import load

JOBS = """
import asyncio
from uuid import UUID

from knapsaq import Registry, Settings

registry = Registry()
task, scheduled_task = registry.task, registry.scheduled_task


@task
async def add(x: int, y: int = 2) -> int:
    return x + y


@task(queue="mail", retries=3, timeout=5, retry_on=(ValueError,))
async def greet(*, name: str, shout: bool = False) -> str:
    return name.upper() if shout else name


@task
async def find(key: UUID, limit: "int | str" = 1) -> str:
    return str(key)


@task
async def boom() -> None:
    raise ValueError("no luck")


@task
async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)


@scheduled_task(cron="0 2 * * *", timezone="Europe/Berlin", kwargs={"batch": 3})
async def nightly(batch: int = 1) -> None: ...
"""

LIMITED_JOBS = """
from decimal import Decimal
from uuid import UUID

from knapsaq import Registry

registry = Registry()
task = registry.task


@task
async def add(x: int, y: int = 2) -> int:
    return x + y


@task(concurrency=1)
async def press(page: int) -> None: ...


@task(fair_key="tenant", queue="mail")
async def send(*, tenant: str, key: UUID | None = None, price: Decimal | None = None, api_key: str = "") -> None: ...


@task(name="renamed.task")
async def take_anything(**options: object) -> None: ...
"""

Run = Callable[..., Result]
Act = Callable[[Callable[[Client], Awaitable[Any]]], Any]


@pytest.fixture(autouse=True)
def empty_broker(broker_url: str) -> None:
    """Nothing of an earlier test is on the server: a worker that was killed is listed until its news expires."""
    with BlockingRedis.from_url(broker_url) as redis:
        redis.flushall()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker_url: str) -> Iterator[Path]:
    """The working directory, with an application in ``shop_jobs.py``; nothing of it is left imported afterwards."""
    for name in os.environ:
        if name.startswith("KNAPSAQ_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KNAPSAQ_BROKER_URL", broker_url)
    monkeypatch.setenv("KNAPSAQ_QUEUES", "default,mail")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shop_jobs.py").write_text(JOBS)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def act(folder: Path, broker_url: str) -> Act:
    """Do something as the application in ``limited_jobs.py``, connected to a server that was empty at first."""
    (folder / "limited_jobs.py").write_text(LIMITED_JOBS)

    def act(what: Callable[[Client], Awaitable[Any]]) -> Any:
        async def done() -> Any:
            settings = Settings(broker_url=broker_url, queues=("default", "mail"), _env_file=None)
            async with connect(settings, registry=load("limited_jobs").registry) as client:
                return await what(client)

        return asyncio.run(done())

    act(lambda client: client.queue().redis.flushall())
    return act


@pytest.fixture
def run(folder: Path) -> Run:
    """Run ``knapsaq`` with these words, and see that no error shows a traceback."""

    def run(*words: str) -> Result:
        result = CliRunner().invoke(main, list(words), prog_name="knapsaq")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code != 2 or "Traceback" not in result.output
        return result

    return run
