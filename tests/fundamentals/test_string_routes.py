"""The manual as code: tasks named by their dotted paths, and a worker that is built around them."""

from __future__ import annotations

import asyncio
import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tests.support import PATIENCE, eventually

from knapsaq import (
    Client,
    OptionError,
    Queue,
    Registry,
    RegistryError,
    RouteError,
    Settings,
    SettingsError,
    Worker,
    WorkerError,
    connect,
    crontab,
)
from knapsaq.definitions import coded
from knapsaq.routes import RedisInstance, RoutedWorker, TaskRoutes, WorkerBuilder

Modules = Callable[[dict[str, str]], None]

REGISTRY = """
from knapsaq import Registry

registry = Registry()
task = registry.task
"""

TASKS = """
from functools import partial

from bakery.registry import task


async def knead(dough: str, minutes: int = 5) -> str:
    return f"{dough} for {minutes} min"


def bake(ctx, *, loaf: str) -> str:
    return f"{loaf} in {ctx.queue.name}"


@task
async def sell(loaf: str) -> str:
    return f"{loaf} sold"


@task(name="till.count", queue="till")
async def count() -> int:
    return 3


LIMIT = 5


class Oven:
    @staticmethod
    async def heat(to: int) -> int:
        return to

    def clean(self, times: int = 1) -> str:
        return f"clean {times} times"

    async def __call__(self, loaf: str) -> str:
        return f"{loaf} in the oven"


oven = Oven()
twice = partial(oven.clean, 2)
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Modules]:
    """Write modules of a package ``bakery``; nothing of it is left imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(sources: dict[str, str]) -> None:
        for name, source in sources.items():
            path = tmp_path / "bakery" / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "bakery"]:
        del sys.modules[name]


@pytest.fixture
def bakery(modules: Modules) -> Registry:
    """The registry of a package with plain functions and tasks; only the registry's module is imported."""
    modules({"__init__": "", "registry": REGISTRY, "tasks": TASKS})
    registry = importlib.import_module("bakery.registry").registry
    assert isinstance(registry, Registry)
    return registry


@pytest.fixture
def build(settings: Settings, bakery: Registry) -> Callable[[TaskRoutes], WorkerBuilder]:
    """Return a builder with the routes, on the tests' server."""

    def build(routes: TaskRoutes) -> WorkerBuilder:
        return WorkerBuilder().set_settings(settings).set_registry(bakery).set_task(routes)

    return build


@asynccontextmanager
async def started(worker: RoutedWorker) -> Any:
    """Run a worker, with a connection of an application beside it, while the block runs."""
    worker.SIGNALS = []
    running = asyncio.create_task(worker.start())
    await asyncio.sleep(0)
    try:
        async with connect(worker.settings, registry=worker.registry) as client:
            yield client
    finally:
        async with asyncio.timeout(2 * PATIENCE):
            await worker.stop()
            await running


