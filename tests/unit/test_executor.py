from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsaq import Context, Discard, Job, Registry, Retry, Settings, Snooze
from knapsaq.deadline import Steered
from knapsaq.errors import SoftTimeLimitExceeded, TaskTimeoutError
from knapsaq.executor import Executor
from knapsaq.job import META_KEY, UNKNOWN_SINCE, UNLIMITED_BACKOFF
from knapsaq.outcomes import MAX_ERROR_CHARACTERS, Aborted, Dead, Failed, Outcome, Released, Retried, Snoozed, Succeeded
from knapsaq.providers import Injector
from knapsaq.timing import now_ms

Runner = Callable[..., Any]


@pytest.fixture
def attempt(registry: Registry, settings: Settings) -> Runner:
    """Run one attempt of a function, the first unless told otherwise, with a task's options and a job's fields."""

    async def run(function: Callable[..., Any], number: int = 1, **options: Any) -> Outcome:
        registry.clear()
        fields = {name: options.pop(name) for name in ("kwargs", "timeout") if name in options}
        task: Any = registry.task(name="t", **options)(function)
        job: Job[Any] = task.build_job(task.using().options, (), {})
        job.attempts = number
        vars(job).update({"timeout": None, **fields})
        executor = Executor(registry, Injector([task]), settings, {}, threads=1)
        return await executor.run(job, Context(job=job))

    return run


def returning(value: object) -> Callable[..., Any]:
    async def function() -> object:
        return value

    return function


def raising(error: BaseException) -> Callable[..., Any]:
    async def function() -> None:
        raise error

    return function


class TestReturning:
    async def test_a_result_is_stored_as_json_can_carry_it(self, attempt: Runner) -> None:
        """Tuples, sets and dates are turned into what the queue can write."""

        async def f() -> Any:
            return {"days": (timedelta(1),), "ids": {1}}

        assert await attempt(f) == Succeeded({"days": ("P1D",), "ids": [1]})

    @pytest.mark.parametrize(
        "result",
        [object(), float("nan"), {1: {2: object()}}, "file \udcff", [{"\udcff": 1}]],
        ids=["object", "nan", "deep", "half a pair", "half a pair as a key"],
    )
    async def test_a_result_that_cannot_be_stored_is_still_a_success(self, attempt: Runner, result: Any) -> None:
        """The work is done and must not be done again; the job says why there is no result."""

        async def f() -> Any:
            return result

        outcome = await attempt(f, retries=5)
        assert isinstance(outcome, Succeeded)
        assert outcome.result is None
        assert "the result of task 't' cannot be stored" in str(outcome.problem)

    async def test_a_plain_function_runs_in_a_thread_and_what_it_returns_is_awaited(self, attempt: Runner) -> None:
        """The loop stays free, and a coroutine handed out by a plain function is not lost."""

        async def later(name: str) -> str:
            return name

        def f() -> Any:
            return later(threading.current_thread().name)

        outcome = await attempt(f)
        assert outcome.result != threading.current_thread().name


class TestArguments:
    async def test_what_a_task_does_to_its_arguments_does_not_change_the_next_attempt(self, attempt: Runner) -> None:
        """A retry runs with what was queued, whatever the annotations say."""

        async def f(*, rows: Any = None, typed: dict[str, Any] | None = None, bare=None) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
            rows[0]["id"] = 2
            assert typed is not None
            typed["deep"].append(2)
            bare.clear()
            raise KeyError

        kwargs = {"rows": [{"id": 1}], "typed": {"deep": [1]}, "bare": [1]}
        assert isinstance(await attempt(f, retries=1, kwargs=kwargs), Retried)
        assert kwargs == {"rows": [{"id": 1}], "typed": {"deep": [1]}, "bare": [1]}

    async def test_neither_do_functions_that_are_called_as_saq_calls_them(
        self, registry: Registry, settings: Settings
    ) -> None:
        """They get no annotated types, but copies all the same."""

        async def f(_ctx: Any, *, rows: list[int]) -> None:
            rows.append(2)

        job: Job[Any] = Job(function="f", kwargs={"rows": [1]}, attempts=1)
        await Executor(registry, Injector([]), settings, {"f": f}, threads=1).run(job, Context(job=job))
        assert job.kwargs == {"rows": [1]}

    async def test_no_value_gets_into_the_jobs_error(self, attempt: Runner) -> None:
        """The error is logged and shown on a page; it tells the parameter, the kind and the place."""

        async def f(*, n: int = 0, colour: Literal["red"] = "red") -> None: ...

        outcome = await attempt(f, kwargs={"n": "4111-1111"})
        assert "4111" not in outcome.error
        assert "argument 'n': expected int (Expected `int`, got `str`), given a value of type str" in outcome.error
        assert "4111" not in (await attempt(f, kwargs={"n": 1, "colour": "4111-1111"})).error


