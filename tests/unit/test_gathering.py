"""Jobs that run together: who is in a run, when it begins, and what becomes of each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from knapsaq import (
    INJECTED,
    Batch,
    Context,
    Discard,
    Job,
    Middleware,
    Registry,
    Retry,
    Settings,
    Snooze,
    SoftTimeLimitExceeded,
    TaskDefinitionError,
    WorkflowError,
)
from knapsaq.executor import Executor
from knapsaq.lineage import origin
from knapsaq.middleware import CallNext
from knapsaq.outcomes import Aborted, Failed, Outcome, Retried, Snoozed, Succeeded
from knapsaq.providers import Injector

HOUR = 3600.0
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Bench:
    """One batched task and an executor that runs its jobs.

    Attributes:
        lists: The lists that its function was given.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry, self._settings = registry, settings
        self.lists: list[list[Any]] = []

    def define(self, function: Callable[..., Any], size: int = 3, wait: float = HOUR, **options: Any) -> Any:
        """Make a task of a function."""
        self.task = task = self._registry.task(name="t", batch=Batch(size, wait), **options)(function)
        self.executor = Executor(self._registry, Injector([task]), self._settings, {}, threads=2)
        return task

    def noting(self, size: int = 3, wait: float = HOUR) -> None:
        """Make one of a function that notes its lists and returns them."""

        async def note(numbers: list[Any]) -> list[Any]:
            self.lists.append(numbers)
            return list(numbers)

        self.define(note, size, wait)

    def job(self, item: Any, **fields: Any) -> Job[Any]:
        """Return a job of the task on its first attempt."""
        job: Job[Any] = self.task.build_job(self.task.using().options, (item,), {})
        vars(job).update({"timeout": 0, "attempts": 1, **fields})
        return job

    def start(self, job: Job[Any]) -> asyncio.Task[Outcome]:
        """Begin an attempt."""
        ctx = Context(job=job)
        if self._registry.layers.in_use:
            self._registry.surround(ctx, "default")
        return asyncio.create_task(self.executor.run(job, ctx))

    async def run(self, *items: Any) -> list[Outcome]:
        """Return the outcomes of jobs that run at the same time."""
        return await asyncio.gather(*(self.start(self.job(item)) for item in items))


@pytest.fixture
def bench(registry: Registry, settings: Settings) -> Bench:
    """A bench without a task."""
    return Bench(registry, settings)