class TestCollections:
    def test_routes_are_kept_with_their_queues_in_order(self) -> None:
        """A route without a queue has an empty entry, as Celery's ``task_routes`` wants it."""
        task = TaskRoutes()
        task.register("myapp.tasks.email", queue="emails").register("myapp.tasks.default_task")
        task.bulk_register(["myapp.tasks.a", "myapp.tasks.b"], queue="payments")
        assert task.get_tasks() == ["myapp.tasks.email", "myapp.tasks.default_task", "myapp.tasks.a", "myapp.tasks.b"]
        assert task.get_tasks_routes() == {
            "myapp.tasks.email": {"queue": "emails"},
            "myapp.tasks.default_task": {},
            "myapp.tasks.a": {"queue": "payments"},
            "myapp.tasks.b": {"queue": "payments"},
        }
        assert task.queues == ("emails", "payments")
        assert repr(task) == "<TaskRoutes of 4 routes, 0 of them by the clock>"

    def test_a_periodic_task_is_a_task_too(self) -> None:
        """Its entry holds the schedule as it was given, and the arguments as a tuple."""
        task = TaskRoutes()
        daily, often = crontab(hour=2, minute=0), timedelta(minutes=5)
        task.register_periodic_task("myapp.tasks.daily_job", daily, queue="maintenance")
        task.register_periodic_task("myapp.tasks.check", often)
        assert task.get_tasks() == ["myapp.tasks.daily_job", "myapp.tasks.check"]
        assert task.get_tasks_routes()["myapp.tasks.daily_job"] == {"queue": "maintenance"}
        assert task.get_periodic_tasks() == {
            "myapp.tasks.daily_job": {"task": "myapp.tasks.daily_job", "schedule": daily, "args": ()},
            "myapp.tasks.check": {"task": "myapp.tasks.check", "schedule": often, "args": ()},
        }

    def test_arguments_stand_behind_the_queue_or_have_a_name(self) -> None:
        """Python takes no positional argument behind a named one; ``args=`` is for such calls."""
        task = TaskRoutes()
        every = timedelta(days=1)
        task.register_periodic_task("t.one", every, "notifications", "daily", True)  # noqa: FBT003 - the task's own
        task.register_periodic_task(route="t.two", schedule=every, queue="notifications", args=["daily", True])
        task.register_periodic_task("t.three", every, kwargs={"kind": "daily"})
        task.bulk_register_periodic_task([("t.four", every, ["daily", True]), ("t.five", every, [])], queue="q")
        entries = task.get_periodic_tasks()
        assert [entries[f"t.{name}"]["args"] for name in ("one", "two", "four", "five")] == [("daily", True)] * 3 + [()]
        assert entries["t.three"] == {"task": "t.three", "schedule": every, "args": (), "kwargs": {"kind": "daily"}}
        assert task.get_tasks_routes()["t.five"] == {"queue": "q"}

    def test_every_instance_has_its_own_and_what_a_getter_gives_is_a_copy(self) -> None:
        """Two programs in one process do not see each other's."""
        one, other = TaskRoutes().register("a.b", queue="q"), TaskRoutes()
        one.get_tasks().append("c.d")
        one.get_tasks_routes()["a.b"]["queue"] = "r"
        assert (one.get_tasks(), one.get_tasks_routes()) == (["a.b"], {"a.b": {"queue": "q"}})
        assert (other.get_tasks(), other.get_tasks_routes(), other.get_periodic_tasks()) == ([], {}, {})

    def test_registering_again_adds_what_is_new(self) -> None:
        """A call without a queue leaves the queue of an earlier one; a name keeps two schedules of a task apart."""
        task = TaskRoutes().register("a.b", queue="q").register("a.b")
        task.register_periodic_task("a.b", "@daily").register_periodic_task(
            "a.b", timedelta(hours=1), name="a.b.hourly"
        )
        assert task.get_tasks() == ["a.b"]
        assert task.get_tasks_routes() == {"a.b": {"queue": "q"}}
        assert list(task.get_periodic_tasks()) == ["a.b", "a.b.hourly"]
        assert task.register("a.b", queue="r").get_tasks_routes() == {"a.b": {"queue": "r"}}

    @pytest.mark.parametrize(
        ("call", "why"),
        [
            (lambda task: task.register("my app.tasks"), "the dotted path of a function"),
            (lambda task: task.register(len), "the dotted path of a function"),
            (lambda task: task.register("a." * 100 + "b"), "at most 200 characters"),
            (lambda task: task.register("a.b", queue="two words"), "'queue' is 'two words'"),
            (lambda task: task.bulk_register("a.b"), "a list of dotted paths"),
            (lambda task: task.bulk_register(["a.b", ""]), "the dotted path of a function"),
            (lambda task: task.register_periodic_task("a.b", 300), "a timedelta from 1 second on"),
            (lambda task: task.register_periodic_task("a.b", "0 25 * * *"), "as hour 0 to 23"),
            (lambda task: task.register_periodic_task("a.b", timedelta(0)), "'every' is datetime.timedelta(0)"),
            (lambda task: task.register_periodic_task("a.b", "@daily", "q", 1, args=[2]), "not both"),
            (lambda task: task.register_periodic_task("a.b", "@daily", args="ab"), "a list of arguments"),
            (lambda task: task.register_periodic_task("a.b", "@daily", args="ab"), "register_periodic_task of 'a.b'"),
            (lambda task: task.bulk_register_periodic_task([("a.b", "@daily", [])] * 2), "each route once"),
            (lambda task: task.register_periodic_task("a.b", "@daily", kwargs=["x"]), "arguments by name"),
            (lambda task: task.register_periodic_task("a.b", "@daily", name="a b"), "'name' is 'a b'"),
            (lambda task: task.register_periodic_task("a.b", "@daily", "q q"), "'queue' is 'q q'"),
            (lambda task: task.bulk_register_periodic_task([("a.b", "@daily", []), ("c.d", "@daily")]), "for each"),
            (lambda task: task.bulk_register_periodic_task([("a.b", "@daily", []), ("c.d", "@dayly", [])]), "@dayly"),
        ],
    )
    def test_a_wrong_call_registers_nothing(self, call: Callable[[Any], Any], why: str) -> None:
        """Whatever can be known without an import is told where it is written."""
        task = TaskRoutes()
        with pytest.raises(OptionError) as caught:
            call(task)
        assert why in str(caught.value)
        assert (task.get_tasks(), task.get_periodic_tasks()) == ([], {})


