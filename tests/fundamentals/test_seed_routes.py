"""``string_routes.md``, block by block: each runs as it stands, and what it registers leads to tasks and schedules."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support import PATIENCE

from knapsaq import Client, Registry, Settings, connect, crontab, get_registry
from knapsaq.routes import RoutedWorker, TaskRoutes, WorkerBuilder

PAGE = Path(__file__).with_name("string_routes.md").read_text(encoding="utf-8")
NAMES = ("cleanup", "data_sync", "health_check")
"""Routes of the page that are the names of tasks."""


class Block(NamedTuple):
    """A block of code, and the heading above it."""

    number: int
    title: str
    code: str


def blocks() -> Iterator[Block]:
    title, number = "", 0
    for heading, code in re.findall(r"^## (.+?)$|^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        title = heading or title
        if code:
            number += 1
            yield Block(number, title, code)


BLOCKS = tuple(blocks())


@pytest.fixture
def program() -> Iterator[Registry]:
    """The program's registry, empty; afterwards it is as it was."""
    registry = get_registry()
    before = {name: value.copy() for name, value in vars(registry).items() if isinstance(value, (dict, list))}
    registry.clear()
    for name in NAMES:
        registry.task(name=name)(_noted)
    yield registry
    vars(registry).update(before)


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A function for each route of the page, in a module where the route says; nothing is left imported."""
    routes = {route for route in re.findall(r'"([a-z_]\w*(?:\.\w+)+)"', PAGE) if not route.startswith("knapsaq")}
    for route in sorted(routes):
        module, _, name = route.rpartition(".")
        path = tmp_path / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"async def {name}(*args, **kwargs):\n    return [{name!r}, list(args), kwargs]\n\n\n")
    tops = {route.partition(".")[0] for route in routes}
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for module in [module for module in sys.modules if module.partition(".")[0] in tops]:
        del sys.modules[module]


def executed(block: Block) -> dict[str, Any]:
    """Run a block and return its names; what earlier blocks of its page make is there."""
    names: dict[str, Any] = {
        "crontab": crontab,
        "timedelta": timedelta,
        "task": TaskRoutes(),
        "worker": WorkerBuilder(),
    }
    exec(compile(block.code, f"block {block.number}", "exec"), names)  # noqa: S102 - our own page
    return names


def test_no_block_is_left_out() -> None:
    """The page has so many."""
    assert len(BLOCKS) == PAGE.count("```python") == 23


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.number} {block.title}")
async def test_a_block_runs_and_all_its_routes_and_schedules_are_known_to_whoever_connects(
    block: Block, program: Registry, functions: None, client: Client, settings: Settings
) -> None:
    """Tasks are in the queues that the block names, and schedules hold what it says."""
    names = executed(block)
    routes: TaskRoutes = names["task"]
    program.include(routes)
    app = names.get("app")
    own = settings.with_values(timezone=app.settings.timezone) if app else settings
    async with connect(own, registry=program) as connected:
        for route, placed in routes.get_tasks_routes().items():
            task = program.get(route)
            assert task.options.queue == placed.get("queue", "default")
            assert task.options.queue in connected.queues
        for name, entry in routes.get_periodic_tasks().items():
            [schedule] = [one for one in program.get(entry["task"]).schedules if one.name == name]
            when = entry["schedule"]
            interval = when.total_seconds() if isinstance(when, timedelta) else None
            assert (schedule.every, schedule.cron) == (interval, None if interval else when)
            assert schedule.args == entry["args"]


class TestShapes:
    def test_the_getters_return_what_the_page_says(self, program: Registry) -> None:
        """The comments of the blocks are the truth."""
        by_title = {block.title: executed(block) for block in BLOCKS if block.title.startswith("`get_")}
        assert by_title["`get_tasks`"]["task_list"] == ["myapp.tasks.task1", "myapp.tasks.task2"]
        assert by_title["`get_tasks_routes`"]["routes"] == {
            "myapp.tasks.email": {"queue": "emails"},
            "myapp.tasks.payment": {"queue": "payments"},
            "myapp.tasks.default_task": {},
        }
        assert by_title["`get_periodic_tasks`"]["schedules"] == {
            "myapp.tasks.daily_job": {
                "task": "myapp.tasks.daily_job",
                "schedule": crontab(hour=2, minute=0),
                "args": (),
            }
        }

    def test_the_impossible_call_has_a_legal_form(self, program: Registry) -> None:
        """Arguments behind named ones are a syntax error; ``args=`` means the same."""
        with pytest.raises(SyntaxError, match="positional argument follows keyword argument"):
            compile('task.register_periodic_task(route="a.b", queue="q", "daily", True)', "", "eval")
        [block] = [block for block in BLOCKS if block.title == "`register_periodic_task`"]
        entry = executed(block)["task"].get_periodic_tasks()["myapp.tasks.send_reminder"]
        assert entry["args"] == ("daily", True)


async def test_the_complete_setup_runs_jobs_and_schedules(
    program: Registry, functions: None, client: Client, settings: Settings
) -> None:
    """The page's worker, on the tests' server instead of one on this machine."""
    [block] = [block for block in BLOCKS if block.title == "Complete Application Setup"]
    app: RoutedWorker = executed(block)["app"]
    assert (app.settings.broker_url, app.settings.timezone) == ("redis://localhost:6379/0", "UTC")
    assert app.name == "myapp_worker"
    app.settings = app.settings.with_values(broker_url=settings.broker_url)
    app.SIGNALS = []
    running = asyncio.create_task(app.start())
    async with connect(app.settings, registry=app.registry) as web:
        assert {"orders", "emails", "documents", "reports", "maintenance", "monitoring"} < set(web.queues)
        for route, queue in (("process_order", "orders"), ("send_email", "emails"), ("daily_report", "reports")):
            job = await web.queue(queue).enqueue(f"myapp.tasks.{route}", to=7)
            assert job is not None
            assert await job.wait(PATIENCE) == [route, [], {"to": 7}]
        run = await program.schedules.run("myapp.tasks.health_check")
        assert await run.wait(PATIENCE) == ["health_check", [], {}]
        assert {entry.name for entry in await program.schedules.list()} == {
            "myapp.tasks.daily_report",
            "myapp.tasks.cleanup",
            "myapp.tasks.health_check",
        }
        await app.stop()
        await running


async def _noted() -> None: ...