class Loop:
    """The running loop, whose time a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop, self._passed = asyncio.get_running_loop(), 0.0
        time = loop.time
        monkeypatch.setattr(loop, "time", lambda: time() + self._passed)

    async def advance(self, seconds: float) -> None:
        """Let everything go as far as it comes, then time pass, and whatever is due happen."""
        await turns()
        self._passed += seconds
        await turns()


async def turns(number: int = 10) -> None:
    """Let everything go as far as it comes without waiting."""
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture
async def loop(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loop]:
    """The running loop; its own time goes on as before when the test ends."""
    with monkeypatch.context() as patch:
        yield Loop(patch)


class TestWhenItBegins:
    async def test_a_run_begins_as_soon_as_there_are_enough(self, bench: Bench) -> None:
        """And the next ones gather anew."""
        bench.noting(size=3)
        async with asyncio.timeout(5):
            assert await bench.run(*range(6)) == [Succeeded(number) for number in range(6)]
        assert bench.lists == [[0, 1, 2], [3, 4, 5]]

    async def test_a_run_begins_once_the_first_has_waited_long_enough(self, bench: Bench, loop: Loop) -> None:
        """Counted from the first, however late the others come; so it is with the next run."""
        bench.noting(wait=60)
        first = bench.start(bench.job("first"))
        await loop.advance(59)
        second = bench.start(bench.job("second"))
        await turns()
        assert bench.lists == []
        await loop.advance(1.1)
        assert bench.lists == [["first", "second"]]
        third = bench.start(bench.job("third"))
        await loop.advance(59)
        assert len(bench.lists) == 1
        await loop.advance(1.1)
        assert await asyncio.gather(first, second, third) == [Succeeded(name) for name in ("first", "second", "third")]
        assert bench.lists[1:] == [["third"]]

    async def test_the_wait_begins_anew_after_the_only_one_has_left(self, bench: Bench, loop: Loop) -> None:
        """What is over is forgotten with its timer."""
        bench.noting(wait=60)
        gone, job = bench.start(bench.job("gone")), bench.job("stays")
        await turns()
        gone.cancel()
        await loop.advance(59)
        stays = bench.start(job)
        await loop.advance(59)
        assert bench.lists == []
        await loop.advance(1.1)
        assert await stays == Succeeded("stays")
        assert (gone.cancelled(), bench.lists) == (True, [["stays"]])

    async def test_nobody_waits_for_others_where_the_worker_stops(self, bench: Bench) -> None:
        """What has gathered runs at once, and so does what comes late."""
        bench.noting()
        gathered = [bench.start(bench.job(number)) for number in range(2)]
        await turns()
        bench.executor.hurry()
        late = bench.start(bench.job("late"))
        async with asyncio.timeout(5):
            await asyncio.gather(*gathered, late)
        assert bench.lists == [[0, 1], ["late"]]

    async def test_a_job_that_is_to_be_alone_takes_nobody_along(self, bench: Bench, loop: Loop) -> None:
        """Those that gather go on doing so."""
        bench.noting(wait=60)
        other, suspect = bench.start(bench.job("other")), bench.job("suspect")
        await turns()
        suspect.alone = True
        assert await bench.start(suspect) == Succeeded("suspect")
        assert bench.lists == [["suspect"]]
        await loop.advance(61)
        await other
        assert bench.lists == [["suspect"], ["other"]]

    async def test_jobs_of_different_tasks_do_not_meet(self, bench: Bench, registry: Registry) -> None:
        """Each task gathers its own."""
        bench.noting(size=2)

        @registry.task(batch=Batch(2, HOUR))
        async def other(numbers: list[int]) -> list[str]:
            return [f"other {number}" for number in numbers]

        jobs: list[Job[Any]] = [other.build_job(other.using().options, (n,), {}) for n in (1, 2)]
        mixed = [bench.start(job) for job in (bench.job(1), jobs[0], bench.job(2), jobs[1])]
        async with asyncio.timeout(5):
            assert [outcome.result for outcome in await asyncio.gather(*mixed)] == [1, "other 1", 2, "other 2"]  # type: ignore[union-attr]


class TestWhatBecomesOfEach:
    async def test_an_error_or_a_signal_in_a_results_place_is_that_jobs_alone(self, bench: Bench) -> None:
        """Each follows the task's own rules."""

        async def judge(names: list[str]) -> list[Any]:
            found = {
                "good": 1,
                "bad": ValueError("bad"),
                "hopeless": KeyError("hopeless"),
                "again": Retry(after=5),
                "later": Snooze(after=60),
                "pointless": Discard("no use"),
            }
            return [found[name] for name in names]

        bench.define(judge, size=6, retries=1, retry_delay=2, retry_jitter=False, give_up_on=KeyError)
        outcomes = await bench.run("good", "bad", "hopeless", "again", "later", "pointless")
        good, bad, hopeless, again, later, pointless = outcomes
        assert good == Succeeded(1)
        assert isinstance(bad, Retried)
        assert (bad.after, "ValueError: bad" in bad.error) == (2.0, True)
        assert isinstance(hopeless, Failed)
        assert "KeyError: 'hopeless'" in hopeless.error
        assert isinstance(again, Retried)
        assert again.after == 5
        assert isinstance(later, Snoozed)
        assert later.after == 60
        assert pointless == Aborted("discarded: no use")

    async def test_what_the_function_raises_ends_all_by_their_own_rules(self, bench: Bench) -> None:
        """One has retries left, the other has not; the traceback is that of the function, once."""

        async def boom(numbers: list[int]) -> list[int]:
            raise ConnectionError("away")

        bench.define(boom, size=3, retries=1)
        jobs = [bench.job(1), bench.job(2, attempts=2), bench.job(3)]
        first, last, third = await asyncio.gather(*map(bench.start, jobs))
        assert isinstance(first, Retried)
        assert isinstance(last, Failed)
        assert isinstance(third, Retried)
        for outcome in (first, last, third):
            assert outcome.error.endswith("ConnectionError: away\n")
            assert outcome.error.count("in boom") == 1
            assert outcome.error.count("in _answers") == 1
            assert outcome.error.count("in result") == 1

    @pytest.mark.parametrize("raised", [True, False])
    async def test_a_signal_of_the_function_is_for_all(self, bench: Bench, raised: bool) -> None:
        """Raised or returned, as with any task."""

        async def later(numbers: list[int]) -> list[int] | Snooze:
            if raised:
                raise Snooze(after=60)
            return Snooze(after=60)

        bench.define(later, size=2)
        assert [outcome.after for outcome in await bench.run(1, 2)] == [60, 60]  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("returned", "said"),
        [
            ([1], "a list of 1"),
            ([1, 2, 3], "a list of 3"),
            ((), "a list of 0"),
            (None, "NoneType"),
            ({"a": 1, "b": 2}, "dict"),
            ("ab", "str"),
        ],
    )
    async def test_a_function_that_does_not_answer_all_is_told_what_to_return(
        self, bench: Bench, returned: Any, said: str
    ) -> None:
        """Nobody is given the result of another."""

        async def wrong(numbers: list[int]) -> list[Any]:
            return returned  # type: ignore[no-any-return]

        bench.define(wrong, size=2, retries=1)
        for outcome in await bench.run(1, 2):
            assert isinstance(outcome, Retried)
            assert f"BatchResultError: task 't' was given 2 calls and returned {said}; it has to return a list" in (
                outcome.error
            )

    async def test_a_result_that_cannot_be_stored_is_one_jobs_alone(self, bench: Bench) -> None:
        """The others have theirs."""

        async def mixed(numbers: list[int]) -> list[Any]:
            return [object() if number == 1 else number for number in numbers]

        bench.define(mixed, size=2)
        opaque, good = await bench.run(1, 2)
        assert isinstance(opaque, Succeeded)
        assert "cannot be stored" in str(opaque.problem)
        assert good == Succeeded(2)

    async def test_an_item_that_does_not_fit_is_one_jobs_alone(self, bench: Bench) -> None:
        """It does not get into the list, and the others do not wait for it."""

        async def double(numbers: list[int]) -> list[int]:
            return [2 * number for number in numbers]

        bench.define(double, size=2)
        wrong = bench.job(1, kwargs={"numbers": "text"})
        misfit, *fine = await asyncio.gather(bench.start(wrong), *map(bench.start, (bench.job(1), bench.job(2))))
        assert isinstance(misfit, Failed)
        assert "InvalidArgumentsError: task 't', argument 'numbers'" in misfit.error
        assert fine == [Succeeded(2), Succeeded(4)]

    @pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), StopIteration(), asyncio.CancelledError()])
    @pytest.mark.parametrize("raised", [True, False])
    async def test_whatever_is_raised_or_returned_ends_jobs_and_not_the_loop(
        self, bench: Bench, error: BaseException, raised: bool
    ) -> None:
        """A program that means to exit does not take the worker along."""

        async def odd(numbers: list[int]) -> list[Any]:
            if raised:
                raise error
            return [error, 2]

        bench.define(odd, size=2)
        first, second = await asyncio.gather(*(bench.start(bench.job(n)) for n in (1, 2)), return_exceptions=True)
        assert isinstance(first, Failed) or isinstance(error, asyncio.CancelledError)
        assert raised or second == Succeeded(2)