class TestRetryPolicy:
    async def test_without_retries_a_failure_is_final(self, attempt: Runner) -> None:
        """Nobody's e-mail is sent twice unless its author said so."""
        assert isinstance(await attempt(raising(OSError())), Failed)

    async def test_retries_are_further_attempts(self, attempt: Runner) -> None:
        """``retries=2`` makes three attempts."""
        kinds = [type(await attempt(raising(OSError()), number, retries=2)) for number in (1, 2, 3)]
        assert kinds == [Retried, Retried, Failed]

    @pytest.mark.parametrize(
        ("options", "error", "kind"),
        [
            ({"retry_on": ConnectionError}, ConnectionResetError(), Retried),
            ({"retry_on": ConnectionError}, KeyError(), Failed),
            ({"give_up_on": ConnectionError}, ConnectionResetError(), Failed),
            ({"give_up_on": ConnectionError}, KeyError(), Retried),
            ({"retry_on": OSError, "give_up_on": ConnectionError}, ConnectionError(), Failed),
            ({}, SystemExit(1), Failed),
            ({"retry_on": (SystemExit,)}, SystemExit(1), Retried),
            ({"retry_on": ()}, KeyError(), Failed),
        ],
    )
    async def test_only_what_is_worth_it_is_retried(
        self, attempt: Runner, options: dict[str, Any], error: BaseException, kind: type[Outcome]
    ) -> None:
        """``give_up_on`` wins over ``retry_on``; subclasses count; leaving the process is a failure like others."""
        assert isinstance(await attempt(raising(error), retries=3, **options), kind)

    async def test_retry_names_the_exact_delay(self, attempt: Runner) -> None:
        """Jitter and backoff do not touch what the task asked for; the past is now."""
        for after, expected in [(7, 7.0), (timedelta(minutes=1), 60.0), (-5, 0.0), (0, 0.0)]:
            outcome = await attempt(raising(Retry(after)), retries=3, retry_delay=100)
            assert outcome.after == expected

    async def test_retry_without_a_delay_takes_the_tasks_own(self, attempt: Runner) -> None:
        """``raise Retry()`` is like failing, whatever the exception lists say."""
        outcome = await attempt(raising(Retry()), retries=3, retry_delay=8, retry_jitter=False, give_up_on=Exception)
        assert outcome.after == 8.0

    async def test_retry_spends_the_tasks_retries(self, attempt: Runner) -> None:
        """A task cannot go on for ever."""
        kinds = [type(await attempt(raising(Retry(1)), number, retries=1)) for number in (1, 2)]
        assert kinds == [Retried, Failed]

    async def test_a_task_that_names_no_retries_may_ask_as_often_as_the_settings_say(
        self, attempt: Runner, settings: Settings
    ) -> None:
        """``raise Retry()`` works without any option, up to a limit; naming 0 forbids it."""
        limit = settings.task_max_retries
        assert isinstance(await attempt(raising(Retry(1)), limit), Retried)
        assert isinstance(await attempt(raising(Retry(1)), limit + 1), Failed)
        assert isinstance(await attempt(raising(Retry(1)), 1, retries=0), Failed)

    async def test_a_call_may_forbid_what_the_task_leaves_open(self, registry: Registry, settings: Settings) -> None:
        """``.using(retries=0)`` is no silence; a job that SAQ itself queued says nothing."""
        task: Any = registry.task(name="t")(raising(Retry(1)))
        executor = Executor(registry, Injector([task]), settings, {}, threads=1)
        kinds = {}
        for name, job in {
            "forbidden": task.build_job(task.using(retries=0).options, (), {}),
            "with headers": task.build_job(task.using(retries=0, headers={"a": "b"}).options, (), {}),
            "silent": task.build_job(task.using(headers={"a": "b"}).options, (), {}),
            "allowed": task.build_job(task.using(retries=1).options, (), {}),
            "saq": Job(function="t", retries=1),
            "odd": Job(function="t", retries=1, meta={"knapsaq": 5}),
        }.items():
            vars(job).update(attempts=1, timeout=None)
            kinds[name] = type(await executor.run(job, Context(job=job)))
        assert kinds == {
            "forbidden": Failed,
            "with headers": Failed,
            "silent": Retried,
            "allowed": Retried,
            "saq": Retried,
            "odd": Retried,
        }

    async def test_the_cause_of_a_retry_is_the_jobs_error(self, attempt: Runner) -> None:
        """Be it named, chained or just being handled: people see what went wrong."""

        async def named() -> None:
            raise Retry(1, cause=ConnectionError("refused"))

        async def chained() -> None:
            raise Retry(1) from ConnectionError("refused")

        async def handled() -> None:
            try:
                raise ConnectionError("refused")  # noqa: TRY301 - that is what people write
            except ConnectionError:
                raise Retry(1)  # noqa: B904 - that is what people write

        for function in (named, chained, handled):
            outcome = await attempt(function)
            assert outcome.error.rstrip().endswith("ConnectionError: refused")

    async def test_discard_ends_the_job_for_good(self, attempt: Runner) -> None:
        """It is no failure, spends no retries, and says why."""
        assert await attempt(raising(Discard("user is gone")), retries=3) == Aborted("discarded: user is gone")

    async def test_a_signal_may_be_returned_as_well(self, attempt: Runner) -> None:
        """It is the same as raising it."""
        retried = await attempt(returning(Retry(7)), retries=1)
        assert isinstance(retried, Retried)
        assert retried.after == 7.0
        assert await attempt(returning(Discard("user is gone"))) == Aborted("discarded: user is gone")
        assert await attempt(returning(Snooze(timedelta(minutes=1)))) == Snoozed("the task put itself off for 60 s", 60)

    async def test_arguments_that_do_not_fit_are_not_retried(self, attempt: Runner) -> None:
        """No attempt can change them."""

        async def f(*, n: int = 0) -> None: ...

        outcome = await attempt(f, retries=3, kwargs={"n": "x"})
        assert isinstance(outcome, Failed)
        assert "InvalidArgumentsError: task 't', argument 'n'" in outcome.error