class TestTasksOfRoutes:
    async def test_plain_functions_become_tasks_named_by_their_routes(
        self, client: Client, build: Callable[[TaskRoutes], WorkerBuilder]
    ) -> None:
        """In the queues of their routes; with or without a context, coroutine or not."""
        routes = TaskRoutes().register("bakery.tasks.knead").register("bakery.tasks.bake", queue="ovens")
        routes.register("bakery.tasks.Oven.heat", queue="ovens")
        async with started(build(routes).create()) as app:
            assert app.registry.get("bakery.tasks.knead").name == "bakery.tasks.knead"
            job = await app.queue().enqueue("bakery.tasks.knead", dough="rye")
            assert await job.wait(PATIENCE) == "rye for 5 min"
            job = await app.enqueue("bakery.tasks.bake", loaf="rye")
            assert await job.wait(PATIENCE) == "rye in ovens"
            task = app.registry.get("bakery.tasks.Oven.heat")
            assert await (await task.enqueue(to=200)).wait(PATIENCE) == 200

    @pytest.mark.parametrize(
        ("route", "arguments", "result"),
        [
            ("oven", {"loaf": "rye"}, "rye in the oven"),
            ("oven.clean", {"times": 3}, "clean 3 times"),
            ("twice", {}, "clean 2 times"),
        ],
    )
    async def test_whatever_can_be_called_is_a_function(
        self,
        client: Client,
        build: Callable[[TaskRoutes], WorkerBuilder],
        route: str,
        arguments: dict[str, Any],
        result: str,
    ) -> None:
        """Objects, their methods, and functions with some arguments given."""
        async with started(build(TaskRoutes().register(f"bakery.tasks.{route}")).create()) as app:
            job = await app.enqueue(f"bakery.tasks.{route}", **arguments)
            assert await job.wait(PATIENCE) == result

    async def test_a_decorated_task_keeps_its_name_and_is_found_by_its_route(
        self, client: Client, bakery: Registry, build: Callable[[TaskRoutes], WorkerBuilder]
    ) -> None:
        """Programs that know the route and programs that know the name mean the same task."""
        routes = TaskRoutes().register("bakery.tasks.sell", queue="shop").register("bakery.tasks.count")
        async with started(build(routes).create()) as app:
            sell = bakery.get("bakery.tasks.sell")
            assert (sell.name, sell is bakery.get("sell")) == ("sell", True)
            assert bakery.names() == ("sell", "till.count")
            for name in ("sell", "bakery.tasks.sell"):
                job = await app.enqueue(name, loaf="rye")
                assert (job.function, job.get_queue().name) == ("sell", "shop")
                assert await job.wait(PATIENCE) == "rye sold"
            app.queue("shop").registry = None  # another program, which knows the route alone
            job = await app.queue("shop").enqueue("bakery.tasks.sell", loaf="oat")
            assert (job.function, await job.wait(PATIENCE)) == ("bakery.tasks.sell", "oat sold")
            job = await bakery.get("till.count").enqueue()
            assert (job.get_queue().name, await job.wait(PATIENCE)) == ("till", 3)

    async def test_a_route_to_a_module_takes_its_tasks(self, settings: Settings, bakery: Registry) -> None:
        """The queue counts for those that name none; a package stands for the ``tasks`` modules in it."""
        for route in ("bakery.tasks", "bakery"):
            bakery.include(TaskRoutes().register(route, queue="shop"))
        async with connect(settings, registry=bakery) as client:
            assert {task.name: task.options.queue for task in bakery.get_all_tasks()} == {
                "sell": "shop",
                "till.count": "till",
            }
            assert "shop" in client.queues
            assert bakery.find("bakery.tasks.sell") is bakery.get("sell")

    async def test_a_route_to_a_function_says_more_than_one_to_its_module(
        self, settings: Settings, bakery: Registry
    ) -> None:
        """In whichever order they are registered; and a queue may be said later than the route."""
        routes = TaskRoutes().register("bakery.tasks", queue="shop").register("bakery.tasks.sell", queue="counter")
        bakery.include(routes.register("bakery.tasks.knead"))
        async with connect(settings, registry=bakery):
            assert bakery.get("sell").options.queue == "counter"
            assert bakery.get("bakery.tasks.knead").options.queue == "default"
        routes.register("bakery.tasks.knead", queue="ovens")
        async with connect(settings, registry=bakery) as client:
            assert bakery.get("bakery.tasks.knead").options.queue == "ovens"
            assert "ovens" in client.queues

    async def test_the_name_of_a_task_is_a_route_too(self, settings: Settings, bakery: Registry) -> None:
        """Also of one that another route's module defines."""
        bakery.include(TaskRoutes().bulk_register(["till.count", "bakery.tasks.sell"]))
        async with connect(settings, registry=bakery):
            assert bakery.names() == ("sell", "till.count")

    async def test_nothing_is_imported_before_the_start_and_what_came_later_counts(
        self, settings: Settings, bakery: Registry
    ) -> None:
        """A module can hold routes to modules that import it."""
        routes = TaskRoutes().register("bakery.tasks.knead", queue="ovens")
        worker = WorkerBuilder().set_settings(settings).set_registry(bakery).set_task(routes).create()
        assert "bakery.tasks" not in sys.modules
        routes.register("bakery.tasks.bake", queue="late")
        async with connect(worker.settings, registry=bakery) as client:
            assert "bakery.tasks" in sys.modules
            assert tuple(client.queues) == ("default", "mail", "ovens", "late")
            before = [vars(task) for task in bakery.get_all_tasks()]
        async with connect(worker.settings, registry=bakery):
            assert [vars(task) for task in bakery.get_all_tasks()] == before
        assert bakery.names() == ("bakery.tasks.bake", "bakery.tasks.knead", "sell", "till.count")

    async def test_a_module_that_is_imported_again_brings_the_task_that_counts(
        self, settings: Settings, bakery: Registry
    ) -> None:
        """As in an interpreter that reloads modules."""
        bakery.include(TaskRoutes().register("bakery.tasks.sell", queue="shop"))
        async with connect(settings, registry=bakery):
            old = bakery.get("bakery.tasks.sell")
        importlib.reload(sys.modules["bakery.tasks"])
        async with connect(settings, registry=bakery):
            assert bakery.get("sell") is bakery.get("bakery.tasks.sell") is not old
            assert bakery.get("sell").options.queue == "shop"

    async def test_a_worker_made_by_hand_loads_them(self, client: Client, bakery: Registry) -> None:
        """It starts without ``connect``."""
        bakery.include(TaskRoutes().register("bakery.tasks.knead"))
        Worker(client.queue(), registry=bakery)
        assert "bakery.tasks.knead" in bakery.names()