class TestContext:
    async def test_the_function_is_given_all_jobs_in_the_order_of_its_list(self, bench: Bench) -> None:
        """And nothing that is one job's alone."""
        found: list[Any] = []

        async def look(ctx: Context, numbers: list[int]) -> list[int]:
            found.append(ctx)
            ctx.logger.info("is heard")
            return [job.attempts for job in ctx.jobs]

        bench.define(look, size=2)
        jobs = [bench.job(1, attempts=5), bench.job(2)]
        assert await asyncio.gather(*map(bench.start, jobs)) == [Succeeded(5), Succeeded(1)]
        [ctx] = found
        assert list(ctx.jobs) == jobs
        assert ctx.task is bench.task
        assert (ctx.id, ctx.retries, dict(ctx.headers), ctx.parent_id, ctx.root_id) == ("", 0, {}, None, "")
        assert "job" not in ctx
        for ask in (lambda: ctx.job, lambda: ctx["job"], lambda: ctx.set_progress(1, 2)):
            with pytest.raises(TaskDefinitionError, match=r"task 't': with batch=\.\.\. it runs for several jobs"):
                ask()
        with pytest.raises(KeyError):
            ctx["nothing"]
        for extend in (ctx.spawn, ctx.replace):
            with pytest.raises(WorkflowError, match="'t' cannot add to a workflow"):
                await extend(None)

    async def test_other_tasks_have_one_job_or_none(self, registry: Registry) -> None:
        """So that what both use need not ask."""
        job: Job[Any] = Job("f")
        assert list(Context(job=job).jobs) == [job]
        assert list(Context().jobs) == []

    async def test_a_direct_call_runs_the_function_with_the_list_as_it_is(self, bench: Bench) -> None:
        """With a context or without."""

        async def count(ctx: Context, words: list[str]) -> list[int]:
            assert ctx.called_directly
            return [len(word) for word in words]

        task = bench.define(count)
        assert await task({}, ["a", "bc"]) == [1, 2]

    async def test_a_run_has_no_single_jobs_variables(self, bench: Bench, registry: Registry) -> None:
        """What surrounds one job, and where it comes from, must not be taken for all jobs'."""

        class Tenancy(Middleware):
            async def around(self, ctx: Context, call_next: CallNext) -> Any:
                tenant.set(ctx.job.kwargs["numbers"])  # type: ignore[index]
                return f"{tenant.get()} got {await call_next()}"

        registry.use(Tenancy())

        async def look(numbers: list[str]) -> list[str]:
            assert origin.get() is None
            return [f"{number} of {tenant.get()}" for number in numbers]

        bench.define(look, size=2)
        token = origin.set(Job("f"))
        outcomes = await bench.run("a", "b")
        origin.reset(token)
        assert outcomes == [Succeeded("a got a of nobody"), Succeeded("b got b of nobody")]

    async def test_around_surrounds_each_job_and_sees_its_own_result_or_error(
        self, bench: Bench, registry: Registry
    ) -> None:
        """One that does not go on keeps its job out of the list."""
        seen: list[str] = []

        class Guard(Middleware):
            async def around(self, ctx: Context, call_next: CallNext) -> Any:
                if ctx.job.kwargs == {"numbers": 0}:
                    return "kept out"
                try:
                    return await call_next()
                except ValueError as error:
                    seen.append(str(error))
                    return "saved"

        registry.use(Guard())

        async def judge(numbers: list[int]) -> list[int | Exception]:
            bench.lists.append(numbers)
            return [number if number % 2 else ValueError(f"{number} is even") for number in numbers]

        bench.define(judge, size=2)
        assert await bench.run(0, 1, 2) == [Succeeded("kept out"), Succeeded(1), Succeeded("saved")]
        assert (bench.lists, seen) == ([[1, 2]], ["2 is even"])

    async def test_dependencies_are_made_once_for_a_run(self, bench: Bench) -> None:
        """They see the run's context, are finished after it, and hear of an error."""
        made: list[str] = []

        async def session(ctx: Context) -> AsyncIterator[int]:
            made.append("made")
            try:
                yield len(ctx.jobs)
            except ValueError:
                made.append("heard")
                raise
            finally:
                made.append("finished")

        async def use(numbers: list[int], *, session: int = INJECTED) -> list[int]:
            if sum(numbers) > 10:
                raise ValueError
            return [session] * len(numbers)

        bench.define(use, size=3, dependencies={"session": session})
        assert await bench.run(1, 2, 3) == [Succeeded(3)] * 3
        assert made == ["made", "finished"]
        assert all(isinstance(outcome, Failed) for outcome in await bench.run(4, 5, 6))
        assert made[2:] == ["made", "heard", "finished"]

    @pytest.mark.parametrize("awaited", [True, False])
    async def test_a_plain_function_runs_in_a_thread(self, bench: Bench, awaited: bool) -> None:
        """The loop stays free; what it hands out to be awaited is."""

        def work(numbers: list[int]) -> Any:
            async def later() -> list[str]:
                return names

            names = [threading.current_thread().name] * len(numbers)
            return later() if awaited else names

        work.__annotations__["return"] = list[str]
        bench.define(work, size=2)
        for outcome in await bench.run(1, 2):
            assert isinstance(outcome, Succeeded)
            assert outcome.result != threading.current_thread().name


