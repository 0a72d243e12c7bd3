from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
from litestar.di import Provide as LitestarProvide

from knapsaq import INJECTED, Context, Job, Provide, Registry, Settings, Task
from knapsaq.errors import MissingProviderError, ProviderError
from knapsaq.executor import Executor
from knapsaq.outcomes import Failed, Outcome, Retried, Succeeded
from knapsaq.providers import Injector

Log = list[str]


@pytest.fixture
def log() -> Log:
    """What happened, in order."""
    return []


def wanting(*names: str) -> Callable[..., Any]:
    """Return a coroutine function that asks for these parameters and returns what it was given."""
    scope: dict[str, Any] = {}
    exec(f"async def function(*, {', '.join(names)}): return [{', '.join(names)}]", scope)  # noqa: S102
    function: Callable[..., Any] = scope["function"]
    return function


def make(registry: Registry, function: Callable[..., Any], **options: Any) -> Task[..., Any, Any]:
    task: Task[..., Any, Any] = registry.task(**options)(function)
    return task


async def provided(registry: Registry, dependencies: Mapping[str, Any], *names: str) -> list[Any]:
    """Return what a task that asks for ``names`` gets."""
    registry.provide(dependencies)
    task = make(registry, wanting(*names))
    injector = Injector([task])
    await injector.open()
    async with AsyncExitStack() as stack:
        found = await injector.plan(task).resolve(Context(job=None), stack, injector.shared)
    await injector.close()
    return [found[name] for name in names]


async def run(registry: Registry, settings: Settings, task: Task[..., Any, Any], **job: Any) -> Outcome:
    """Run one attempt of a task."""
    executor = Executor(registry, Injector(registry.get_all_tasks()), settings, {}, threads=2)
    attempt: Job[Any] = Job(function=task.name, attempts=1, **job)
    return await executor.run(attempt, Context(job=attempt))


class Factory:
    async def __call__(self) -> str:
        """Make the value."""
        return "callable"


class Repository:
    def __init__(self, coroutine: str) -> None:
        self.of = coroutine


async def coroutine() -> str:
    return "coroutine"


def plain() -> str:
    return "plain"


def generator() -> Iterator[str]:
    yield "generator"


async def asynchronous_generator() -> AsyncIterator[str]:
    yield "async generator"


def thread_name() -> str:
    return threading.current_thread().name


class TestKinds:
    @pytest.mark.parametrize("wrap", [lambda function: function, Provide])
    async def test_functions_of_every_kind_provide_their_value(self, registry: Registry, wrap: Any) -> None:
        """Plain, coroutine, generator, asynchronous generator and callable object, bare or in ``Provide``."""
        dependencies = {
            "a": wrap(coroutine),
            "b": wrap(plain),
            "c": wrap(generator),
            "d": wrap(asynchronous_generator),
            "e": wrap(Factory()),
        }
        expected = ["coroutine", "plain", "generator", "async generator", "callable"]
        assert await provided(registry, dependencies, *"abcde") == expected

    async def test_a_class_is_made_of_other_providers_values(self, registry: Registry) -> None:
        """Repositories need no factory function."""
        dependencies = {"repository": Repository, "coroutine": coroutine}
        [repository] = await provided(registry, dependencies, "repository")
        assert repository.of == "coroutine"

    async def test_litestars_own_objects_provide_the_same(self, registry: Registry) -> None:
        """One dictionary serves route handlers and tasks."""
        dependencies = {
            "a": LitestarProvide(coroutine),
            "b": LitestarProvide(plain, sync_to_thread=False),
            "c": LitestarProvide(generator),
            "d": LitestarProvide(asynchronous_generator),
            "here": LitestarProvide(thread_name, sync_to_thread=False),
            "elsewhere": LitestarProvide(thread_name, sync_to_thread=True),
        }
        *values, here, elsewhere = await provided(registry, dependencies, *"abcd", "here", "elsewhere")
        assert values == ["coroutine", "plain", "generator", "async generator"]
        assert here == threading.current_thread().name
        assert elsewhere != here

    async def test_a_blocking_provider_runs_in_a_thread_on_demand(self, registry: Registry) -> None:
        """Opening a file does not stop the loop."""
        [name] = await provided(registry, {"name": Provide(thread_name, sync_to_thread=True)}, "name")
        assert name != threading.current_thread().name

    async def test_a_provider_may_ask_for_the_context(self, registry: Registry) -> None:
        """A tenant's database is chosen by the job's headers."""
        [ctx] = await provided(registry, {"tenant": lambda ctx: ctx}, "tenant")
        assert isinstance(ctx, Context)

    async def test_an_optional_parameter_of_a_provider_is_filled_if_somebody_can(self, registry: Registry) -> None:
        """A default counts only where nobody provides the name."""

        def service(plain: str = "default", other: str = "other") -> tuple[str, str]:
            return plain, other

        assert await provided(registry, {"service": service, "plain": plain}, "service") == [("plain", "other")]

    async def test_what_two_ask_for_is_made_once_a_job(self, registry: Registry, log: Log) -> None:
        """Two repositories of one job share its session."""

        def session() -> object:
            log.append("made")
            return object()

        dependencies = {"session": session, "users": lambda session: session, "mails": lambda session: session}
        users, mails = await provided(registry, dependencies, "users", "mails")
        assert users is mails
        assert log == ["made"]


