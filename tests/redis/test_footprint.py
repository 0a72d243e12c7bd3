"""What a worker process holds in memory: what its own tasks need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.processes import BIN, clean_environment, running
from tests.support import ended

from knapsaq import Registry, Settings, connect

TASKS = """
import sys

from knapsaq import Registry

registry = Registry()


def packages() -> list[str]:
    return sorted({name.partition(".")[0] for name in sys.modules})


@registry.task
async def plain() -> list[str]:
    return packages()
"""

IN_A_THREAD = """

@registry.task
def threaded() -> list[str]:
    return packages()
"""

UNNEEDED = {
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "litestar",
    "litestar_saq",
    "sqlalchemy",
    "rich",
    "dotenv",
}

Imported = Callable[[str], Awaitable[set[str]]]


@pytest.fixture
def imported(broker_url: str, tmp_path: Path) -> Imported:
    """Return the packages that a worker of these tasks has imported when it runs the first job."""

    async def imported(source: str) -> set[str]:
        (tmp_path / "small.py").write_text(source)
        async with connect(Settings(broker_url=broker_url, _env_file=None), registry=Registry()) as client:
            queue = client.queue()
            await queue.redis.flushall()
            queue.registry = None  # the tasks are the worker's alone
            job = await queue.enqueue("plain")
            env = clean_environment(KNAPSAQ_BROKER_URL=broker_url)
            with running([str(BIN / "knapsaq"), "-A", "small", "worker"], env, tmp_path) as worker:
                await ended(job)
                worker.signal()
                assert worker.ends() == 0
        assert job is not None
        return set(job.result)

    return imported


async def test_a_worker_imports_nothing_that_other_parts_of_the_framework_need(imported: Imported) -> None:
    """A library of 10 MiB, for the settings alone, would be a fifth of it; what tasks import is there, of course."""
    packages = await imported(TASKS)
    assert "msgspec" in packages
    assert packages & {*UNNEEDED, "anyio"} == set()


async def test_what_plain_functions_need_is_there_before_their_first_job(imported: Imported) -> None:
    """The worker's loop would stand still for the import."""
    packages = await imported(TASKS + IN_A_THREAD)
    assert "anyio" in packages
    assert packages & UNNEEDED == set()
