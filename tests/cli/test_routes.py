"""What ``-A`` may name besides a module of decorated tasks: routes, a worker that was built, SAQ's settings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run
from tests.processes import BIN, clean_environment, running
from tests.support import eventually

from knapsaq import Queue, Registry, Settings, connect, get_registry

TASKS = """
async def pack(order_id: int) -> str:
    return f"order {order_id} is packed"


async def label(ctx, *, text):
    return text.upper()
"""

ROUTES = """
from knapsaq.routes import TaskRoutes

routes = TaskRoutes().register("depot.tasks.pack", queue="orders")
"""

WORKER = """
from knapsaq import Registry
from knapsaq.routes import RedisInstance, TaskRoutes, WorkerBuilder

routes = TaskRoutes().register("depot.tasks.pack", queue="orders")
worker = (
    WorkerBuilder().set_name("depot").set_task(routes).set_queues("orders").set_timezone("Europe/Berlin").create()
)
"""

LEGACY = """
from saq.queue.redis import RedisQueue

from depot.tasks import label

queue = RedisQueue.from_url({url!r}, name="legacy")
settings = {{"queue": queue, "functions": [label], "concurrency": 2}}


def make():
    return settings
"""


@pytest.fixture(autouse=True)
def program() -> Iterator[Registry]:
    """The program's registry, which is as it was when the test has ended."""
    registry = get_registry()
    before = {name: value.copy() for name, value in vars(registry).items() if isinstance(value, (dict, list))}
    yield registry
    vars(registry).update(before)


@pytest.fixture
def depot(folder: Path, broker_url: str) -> Path:
    """A package of plain functions, with modules that name them."""
    (folder / "depot").mkdir()
    for name, source in {
        "__init__": "",
        "tasks": TASKS,
        "routes": ROUTES,
        "worker": WORKER,
        "legacy": LEGACY.format(url=broker_url),
        "both": WORKER + "other = WorkerBuilder().create()\n",
        "number": "value = 3\n",
        "wrong": ROUTES.replace("pack", "pak") + "routes.register('depot.taskz')\n",
    }.items():
        (folder / "depot" / f"{name}.py").write_text(source)
    return folder


def listed(run: Run, app: str) -> dict[str, Any]:
    """Return the tasks of an application by name."""
    return {task["name"]: task for task in json.loads(run("-A", app, "tasks", "--json").stdout)}