class TestDelay:
    @given(
        number=st.integers(1, 10_000),
        delay=st.floats(0, 10_000),
        backoff=st.booleans() | st.floats(0, 100_000),
        luck=st.random_module(),
    )
    def test_it_doubles_up_to_the_longest_and_is_drawn_from_its_upper_half(
        self, number: int, delay: float, backoff: bool | float, luck: object
    ) -> None:
        """Retries spread out, never sooner than half the delay, never later than the whole of it."""
        registry = Registry()
        settings = Settings(_env_file=None)
        task: Any = registry.task(
            name="t", retries=10_000, retry_delay=delay, retry_backoff=backoff, retry_jitter=True
        )(raising(KeyError()))
        job: Job[Any] = task.build_job(task.using().options, (), {})
        job.attempts = number
        vars(job)["timeout"] = None
        executor = Executor(registry, Injector([]), settings, {}, threads=1)
        outcome = asyncio.run(executor.run(job, Context(job=job)))

        longest = UNLIMITED_BACKOFF if backoff is True else float(backoff)
        whole = delay if backoff is False else min(longest, delay * 2.0 ** min(number - 1, 60))
        assert isinstance(outcome, Retried)
        assert whole / 2 <= outcome.after <= whole

    async def test_without_jitter_it_is_exact(self, attempt: Runner) -> None:
        """1, 2, 4, 8 seconds, then the longest."""
        options = {"retries": 9, "retry_delay": 1, "retry_backoff": 5, "retry_jitter": False}
        delays = [(await attempt(raising(KeyError()), number, **options)).after for number in (1, 2, 3, 4, 5)]
        assert delays == [1.0, 2.0, 4.0, 5.0, 5.0]