class TestTimeLimits:
    async def test_a_limit_counts_from_the_beginning_of_the_run_and_is_for_all(self, bench: Bench, loop: Loop) -> None:
        """Gathering is not part of it."""
        begun = asyncio.Event()

        async def hang(numbers: list[int]) -> list[int]:
            begun.set()
            await asyncio.Event().wait()
            return numbers

        bench.define(hang, wait=60)
        jobs = [bench.job(number, timeout=10) for number in range(2)]
        running = [bench.start(job) for job in jobs]
        await loop.advance(59)
        assert not begun.is_set()
        await loop.advance(1.1)
        assert begun.is_set()
        assert all(job.deadline is not None for job in jobs)
        await loop.advance(9)
        assert not any(one.done() for one in running)
        await loop.advance(1.1)
        for outcome in await asyncio.gather(*running):
            assert isinstance(outcome, Failed)
            assert "TaskTimeoutError" in outcome.error
        assert all(job.deadline is None for job in jobs)

    @pytest.mark.parametrize(("limits", "ends"), [((5, 20, 10), True), ((5, 0, 10), False)])
    async def test_of_several_limits_the_longest_counts(
        self, bench: Bench, loop: Loop, limits: tuple[int, ...], ends: bool
    ) -> None:
        """Nobody is ended before its time for the sake of another; no limit is the longest of all."""
        opened = asyncio.Event()

        async def hang(numbers: list[int]) -> list[int]:
            await opened.wait()
            return numbers

        bench.define(hang, size=3)
        running = [bench.start(bench.job(limit, timeout=limit)) for limit in limits]
        await turns()
        await loop.advance(19)
        assert not any(one.done() for one in running)
        await loop.advance(1.1)
        assert all(one.done() for one in running) is ends
        opened.set()
        outcomes = await asyncio.gather(*running)
        assert all(isinstance(outcome, Failed if ends else Succeeded) for outcome in outcomes)

    async def test_a_soft_limit_is_raised_in_the_function(self, bench: Bench, loop: Loop) -> None:
        """It may return what it has."""

        async def work(numbers: list[int]) -> list[int]:
            try:
                await asyncio.Event().wait()
            except SoftTimeLimitExceeded:
                return [-1] * len(numbers)
            return numbers

        bench.define(work, size=2, soft_timeout=10)
        running = [bench.start(bench.job(number)) for number in range(2)]
        await turns()
        await loop.advance(11)
        assert await asyncio.gather(*running) == [Succeeded(-1), Succeeded(-1)]


