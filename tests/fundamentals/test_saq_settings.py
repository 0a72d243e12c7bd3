"""The manual as code: a project written for SAQ starts with the settings that it has."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from datetime import UTC
from types import ModuleType
from typing import Any

import pytest
from redis.asyncio.sentinel import Sentinel
from saq.job import CronJob
from saq.queue.redis import RedisQueue
from tests.support import ended, eventually, working

from knapsaq import (
    Client,
    ConfigurationError,
    DuplicateTaskError,
    OptionError,
    Queue,
    Registry,
    RegistryError,
    Settings,
    UnknownTaskError,
    connect,
)
from knapsaq.redis.connection import open_redis
from knapsaq.saq_settings import SaqSettings
from knapsaq.testing import running_worker


async def double(ctx: dict[str, Any], *, number: int) -> int:
    """Double a number, or a text, as the annotation is nobody's business."""
    return number * 2


def shout(ctx: dict[str, Any], *, text: str) -> str:
    """Run in a thread."""
    return f"{text.upper()}{ctx['state']['mark']}"


async def tick(ctx: dict[str, Any]) -> None:
    ctx["state"]["ticks"] += 1


@pytest.fixture
def saq_queue(broker_url: str) -> RedisQueue:
    """A queue as a program of SAQ's makes it."""
    return RedisQueue.from_url(broker_url, name="legacy")


@pytest.fixture
def saq_module(saq_queue: RedisQueue) -> Iterator[ModuleType]:
    """A module with SAQ's settings, and a function that returns them."""
    module = ModuleType("legacy_app")
    module.settings = {"queue": saq_queue, "functions": [double]}  # type: ignore[attr-defined]
    module.make = lambda: module.settings  # type: ignore[attr-defined]
    sys.modules["legacy_app"] = module
    yield module
    del sys.modules["legacy_app"]


class TestStartingUnchanged:
    async def test_functions_hooks_and_cron_jobs_run_as_they_did(
        self, client: Client, settings: Settings, saq_queue: RedisQueue
    ) -> None:
        """The dictionary is all that a worker needs: its queue is served, on the server that it names."""
        seen: list[str] = []

        async def startup(ctx: dict[str, Any]) -> None:
            ctx["state"] = {"mark": "!", "ticks": 0}
            seen.append("startup")

        def shutdown(ctx: dict[str, Any]) -> None:
            seen.append("shutdown")

        async def before(ctx: dict[str, Any]) -> None:
            seen.append(f"before {ctx['job'].function}")

        async def after(ctx: dict[str, Any]) -> None:
            seen.append(f"after {ctx['job'].status.value}")

        registry = Registry.from_saq_settings(
            {
                "queue": saq_queue,
                "functions": [double, ("loud", shout)],
                "concurrency": 3,
                "cron_jobs": [CronJob(tick, cron="0 0 1 1 *", timeout=7)],
                "cron_tz": UTC,
                "startup": startup,
                "shutdown": [shutdown],
                "before_process": before,
                "after_process": after,
                "timers": {"schedule": 2, "sweep": 30},
                "dequeue_timeout": 5.0,
                "shutdown_grace_period_s": 2,
                "metadata": {"site": "north"},
                "id": "old-name",
            }
        )
        assert registry.names() == ("double", "loud", "tick")
        await _disconnect(saq_queue)
        async with connect(_of_environment(settings), registry=registry) as legacy:
            assert legacy.settings.broker_url.split("?")[0] == settings.broker_url
            producer = RedisQueue(legacy.queue().redis, "legacy")
            async with running_worker(["legacy"], registry=registry):
                info = await eventually(lambda: _workers(legacy.queue("legacy")))
                [name] = info
                assert name.startswith("old-name-")
                assert info[name]["metadata"] == {"site": "north"}
                sent = [
                    await producer.enqueue("double", number="ab"),
                    await legacy.queue("legacy").enqueue("loud", text="hey"),
                ]
                jobs = [await legacy.queue("legacy").job(job.key) for job in sent if job]
                await ended(*jobs)
                assert [job and job.result for job in jobs] == ["abab", "HEY!"]
                crons = await eventually(lambda: legacy.queue("legacy").job("cron:tick"))
                assert crons.timeout == 7
        assert seen[0] == "startup"
        assert seen[-1] == "shutdown"
        assert sorted(seen[1:-1]) == ["after complete", "after complete", "before double", "before loud"]

    async def test_jobs_that_ours_send_have_saqs_limits(self, client: Client, saq_queue: RedisQueue) -> None:
        """A function that was written for a limit of ten seconds keeps it; a name that nobody knows is refused."""
        registry = Registry.from_saq_settings({"queue": saq_queue, "functions": [double]})
        queue = Queue(client.queue().redis, "legacy", registry=registry, settings=client.settings)
        job = await queue.enqueue("double", number=1, retries=3)
        assert job is not None
        assert (job.timeout, job.ttl, job.retries) == (10, 600, 3)
        with pytest.raises(UnknownTaskError, match="did you mean 'double'"):
            await queue.enqueue("duoble", number=1)
        await queue.disconnect()
        await _disconnect(saq_queue)

    async def test_a_worker_made_by_hand_takes_the_options_and_its_own_win(
        self, client: Client, saq_queue: RedisQueue
    ) -> None:
        """``Worker(queue, registry=...)`` is enough, as is ``connect`` with ``run_workers``."""
        registry = Registry.from_saq_settings(
            {"queue": saq_queue, "functions": [double], "concurrency": 3, "dequeue_timeout": 2, "burst": True}
        )
        queue = Queue(client.queue().redis, "legacy", registry=registry, settings=client.settings)
        assert await queue.enqueue("double", number=1)
        async with working(queue) as worker:
            assert (worker.concurrency, worker.burst, worker.dequeue_timeout) == (3, True, 2)
            await asyncio.wait_for(worker._ended.wait(), 10)
        assert await queue.count("incomplete") == 0
        async with working(queue, concurrency=5, burst=False) as worker:
            assert (worker.concurrency, worker.burst) == (5, False)
        await queue.disconnect()
        await _disconnect(saq_queue)

    async def test_it_may_be_named_by_a_path_as_on_saqs_command_line(self, saq_module: ModuleType) -> None:
        """Also that of a function that returns it."""
        for path in ("legacy_app.settings", "legacy_app.make"):
            assert Registry.from_saq_settings(path).names() == ("double",)

    async def test_it_meets_decorated_tasks_in_one_registry(self, client: Client, saq_queue: RedisQueue) -> None:
        """One worker runs both; added twice, it is there once."""
        registry = Registry()

        @registry.task
        async def modern(x: int) -> int:
            return x

        settings = {"queue": saq_queue, "functions": [double, modern]}
        assert registry.add_saq_settings(settings).add_saq_settings(settings) is registry
        assert registry.names() == ("double", "modern")
        assert registry.get("double").options.queue == "legacy"
        assert registry.prepare(client.settings).queues == ("default", "mail", "legacy")

    def test_without_a_queue_it_is_saqs_own_server_unless_one_is_set(self) -> None:
        """As SAQ does it; what an operator sets wins."""
        registry = Registry.from_saq_settings({"functions": [double]})
        assert registry.prepare(Settings(_env_file=None)).broker_url == "redis://localhost:6379/0"
        assert registry.prepare(Settings(queues=("mail",), _env_file=None)).queues == ("mail", "default")
        set_by_hand = Settings(broker_url="redis://broker:1", _env_file=None)
        assert registry.prepare(set_by_hand).broker_url == "redis://broker:1"
        assert registry.prepare(Settings(broker_url="embedded", _env_file=None)).broker_url == "embedded"