class TestErrorText:
    async def test_it_is_the_traceback(self, attempt: Runner) -> None:
        """People see the line."""
        outcome = await attempt(raising(KeyError("lost")))
        assert outcome.error.startswith("Traceback (most recent call last)")
        assert "raise error" in outcome.error
        assert outcome.error.rstrip().endswith("KeyError: 'lost'")

    async def test_a_long_one_keeps_its_beginning_and_its_end(self, attempt: Runner) -> None:
        """An error with a page of HTML in it does not fill Redis."""
        outcome = await attempt(raising(ValueError("first" + "x" * 100_000 + "last")))
        assert len(outcome.error) < MAX_ERROR_CHARACTERS + 100
        assert "first" in outcome.error
        assert "characters left out" in outcome.error
        assert outcome.error.rstrip().endswith("last")

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("file \udcff missing"),
            ValueError("\udcff" * 100_000),
            Retry(1, cause=ValueError("file \udcff missing")),
            Discard("file \udcff missing"),
        ],
        ids=["error", "long", "retry", "discard"],
    )
    async def test_it_can_be_stored_whatever_is_in_it(self, attempt: Runner, error: BaseException) -> None:
        """A file name that is no UTF-8 is half of a surrogate pair in Python's text."""
        outcome = await attempt(raising(error), retries=1)
        text = outcome.reason if isinstance(outcome, Aborted) else outcome.error
        assert text.encode()
        assert "\\udcff" in text
        assert len(text) < MAX_ERROR_CHARACTERS + 100


class TestTimeout:
    async def test_an_attempt_over_its_limit_is_cancelled_and_may_be_retried(self, attempt: Runner) -> None:
        """The function sees the cancellation; the job's error names the limit."""
        seen: list[str] = []

        async def f() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("cancelled")

        outcome = await attempt(f, timeout=0.01, retries=1)
        assert isinstance(outcome, Retried)
        assert seen == ["cancelled"]
        assert "TaskTimeoutError: task 't' ran over its limit of 0.01 s" in outcome.error

    async def test_give_up_on_the_time_limit_works(self, attempt: Runner) -> None:
        """It is an exception that options can name, and a ``TimeoutError`` besides."""
        assert issubclass(TaskTimeoutError, TimeoutError)

        async def f() -> None:
            await asyncio.Event().wait()

        assert isinstance(await attempt(f, timeout=0.01, retries=3, give_up_on=TaskTimeoutError), Failed)

    async def test_a_timeout_of_the_tasks_own_is_an_ordinary_error(self, attempt: Runner) -> None:
        """A slow server is not taken for the job's limit."""
        outcome = await attempt(raising(TimeoutError("slow server")), timeout=60)
        assert outcome.error.rstrip().endswith("TimeoutError: slow server")
        assert "TaskTimeoutError" not in outcome.error


