"""Threads: plain functions run in them, and those that time-outs leave behind still count."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from tests.support import eventually

from knapsaq import Context, Job, Registry, Settings, SoftTimeLimitExceeded
from knapsaq.executor import Executor
from knapsaq.outcomes import Failed, Outcome, Succeeded
from knapsaq.providers import Injector
from knapsaq.threads import ThreadCall, _limit_of

Runner = Callable[..., Any]


@pytest.fixture
def run(registry: Registry, settings: Settings) -> Runner:
    """Run plain functions one after the other or at once, in one thread."""
    executor = Executor(registry, Injector([]), settings, {}, threads=1)

    async def run(function: Callable[..., Any], timeout: float | None = None, soft: float | None = None) -> Outcome:
        if registry.find(function.__name__) is None:
            registry.task(soft_timeout=soft)(function)
        job: Job[Any] = Job(function=function.__name__, attempts=1)
        vars(job)["timeout"] = timeout
        return await executor.run(job, Context(job=job))

    return run


async def test_one_that_was_abandoned_counts_until_it_ends(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    """Calls that hang do not fill the process with threads; who waits for one spends nothing of his time limit."""
    release = threading.Event()
    began: list[str] = []

    def hangs() -> None:
        began.append("hangs")
        release.wait()

    def next_one() -> str:
        began.append("next one")
        return "done"

    async def waits() -> None:
        await asyncio.Event().wait()

    try:
        assert isinstance(await run(hangs, timeout=0.3), Failed)
        waiting = asyncio.create_task(run(next_one, timeout=0.3))
        await eventually(lambda: "waits, as all 1 threads are busy" in caplog.text)
        assert isinstance(await run(waits, timeout=0.4), Failed)  # by then, 0.3 s are over
        assert not waiting.done()
        assert began == ["hangs"]
    finally:
        release.set()
    assert await waiting == Succeeded("done")


async def test_one_for_which_nobody_waits_any_more_is_free(run: Runner) -> None:
    """Wherever between waiting and ending an attempt is cancelled."""

    def quick() -> str:
        return "done"

    for steps in range(12):
        release = threading.Event()

        def holds(release: threading.Event = release) -> None:
            release.wait()

        holds.__name__ = f"holds_{steps}"
        first, second = asyncio.create_task(run(holds)), asyncio.create_task(run(quick))
        for _ in range(steps):
            await asyncio.sleep(0)
        for one in (second, first):
            one.cancel()
        release.set()
        await asyncio.gather(first, second, return_exceptions=True)
        async with asyncio.timeout(5):
            assert await run(quick) == Succeeded("done")


async def test_a_coroutine_function_that_times_out_leaves_none(
    registry: Registry, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The log speaks of a thread only where there is one."""

    async def waits(_ctx: Any) -> None:
        await asyncio.Event().wait()

    job: Job[Any] = Job(function="waits", attempts=1)
    vars(job)["timeout"] = 0.01
    executor = Executor(registry, Injector([]), settings, {"waits": waits}, threads=1)
    assert isinstance(await executor.run(job, Context(job=job)), Failed)
    assert "thread" not in caplog.text


async def test_one_that_runs_on_does_not_hold_the_job(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    """Python cannot stop a thread, so the attempt ends without it, and the log says so."""
    release = threading.Event()

    def f() -> None:
        release.wait()

    outcome = await run(f, timeout=0.3)
    release.set()
    assert isinstance(outcome, Failed)
    assert "was cancelled, but its thread runs on" in caplog.text


class TestSoftTimeout:
    """It is raised between two steps of Python in the function's thread."""

    async def test_the_function_catches_it_and_ends_in_its_own_way(self, run: Runner) -> None:
        """What it returns counts."""

        def counts() -> str:
            try:
                while True:
                    time.sleep(0.001)
            except SoftTimeLimitExceeded as error:
                return f"cleaned up after {error.seconds} s of {error.task}"

        assert await run(counts, timeout=60, soft=0.3) == Succeeded("cleaned up after 0.3 s of counts")

    async def test_one_that_is_not_caught_is_the_jobs_error(self, run: Runner) -> None:
        """And the thread serves the next job."""

        def counts() -> None:
            while True:
                time.sleep(0.001)

        outcome = await run(counts, soft=0.02)
        assert isinstance(outcome, Failed)
        assert "SoftTimeLimitExceeded: task 'counts' has reached its soft limit of 0.02 s" in outcome.error
        assert await run(lambda: "next", timeout=60) == Succeeded("next")

    async def test_in_a_call_of_c_it_waits_until_that_returns(self, run: Runner) -> None:
        """Python cannot interrupt it; the hard limit leaves the thread behind."""
        release = threading.Event()
        seen: list[str] = []

        def blocked() -> None:
            try:
                release.wait()
            except SoftTimeLimitExceeded:
                seen.append("soft")

        outcome = await run(blocked, timeout=1, soft=0.3)
        assert "TaskTimeoutError" in outcome.error
        assert seen == []
        release.set()
        await eventually(lambda: seen)

    async def test_time_spent_waiting_for_a_thread_does_not_count(self, run: Runner) -> None:
        """Neither for the soft limit nor for the hard one."""
        release = threading.Event()

        def holds() -> None:
            release.wait()

        def short() -> str:
            time.sleep(0.01)
            return "done"

        first = asyncio.create_task(run(holds))
        await asyncio.sleep(0)
        second = asyncio.create_task(run(short, timeout=5, soft=3))
        third = asyncio.create_task(run(lambda: "third", timeout=0.5))
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.6)
        assert not second.done()
        assert not third.done()
        release.set()
        await first
        assert await second == Succeeded("done")
        assert isinstance(await third, Succeeded)

    async def test_it_never_gets_out_of_the_function(self) -> None:
        """However the moment falls: the call returns or raises, and nothing strikes its thread later."""
        rounds = 1000
        kind = _limit_of("t", 1.0)
        inside: list[int] = []
        results: list[str] = []

        def body(number: int) -> str:
            inside.append(number)
            return "done" if sum(step for step in range(300)) else ""

        tokens = anyio.CapacityLimiter(1)
        calls = [ThreadCall(partial(body, number), tokens) for number in range(rounds)]

        def attack() -> None:
            for number, call in enumerate(calls):
                while len(inside) <= number and len(results) <= number:
                    pass
                for _ in range(number % 300):
                    pass
                call.raise_in_thread()

        def work() -> None:
            for call in calls:
                call.make_interruptible(kind)
                try:
                    result = call._run_interruptible()
                except SoftTimeLimitExceeded:
                    result = "interrupted"
                results.append(result)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            await asyncio.gather(asyncio.to_thread(attack), asyncio.to_thread(work))
        finally:
            sys.setswitchinterval(interval)
        assert len(results) == rounds
        assert set(results) <= {"done", "interrupted"}

    async def test_one_that_comes_as_the_function_has_returned_does_not_cost_its_result(self) -> None:
        """The work was done in time."""

        class Late:
            """A gate at which the thread arrives in the very moment in which the error is raised."""

            def __enter__(self) -> None:
                call._gate = gate
                call.raise_in_thread()
                for _ in range(100):
                    pass

            def __exit__(self, *_: object) -> None: ...

        def body() -> str:
            call._gate = Late()  # type: ignore[assignment]
            return "done"

        call = ThreadCall(body, anyio.CapacityLimiter(1))
        call.make_interruptible(_limit_of("t", 1.0))
        gate = call._gate
        assert await asyncio.to_thread(call._run_interruptible) == "done"