class TestWrongRoutes:
    async def test_all_of_them_are_told_at_once_with_their_reasons(
        self, client: Client, bakery: Registry, modules: Modules, build: Callable[[TaskRoutes], WorkerBuilder]
    ) -> None:
        """No such module, no such attribute, not callable, a class, a broken module, a module without tasks."""
        modules({"broken": "x = 1\nundefined\n", "empty": "", "inner.__init__": "", "outer.tasks": "1 / 0"})
        reasons = {
            "bakry.tasks.knead": "there is no module 'bakry'; did you mean 'bakery'?",
            "bakery.taks.knead": "module 'bakery' has no 'taks'; did you mean 'tasks'?",
            "bakery.tasks.kneed": "module 'bakery.tasks' has no 'kneed'; did you mean 'knead'?",
            "bakery.tasks.LIMIT": "it is of type int and cannot be called",
            "bakery.tasks.Oven": "it is a class; a route leads to a function, a task or a module",
            "bakery.broken.f": "module 'bakery.broken' cannot be imported: NameError: name 'undefined' is not defined",
            "bakery.empty": "module 'bakery.empty' has no @task; name one of its functions",
            "bakery.inner": "module 'bakery.inner' has no @task; name one of its functions",
            "bakery.outer": "module 'bakery.outer.tasks' cannot be imported",
            "nobody": "there is no module 'nobody'",
            "till.cuont": "; or did you mean the task 'till.count'?",
            ".tasks..knead": "Empty module name",
            "bakery..knead": "module 'bakery' has no ''",
            "bakery:knead": "there is no module 'bakery:knead'",
        }
        routes = TaskRoutes().register("bakery.tasks.knead").bulk_register(list(reasons))
        with pytest.raises(RouteError) as caught:
            await build(routes).create().start()
        assert caught.value.routes == tuple(reasons)
        for told, expected in zip(caught.value.reasons, reasons.values(), strict=True):
            assert expected in told
        lines = str(caught.value).splitlines()
        assert lines[0] == "14 routes are wrong"
        assert lines[4].startswith("route 'bakery.tasks.LIMIT': it is of type int")
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own

    async def test_one_wrong_route_is_one_line_and_its_correction_starts(
        self, settings: Settings, bakery: Registry
    ) -> None:
        """An application that connects says the same as a worker, and may try again."""
        bakery.include(TaskRoutes().register("bakery.later.f"))
        with pytest.raises(RouteError, match=r"^route 'bakery.later.f': there is no module 'bakery'; |has no 'later'"):
            async with connect(settings, registry=bakery):
                pytest.fail("it connected")
        later = importlib.import_module("bakery.registry")
        later.__path__ = []  # type: ignore[attr-defined]
        sys.modules["bakery.later"] = later
        later.f = lambda: None  # type: ignore[attr-defined]
        async with connect(settings, registry=bakery):
            assert "bakery.later.f" in bakery.names()

    async def test_a_task_of_another_registry_is_not_taken(self, settings: Settings, bakery: Registry) -> None:
        """Its own ``enqueue`` would find no connection; the error says which registry to give."""
        registry = Registry().include(TaskRoutes().register("bakery.tasks.sell"))
        with pytest.raises(RouteError, match="task 'sell' of another registry"):
            async with connect(settings, registry=registry):
                pytest.fail("it connected")

    async def test_a_route_in_two_queues_is_refused(self, settings: Settings, bakery: Registry) -> None:
        """Two collections that contradict each other; that they repeat each other is fine."""
        for queue in ("ovens", "ovens", None, "shop"):
            bakery.include(TaskRoutes().register("bakery.tasks.knead", queue=queue))
        with pytest.raises(RouteError, match="in queue 'ovens' already"):
            async with connect(settings, registry=bakery):
                pytest.fail("it connected")

    async def test_a_schedule_of_a_module_or_with_arguments_that_do_not_fit_is_told_with_its_route(
        self, settings: Settings, bakery: Registry
    ) -> None:
        """Before it would have failed at two in the morning."""
        routes = TaskRoutes().register_periodic_task("bakery.tasks", "@daily")
        routes.register_periodic_task("bakery.tasks.knead", "@daily", None, "rye", "long")
        routes.register_periodic_task("bakery.tasks.sell", "@daily", kwargs={"loaf": "rye"})
        bakery.include(routes)
        with pytest.raises(RouteError) as caught:
            async with connect(settings, registry=bakery):
                pytest.fail("it connected")
        assert caught.value.routes == ("bakery.tasks", "bakery.tasks.knead")
        assert caught.value.reasons[0] == "it is a module; a schedule needs a function"
        assert "argument 'minutes': expected int" in caught.value.reasons[1]


