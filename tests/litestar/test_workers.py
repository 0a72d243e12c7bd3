from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.processes import BIN, children_of, clean_environment, eventually, is_running, running

from knapsaq import Client, Registry, Settings, connect

GRACE = 1

APP = """
import asyncio
from pathlib import Path

from litestar import Litestar

from knapsaq import Registry, Settings
from knapsaq.litestar import KnapsaqPlugin

registry = Registry()


async def provide_place() -> str:
    return "the worker"


@registry.task
async def where(place) -> str:
    return f"in {place}"


@registry.task
async def nap(seconds: float) -> None:
    Path("napping").touch()
    await asyncio.sleep(seconds)


plugin = KnapsaqPlugin(Settings(queues=("default", "mail")), registry=registry, dependencies={"place": provide_place})
app = Litestar([], plugins=[plugin])
"""


@pytest.fixture
async def queues(broker_url: str) -> AsyncIterator[Client]:
    settings = Settings(broker_url=broker_url, queues=("default", "mail"), _env_file=None)
    async with connect(settings, registry=Registry()) as client:
        await client.queue().redis.flushall()
        client.queue().registry = None
        yield client


class TestWorkersRun:
    async def test_sigterm_to_the_parent_ends_two_children_with_two_queues_within_the_grace_period(
        self, queues: Client, broker_url: str, tmp_path: Path
    ) -> None:
        """The plugin's settings, registry and dependencies count; the running job is put back; nothing is left."""
        (tmp_path / "shop.py").write_text(APP)
        env = clean_environment(KNAPSAQ_BROKER_URL=broker_url, KNAPSAQ_SHUTDOWN_GRACE=str(GRACE))
        command = [str(BIN / "litestar"), "--app", "shop:app", "workers", "run", "--workers", "2"]
        with running(command, env, tmp_path) as parent:
            parent.says("started: queue default", times=2)
            parent.says("started: queue mail", times=2)
            where = await queues.queue().enqueue("where")
            assert where is not None
            assert await where.wait(20) == "in the worker"
            nap = await queues.queue().enqueue("nap", seconds=600)
            assert nap is not None
            eventually("it runs", (tmp_path / "napping").exists)
            children = children_of(parent.pid)
            parent.signal()
            assert parent.ends(GRACE + 5) == 0
            assert len(children) == 2
            assert not any(is_running(child) for child in children)
        await nap.refresh()
        assert nap.status.value == "queued"

    def test_an_unknown_queue_is_one_line(self, broker_url: str, tmp_path: Path) -> None:
        """As with ``knapsaq worker``."""
        (tmp_path / "shop.py").write_text(APP)
        command = [str(BIN / "litestar"), "--app", "shop:app", "workers", "run", "--queues", "mial"]
        with running(command, clean_environment(KNAPSAQ_BROKER_URL=broker_url), tmp_path) as program:
            assert program.ends() == 2
            assert program.output().splitlines()[-1].startswith("Error: no queue is named 'mial'; did you mean 'mail'?")
            assert "Traceback" not in program.output()