class TestAddresses:
    @pytest.mark.parametrize(
        "url",
        [
            "redis://localhost:6379/0",
            "redis://:p%40ss%2Fword@redis.example.org:7000/3",
            "redis://ann:secret@127.0.0.1:6380/1",
            "rediss://ann@redis.example.org:6379/0",
            "redis://[::1]:6379/0",
            "unix:///run/redis.sock?db=2",
            "unix://ann:secret@/run/redis.sock?db=0",
        ],
    )
    def test_the_queues_server_is_found_and_its_password_is_not_shown(self, url: str) -> None:
        """A redis-py pool knows the parts of the URL that it was made of."""
        read = SaqSettings.read({"queue": RedisQueue.from_url(url), "functions": [double]})
        assert read.url == url
        assert "secret" not in repr(read)
        assert "p%40ss" not in repr(read)
        ours = SaqSettings.read({"queue": Queue(open_redis(url)), "functions": [double]})
        assert ours.url == url

    def test_a_queue_that_asks_a_sentinel_needs_an_address_from_elsewhere(self) -> None:
        """Where one is set, everything else of the settings counts."""
        queue = RedisQueue(Sentinel([("localhost", 26379)]).master_for("main"))
        registry = Registry.from_saq_settings({"queue": queue, "functions": [double]})
        with pytest.raises(ConfigurationError, match="set KNAPSAQ_BROKER_URL"):
            registry.prepare(Settings(_env_file=None))
        given = Settings(broker_url="redis://primary", _env_file=None)
        assert registry.prepare(given).broker_url == "redis://primary"