class TestSchedules:
    async def test_a_periodic_route_fires_with_its_arguments_in_its_queue(
        self, client: Client, build: Callable[[TaskRoutes], WorkerBuilder]
    ) -> None:
        """Plain functions and decorated tasks alike, and nobody else has to run."""
        routes = TaskRoutes()
        routes.register_periodic_task("bakery.tasks.knead", timedelta(seconds=1), "ovens", "rye", 7)
        routes.register_periodic_task("bakery.tasks.sell", "* * * * * *", kwargs={"loaf": "rye"})
        async with started(build(routes).create()) as app:
            for queue, name, result in (
                ("ovens", "bakery.tasks.knead", "rye for 7 min"),
                ("default", "sell", "rye sold"),
            ):
                job = await eventually(partial(_fired, app.queue(queue), name))
                assert await job.wait(PATIENCE) == result

    async def test_it_is_a_schedule_like_any_other(
        self, client: Client, bakery: Registry, build: Callable[[TaskRoutes], WorkerBuilder]
    ) -> None:
        """Named by its route, in the builder's time zone, and changed while everything runs."""
        routes = TaskRoutes().register_periodic_task("bakery.tasks.knead", crontab(hour=2), "ovens", "rye")
        routes.register_periodic_task("bakery.tasks.knead", timedelta(days=1), None, "oat", name="oat.daily")
        worker = build(routes).set_timezone("Europe/Berlin").create()
        async with started(worker):
            assert [schedule.name for schedule in bakery.get("bakery.tasks.knead").schedules] == [
                "bakery.tasks.knead",
                "oat.daily",
            ]
            found = await eventually(lambda: _entries(bakery, 2))
            assert "ovens" in repr(worker)
            assert {(entry.name, entry.queue) for entry in found} == {
                ("bakery.tasks.knead", "ovens"),
                ("oat.daily", "ovens"),
            }
            [due] = await bakery.schedules.next("bakery.tasks.knead", n=1)
            assert due.astimezone(ZoneInfo("Europe/Berlin")).hour == 2
            await bakery.schedules.pause("oat.daily")
            assert not (await bakery.schedules.get("oat.daily")).enabled


