"""A thread beside the loop that tells who blocks it, and ends a process whose loop does not come back."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.processes import BIN, Program, clean_environment, running
from tests.support import PATIENCE, ended, eventually, left_behind, working

from knapsaq import Client, Job, Queue, Registry, Settings, connect, watchdog
from knapsaq.liveness import LeaseKeeper

LIMIT = 1.5
SECONDS = r"\d+\.\d s"

JOBS = """
import asyncio
import logging
import sys
import threading
import time
from pathlib import Path

from knapsaq import Registry, watchdog

registry = Registry()


@registry.task
async def deadlock(card: str) -> None:
    lock = threading.Lock()
    with lock, lock:
        pass


@registry.task
async def nap() -> str:
    await asyncio.sleep(0.2)
    return "rested"


@registry.task
async def silence() -> None:
    for handler in logging.getLogger().handlers + logging.getLogger("knapsaq").handlers:
        handler.acquire()
    threading.Event().wait()


@registry.task
async def block() -> None:
    Path("blocking").touch()
    time.sleep(0.6)


@registry.task
async def inspect() -> None:
    [dog] = watchdog._watchdogs.values()
    prompt(dog)
    seen = dog._stalled
    while dog._stalled < seen + 2 * watchdog.TURN:
        time.sleep(0.02)


def prompt(dog: watchdog.Watchdog) -> None:
    sys._getframe().f_trace = print  # as the prompt of pdb has it
    while dog._stalled < 2 * dog.wards[0].stall_limit:
        time.sleep(0.02)
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A short lease, and no limit to what a test does to its own loop."""
    return settings.with_values(lease=1.0, loop_stall_limit=0)


@pytest.fixture
async def keeper(queue: Queue) -> AsyncIterator[LeaseKeeper]:
    """The keeper of a worker that has no jobs; nobody watches its loop yet."""
    keeper = LeaseKeeper(queue, "idle", lambda: None)
    yield keeper
    await asyncio.to_thread(keeper.stop)


def stalls(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said about the loop."""
    return [line for record in caplog.records if "event loop" in (line := record.getMessage())]


