"""Threads: plain functions run in them, and those that time-outs leave behind still count."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.support import eventually

from knapsaq import Context, Job, Registry, Settings
from knapsaq.executor import Executor
from knapsaq.outcomes import Failed, Outcome, Succeeded
from knapsaq.providers import Injector

Runner = Callable[..., Any]


@pytest.fixture
def run(registry: Registry, settings: Settings) -> Runner:
    """Run plain functions one after the other or at once, in one thread."""
    executor = Executor(registry, Injector([]), settings, {}, threads=1)

    async def run(function: Callable[..., Any], timeout: float | None = None) -> Outcome:
        if registry.find(function.__name__) is None:
            registry.task(function)
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
        assert isinstance(await run(hangs, timeout=0.01), Failed)
        waiting = asyncio.create_task(run(next_one, timeout=0.01))
        await eventually(lambda: "waits, as all 1 threads are busy" in caplog.text)
        assert isinstance(await run(waits, timeout=0.05), Failed)  # by then, 0.01 s are over
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

    outcome = await run(f, timeout=0.01)
    release.set()
    assert isinstance(outcome, Failed)
    assert "was cancelled, but its thread runs on" in caplog.text