class TestBuilder:
    async def test_it_serves_all_queues_unless_told_otherwise(
        self, client: Client, build: Callable[[TaskRoutes], WorkerBuilder]
    ) -> None:
        """An application may send to all of them in both cases."""
        routes = TaskRoutes().register("bakery.tasks.knead", queue="ovens").register("bakery.tasks.sell", queue="shop")
        worker = build(routes).set_queues(["ovens"]).set_concurrency(3).set_name("front").create()
        assert repr(worker) == "<RoutedWorker 'front' of ovens>"
        async with started(worker) as app:
            job = await app.enqueue("bakery.tasks.knead", dough="rye")
            waits = await app.enqueue("bakery.tasks.sell", loaf="rye")
            await job.wait(PATIENCE)
            assert await app.queue("shop").count("queued") == 1
            [name] = (await app.queue("ovens").info())["workers"]
            assert name.startswith("front-")
            assert app.settings.concurrency == 3
        async with started(build(routes).create()) as app:
            waiting = await app.queue("shop").job(waits.key)
            assert await waiting.wait(PATIENCE) == "rye sold"

    def test_what_is_set_wins_over_the_settings(self, settings: Settings) -> None:
        """And what is not set is theirs."""
        builder = WorkerBuilder().set_settings(settings).set_registry(Registry())
        assert builder.create().settings == settings
        changed = builder.set_redis("redis://broker:7000/1").set_timezone("Europe/Berlin").set_queues("a, b").create()
        assert changed.settings.broker_url == "redis://broker:7000/1"
        assert (changed.settings.timezone, changed.settings.shutdown_grace) == ("Europe/Berlin", 5.0)
        assert (changed.settings.queues, changed.queues) == (("default", "mail", "a", "b"), ("a", "b"))

    @pytest.mark.parametrize(
        ("call", "why"),
        [
            (lambda builder: builder.set_name("my worker"), "1 to 100 letters"),
            (lambda builder: builder.set_name(3), "1 to 100 letters"),
            (lambda builder: builder.set_redis("localhost:6379"), "of WorkerBuilder.set_redis is"),
            (lambda builder: builder.set_redis(6379), "a RedisInstance or a URL"),
            (lambda builder: builder.set_task("myapp.tasks"), "an instance of knapsaq.routes.TaskRoutes"),
            (lambda builder: builder.set_timezone("Mars"), "setting of WorkerBuilder.set_timezone is 'Mars'"),
            (lambda builder: builder.set_concurrency(0), "setting of WorkerBuilder.set_concurrency is 0"),
            (lambda builder: builder.set_queues([]), "at least one name"),
            (lambda builder: builder.set_queues(None), "names of queues"),
            (lambda builder: builder.set_queues(["a b"]), "'a b' is not"),
            (lambda builder: builder.set_settings({}), "an instance of knapsaq.Settings"),
            (lambda builder: builder.set_registry({}), "an instance of knapsaq.Registry"),
        ],
    )
    def test_a_wrong_value_is_refused_where_it_is_set(self, call: Callable[[Any], Any], why: str) -> None:
        """With what would be right."""
        with pytest.raises((OptionError, SettingsError)) as caught:
            call(WorkerBuilder())
        assert why in str(caught.value)

    async def test_a_worker_that_runs_is_not_started_twice_and_may_be_started_again(
        self, client: Client, build: Callable[[TaskRoutes], WorkerBuilder]
    ) -> None:
        """As a ``knapsaq.Worker``."""
        worker = build(TaskRoutes().register("bakery.tasks.knead")).create()
        for _ in range(2):
            async with started(worker) as app:
                with pytest.raises(WorkerError, match="runs already"):
                    await worker.start()
                job = await app.enqueue("bakery.tasks.knead", dough="rye")
                assert await job.wait(PATIENCE) == "rye for 5 min"

    async def test_a_queue_that_no_task_has_is_served_with_a_warning(
        self, client: Client, build: Callable[[TaskRoutes], WorkerBuilder], caplog: pytest.LogCaptureFixture
    ) -> None:
        """It may be a typing error, or a queue that callers name."""
        routes = TaskRoutes().register("bakery.tasks.knead", queue="ovens")
        async with started(build(routes).set_queues("ovns").create()) as app:
            job = await app.registry.get("bakery.tasks.knead").using(queue="ovns").enqueue(dough="rye")
            assert await job.wait(PATIENCE) == "rye for 5 min"
        [said] = [record.message for record in caplog.records if "ovns is served" in record.message]
        assert "did you mean 'ovens'?" in said

    def test_what_is_no_source_of_tasks_is_refused_where_it_is_included(self) -> None:
        """With an example of what would be right."""
        wrong: Any = "bakery.tasks"
        with pytest.raises(RegistryError, match=r"TaskRoutes\(\)"):
            Registry().include(wrong)

    async def test_what_keeps_a_worker_from_starting_is_raised_as_it_is(
        self, client: Client, build: Callable[[TaskRoutes], WorkerBuilder], bakery: Registry
    ) -> None:
        """No group of errors around it; afterwards nothing runs."""
        bakery.add_saq_settings({"functions": [], "startup": _fail})
        worker = build(TaskRoutes().register("bakery.tasks.knead")).create()
        worker.SIGNALS = []
        with pytest.raises(ZeroDivisionError):
            await worker.start()
        await asyncio.wait_for(worker.stop(), PATIENCE)