def block_until(condition: Callable[[], object]) -> None:
    """Block this thread until there is something to see."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


async def watched() -> None:
    """Wait until the loop has given its first sign."""
    await eventually(lambda: watchdog._watchdogs[asyncio.get_running_loop()]._begun)


class TestStall:
    async def test_it_is_told_once_with_job_and_stack_and_once_when_it_is_over(
        self, client: Client, registry: Registry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Two workers share the loop, and the stall lasts for more than two lines' time; no argument is shown."""

        @registry.task
        async def careless(card: str) -> str:
            begun = time.monotonic()
            block_until(lambda: time.monotonic() > begun + 2.5)
            return "done"

        async with working(client.queue("default")), working(client.queue("mail")):
            job = await careless.enqueue(card="hunter2")
            await ended(job)
            await eventually(lambda: len(stalls(caplog)) >= 2)
        about = [line for line in stalls(caplog) if job.key in line]
        assert len(about) == 2
        who = f"job {job.key} of task careless in queue default"
        assert re.match(rf"the event loop has been blocked for {SECONDS} by {who}\n", about[0])
        assert re.search(r'File ".*test_watchdog\.py", line \d+, in careless\n', about[0])
        assert re.fullmatch(rf"the event loop runs again after 2\.\d s; it was blocked by {who}", about[1])
        assert (job.result, job.attempts) == ("done", 1)
        assert about[0].count("File ") <= 4, "of what is above the task's function there is one frame"
        assert "hunter2" not in caplog.text

    async def test_what_is_no_job_is_told_as_well(self, keeper: LeaseKeeper, caplog: pytest.LogCaptureFixture) -> None:
        """A callback, and a task that a job or a library has started; the stack shows whose it is."""
        loop = asyncio.get_running_loop()

        async def gather_facts() -> None:
            block_until(lambda: len(stalls(caplog)) > 2)

        keeper.guard(lambda _task: None)
        await watched()
        loop.call_soon(block_until, lambda: stalls(caplog))
        await eventually(lambda: len(stalls(caplog)) == 2)
        await asyncio.create_task(gather_facts(), name="facts")
        await eventually(lambda: len(stalls(caplog)) == 4)
        callback, _, other, _ = stalls(caplog)
        assert "by a callback or another thread\n" in callback
        assert "in block_until" in callback
        assert "by asyncio's task facts, which is no job\n" in other
        assert "in gather_facts" in other

    async def test_a_call_that_holds_the_interpreter_is_told_when_it_has_ended(
        self, queue: Queue, registry: Registry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Such a call, as of a regular expression, stops the watchdog too: it hears of it by its own late turn."""

        def told() -> list[str]:  # a loop that the machine itself holds up may come before
            return [stall for stall in stalls(caplog) if "in count" in stall]

        @registry.task
        async def count() -> None:
            size, aim = 5_000_000, 1.3 * watchdog.TOLD_AFTER
            while not told():
                begun = time.thread_time()
                sum(range(size))
                size, aim = int(size * aim / (time.thread_time() - begun)), 1.5 * aim
                # The loop runs again for two turns: the stall is told by what has passed or not at all.
                await asyncio.sleep(2 * watchdog.TURN)

        async with working(queue):
            job = await count.enqueue()
            await ended(job)
        assert f"by job {job.key} of task count" in told()[0]

    async def test_the_time_before_the_first_sign_does_not_count(
        self, keeper: LeaseKeeper, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Imports at the start of a program may take long."""
        begun = time.monotonic()
        keeper.guard(lambda _task: None)
        block_until(lambda: time.monotonic() > begun + 1.5 * watchdog.TOLD_AFTER)
        await watched()
        assert stalls(caplog) == []

    def test_a_loop_that_does_not_run_is_not_blocked(
        self, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A program may run its loop for a while, and do something else in between."""
        keeper = LeaseKeeper(Queue.from_url(settings.broker_url, settings=settings), "idle", lambda: None)

        async def start() -> None:
            keeper.guard(lambda _task: None)
            await watched()

        with asyncio.Runner() as runner:
            runner.run(start())
            begun = time.monotonic()
            block_until(lambda: time.monotonic() > begun + 1.5 * watchdog.TOLD_AFTER)
            assert stalls(caplog) == []
            keeper.stop()

    async def test_the_last_worker_takes_the_watchdog_with_it(self, client: Client) -> None:
        """There is one however many workers share the loop."""

        def watchdogs() -> int:
            return sum(thread.name == "watchdog" for thread in threading.enumerate())

        async with working(client.queue("default")):
            await eventually(lambda: watchdogs() == 1)
            async with working(client.queue("mail")):
                await eventually(lambda: len(watchdog._watchdogs[asyncio.get_running_loop()].wards) == 2)
                assert watchdogs() == 1
            assert watchdogs() == 1
        assert watchdogs() == 0
        assert watchdog._watchdogs == {}


class TestProcess:
    @pytest.fixture
    def start(self, broker_url: str, tmp_path: Path) -> Callable[..., AbstractContextManager[Program]]:
        """Run workers on uvloop, with a limit, while a block runs."""
        (tmp_path / "stalling.py").write_text(JOBS)

        @contextmanager
        def start(*words: str, lease: float) -> Iterator[Program]:
            own = {"BROKER_URL": broker_url, "LEASE": str(lease), "LOOP_STALL_LIMIT": str(LIMIT), "SHUTDOWN_GRACE": "5"}
            env = clean_environment(**{f"KNAPSAQ_{name}": value for name, value in own.items()})
            with running([str(BIN / "knapsaq"), "-A", "stalling", "worker", *words], env, tmp_path) as program:
                yield program

        return start

    @pytest.fixture
    async def queue(self, broker_url: str) -> AsyncIterator[Queue]:
        """An empty queue whose tasks only the workers know."""
        async with connect(Settings(broker_url=broker_url, _env_file=None), registry=Registry()) as client:
            await client.queue().redis.flushall()
            queue = client.queue()
            queue.registry = None
            yield queue

    async def test_a_job_that_always_deadlocks_costs_three_processes_and_no_neighbour(
        self, start: Callable[..., AbstractContextManager[Program]], queue: Queue
    ) -> None:
        """Each hands its jobs back at once, so that nobody waits for the lease, and is replaced when it has ended."""
        deadlock = await queue.enqueue("deadlock", card="hunter2")
        nap = await queue.enqueue("nap")
        assert deadlock is not None
        assert nap is not None
        with start("--workers", "2", lease=60.0) as parent:
            parent.says("ended with exit code 70; another one starts", times=3)
            await ended(deadlock, nap)
            parent.signal()
            assert parent.ends() == 0
        assert (nap.status.value, nap.result) == ("complete", "rested")
        [letter] = await queue.dead()
        assert (letter.key, len(letter.history)) == (deadlock.key, 3)
        assert "died 3 times" in letter.reason
        assert parent.output().count("the limit is reached") == 3
        assert f"by job {deadlock.key} of task deadlock in queue default;" in parent.output()
        assert re.search(r'File ".*stalling\.py", line \d+, in deadlock\n', parent.output())
        assert "hunter2" not in parent.output()
        await queue.discard(deadlock.key)
        assert await left_behind(queue) == []

    async def test_a_process_whose_log_hangs_ends_all_the_same(
        self, start: Callable[..., AbstractContextManager[Program]], queue: Queue
    ) -> None:
        """What the log is written to may be what blocks the loop, such as a pipe that nobody reads."""
        job = await queue.enqueue("silence")
        with start(lease=1.0) as worker:
            assert worker.ends() == watchdog.STALLED
        assert "event loop" not in worker.output()
        assert await self._waits(queue, job)

    async def _waits(self, queue: Queue, job: Job[Any] | None) -> bool:
        """Whether a job is handed out to another worker."""
        async with working(queue, [_silence], concurrency=1):
            await ended(job)
        return job is not None and job.result == "heard"

    async def test_time_in_which_the_process_was_stopped_is_no_stall(
        self, start: Callable[..., AbstractContextManager[Program]], queue: Queue, tmp_path: Path
    ) -> None:
        """A laptop that sleeps over a job which blocks for a moment wakes up with its worker."""
        job = await queue.enqueue("block")
        with start(lease=60.0) as worker:
            await eventually((tmp_path / "blocking").exists)
            worker.signal(signal.SIGSTOP)
            await asyncio.sleep(2 * LIMIT)  # there is nothing to wait for: that time passes is the fault
            worker.signal(signal.SIGCONT)
            await ended(job)
            worker.signal()
            assert worker.ends() == 0
        assert "event loop" not in worker.output()

    async def test_a_process_that_somebody_steps_through_is_not_ended(
        self, start: Callable[..., AbstractContextManager[Program]], queue: Queue
    ) -> None:
        """At its prompt the loop is blocked for as long as its user thinks; what comes then has the whole limit."""
        job = await queue.enqueue("inspect")
        with start(lease=60.0) as worker:
            await ended(job)
            worker.signal()
            assert worker.ends() == 0
        assert "blocked for" in worker.output()
        assert "the limit is reached" not in worker.output()


async def _silence(ctx: dict[str, Any]) -> str:
    return "heard"


_silence.__qualname__ = "silence"
