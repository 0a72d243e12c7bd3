"""An application to point the command line at, and the command line itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from redis import Redis as BlockingRedis

from knapsaq.cli import main

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

Run = Callable[..., Result]


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
def run(folder: Path) -> Run:
    """Run ``knapsaq`` with these words, and see that no error shows a traceback."""

    def run(*words: str) -> Result:
        result = CliRunner().invoke(main, list(words), prog_name="knapsaq")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code != 2 or "Traceback" not in result.output
        return result

    return run
