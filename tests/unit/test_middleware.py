"""What is done around jobs, put together without a queue; ``tests/redis/test_middleware.py`` has the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from knapsaq import Context, Job, Middleware, MiddlewareError, OptionError, Registry, Retry, Settings, TaskTimeoutError
from knapsaq import middleware as module
from knapsaq.executor import Executor
from knapsaq.middleware import CallNext, Stack
from knapsaq.outcomes import Aborted, Discard, Failed, Outcome, Released, Retried, Succeeded
from knapsaq.providers import Injector

Attempt = Callable[..., Awaitable[Outcome]]
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Named(Middleware):
    """Notes when it is entered and left."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    async def around(self, ctx: Context, call_next: CallNext) -> Any:
        """Note both."""
        self.notes.append(f"{self.name} in")
        try:
            return await call_next()
        finally:
            self.notes.append(f"{self.name} out")


class Around(Middleware):
    """Runs a function that a test writes."""

    def __init__(self, function: Callable[[Context, CallNext], Awaitable[Any]]) -> None:
        self.function = function

    async def around(self, ctx: Context, call_next: CallNext) -> Any:
        """Run it."""
        return await self.function(ctx, call_next)


@pytest.fixture
def attempt(registry: Registry, settings: Settings) -> Attempt:
    """Run one attempt of a function as a worker would, with a task's options and a job's time limit."""

    async def run(function: Callable[..., Any], timeout: float | None = None, **options: Any) -> Outcome:
        registry._tasks.clear()
        task: Any = registry.task(name="t", **options)(function)
        job: Job[Any] = task.build_job(task.using().options, (), {})
        job.attempts = 1
        vars(job)["timeout"] = timeout
        ctx = Context(job=job)
        ctx.stack = registry.stack("t", "default")
        return await Executor(registry, Injector([task]), settings, {}, threads=1).run(job, ctx)

    return run


class TestOrder:
    async def test_the_programs_are_outside_of_the_queues_and_these_of_the_tasks(
        self, registry: Registry, attempt: Attempt
    ) -> None:
        """Whatever the order in which they were added; those of one level keep theirs."""
        notes: list[str] = []
        registry.use(Named("queue", notes), queue="default")
        registry.use(Named("other", notes), queue="other")
        registry.use(Named("first", notes), Named("second", notes))

        async def f() -> str:
            notes.append("task")
            return "done"

        own = [Named("own 1", notes), Named("own 2", notes)]
        assert await attempt(f, middleware=own) == Succeeded("done")
        entered = ["first", "second", "queue", "own 1", "own 2"]
        assert notes == [f"{n} in" for n in entered] + ["task"] + [f"{n} out" for n in reversed(entered)]

    async def test_one_object_in_two_places_is_called_once(self, registry: Registry, attempt: Attempt) -> None:
        """Where it stands first."""
        notes: list[str] = []
        both = Named("both", notes)
        registry.use(both)
        registry.use(Named("queue", notes), queue="default")

        async def f() -> None: ...

        await attempt(f, middleware=both)
        assert notes == ["both in", "queue in", "queue out", "both out"]

    def test_stacks_are_put_together_once_and_anew_after_a_change(self, registry: Registry) -> None:
        """The next job of a task gets the same object; of names that nobody knows all share one."""
        task: Any = registry.task(name="t", middleware=Named("own", []))(lambda: None)
        assert registry.stack("t", "default") is registry.stack("t", "default")
        assert registry.stack("a", "default") is registry.stack("b", "default")
        registry.use(Named("late", []))
        assert len(registry.stack("t", "default").around) == 2
        assert task.options.middleware[0].name == "own"

    def test_without_middlewares_nobody_asks(self, registry: Registry) -> None:
        """What the hot path looks at is one flag; clearing the registry takes it back."""
        registry.task(name="plain")(lambda: None)
        assert not registry.layers.in_use
        registry.task(name="own", middleware=Named("own", []))(lambda: None)
        assert registry.layers.in_use
        registry.clear()
        assert not registry.layers.in_use

    def test_hooks_that_a_middleware_does_not_override_are_not_called(self) -> None:
        """A base class's method that does nothing costs nothing."""
        stack = Stack.of([Named("n", []), Middleware()])
        assert [len(hooks) for hooks in (stack.around, stack.on_success, stack.before_enqueue)] == [1, 0, 0]


