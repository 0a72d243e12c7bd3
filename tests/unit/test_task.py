from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import saq.types

from knapsaq import INJECTED, Context, Registry, Task
from knapsaq.errors import InvalidArgumentsError, NotConnectedError, TaskDefinitionError


def make(registry: Registry, function: Any, **options: Any) -> Task[..., Any, Any]:
    made: Task[..., Any, Any] = registry.task(**options)(function)
    return made


async def send_email(ctx: Context, *, to: str, subject: str = "Hi") -> dict[str, str]:
    """Send one e-mail."""
    return {"to": to, "subject": subject, "id": ctx.id}


class TestStillTheFunction:
    def test_it_has_the_functions_name_text_and_signature(self, registry: Registry) -> None:
        """Documentation tools and frameworks see the function."""
        task = make(registry, send_email)
        assert task.__name__ == "send_email"
        assert task.__doc__ == "Send one e-mail."
        assert task.__module__ == __name__
        assert task.__wrapped__ is send_email
        assert task.function is send_email
        assert inspect.signature(task) == inspect.signature(send_email)

    async def test_it_runs_in_place_with_any_mapping_as_its_context(self, registry: Registry) -> None:
        """A test calls the task as the seed shows, with a dictionary."""
        task = make(registry, send_email)
        expected = {"to": "a@b.c", "subject": "Hi", "id": ""}
        assert await task({"queue": None}, to="a@b.c") == expected
        assert await task(Context(), to="a@b.c") == expected

    async def test_a_context_is_handed_on_as_it_is(self, registry: Registry) -> None:
        """What a caller puts into its own context is what the function finds, and the other way round."""

        async def remember(ctx: Context) -> Context:
            return ctx

        task, ctx = make(registry, remember), Context(a=1)
        assert await task(ctx) is ctx
        assert (await task({"a": 1})).called_directly

    async def test_a_function_without_context_is_called_as_it_is(self, registry: Registry) -> None:
        """A mapping that is an ordinary argument stays one."""

        async def count(words: dict[str, int]) -> Any:
            return words

        words = {"a": 1}
        assert await make(registry, count)(words) is words

    def test_a_plain_function_returns_at_once(self, registry: Registry) -> None:
        """Calling a synchronous task needs no event loop."""

        def add(x: int, y: int) -> int:
            return x + y

        assert make(registry, add)(1, y=2) == 3

    def test_a_direct_call_has_to_bring_what_a_provider_would(self, registry: Registry) -> None:
        """The placeholder never gets into the function."""

        def save(*, name: str, db: Any = INJECTED) -> Any:
            return db

        task = make(registry, save)
        assert task(name="a", db=7) == 7
        with pytest.raises(InvalidArgumentsError, match="a direct call asks no provider") as caught:
            task(name="a")
        assert caught.value.parameter == "db"


def by_name(ctx: Any) -> None: ...
def by_our_annotation(context: Context) -> None: ...
def by_saqs_annotation(_: saq.types.Context) -> None: ...
def of_another_kind(context: str) -> None: ...
def only_second(x: int, ctx: Context) -> None: ...
def by_keyword(*, ctx: Context) -> None: ...
def without() -> None: ...
def at_least(low: int, value: int) -> int:
    return max(low, value)


class TestContextParameter:
    @pytest.mark.parametrize("function", [by_name, by_our_annotation, by_saqs_annotation])
    def test_it_is_known_by_its_name_or_its_annotation(self, registry: Registry, function: Any) -> None:
        """Ours and SAQ's annotation both count; callers do not give it."""
        task = make(registry, function)
        assert task.takes_context
        assert task.parameters == ()

    @pytest.mark.parametrize("function", [of_another_kind, only_second, by_keyword, without])
    def test_anything_but_a_first_positional_parameter_is_an_argument(self, registry: Registry, function: Any) -> None:
        """No argument is taken for the context by mistake."""
        task = make(registry, function)
        assert not task.takes_context
        assert task.parameters == tuple(inspect.signature(function).parameters)

    def test_an_annotation_that_is_a_class_counts_as_well(self, registry: Registry) -> None:
        """Modules without ``from __future__ import annotations`` work the same."""

        def function(job_context: Any) -> None: ...

        function.__annotations__["job_context"] = saq.types.Context
        assert make(registry, function).takes_context


