from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from litestar import Controller, Litestar, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.di import Provide as LitestarProvide
from litestar.params import FromQuery
from litestar_saq import TaskQueues
from tests.litestar.conftest import Serve, served
from tests.support import Server, eventually

from knapsaq import (
    BrokerError,
    Client,
    ConfigurationError,
    Context,
    InvalidArgumentsError,
    Provide,
    Registry,
    Settings,
    get_registry,
)
from knapsaq.litestar import KnapsaqPlugin
from knapsaq.testing import running_worker


@pytest.fixture(autouse=True)
def tasks(registry: Registry) -> None:
    @registry.task
    async def double(x: int) -> int:
        return 2 * x


@post("/double")
async def double_it(task_queues: TaskQueues, x: FromQuery[int]) -> dict[str, str]:
    job = await task_queues.get("default").enqueue("double", x=x)
    return {"key": job.key}  # type: ignore[union-attr]


class Pool:
    """A value that counts how often it was used."""

    def __init__(self, name: str) -> None:
        self.name, self.used = name, 0

    def use(self) -> str:
        """Return its name and how often it has been used."""
        self.used += 1
        return f"{self.name} {self.used}"


class TestQueues:
    async def test_a_handler_enqueues_by_name_with_litestar_saqs_spelling_and_no_warning(
        self, serve: Serve, client: Client, registry: Registry
    ) -> None:
        """Warnings are errors here, so this is also the proof that Litestar has none."""
        async with serve(double_it) as http, running_worker(registry=registry):
            answer = await http.post("/double", params={"x": 21})
            job = await client.queue().job(answer.json()["key"])
            assert job is not None
            assert await job.wait(10) == 42

    async def test_the_explicit_spelling_and_controllers_and_other_providers_work_too(self, serve: Serve) -> None:
        """In each place where Litestar injects."""

        async def provide_names(task_queues: TaskQueues) -> list[str]:
            return sorted(task_queues.queues)

        class Names(Controller):
            path = "/names"

            @get()
            async def names(self, names: NamedDependency[list[str]]) -> list[str]:
                return names

            @get("/count")
            async def count(self, task_queues: NamedDependency[TaskQueues]) -> int:
                return len(task_queues.queues)

        async with serve(Names, app={"dependencies": {"names": LitestarProvide(provide_names)}}) as http:
            assert (await http.get("/names")).json() == ["default", "mail"]
            assert (await http.get("/names/count")).json() == 2

    async def test_tasks_are_bound_while_the_application_runs(self, serve: Serve, registry: Registry) -> None:
        """And not any longer."""

        @post("/task")
        async def enqueue() -> str:
            return (await registry.get("double").enqueue(x=1)).key

        async with serve(enqueue) as http:
            before = registry.sender
            assert (await http.post("/task")).status_code == 201
        assert registry.sender is not before

    def test_a_taken_name_is_refused(self, settings: Settings, registry: Registry) -> None:
        """Litestar would overwrite it in silence."""
        provided = {"task_queues": LitestarProvide(lambda: 1, sync_to_thread=False)}
        with pytest.raises(ConfigurationError, match="task_queues"):
            Litestar([], dependencies=provided, plugins=[KnapsaqPlugin(settings, registry=registry)])

    def test_a_wrong_path_is_refused(self) -> None:
        """When the plugin is made."""
        with pytest.raises(ConfigurationError, match="web_path"):
            KnapsaqPlugin(web_path="saq")

    async def test_two_applications_may_share_the_plugin(self, settings: Settings, registry: Registry) -> None:
        """Each has a connection of its own, and keeps it when the other one ends."""
        plugin = KnapsaqPlugin(settings, registry=registry)
        first, second = (Litestar([double_it], plugins=[plugin], logging_config=None) for _ in range(2))
        async with served(first) as one:
            async with served(second) as two:
                assert (await two.post("/double", params={"x": 1})).status_code == 201
            assert (await one.post("/double", params={"x": 1})).status_code == 201