class TestWhatIsLoaded:
    @pytest.mark.parametrize("app", ["depot.routes", "depot.routes.routes", "depot.worker", "depot.worker.worker"])
    def test_routes_and_workers_are_found_in_a_module_or_named_themselves(
        self, run: Run, depot: Path, app: str
    ) -> None:
        """Whatever the attribute's name is; the routes' queue need not be among the settings'."""
        tasks = listed(run, app)
        assert tasks["depot.tasks.pack"]["queue"] == "orders"
        assert "depot/tasks.py" in tasks["depot.tasks.pack"]["location"]
        enqueued = run("-A", app, "enqueue", "depot.tasks.pack", "order_id=7")
        assert enqueued.exit_code == 0, enqueued.output

    @pytest.mark.parametrize("app", ["depot.legacy", "depot.legacy.settings", "depot.legacy.make"])
    def test_saqs_settings_are_found_as_saqs_own_command_line_finds_them(self, run: Run, depot: Path, app: str) -> None:
        """The path of the dictionary, of a function that returns it, or of the module that holds it."""
        assert listed(run, app)["label"]["queue"] == "legacy"

    def test_a_module_with_two_workers_says_how_to_name_one(self, run: Run, depot: Path) -> None:
        """Nobody guesses which is meant."""
        result = run("-A", "depot.both", "worker")
        assert result.exit_code == 2
        assert "holds 2 workers" in result.stderr
        assert "depot.both.<its name>" in result.stderr

    def test_what_is_none_of_them_is_refused(self, run: Run, depot: Path) -> None:
        """With its type."""
        result = run("-A", "depot.number.value", "tasks")
        assert result.exit_code == 2
        assert "'depot.number.value' is of type int; expected" in result.stderr
        for app, why in (("shop_jobs.add", "is of type Task"), ("depot.tasks.label", "a dictionary with 'functions'")):
            assert why in run("-A", app, "tasks").stderr

    def test_a_dictionary_that_is_not_saqs_is_left_alone(self, run: Run, folder: Path) -> None:
        """Modules have settings of many kinds."""
        with (folder / "shop_jobs.py").open("a") as file:
            file.write("settings = {'debug': True}\n")
        assert "nightly" in run("-A", "shop_jobs", "tasks").stdout

    def test_all_wrong_routes_are_told_before_anything_starts(self, run: Run, depot: Path) -> None:
        """Each with its reason."""
        result = run("-A", "depot.wrong", "worker")
        assert result.exit_code == 2
        assert "module 'depot.tasks' has no 'pak'; did you mean 'pack'?" in result.stderr
        assert "module 'depot' has no 'taskz'; did you mean 'tasks'?" in result.stderr

    def test_a_pattern_shows_in_the_list(self, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A task that names no queue is listed with the one that it goes to."""
        monkeypatch.setenv("KNAPSAQ_TASK_ROUTES", '{"add": "mail"}')
        tasks = listed(run, "shop_jobs")
        assert (tasks["add"]["queue"], tasks["boom"]["queue"]) == ("mail", "default")
        monkeypatch.setenv("KNAPSAQ_TASK_ROUTES", '{"add": "mial"}')
        result = run("-A", "shop_jobs", "doctor")
        assert result.exit_code == 1
        assert "did you mean 'mail'" in result.stdout


class TestRunning:
    @pytest.mark.parametrize(
        ("app", "call", "says", "result"),
        [
            ("depot.worker", ("orders", "depot.tasks.pack", {"order_id": 7}), "worker depot-", "order 7 is packed"),
            ("depot.routes", ("orders", "depot.tasks.pack", {"order_id": 8}), "queue default", "order 8 is packed"),
            ("depot.legacy.settings", ("legacy", "label", {"text": "hi"}), "queue legacy, 2 at once", "HI"),
        ],
    )
    async def test_a_worker_process_runs_it(
        self, depot: Path, app: str, call: tuple[str, str, dict[str, Any]], says: str, result: str
    ) -> None:
        """``knapsaq -A ... worker``, and a program that knows of it only the queue and the name."""
        name, task, arguments = call
        url = os.environ["KNAPSAQ_BROKER_URL"]
        async with connect(Settings(broker_url=url, queues=(name,), _env_file=None), registry=Registry()) as client:
            queue = client.queue(name)
            queue.registry = None
            job = await queue.enqueue(task, **arguments)
            assert job is not None
            command = [str(BIN / "knapsaq"), "-A", app, "worker"]
            with running(command, clean_environment(KNAPSAQ_BROKER_URL=url), depot) as program:
                assert await job.wait(30) == result
                program.says(says)
                program.signal()
                assert program.ends() == 0

    def test_a_burst_of_saqs_ends_by_itself(self, depot: Path, broker_url: str) -> None:
        """SAQ's settings alone are served, on their own queue, as long as nobody names others."""
        with (depot / "depot" / "legacy.py").open("a") as file:
            file.write("settings |= {'burst': True, 'dequeue_timeout': 1}\n")
        command = [str(BIN / "knapsaq"), "-A", "depot.legacy", "worker"]
        with running(command, clean_environment(KNAPSAQ_BROKER_URL=broker_url), depot) as program:
            assert program.ends() == 0
            assert "queue default" not in program.output()

    async def test_a_program_that_awaits_it_stops_at_a_signal(self, depot: Path, broker_url: str) -> None:
        """``asyncio.run(worker.start())`` is a program; SIGTERM ends it as it ends the command."""
        script = "import asyncio; from depot.worker import worker; asyncio.run(worker.start())"
        settings = Settings(broker_url=broker_url, queues=("orders",), _env_file=None)
        async with connect(settings, registry=Registry()) as client:
            queue = client.queue("orders")
            command = [sys.executable, "-c", script]
            with running(command, clean_environment(KNAPSAQ_BROKER_URL=broker_url), depot) as program:
                await eventually(lambda: _workers(queue), within=30)
                program.signal()
                assert program.ends() == 0
            assert await _workers(queue) == {}


async def _workers(queue: Queue) -> Any:
    return (await queue.info())["workers"]