class TestDefinition:
    def test_it_says_where_it_was_defined(self, registry: Registry) -> None:
        """``repr`` and the list of tasks lead to the source."""
        task = make(registry, send_email, name="mail.send")
        line = inspect.getsourcelines(send_email)[1]
        assert task.location == f"{__file__}:{line}"
        assert repr(task) == f"<Task 'mail.send' at {__file__}:{line}>"
        assert (task.name, task.__name__) == ("mail.send", "send_email")

    def test_how_it_runs_follows_from_the_function(self, registry: Registry) -> None:
        """A coroutine function runs on the loop, also behind other decorators; everything else in a thread."""

        @functools.wraps(send_email)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return send_email(*args, **kwargs)

        class Callable:
            async def __call__(self) -> None: ...

        assert make(registry, wrapped, name="a").is_async
        assert make(registry, Callable(), name="b").is_async
        assert not make(registry, without).is_async

    @pytest.mark.parametrize(("function", "run"), [(send_email, "thread"), (without, "async")])
    def test_a_wish_that_the_function_cannot_meet_is_refused(self, registry: Registry, function: Any, run: str) -> None:
        """A blocking function on the loop, or a coroutine in a thread, is found at import."""
        with pytest.raises(TaskDefinitionError, match=f"run='{run}' needs"):
            make(registry, function, run=run)

    def test_a_callable_without_a_name_has_to_be_given_one(self, registry: Registry) -> None:
        """A ``partial`` is a fine task under a name."""
        call = functools.partial(at_least, 1)
        with pytest.raises(TaskDefinitionError, match=r"give it one with @task\(name=\.\.\.\)"):
            make(registry, call)
        assert make(registry, call, name="at_least_one")(0) == 1

    def test_parameters_are_those_that_a_caller_may_give(self, registry: Registry) -> None:
        """What the registry's or the task's own providers fill is not among them, from the moment they are known."""

        async def f(ctx: Context, a: int, *, b: int = 0, db: Any, cache: Any, clock: Any = INJECTED) -> None: ...

        task = make(registry, f, dependencies={"db": int})
        assert task.parameters == ("a", "b", "cache")
        registry.provide({"cache": dict, "clock": dict})
        assert task.parameters == ("a", "b")
        assert task.injected == {"db", "cache", "clock"}
        assert set(task.providers) == {"db", "cache", "clock"}

    def test_a_tasks_own_provider_wins_over_the_registrys(self, registry: Registry) -> None:
        """What is nearer to the task counts."""
        registry.provide({"db": int})
        assert make(registry, without, dependencies={"db": str}).providers["db"] is str


class TestCalling:
    async def test_outside_a_connection_it_says_how_to_connect(self, registry: Registry) -> None:
        """The error names both ways, for scripts and for applications; wrong arguments are found before."""
        task = make(registry, send_email)
        with pytest.raises(NotConnectedError, match=r"async with knapsaq\.connect\(\).*KnapsaqPlugin"):
            await task.enqueue(to="a@b.c")
        with pytest.raises(InvalidArgumentsError):
            await task.enqueue(to=1)

    def test_a_call_overrides_the_tasks_options_for_its_own_job(self, registry: Registry) -> None:
        """What the call does not name comes from the task; what neither names is left to the settings."""
        task = make(registry, send_email, timeout=60, retries=3)
        plain = task.build_job(task.using().options, (), {"to": "a"})
        assert (plain.timeout, plain.retries, plain.ttl, plain.headers) == (60, 4, None, {})
        told = task.using(timeout=5).using(retries=0, ttl=7, key="k", headers={"h": "1"})
        job = task.build_job(told.options, (), {"to": "a"})
        assert (job.timeout, job.retries, job.ttl, job.key, job.headers) == (5, 1, 7, "k", {"h": "1"})

    def test_jobs_have_keys_that_cannot_be_guessed(self, registry: Registry) -> None:
        """A key in a URL gives no other key away."""
        task = make(registry, without)
        made = {task.build_job(task.using().options, (), {}).key for _ in range(100)}
        assert len(made) == 100
        assert {len(key) for key in made} == {22}

    async def test_mappings_of_arguments_are_not_changed(self, registry: Registry) -> None:
        """The caller's dictionary stays the caller's."""
        task = make(registry, send_email)
        arguments: Mapping[str, Any] = {"to": "a"}
        task.build_job(task.using().options, (), arguments)
        assert arguments == {"to": "a"}