class TestWhatCannotBeHonoured:
    @pytest.mark.parametrize(
        ("changed", "why"),
        [
            ({"functions": None}, "'functions' is None"),
            ({"functions": [3]}, "functions, or tuples"),
            ({"functions": double}, "functions, or tuples"),
            ({"functions": [("", double)]}, "functions, or tuples"),
            ({"concurrency": 0}, "1 to 10,000"),
            ({"concurency": 3}, "did you mean 'concurrency'"),
            ({"context": {}}, "one of the options functions, queue"),
            ({"cron_jobs": [CronJob(tick, cron="* * *")]}, "croniter"),
            ({"cron_jobs": [tick]}, "saq.CronJob"),
            ({"cron_tz": "UTC"}, "ZoneInfo"),
            ({"startup": "run"}, "takes the context"),
            ({"timers": {"schdule": 1}}, "schedule, worker_info, sweep, abort"),
            ({"timers": {"sweep": 0}}, "seconds above 0"),
            ({"burst": True}, "burst is on"),
            ({"queue": "legacy"}, "a queue of SAQ's"),
            ({"id": "a:b"}, "colons"),
        ],
    )
    def test_a_wrong_entry_is_named_with_what_would_be_right(self, changed: dict[str, Any], why: str) -> None:
        """Before anything starts, where SAQ fails later or not at all."""
        with pytest.raises(OptionError, match="SAQ's settings") as caught:
            Registry.from_saq_settings({"functions": [double], **changed})
        assert why in str(caught.value)

    def test_a_queue_of_another_kind_says_why(self) -> None:
        """Its jobs are where Knapsaq does not look."""

        class PostgresQueue:
            name = "default"

            def enqueue(self) -> None: ...

        with pytest.raises(ConfigurationError, match="is a PostgresQueue; Knapsaq's queues live in Redis or Valkey"):
            Registry.from_saq_settings({"functions": [double], "queue": PostgresQueue()})

    def test_records_that_are_not_json_are_refused_and_other_writers_of_json_are_not(self) -> None:
        """What the queue writes is tried, and not the name of what writes it."""
        spaced: Any = {"dump": lambda job: json.dumps(job, indent=1), "load": json.loads}
        queue = RedisQueue.from_url("redis://localhost", **spaced)
        assert Registry.from_saq_settings({"functions": [double], "queue": queue}).names() == ("double",)
        odd: Any = {"dump": repr, "load": json.loads}
        queue = RedisQueue.from_url("redis://localhost", **odd)
        with pytest.raises(ConfigurationError, match="a dump or load that is not JSON"):
            Registry.from_saq_settings({"functions": [double], "queue": queue})

    async def test_callbacks_of_the_queue_say_where_they_belong(self) -> None:
        """A worker has a queue of its own, which would not call them."""
        queue = RedisQueue.from_url("redis://localhost")
        queue.register_before_enqueue(lambda job: asyncio.sleep(0))
        with pytest.raises(ConfigurationError, match="register them in a startup function"):
            Registry.from_saq_settings({"functions": [double], "queue": queue})

    def test_two_dictionaries_of_one_queue_or_two_servers_are_refused_whole(self) -> None:
        """Nothing of the second is registered."""
        registry = Registry.from_saq_settings({"functions": [double]})
        with pytest.raises(ConfigurationError, match="put both into one"):
            registry.add_saq_settings({"functions": [tick]})
        elsewhere = RedisQueue.from_url("redis://elsewhere", name="other")
        with pytest.raises(ConfigurationError, match="another server"):
            registry.add_saq_settings({"functions": [tick], "queue": elsewhere})
        here = RedisQueue.from_url("redis://here")
        with pytest.raises(ConfigurationError, match="several servers"):
            Registry.from_saq_settings({"functions": [tick], "queues": [elsewhere, here]})
        assert registry.names() == ("double",)

    def test_a_name_that_is_taken_registers_nothing(self) -> None:
        """Neither within the dictionary nor beside it."""
        registry = Registry()

        @registry.task(name="double")
        async def other() -> None: ...

        with pytest.raises(DuplicateTaskError):
            registry.add_saq_settings({"functions": [tick, double]})
        assert registry.names() == ("double",)
        with pytest.raises(DuplicateTaskError):
            Registry.from_saq_settings({"functions": [("tick", double), tick]})

    def test_a_task_of_another_registry_says_which_to_use(self) -> None:
        """Its own ``enqueue`` would find no connection."""
        registry = Registry()

        @registry.task
        async def mine() -> None: ...

        with pytest.raises(ConfigurationError, match="of another registry"):
            Registry.from_saq_settings({"functions": [mine]})

    def test_a_path_that_leads_nowhere_or_to_something_else_is_named(self, saq_module: ModuleType) -> None:
        """With the nearest name."""
        with pytest.raises(RegistryError, match="did you mean 'make'"):
            Registry.from_saq_settings("legacy_app.mak")
        saq_module.fails = lambda: 1 / 0  # type: ignore[attr-defined]
        with pytest.raises(ConfigurationError, match="raised ZeroDivisionError"):
            Registry.from_saq_settings("legacy_app.fails")
        saq_module.number = 3  # type: ignore[attr-defined]
        with pytest.raises(OptionError, match="a dictionary with 'functions'"):
            Registry.from_saq_settings("legacy_app.number")


def _of_environment(settings: Settings) -> Settings:
    """Return settings that name no broker, as those of an environment without one."""
    return Settings(shutdown_grace=settings.shutdown_grace, embedded_dir=settings.embedded_dir, _env_file=None)


async def _workers(queue: Queue) -> Any:
    return (await queue.info())["workers"]


async def _disconnect(queue: RedisQueue) -> None:
    await queue.disconnect()