class TestSoftTimeout:
    """``soft_timeout`` in coroutine functions; that in threads is in ``test_threads.py``."""

    async def test_it_is_raised_at_the_functions_await(self, attempt: Runner) -> None:
        """The function catches it where it waits, cleans up, waits once more and returns."""
        seen: list[Any] = []

        async def deep() -> None:
            try:
                await asyncio.Event().wait()
            except SoftTimeLimitExceeded as error:
                seen.append((error.task, error.seconds))
                raise

        async def f() -> str:
            try:
                await deep()
            except SoftTimeLimitExceeded:
                await asyncio.sleep(0.01)
            task = asyncio.current_task()
            assert task is not None
            return f"half of it, {task.cancelling()} cancellations"

        assert await attempt(f, soft_timeout=0.02, timeout=60) == Succeeded("half of it, 0 cancellations")
        assert seen == [("t", 0.02)]

    async def test_one_that_is_not_caught_is_an_error_like_others(self, attempt: Runner) -> None:
        """It is retried, and named in ``retry_on`` and ``give_up_on``."""

        async def f() -> None:
            await asyncio.Event().wait()

        outcome = await attempt(f, soft_timeout=0.01, retries=1)
        assert isinstance(outcome, Retried)
        assert outcome.error.rstrip().endswith("SoftTimeLimitExceeded: task 't' has reached its soft limit of 0.01 s")
        assert isinstance(await attempt(f, soft_timeout=0.01, retries=1, give_up_on=SoftTimeLimitExceeded), Failed)

    async def test_whoever_goes_on_is_cancelled_at_the_hard_limit(self, attempt: Runner) -> None:
        """Both limits count from the beginning."""
        seen: list[str] = []

        async def f() -> None:
            for _ in range(2):
                try:
                    await asyncio.Event().wait()
                except SoftTimeLimitExceeded:
                    seen.append("soft")
                except asyncio.CancelledError:
                    seen.append("hard")
                    raise

        outcome = await attempt(f, soft_timeout=0.01, timeout=0.5)
        assert seen == ["soft", "hard"]
        assert "TaskTimeoutError" in outcome.error

    async def test_one_that_passes_before_the_function_begins_is_raised_at_its_first_await(
        self, registry: Registry, settings: Settings
    ) -> None:
        """Its providers may have taken that long."""

        async def slow() -> str:
            await asyncio.sleep(0.05)
            return "made"

        async def f(resource: str) -> str:
            try:
                await asyncio.Event().wait()
            except SoftTimeLimitExceeded:
                return resource
            return "never"

        def g(resource: str) -> str:
            while True:
                time.sleep(0.001)

        for function in (f, g):
            options: Any = {"name": "t", "soft_timeout": 0.01, "dependencies": {"resource": slow}}
            registry.clear()
            task: Any = registry.task(**options)(function)
            job: Job[Any] = Job(function="t", attempts=1)
            executor = Executor(registry, Injector([task]), settings, {}, threads=1)
            outcome = await executor.run(job, Context(job=job))
            if function is f:
                assert outcome == Succeeded("made")
            else:
                assert isinstance(outcome, Failed)
                assert "SoftTimeLimitExceeded" in outcome.error

    async def test_what_was_begun_inside_is_given_up_as_after_a_cancellation(self, attempt: Runner) -> None:
        """Task groups cancel their children, and a limit of the function's own is not confused."""
        children: list[str] = []

        async def child() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                children.append("cancelled")

        async def f() -> str:
            try:
                async with asyncio.timeout(60):
                    async with asyncio.TaskGroup() as group:
                        group.create_task(child())
                        group.create_task(child())
            except SoftTimeLimitExceeded:
                pass
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "in time"
            return "never"

        assert await attempt(f, soft_timeout=0.02) == Succeeded("in time")
        assert children == ["cancelled"] * 2

    async def test_a_cancellation_of_the_same_moment_goes_first(self) -> None:
        """Whoever revokes the job is not answered with a reminder."""

        async def f() -> None:
            await asyncio.Event().wait()

        steered: list[Steered] = []

        async def body() -> None:
            steered.append(Steered(f(), SoftTimeLimitExceeded("t", 1)))
            await steered[0]

        running = asyncio.create_task(body())
        await asyncio.sleep(0)
        steered[0].interrupt()
        running.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await running
        assert not isinstance(caught.value, SoftTimeLimitExceeded)

    async def test_whoever_is_in_time_hears_nothing_of_it(self, attempt: Runner) -> None:
        """Results and errors are those of the function; plain values go in and out."""

        async def f() -> str:
            await asyncio.sleep(0)
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.set_exception, KeyError("gone"))
            try:
                await future
            except KeyError:
                return await asyncio.to_thread(lambda: "done")
            return "never"

        assert await attempt(f, soft_timeout=60) == Succeeded("done")
        assert "LookupError" in (await attempt(raising(LookupError()), soft_timeout=60)).error

    async def test_no_timer_is_set_for_what_ends_in_one_turn(
        self, attempt: Runner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Most small jobs never get as far as a timer."""
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_at", lambda *_args, **_kwargs: pytest.fail("a timer was set"))
        assert await attempt(returning("done"), soft_timeout=30, timeout=60) == Succeeded("done")


class TestCancellation:
    async def test_from_outside_it_is_no_outcome(self, attempt: Runner) -> None:
        """Who cancels decides what becomes of the job."""
        began = asyncio.Event()

        async def f() -> None:
            began.set()
            await asyncio.Event().wait()

        running = asyncio.create_task(attempt(f, retries=3))
        await began.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    async def test_a_task_may_cancel_what_it_began_itself(self, attempt: Runner) -> None:
        """Cancellation inside the function stays inside."""

        async def f() -> str:
            inner = asyncio.create_task(asyncio.Event().wait())
            inner.cancel()
            await asyncio.gather(inner, return_exceptions=True)
            return "done"

        assert await attempt(f) == Succeeded("done")


class TestPlainFunctions:
    async def test_functions_for_saqs_way_of_calling_get_the_context_and_their_arguments(
        self, registry: Registry, settings: Settings
    ) -> None:
        """Programs written for SAQ hand over functions instead of tasks."""

        async def coroutine(ctx: Any, *, n: int) -> Any:
            return [ctx["job"].key, n]

        def blocking(ctx: Any, *, n: int) -> Any:
            return [ctx["job"].key, n + 1]

        executor = Executor(registry, Injector([]), settings, {"a": coroutine, "b": blocking}, threads=1)
        results = []
        for name in "ab":
            job: Job[Any] = Job(function=name, key="k", kwargs={"n": 1}, attempts=1)
            results.append(await executor.run(job, Context(job=job)))
        assert results == [Succeeded(["k", 1]), Succeeded(["k", 2])]

    async def test_a_job_of_an_unknown_name_is_put_back_for_longer_and_longer(
        self, registry: Registry, settings: Settings
    ) -> None:
        """Without an attempt, from one second to five: another worker may know it."""
        job: Job[Any] = Job(function="send_mail", attempts=1)
        executor = Executor(registry, Injector([]), settings, {}, threads=1)
        delays = []
        for waited in (0, 1, 2, 4, 20, 60, 597):
            job.meta = {META_KEY: {UNKNOWN_SINCE: now_ms() - waited * 1000}}
            outcome = await executor.run(job, Context(job=job))
            assert isinstance(outcome, Released)
            delays.append(round(outcome.after))
        assert delays == [1, 1, 2, 4, 5, 5, 3]

    async def test_a_job_of_an_unknown_name_is_dead_at_the_limit_and_names_the_nearest(
        self, registry: Registry, settings: Settings
    ) -> None:
        """Its reason tells what is registered here."""
        registry.task(name="send_email")(raising(KeyError()))
        job: Job[Any] = Job(function="send_mail", meta={META_KEY: {UNKNOWN_SINCE: now_ms() - 600_001}})
        outcome = await Executor(registry, Injector([]), settings, {}, threads=1).run(job, Context(job=job))
        assert isinstance(outcome, Dead)
        assert "did you mean 'send_email'" in outcome.error

    async def test_a_task_that_has_become_known_is_forgotten_as_unknown(
        self, registry: Registry, settings: Settings
    ) -> None:
        """Should its worker be rolled back later, the limit counts anew."""
        registry.task(name="send_email")(returning(None))
        job: Job[Any] = Job(function="send_email", meta={META_KEY: {UNKNOWN_SINCE: 1, "headers": {"a": "b"}}})
        await Executor(registry, Injector([]), settings, {}, threads=1).run(job, Context(job=job))
        assert job.meta == {META_KEY: {"headers": {"a": "b"}}}