class TestPlans:
    def test_a_missing_provider_is_named_with_the_nearest(self, registry: Registry) -> None:
        """It is found when the worker starts, not by the first job."""

        def f(*, db_sesion: Any = INJECTED) -> None: ...

        registry.provide({"db_session": plain})
        with pytest.raises(MissingProviderError, match="did you mean 'db_session'") as caught:
            Injector([make(registry, f)])
        assert (caught.value.task, caught.value.parameter) == ("f", "db_sesion")

    def test_a_provider_whose_own_need_nobody_meets_is_refused(self, registry: Registry) -> None:
        """The whole chain is looked at."""
        registry.provide({"users": lambda session: session})
        with pytest.raises(MissingProviderError, match="asks for 'session'"):
            Injector([make(registry, wanting("users"))])

    def test_a_circle_is_shown(self, registry: Registry) -> None:
        """The error's text is the way round."""
        registry.provide({"a": lambda b: b, "b": lambda c: c, "c": lambda a: a})
        with pytest.raises(ProviderError, match="in a circle: a -> b -> c -> a"):
            Injector([make(registry, wanting("a"))])

    def test_something_that_provides_nothing_is_refused(self, registry: Registry) -> None:
        """A value instead of a function is a mistake."""
        registry.provide({"limit": 5})
        with pytest.raises(ProviderError, match="5 provides nothing; give a function"):
            Injector([make(registry, wanting("limit"))])

    def test_a_value_of_the_worker_cannot_be_made_of_one_of_a_job(self, registry: Registry) -> None:
        """It would outlive what it holds."""
        registry.provide({"pool": Provide(lambda session: session, scope="worker"), "session": plain})
        with pytest.raises(ProviderError, match=r"'pool' lives as long as the worker, but needs 'session'"):
            Injector([make(registry, wanting("pool"))])

    def test_two_tasks_cannot_provide_one_value_of_the_worker_differently(self, registry: Registry) -> None:
        """There is one value of a name in a worker, so it must be clear which."""
        first = make(registry, wanting("pool"), name="a", dependencies={"pool": Provide(plain, scope="worker")})
        second = make(registry, wanting("pool"), name="b", dependencies={"pool": Provide(coroutine, scope="worker")})
        with pytest.raises(ProviderError, match="two tasks provide it differently"):
            Injector([first, second])


class TestScopeOfTheWorker:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda function: Provide(function, scope="worker"),
            lambda function: LitestarProvide(function, use_cache=True),
        ],
    )
    async def test_one_value_serves_all_jobs(self, registry: Registry, settings: Settings, wrap: Any) -> None:
        """A connection pool is opened once; what Litestar caches lives as long as the worker, too."""

        async def pool() -> object:
            return object()

        registry.provide({"pool": wrap(pool), "session": lambda pool: pool})
        task = make(registry, wanting("pool", "session"))
        injector = Injector([task])
        await injector.open()
        async with AsyncExitStack() as stack:
            first = await injector.plan(task).resolve(Context(), stack, injector.shared)
            second = await injector.plan(task).resolve(Context(), stack, injector.shared)
        assert first["pool"] is first["session"] is second["pool"] is second["session"]
        await injector.close()

    async def test_values_are_finished_when_the_worker_closes_newest_first(self, registry: Registry, log: Log) -> None:
        """What was built on another value goes before it."""

        async def engine() -> AsyncIterator[str]:
            log.append("open engine")
            yield "engine"
            log.append("close engine")

        def cache(engine: str) -> Iterator[str]:
            log.append(f"open cache of {engine}")
            yield "cache"
            log.append("close cache")

        registry.provide({"cache": Provide(cache, scope="worker"), "engine": Provide(engine, scope="worker")})
        injector = Injector([make(registry, wanting("cache"))])
        assert log == []
        await injector.open()
        assert injector.shared == {"engine": "engine", "cache": "cache"}
        await injector.close()
        assert log == ["open engine", "open cache of engine", "close cache", "close engine"]

    async def test_one_that_raises_is_named(self, registry: Registry) -> None:
        """Whoever starts the worker reads which value could not be made, and why."""

        def pool() -> None:
            raise RuntimeError("no database")

        registry.provide({"pool": Provide(pool, scope="worker")})
        with pytest.raises(ProviderError, match="'pool' failed: RuntimeError"):
            await Injector([make(registry, wanting("pool"))]).open()