class TestRedisInstance:
    @pytest.mark.parametrize(
        ("parts", "url"),
        [
            ({}, "redis://localhost:6379/0"),
            ({"redis_host": "db", "redis_port": 7000, "redis_db": 3}, "redis://db:7000/3"),
            ({"redis_password": "p@ss/w:rd"}, "redis://:p%40ss%2Fw%3Ard@localhost:6379/0"),
            ({"redis_username": "ann", "redis_password": "x", "redis_ssl": True}, "rediss://ann:x@localhost:6379/0"),
            ({"redis_host": "::1"}, "redis://[::1]:6379/0"),
        ],
    )
    def test_its_parts_make_a_url_that_the_settings_take(self, parts: dict[str, Any], url: str) -> None:
        """With signs that a URL cannot have percent-encoded."""
        instance = RedisInstance(**parts)
        assert instance.url == url
        worker = WorkerBuilder().set_redis(instance).set_registry(Registry()).create()
        assert worker.settings.broker_url == url

    def test_a_password_is_never_shown(self) -> None:
        """Neither in the instance nor in the worker, nor where it is wrong."""
        instance = RedisInstance(redis_password="hunter2")
        worker = WorkerBuilder().set_redis(instance).set_registry(Registry()).create()
        wrong: Any = b"hunter2"
        with pytest.raises(OptionError) as caught:
            RedisInstance(redis_password=wrong)
        for shown in (repr(instance), repr(worker), repr(worker.settings), str(caught.value), repr(caught.value)):
            assert "hunter2" not in shown

    @pytest.mark.parametrize(
        "parts",
        [{"redis_host": ""}, {"redis_host": "a/b"}, {"redis_port": 0}, {"redis_port": "6379"}, {"redis_db": -1}],
    )
    def test_a_wrong_part_is_named(self, parts: dict[str, Any]) -> None:
        """With what would be right."""
        [name] = parts
        with pytest.raises(OptionError, match=f"RedisInstance: option '{name}'"):
            RedisInstance(**parts)