class TestAround:
    async def test_it_wraps_dependencies_arguments_task_and_clean_up(self, attempt: Attempt) -> None:
        """So what it opens is there for providers too, and it sees what their clean-up raises."""
        notes: list[str] = []

        async def provide_session() -> Any:
            notes.append("made")
            yield "session"
            notes.append("finished")

        async def f(*, session: str) -> None:
            notes.append(session)

        await attempt(f, middleware=Named("m", notes), dependencies={"session": provide_session})
        assert notes == ["m in", "made", "session", "finished", "m out"]

    async def test_what_it_returns_is_the_result(self, attempt: Attempt) -> None:
        """It may change one, or give one without running the task."""

        async def doubled(ctx: Context, call_next: CallNext) -> Any:
            return 2 * await call_next()

        async def cached(ctx: Context, call_next: CallNext) -> Any:
            return "from the cache"

        async def f() -> int:
            return 21

        async def never() -> None:
            pytest.fail("it must not run")

        assert await attempt(f, middleware=Around(doubled)) == Succeeded(42)
        assert await attempt(never, middleware=[Around(cached), Around(doubled)]) == Succeeded("from the cache")

    async def test_what_it_raises_is_the_tasks_failure_with_the_tasks_retries(self, attempt: Attempt) -> None:
        """Before the task and after it; a signal counts as well."""

        async def before(ctx: Context, call_next: CallNext) -> Any:
            raise OSError("before")

        async def after(ctx: Context, call_next: CallNext) -> Any:
            await call_next()
            raise Discard("not needed")

        async def f() -> None: ...

        failed = await attempt(f, middleware=Around(before))
        assert isinstance(failed, Failed)
        assert "OSError: before" in failed.error
        assert isinstance(await attempt(f, middleware=Around(before), retries=1), Retried)
        assert await attempt(f, middleware=Around(after)) == Aborted("discarded: not needed")

    async def test_it_sees_what_the_task_raises_and_may_end_it(self, attempt: Attempt) -> None:
        """A time-out arrives as the error that it becomes, a request for a retry as the signal."""
        seen: list[str] = []

        async def noting(ctx: Context, call_next: CallNext) -> Any:
            try:
                return await call_next()
            except Exception as error:
                seen.append(type(error).__name__)
                if isinstance(error, KeyError):
                    return "mended"
                raise

        async def fails() -> None:
            raise KeyError

        async def hangs() -> None:
            await asyncio.Event().wait()

        async def asks() -> None:
            raise Retry(after=5)

        assert await attempt(fails, middleware=Around(noting)) == Succeeded("mended")
        assert isinstance(await attempt(hangs, timeout=0.01, middleware=Around(noting)), Failed)
        asked = await attempt(asks, middleware=Around(noting))
        assert isinstance(asked, Retried)
        assert asked.after == 5
        assert seen == ["KeyError", TaskTimeoutError.__name__, "Retry"]

    async def test_it_wraps_plain_functions_and_those_of_saq(
        self, registry: Registry, settings: Settings, attempt: Attempt
    ) -> None:
        """A thread more or less makes no difference to it."""
        notes: list[str] = []
        registry.use(Named("m", notes))

        def f() -> str:
            return "from a thread"

        assert await attempt(f) == Succeeded("from a thread")

        job: Job[Any] = Job(function="saqs", attempts=1)
        ctx = Context(job=job)
        ctx.stack = registry.stack("saqs", "default")
        executor = Executor(registry, Injector([]), settings, {"saqs": lambda ctx: "from SAQ"}, threads=1)
        assert await executor.run(job, ctx) == Succeeded("from SAQ")
        assert notes == ["m in", "m out"] * 2

    async def test_calling_next_twice_is_refused(self, attempt: Attempt) -> None:
        """One attempt runs a task once; retries are the queue's business."""
        runs: list[int] = []

        async def twice(ctx: Context, call_next: CallNext) -> Any:
            await call_next()
            return await call_next()

        async def f() -> None:
            runs.append(1)

        failed = await attempt(f, middleware=Around(twice))
        assert isinstance(failed, Failed)
        assert "has called call_next() twice" in failed.error
        assert runs == [1]

    async def test_its_own_code_has_a_limit_and_the_task_is_not_counted(
        self, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A middleware that hangs keeps no slot for ever, before the task or behind it."""
        monkeypatch.setattr(module, "HOOK_SECONDS", 0.05)

        async def hangs_before(ctx: Context, call_next: CallNext) -> Any:
            await asyncio.Event().wait()

        async def hangs_after(ctx: Context, call_next: CallNext) -> Any:
            await call_next()
            await asyncio.Event().wait()

        async def passes(ctx: Context, call_next: CallNext) -> Any:
            return await call_next()

        async def longer() -> str:
            await asyncio.sleep(0.15)
            return "done"

        for hanging in (hangs_before, hangs_after):
            failed = await attempt(longer, middleware=Around(hanging))
            assert isinstance(failed, Failed)
            assert "MiddlewareError: a middleware of task 't': its `around` took longer than 0.05 s" in failed.error
        assert await attempt(longer, middleware=Around(passes)) == Succeeded("done")

    async def test_a_time_out_of_its_own_is_an_error_like_any_other(self, attempt: Attempt) -> None:
        """It is not taken for ours."""

        async def late(ctx: Context, call_next: CallNext) -> Any:
            raise TimeoutError("the cache does not answer")

        async def f() -> None: ...

        failed = await attempt(f, middleware=Around(late))
        assert isinstance(failed, Failed)
        assert "MiddlewareError" not in failed.error


class TestContextVariables:
    @pytest.mark.parametrize("threaded", [False, True])
    async def test_they_reach_the_task_and_come_back(self, attempt: Attempt, threaded: bool) -> None:
        """What ``around`` sets the task sees, also in a thread, and what the task sets ``around`` sees."""
        seen: list[str] = []

        async def binding(ctx: Context, call_next: CallNext) -> Any:
            tenant.set("acme")
            try:
                return await call_next()
            finally:
                seen.append(tenant.get())

        def in_a_thread() -> str:
            found = tenant.get()
            tenant.set("changed")
            return found

        async def on_the_loop() -> str:
            return in_a_thread()

        function: Any = in_a_thread if threaded else on_the_loop
        assert await asyncio.create_task(attempt(function, middleware=Around(binding))) == Succeeded("acme")  # type: ignore[arg-type]
        assert seen == ["changed"]
        assert tenant.get() == "nobody"

    async def test_they_come_back_from_a_thread_that_raises(self, attempt: Attempt) -> None:
        """The middleware that reports an error knows whose it was."""
        seen: list[str] = []

        async def noting(ctx: Context, call_next: CallNext) -> Any:
            try:
                return await call_next()
            except OSError:
                seen.append(tenant.get())
                raise

        def fails() -> None:
            tenant.set("acme")
            raise OSError

        await asyncio.create_task(attempt(fails, middleware=Around(noting)))  # type: ignore[arg-type]
        assert seen == ["acme"]


class Everything:
    """Not of our class, and notes all that it hears of."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    async def on_success(self, ctx: Context, result: Any) -> None:
        """Note it."""
        self.heard.append(("success", result))

    def on_failure(self, ctx: Context, error: BaseException) -> None:
        """Note it."""
        self.heard.append(("failure", repr(error)))

    def on_retry(self, ctx: Context, error: BaseException, after: float) -> None:
        """Note it."""
        self.heard.append(("retry", repr(error), after))

    async def on_revoked(self, ctx: Context, reason: str) -> None:
        """Note it."""
        self.heard.append(("revoked", reason))


async def told(stack: Stack, ctx: Context, outcome: Outcome) -> None:
    """Tell of an outcome, and wait until everybody has heard."""
    waiting = stack.tell(ctx, outcome)
    if waiting is not None:
        await waiting


class TestTelling:
    def test_plain_methods_need_no_task(self) -> None:
        """They are called at once, and nothing is left to be awaited."""
        middleware = Everything()
        ctx = Context(job=Job(function="f", key="k"), exception=OSError("down"))
        assert Stack.of([middleware]).tell(ctx, Failed("text")) is None
        assert middleware.heard == [("failure", "OSError('down')")]
        assert Stack.of([Named("n", [])]).tell(ctx, Succeeded(1)) is None

    @pytest.mark.parametrize(
        ("outcome", "heard"),
        [
            (Succeeded({"a": 1}), [("success", {"a": 1})]),
            (Failed("text"), [("failure", "OSError('down')")]),
            (Retried("text", 2.0), [("retry", "OSError('down')", 2.0)]),
            (Aborted("not needed"), [("revoked", "not needed")]),
            (Released("the worker stopped"), []),
        ],
    )
    async def test_each_end_has_its_hook(self, outcome: Outcome, heard: list[Any]) -> None:
        """Plain methods and coroutines alike; an attempt that was only put off has none."""
        middleware = Everything()
        ctx = Context(job=Job(function="f", key="k"), exception=OSError("down"))
        await told(Stack.of([middleware]), ctx, outcome)
        assert middleware.heard == heard

    async def test_without_an_exception_there_is_the_text(self) -> None:
        """As where a worker gave up a task that did not end."""
        middleware = Everything()
        await told(Stack.of([middleware]), Context(job=Job(function="f", key="k")), Failed("it does not end"))
        assert middleware.heard == [("failure", "JobFailedError('f', 'k', 'it does not end')")]

    async def test_one_that_raises_or_hangs_is_logged_and_the_next_one_is_told(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The job has ended, whatever they do; not even ``sys.exit`` gets through."""
        monkeypatch.setattr(module, "HOOK_SECONDS", 0.01)

        class Raises:
            def on_success(self, ctx: Context, result: Any) -> None:
                raise OSError("the log is full")

        class Exits:
            def on_success(self, ctx: Context, result: Any) -> None:
                raise SystemExit

        class Hangs:
            async def on_success(self, ctx: Context, result: Any) -> None:
                await asyncio.Event().wait()

        last = Everything()
        stack = Stack.of([Raises(), Exits(), Hangs(), last])
        await told(stack, Context(job=Job(function="f", key="k")), Succeeded(1))
        assert last.heard == [("success", 1)]
        assert [record.getMessage() for record in caplog.records] == [
            "on_success of a middleware failed for job k of task f"
        ] * 3
        assert "the log is full" in caplog.text


class Misspelt:
    """Its author wonders why it is never called."""

    def on_sucess(self, ctx: Context, result: Any) -> None:
        """Nobody calls it."""


class TooFew:
    """Forgets what the hook is called with."""

    def on_success(self, result: Any) -> None:
        """It would raise at each job."""


class Plain:
    """Has a plain ``around``."""

    def around(self, ctx: Context, call_next: CallNext) -> Any:
        """It could not wait for the task."""


class TestDefinition:
    @pytest.mark.parametrize(
        ("wrong", "why"),
        [
            (5, "int has none of them"),
            ("text", "str has none of them"),
            (print, "builtin_function_or_method has none of them"),
            (Named, "Named is a class; give an object of it, Named()"),
            ([Named("n", []), None], "NoneType has none of them"),
            (Misspelt(), "Misspelt.on_sucess would never be called; did you mean 'on_success'?"),
            (TooFew(), "TooFew.on_success has to be a method that takes (ctx, result)"),
            (Plain(), "Plain.around has to be an `async def`; it wraps plain functions as well"),
        ],
    )
    def test_what_is_no_middleware_is_refused_with_the_legal_names(
        self, registry: Registry, wrong: Any, why: str
    ) -> None:
        """Where it is defined: no task is registered, and nothing is in use."""
        with pytest.raises(OptionError) as of_task:
            registry.task(name="t", middleware=wrong)(lambda: None)
        with pytest.raises(OptionError) as of_use:
            registry.use(*wrong if isinstance(wrong, list) else (wrong,))
        for caught in (of_task.value, of_use.value):
            assert str(caught).endswith(f"on_revoked(ctx, reason): {why}")
            assert "before_enqueue(job), around(ctx, call_next), on_success(ctx, result)" in str(caught)
        assert registry.names() == ()
        assert not registry.layers.in_use

    def test_an_error_says_whose_it_is(self) -> None:
        """Task and problem."""
        error = MiddlewareError("t", "it hangs")
        assert (error.task, error.problem, str(error)) == ("t", "it hangs", "a middleware of task 't': it hangs")