class TestCleanUp:
    @pytest.fixture(autouse=True)
    def dependencies(self, registry: Registry, log: Log) -> None:
        """Two values, one made of the other, that note how they end."""

        async def engine() -> AsyncIterator[str]:
            try:
                yield "engine"
            except BaseException as error:
                log.append(f"engine saw {type(error).__name__}")
                raise
            finally:
                log.append("engine closed")

        def session(engine: str) -> Iterator[str]:
            try:
                yield "session"
            except BaseException as error:
                log.append(f"session saw {type(error).__name__}")
                raise
            finally:
                log.append("session closed")

        registry.provide({"session": session, "engine": engine})

    async def test_after_success_in_the_opposite_order(self, registry: Registry, settings: Settings, log: Log) -> None:
        """Clean-up comes after the function and before the job is settled."""

        async def f(*, session: str) -> str:
            log.append("ran")
            return session

        assert await run(registry, settings, make(registry, f)) == Succeeded("session")
        assert log == ["ran", "session closed", "engine closed"]

    async def test_after_failure_a_generator_sees_the_exception(
        self, registry: Registry, settings: Settings, log: Log
    ) -> None:
        """A session rolls back what the task did not finish."""

        async def f(*, session: str) -> None:
            raise KeyError(session)

        assert isinstance(await run(registry, settings, make(registry, f)), Failed)
        assert log == ["session saw KeyError", "session closed", "engine saw KeyError", "engine closed"]

    async def test_after_the_time_limit(self, registry: Registry, settings: Settings, log: Log) -> None:
        """A cancelled attempt leaves no open transaction."""

        async def f(*, session: str) -> None:
            await asyncio.Event().wait()

        outcome = await run(registry, settings, make(registry, f), timeout=0.01)
        assert isinstance(outcome, Failed)
        assert "ran over its limit of 0.01 s" in outcome.error
        assert log[0] == "session saw TaskTimeoutError"
        assert log[-1] == "engine closed"

    async def test_after_cancellation_from_outside(self, registry: Registry, settings: Settings, log: Log) -> None:
        """A worker that stops finishes what its jobs have opened."""
        began = asyncio.Event()

        async def f(*, session: str) -> None:
            began.set()
            await asyncio.Event().wait()

        running = asyncio.create_task(run(registry, settings, make(registry, f)))
        await began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert log == ["session saw CancelledError", "session closed", "engine saw CancelledError", "engine closed"]

    async def test_if_a_later_provider_fails(self, registry: Registry, settings: Settings, log: Log) -> None:
        """What was made already is finished, the function does not run, and the job may be tried again."""

        def broken(session: str) -> str:
            raise ConnectionError

        async def f(*, broken: str) -> None:
            log.append("ran")

        registry.provide({"broken": broken})
        assert isinstance(await run(registry, settings, make(registry, f), retries=2), Retried)
        assert log == [
            "session saw ConnectionError",
            "session closed",
            "engine saw ConnectionError",
            "engine closed",
        ]

    async def test_a_generator_that_swallows_the_exception_does_not_make_a_success_of_it(
        self, registry: Registry, settings: Settings, log: Log
    ) -> None:
        """A provider that forgets to raise again must not lose the failure, as in Litestar."""

        async def forgetful() -> AsyncIterator[str]:
            try:
                yield "forgetful"
            except KeyError:
                log.append("rolled back")

        async def f(*, forgetful: str) -> None:
            raise KeyError(forgetful)

        registry.provide({"forgetful": forgetful})
        outcome = await run(registry, settings, make(registry, f))
        assert isinstance(outcome, Failed)
        assert "KeyError: 'forgetful'" in outcome.error
        assert log == ["rolled back"]

    async def test_a_clean_up_that_fails_is_the_jobs_failure(self, registry: Registry, settings: Settings) -> None:
        """A commit that comes to nothing is not called a success."""

        def commits() -> Iterator[str]:
            yield "commits"
            raise OSError("disk full")

        registry.provide({"commits": commits})
        outcome = await run(registry, settings, make(registry, wanting("commits")))
        assert isinstance(outcome, Failed)
        assert "disk full" in outcome.error

    async def test_a_clean_up_that_hangs_is_cancelled_and_is_the_jobs_failure(
        self, registry: Registry, settings: Settings, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No slot is kept for ever; each of several that hang has its own limit, and the others are finished."""
        monkeypatch.setattr("knapsaq.providers.CLEANUP_SECONDS", 0.01)
        never = asyncio.Event()

        async def hangs(session: str) -> AsyncIterator[str]:
            try:
                yield session
            finally:
                await never.wait()

        registry.provide({"hangs": hangs, "hangs_too": hangs})
        attempt = asyncio.create_task(run(registry, settings, make(registry, wanting("hangs", "hangs_too"), name="t")))
        await asyncio.wait({attempt}, timeout=5)
        never.set()
        outcome = await attempt
        assert isinstance(outcome, Failed)
        assert "task 't': the clean-up of 'hangs' took longer than 0.01 s and was cancelled" in outcome.error
        assert "task 't': the clean-up of 'hangs_too' took longer" in outcome.error
        assert log == ["session saw ProviderError", "session closed", "engine saw ProviderError", "engine closed"]

    async def test_a_clean_ups_own_time_limit_is_told_as_such(self, registry: Registry, settings: Settings) -> None:
        """It is not taken for one that hangs."""

        async def commits() -> AsyncIterator[str]:
            yield ""
            raise TimeoutError("slow server")

        registry.provide({"commits": commits})
        outcome: Any = await run(registry, settings, make(registry, wanting("commits")))
        assert outcome.error.rstrip().endswith("TimeoutError: slow server")