async def _fired(queue: Queue, name: str) -> Any:
    """Return a job of a task that its schedule has fired."""
    return next(iter([job async for job in queue.iter_jobs() if job.function == name]), None)


async def _entries(registry: Registry, count: int) -> Any:
    entries = await registry.schedules.list()
    return entries if len(entries) == count else None


async def _fail(ctx: dict[str, Any]) -> None:
    raise ZeroDivisionError


class TestSchedulesOfRoutes:
    def test_a_schedule_belongs_to_the_module_that_collects_the_routes(self, bakery: Registry) -> None:
        """A second worker of the same functions, with routes of its own, leaves it in Redis."""
        TaskRoutes().register_periodic_task("bakery.tasks.knead", "@daily", args=["rye"]).load(bakery)
        [schedule] = bakery.get("bakery.tasks.knead").schedules
        assert coded(bakery.get("bakery.tasks.knead"), schedule, "UTC").module == __name__

    def test_two_collections_that_schedule_one_name_differently_are_told(self, bakery: Registry) -> None:
        """None of them is dropped in silence; the same twice is one."""
        route = "bakery.tasks.knead"
        for schedule in ("@daily", "@daily"):
            assert not TaskRoutes().register_periodic_task(route, schedule, args=["rye"]).load(bakery)
        problems = TaskRoutes().register_periodic_task(route, timedelta(hours=1), args=["rye"]).load(bakery)
        assert "name=..." in problems[route]
        assert len(bakery.get(route).schedules) == 1