class TestInterrupted:
    async def test_one_that_leaves_while_it_gathers_is_not_in_the_list(self, bench: Bench) -> None:
        """Its place is free for another."""
        bench.noting(size=3)
        stays, leaves = bench.start(bench.job("stays")), bench.start(bench.job("leaves"))
        await turns()
        leaves.cancel()
        await turns()
        rest = [bench.start(bench.job(number)) for number in range(2)]
        async with asyncio.timeout(5):
            assert await asyncio.gather(stays, *rest) == [Succeeded("stays"), Succeeded(0), Succeeded(1)]
        assert (bench.lists, leaves.cancelled()) == ([["stays", 0, 1]], True)

    async def test_one_that_leaves_in_the_turn_in_which_the_run_begins_is_not_in_the_list(
        self, bench: Bench, loop: Loop
    ) -> None:
        """Nor does it keep the others from running."""
        bench.noting(size=2)
        job = bench.job("leaves")
        leaves = bench.start(job)
        await turns()
        job.interrupted = True
        leaves.cancel()
        bench.executor.hurry()
        await turns()
        assert (leaves.cancelled(), bench.lists) == (True, [])

    async def test_one_that_leaves_a_run_does_not_disturb_the_others(self, bench: Bench) -> None:
        """Results stay with their jobs."""
        opened = asyncio.Event()

        async def held(numbers: list[int]) -> list[int]:
            await opened.wait()
            return numbers

        bench.define(held, size=3)
        jobs = [bench.job(number) for number in range(3)]
        running = [bench.start(job) for job in jobs]
        await turns()
        jobs[0].interrupted = True
        running[0].cancel()
        await turns()
        assert running[0].cancelled()
        opened.set()
        assert await asyncio.gather(*running[1:]) == [Succeeded(1), Succeeded(2)]

    async def test_the_function_is_cancelled_when_the_last_has_left_which_waits_for_its_clean_up(
        self, bench: Bench
    ) -> None:
        """What it finishes all the same counts."""
        cleaning = asyncio.Event()

        async def held(numbers: list[int]) -> list[int]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await cleaning.wait()
            return numbers

        bench.define(held, size=2)
        jobs = [bench.job(number) for number in range(2)]
        running = [bench.start(job) for job in jobs]
        await turns()
        for job, one in zip(jobs, running, strict=True):
            job.interrupted = True
            one.cancel()
        await turns()
        assert not any(one.done() for one in running)
        cleaning.set()
        assert await asyncio.gather(*running) == [Succeeded(0), Succeeded(1)]