class TestDependencies:
    async def test_one_dictionary_serves_handlers_and_tasks(
        self, serve: Serve, client: Client, registry: Registry
    ) -> None:
        """With the same scopes and the same clean-up."""
        ended: list[str] = []

        def provide_plain() -> str:
            return "plain"

        async def provide_session() -> AsyncIterator[str]:
            yield "session"
            ended.append("session")

        async def provide_pool(plain: NamedDependency[str]) -> AsyncIterator[Pool]:
            yield Pool(plain)
            ended.append("pool")

        dependencies = {
            "plain": Provide(provide_plain, scope="worker"),
            "session": provide_session,
            "pool": Provide(provide_pool, scope="worker"),
            "litestars": LitestarProvide(provide_plain, sync_to_thread=False),
        }

        @registry.task
        async def describe(plain: Any, session: Any, pool: Any, litestars: Any) -> list[Any]:
            return [plain, session, pool.use(), litestars]

        @get("/")
        async def show(
            plain: NamedDependency[str],
            session: NamedDependency[str],
            pool: NamedDependency[Pool],
            litestars: NamedDependency[str],
        ) -> list[Any]:
            return [plain, session, pool.use(), litestars]

        async with serve(show, dependencies=dependencies) as http:
            async with running_worker(registry=registry):
                job = await describe.enqueue()
                assert await job.wait(10) == ["plain", "session", "plain 1", "plain"]
            ended.clear()
            assert (await http.get("/")).json() == ["plain", "session", "plain 1", "plain"]
            assert ended == ["session"]
            # What lives as long as the application was made once.
            assert (await http.get("/")).json()[2] == "plain 2"
        assert ended == ["session", "session", "pool"]

    async def test_a_generator_that_is_no_coroutine_is_finished_as_well(self, serve: Serve) -> None:
        """After the request."""
        ended: list[str] = []

        def provide_file() -> Iterator[str]:
            yield "file"
            ended.append("file")

        @get("/")
        async def show(file: NamedDependency[str]) -> str:
            return file

        async with serve(show, dependencies={"file": provide_file}) as http:
            assert (await http.get("/")).text == "file"
        assert ended == ["file"]

    async def test_the_applications_own_provider_stays(self, serve: Serve) -> None:
        """What it says of its handlers wins."""

        @get("/")
        async def show(who: NamedDependency[str]) -> str:
            return who

        async def ours() -> str:
            return "ours"

        async def theirs() -> str:
            return "theirs"

        async with serve(
            show, dependencies={"who": ours}, app={"dependencies": {"who": LitestarProvide(theirs)}}
        ) as http:
            assert (await http.get("/")).text == "theirs"

    async def test_a_provider_that_needs_the_job_is_for_tasks_alone(self, serve: Serve, registry: Registry) -> None:
        """So is one that needs such a provider."""

        async def provide_attempt(ctx: Context) -> int:
            return ctx.retries

        async def provide_label(attempt: NamedDependency[int]) -> str:
            return f"attempt {attempt}"

        @registry.task
        async def label_of(label: Any) -> str:
            return str(label)

        @get("/")
        async def show() -> str:
            return "fine"

        async with (
            serve(show, dependencies={"attempt": provide_attempt, "label": provide_label}) as http,
            running_worker(registry=registry),
        ):
            assert (await http.get("/")).text == "fine"
            assert await (await label_of.enqueue()).wait(10) == "attempt 0"

    def test_making_the_plugin_is_enough_for_a_worker_that_imports_it(
        self, settings: Settings, registry: Registry
    ) -> None:
        """`knapsaq worker` makes no application."""
        KnapsaqPlugin(settings, registry=registry, dependencies={"value": lambda: 1})
        assert "value" in registry.dependencies
        assert KnapsaqPlugin(settings).registry is get_registry()


class TestAnswers:
    @pytest.fixture
    def enqueue(self) -> Any:
        """A handler that queues whatever it is told."""

        @post("/enqueue/{name:str}")
        async def enqueue(task_queues: TaskQueues, request: Request[Any, Any, Any]) -> str:
            kwargs = await request.json()
            job = await task_queues.get("default").enqueue(request.path_params["name"], **kwargs)
            return job.key  # type: ignore[union-attr]

        return enqueue

    @pytest.mark.parametrize(
        ("name", "kwargs", "status", "text"),
        [
            ("double", {"x": "two"}, 400, "argument 'x': expected int"),
            ("double", {}, 400, "given nothing"),
            ("doubel", {"x": 2}, 400, "did you mean 'double'?"),
            ("keep", {"text": "x" * 2000}, 413, "KNAPSAQ_MAX_PAYLOAD_BYTES"),
        ],
    )
    async def test_a_wrong_call_is_the_clients_fault(
        self,
        *,
        serve: Serve,
        settings: Settings,
        registry: Registry,
        client: Client,
        enqueue: Any,
        name: str,
        kwargs: Any,
        status: int,
        text: str,
    ) -> None:
        """In Litestar's own form, and nothing is queued."""

        @registry.task
        async def keep(text: str) -> None: ...

        small = settings.with_values(max_payload_bytes=1024)
        async with serve(enqueue, settings=small) as http:
            answer = await http.post(f"/enqueue/{name}", json=kwargs)
        assert answer.status_code == status
        assert answer.json()["status_code"] == status
        assert text in answer.json()["detail"]
        assert await client.queue().count("incomplete") == 0

    async def test_the_applications_own_answer_wins(self, serve: Serve, enqueue: Any) -> None:
        """Ours are defaults."""

        def teapot(_request: Request[Any, Any, Any], error: InvalidArgumentsError) -> Response[str]:
            return Response(error.parameter, status_code=418)

        async with serve(enqueue, app={"exception_handlers": {InvalidArgumentsError: teapot}}) as http:
            answer = await http.post("/enqueue/double", json={})
        assert (answer.status_code, answer.text) == (418, "x")

    async def test_a_broker_that_goes_away_is_503_until_it_is_back(
        self, serve: Serve, settings: Settings, enqueue: Any, tmp_path: Path
    ) -> None:
        """The client is told when to come again, and not where the broker is."""
        server = Server(tmp_path)
        own = settings.with_values(broker_url=server.start())
        async with serve(enqueue, settings=own) as http:
            assert (await http.post("/enqueue/double", json={"x": 1})).status_code == 201
            assert (await http.get("/saq/health")).status_code == 403
            server.kill()
            answer = await http.post("/enqueue/double", json={"x": 1})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            assert str(tmp_path) not in answer.text
            assert "may or may not have been queued" in answer.json()["detail"]
            assert "`key`" in answer.json()["detail"]
            server.start()

            async def accepted() -> bool:
                return bool((await http.post("/enqueue/double", json={"x": 1})).status_code == 201)

            await eventually(accepted)
        server.stop()

    async def test_a_broker_that_is_away_from_the_start_ends_the_application_with_what_to_do(
        self, settings: Settings, registry: Registry
    ) -> None:
        """One error, without a chain of causes."""
        away = settings.with_values(broker_url="redis://user:hunter2@127.0.0.1:1/0")
        app = Litestar([], plugins=[KnapsaqPlugin(away, registry=registry)])
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - Litestar puts it into a group or not
            async with app.lifespan():
                pass
        error = caught.value
        while isinstance(error, BaseExceptionGroup):
            [error] = error.exceptions
        assert isinstance(error, BrokerError)
        assert error.__cause__ is None
        assert "KNAPSAQ_BROKER_URL" in str(error)
        assert "hunter2" not in str(error)
