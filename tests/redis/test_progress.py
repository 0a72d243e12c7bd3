"""How far a job is: told by its task, written now and then, pushed to whoever looks on."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from saq.job import Status
from saq.queue.redis import RedisQueue
from tests.support import Server, ended, eventually, left_behind, working

from knapsaq import Context, InvalidArgumentsError, Job, PayloadTooLargeError, Queue, Registry, Task, Update, connect
from knapsaq.context import Context as RunningContext
from knapsaq.exchange import Exchange
from knapsaq.outcomes import Failed, Retried, Succeeded
from knapsaq.progress import WRITE_SECONDS, Reporter
from knapsaq.redis.scripts import Script
from knapsaq.running import Running
from knapsaq.sweeping import rescue
from knapsaq.testing import make_context, running_worker


async def stored(queue: Queue, job: Job[Any]) -> Job[Any]:
    found = await queue.job(job.key)
    assert found is not None
    return found


class Gate:
    """Where a task waits until the test lets it go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def wait(self) -> None:
        """Say that the task is here, and wait."""
        self.begun.set()
        await self.go_on.wait()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moments, by the loop's clock, at which a job's record was written in between."""
    moments: list[float] = []
    run = Script.__call__

    async def recording(self: Script, *args: Any) -> Any:
        if self.name == "update":
            moments.append(asyncio.get_running_loop().time())
        return await run(self, *args)

    monkeypatch.setattr(Script, "__call__", recording)
    return moments


class TestTelling:
    async def test_others_see_how_far_a_job_is(self, queue: Queue, registry: Registry, gate: Gate) -> None:
        """SAQ's field for its page, and the details beside it; a program of SAQ reads the same."""

        @registry.task
        async def work(ctx: Context) -> str:
            await ctx.set_progress(3, 4, file="a.csv")
            await gate.wait()
            return "done"

        async with working(queue):
            job = await work.enqueue()
            await gate.begun.wait()
            await eventually(lambda: seen_progress(queue, job))
            seen = await stored(queue, job)
            assert (seen.progress, seen.progress_meta) == (0.75, {"current": 3, "total": 4, "file": "a.csv"})
            assert seen.status is Status.ACTIVE
            of_saq = await RedisQueue(queue.redis, queue.name).job(job.key)
            assert of_saq is not None
            assert of_saq.progress == 0.75
            gate.go_on.set()
            await ended(job)
        assert (job.progress, job.progress_meta["file"], job.result) == (1.0, "a.csv", "done")
        assert await left_behind(queue) == []

    @pytest.mark.parametrize("threaded", [False, True])
    async def test_the_last_value_is_written_with_the_end_and_nothing_behind_it(
        self, queue: Queue, registry: Registry, writes: list[float], threaded: bool
    ) -> None:
        """Told a thousand times at once; from a thread without ``await``."""

        def tell(ctx: Context) -> None:
            for number in range(1, 1001):
                ctx.set_progress(number, 2000, number=number)
            raise OSError("half way")

        async def tell_on_the_loop(ctx: Context) -> None:
            for number in range(1, 1001):
                await ctx.set_progress(number, 2000, number=number)
            raise OSError("half way")

        function: Any = tell if threaded else tell_on_the_loop
        work = registry.task(name="work")(function)
        async with working(queue):
            job = await work.enqueue()
            await ended(job)
            count = len(writes)
            await asyncio.sleep(2 * WRITE_SECONDS)
            assert len(writes) == count
        assert job.status is Status.FAILED
        assert (job.progress, job.progress_meta["number"]) == (0.5, 1000)
        assert (await stored(queue, job)).status is Status.FAILED

    @pytest.mark.parametrize("threaded", [False, True])
    async def test_it_is_written_ten_times_a_second_at_most(
        self,
        queue: Queue,
        registry: Registry,
        writes: list[float],
        threaded: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """However often a task tells; and it is written while the task goes on telling without a pause."""
        stop = threading.Event()
        begun: list[float] = []
        write = Reporter._write

        def noting(self: Reporter) -> None:
            begun.append(self._loop.time())
            write(self)

        monkeypatch.setattr(Reporter, "_write", noting)

        def tell(ctx: Context) -> None:
            while not stop.is_set():
                ctx.set_progress(1, 2)

        async def tell_on_the_loop(ctx: Context) -> None:
            while not stop.is_set():
                await ctx.set_progress(1, 2)

        function: Any = tell if threaded else tell_on_the_loop
        work = registry.task(name="work")(function)
        async with working(queue):
            job = await work.enqueue()
            await eventually(lambda: len(writes) >= 4)
            stop.set()
            await ended(job)
        assert len(begun) >= len(writes)
        assert min(later - earlier for earlier, later in pairwise(begun)) >= WRITE_SECONDS - 0.001

    async def test_a_task_that_tells_in_a_loop_lets_others_run(self, queue: Queue, registry: Registry) -> None:
        """``await`` gives the loop a turn now and then, also while no write is due."""
        stop = False

        @registry.task
        async def greedy(ctx: Context) -> None:
            while not stop:
                await ctx.set_progress(1, 2)

        @registry.task
        async def other() -> str:
            return "done"

        async with running_worker(registry=registry):
            job = await greedy.enqueue()
            assert await (await other.enqueue()).wait(5) == "done"
            stop = True
            await ended(job)

    async def test_it_is_a_sign_of_life(self, queue: Queue, registry: Registry, gate: Gate) -> None:
        """As every ``job.update()`` is for SAQ's heartbeat."""

        @registry.task
        async def work(ctx: Context) -> None:
            await ctx.set_progress(1, 2)
            await gate.wait()

        async with working(queue):
            job = await work.enqueue()
            await gate.begun.wait()
            await eventually(lambda: touched(queue, job))
            gate.go_on.set()
            await ended(job)

    async def test_a_direct_call_checks_and_does_nothing_more(self) -> None:
        """A test of a task needs no queue; with a job of its own it can look at what was told."""
        await make_context().set_progress(1, 2)
        job: Job[Any] = Job(function="f")
        await make_context(job=job).set_progress(1, 2, a="b")
        assert (job.progress, job.progress_meta) == (0.5, {"current": 1, "total": 2, "a": "b"})
        with pytest.raises(InvalidArgumentsError):
            make_context().set_progress(-1, 2)

    async def test_a_job_that_tells_nothing_writes_nothing(
        self, queue: Queue, echo: Task[..., Any, Any], writes: list[float]
    ) -> None:
        """And makes no reporter."""
        async with working(queue):
            job = await echo.enqueue(text="hi")
            await ended(job)
        assert writes == []
        assert (job.progress_meta, job.meta) == ({}, {})


async def touched(queue: Queue, job: Job[Any]) -> bool:
    return (await stored(queue, job)).touched >= job.queued


async def at_0(queue: Queue, job: Job[Any]) -> bool:
    return not (await stored(queue, job)).progress


async def seen_progress(queue: Queue, job: Job[Any]) -> bool:
    return bool((await stored(queue, job)).progress)


class TestValues:
    @pytest.mark.parametrize(
        ("current", "total", "progress"),
        [(0, 10, 0.0), (1, 4, 0.25), (10, 10, 1.0), (0.5, 2.0, 0.25), (12, 10, 1.0), (0, 0, 1.0), (5, 0, 1.0)],
    )
    def test_it_lies_between_0_and_1(self, current: float, total: float, progress: float) -> None:
        """More than all is all, and of nothing all is done; the details are as told."""
        job: Job[Any] = Job(function="f")
        make_context(job=job).set_progress(current, total)
        assert (job.progress, job.progress_meta) == (progress, {"current": current, "total": total})

    @pytest.mark.parametrize("wrong", [-1, -0.1, math.nan, math.inf, True, "3", None, [1], 1j])
    @pytest.mark.parametrize("name", ["current", "total"])
    def test_what_is_no_number_from_0_is_refused(self, name: str, wrong: Any) -> None:
        """The error says which, and what was given; nothing has changed."""
        job: Job[Any] = Job(function="f")
        with pytest.raises(InvalidArgumentsError) as caught:
            make_context(job=job).set_progress(**{"current": 1, "total": 2, name: wrong})
        assert str(caught.value).startswith(f"task 'task', argument '{name}': expected a number from 0, given")
        assert (job.progress, job.meta) == (0.0, {})

    @pytest.mark.parametrize("wrong", [object(), math.nan, "half a pair \udcff", {1: object()}])
    def test_details_that_json_cannot_carry_are_refused(self, wrong: Any) -> None:
        """Before anything has changed."""
        job: Job[Any] = Job(function="f")
        with pytest.raises(InvalidArgumentsError, match="argument 'meta': expected what JSON can carry"):
            make_context(job=job).set_progress(1, 2, wrong=wrong)
        assert (job.progress, job.meta) == (0.0, {})

    def test_details_that_are_too_large_are_refused(self) -> None:
        """They are written ten times a second."""
        make_context().set_progress(1, 2, text="x" * 8000)
        with pytest.raises(PayloadTooLargeError, match=r"the progress of task 'task': 8,\d+ bytes are over the limit"):
            make_context().set_progress(1, 2, text="x" * 8200)

    async def test_a_wrong_value_fails_the_job_that_tells_it(self, queue: Queue, registry: Registry) -> None:
        """It is a mistake in the program, which another attempt would make again."""

        @registry.task(retries=3, retry_delay=0)
        async def work(ctx: Context) -> None:
            await ctx.set_progress(1, -1)

        async with working(queue):
            job = await work.enqueue()
            await ended(job)
        assert (job.status, job.attempts) == (Status.FAILED, 1)
        assert "argument 'total': expected a number from 0, given -1 (int)" in (job.error or "")


class TestNotRacingTheEnd:
    async def claimed(self, queue: Queue, work: Task[..., Any, Any]) -> tuple[Any, Context, Reporter]:
        """Return a claim as a worker runs it, its context, and the context's reporter."""
        await work.enqueue(text="hi")
        [claim] = await queue.claim(1, worker="w")
        claim.job.started = 1
        worker = type("Worker", (), {"loop": asyncio.get_running_loop()})()
        ctx = RunningContext(job=claim.job, queue=queue, worker=worker)
        await ctx.set_progress(1, 10)
        return claim, ctx, ctx.__dict__["_reporter"]

    @pytest.mark.parametrize("outcome", [Succeeded("done"), Failed("why"), Retried("why", 60.0)])
    async def test_a_write_that_is_due_when_the_attempt_ends_is_left_out(
        self, queue: Queue, echo: Task[..., Any, Any], writes: list[float], outcome: Any
    ) -> None:
        """The settlement has the value; whatever wakes the reporter afterwards finds nothing to do."""
        claim, ctx, reporter = await self.claimed(queue, echo)
        ctx.set_progress(2, 10)
        settlement = queue.settlement(claim, outcome)
        await eventually(lambda: reporter._writing is None)
        before = len(writes)
        reporter._write()
        await eventually(lambda: reporter._writing is None)
        ctx.set_progress(9, 10)
        await queue.advance("w", [settlement], 0)
        assert len(writes) == before
        found = await stored(queue, claim.job)
        assert found.status is claim.job.status
        assert found.progress == {Succeeded: 1.0, Failed: 0.2, Retried: 0.0}[type(outcome)]
        assert found.progress_meta.get("current") == (None if isinstance(outcome, Retried) else 2)

    async def test_a_write_on_its_way_when_the_claim_is_lost_is_refused(
        self, queue: Queue, echo: Task[..., Any, Any]
    ) -> None:
        """Redis compares the claim, so the new owner's record stands."""
        claim, ctx, reporter = await self.claimed(queue, echo)
        await eventually(lambda: reporter._writing is None)
        await queue.redis.hset(queue.keys.claims, claim.job_id, "another 1.1")
        ctx.set_progress(7, 10)
        reporter._write()
        await eventually(lambda: reporter._writing is None)
        assert (await stored(queue, claim.job)).progress_meta["current"] == 1

    async def test_a_stamp_that_was_made_before_does_not_take_a_value_back(
        self, queue: Queue, echo: Task[..., Any, Any]
    ) -> None:
        """The worker's own first write of a job may leave later than the task's; it is made anew then."""
        await echo.enqueue(text="hi")
        [claim] = await queue.claim(1, worker="w")
        running = Running(claim)
        exchange = Exchange(queue, "w", 1, {claim.job_id: running}, asyncio.Event())
        stamp = queue.stamp(claim)
        assert stamp is not None
        exchange.post(stamp)
        await claim.job.update(progress=0.5)
        await exchange.next(0)
        assert (await stored(queue, claim.job)).progress == 0.5

    async def test_a_retry_begins_at_0(self, queue: Queue, registry: Registry, gate: Gate) -> None:
        """What the attempt before has told is no news any more, nor for a job that is run again by hand."""

        @registry.task(retries=1, retry_delay=0)
        async def work(ctx: Context) -> None:
            if ctx.retries == 0:
                await ctx.set_progress(9, 10)
                raise OSError
            await gate.wait()
            raise OSError

        async with working(queue):
            job = await work.enqueue()
            await gate.begun.wait()
            again = await stored(queue, job)
            assert (again.progress, again.progress_meta) == (0.0, {})
            gate.go_on.set()
            await ended(job)
        await job.update(progress=0.5, meta={"knapsaq": {"progress": {"current": 1, "total": 2}}})
        await job.retry()
        assert (await stored(queue, job)).progress_meta == {}

    async def test_so_does_the_attempt_after_a_crash(self, queue: Queue, registry: Registry, gate: Gate) -> None:
        """What a dead worker's attempt has told is seen until the next one begins."""

        @registry.task
        async def work(ctx: Context) -> None:
            await gate.wait()

        job = await work.enqueue()
        [claim] = await queue.claim(1, worker="dead")
        claim.job.started = 1
        make_context(job=claim.job).set_progress(9, 10)
        await claim.job.update()
        await rescue(queue, "dead")
        assert (await stored(queue, job)).progress == 0.9
        async with working(queue):
            await gate.begun.wait()
            await eventually(lambda: at_0(queue, job))
            assert (await stored(queue, job)).progress_meta == {}
            gate.go_on.set()
            await ended(job)

    async def test_a_thread_that_outlives_its_job_tells_nobody(self, queue: Queue, registry: Registry) -> None:
        """Its job has timed out; what it says afterwards is nobody's."""
        go_on, told = threading.Event(), threading.Event()
        jobs: list[Job[Any]] = []

        @registry.task(timeout=0.5)
        def work(ctx: Context) -> None:
            jobs.append(ctx.job)
            ctx.set_progress(1, 10)
            go_on.wait(10)
            ctx.set_progress(2, 10)
            told.set()

        async with working(queue):
            job = await work.enqueue()
            await ended(job)
            go_on.set()
            await eventually(told.is_set)
        assert jobs[0].progress_meta["current"] == 1
        assert (await stored(queue, job)).progress_meta["current"] == 1


class TestWithoutRedis:
    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        """Have every write in between fail from now on."""

        def break_it() -> None:
            run = Script.__call__

            async def failing(self: Script, *args: Any) -> Any:
                if self.name == "update":
                    raise RedisConnectionError("it is away")
                return await run(self, *args)

            monkeypatch.setattr(Script, "__call__", failing)

        return break_it

    async def test_a_write_that_fails_fails_no_task(
        self, queue: Queue, registry: Registry, broken: Callable[[], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log says so once, the task goes on, and the end carries the last value."""
        broken()

        @registry.task
        async def work(ctx: Context) -> None:
            for number in range(3):
                await ctx.set_progress(number, 10)
                await asyncio.sleep(1.2 * WRITE_SECONDS)
            raise OSError("the task's own")

        async with working(queue):
            job = await work.enqueue()
            await ended(job)
        assert job.progress_meta["current"] == 2
        assert caplog.text.count("progress of job") == 1


class TestUpdates:
    async def test_they_are_pushed_up_to_the_end(self, queue: Queue, registry: Registry) -> None:
        """From before the first attempt to the last word; the job is brought up to date."""
        steps = [asyncio.Event() for _ in range(3)]

        @registry.task
        async def work(ctx: Context) -> str:
            for number, step in enumerate(steps):
                await step.wait()
                await ctx.set_progress(number, len(steps), step=number)
            return "done"

        job = await work.enqueue()
        seen: list[Update] = []
        async with working(queue):
            async for update in job.updates():
                seen.append(update)
                told = update.meta.get("step", -1)
                if not update.ended:
                    steps[told + 1 if told + 1 < len(steps) else told].set()
        assert seen[0].status in (Status.QUEUED, Status.ACTIVE)
        assert [update.meta["step"] for update in seen if update.meta][:2] == [0, 1]
        assert [update.percent for update in seen if update.meta.get("step") == 1] == [33]
        assert seen[-1] == Update(Status.COMPLETE, 1.0, {"current": 2, "total": 3, "step": 2})
        assert [update.ended for update in seen] == [False] * (len(seen) - 1) + [True]
        assert (job.status, job.result) == (Status.COMPLETE, "done")
        await eventually(lambda: no_channels(queue))

    async def test_without_changes_nothing_is_asked(
        self, queue: Queue, registry: Registry, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who looks on waits for a push, and reads the record once for each."""
        reads: list[str] = []
        read = Queue.job

        async def counting(self: Queue, key: str) -> Any:
            reads.append(key)
            return await read(self, key)

        @registry.task
        async def work(ctx: Context) -> None:
            await gate.wait()

        async with working(queue):
            job = await work.enqueue()
            await gate.begun.wait()
            await eventually(lambda: is_active(queue, job))
            monkeypatch.setattr(Queue, "job", counting)
            looking = asyncio.create_task(collected(job))
            await eventually(lambda: queue._pushes._channels)
            await asyncio.sleep(0.3)
            assert len(reads) == 1
            gate.go_on.set()
            assert [update.ended for update in await looking] == [False, True]
        assert len(reads) == 2

    async def test_a_job_that_has_ended_gives_its_end(self, queue: Queue, echo: Task[..., Any, Any]) -> None:
        """At once."""
        async with working(queue):
            job = await echo.enqueue(text="hi")
            await ended(job)
        assert await collected(job) == [Update(Status.COMPLETE, 1.0, {})]

    async def test_the_end_of_a_job_that_keeps_no_record_is_seen(
        self, queue: Queue, registry: Registry, gate: Gate
    ) -> None:
        """It was pushed, though there is nothing left to read."""

        @registry.task(ttl=-1)
        async def work(ctx: Context) -> None:
            await gate.wait()

        async with working(queue):
            job = await work.enqueue()
            await gate.begun.wait()
            updates = job.updates()
            await anext(updates)  # from now on it hears of what is pushed
            await eventually(lambda: is_active(queue, job))
            gate.go_on.set()
            assert [update async for update in updates][-1] == Update(Status.COMPLETE, 1.0, {})

    async def test_a_line_that_was_cut_is_mended_and_the_end_not_missed(
        self, queue: Queue, registry: Registry, gate: Gate
    ) -> None:
        """Although nobody could push it."""

        @registry.task
        async def work(ctx: Context) -> None:
            await gate.wait()

        async with working(queue):
            job = await work.enqueue()
            await gate.begun.wait()
            looking = asyncio.create_task(collected(job))
            await eventually(lambda: queue._pushes._channels)
            await queue.redis.client_kill_filter(_type="pubsub")
            gate.go_on.set()
            assert (await looking)[-1].status is Status.COMPLETE

    async def test_a_server_that_was_away_is_waited_for(self, tmp_path: Path, registry: Registry) -> None:
        """The job is as it was when the server is back."""

        @registry.task
        async def work() -> None: ...

        server = Server(tmp_path / "server")
        try:
            async with connect(server.start(), registry=registry) as client:
                job = await work.enqueue()
                looking = asyncio.create_task(collected(job))
                await eventually(lambda: client.queue()._pushes._channels)
                server.kill()
                server.start()
                async with working(client.queue()):
                    assert (await looking)[-1].status is Status.COMPLETE
        finally:
            server.stop()

    async def test_who_leaves_early_leaves_no_channel_behind(self, queue: Queue, echo: Task[..., Any, Any]) -> None:
        """Two may look on, and one may go."""
        job = await echo.enqueue(text="hi")
        looking = asyncio.create_task(collected(job))
        async with aclosing(job.updates()) as updates:
            assert (await anext(updates)).status is Status.QUEUED
        async with working(queue):
            assert (await looking)[-1].ended
        await eventually(lambda: no_channels(queue))

    async def test_a_job_that_is_gone_says_so(self, queue: Queue, echo: Task[..., Any, Any]) -> None:
        """Nobody looks on for ever."""
        job = await echo.enqueue(text="hi")
        await queue.redis.flushall()
        with pytest.raises(Exception, match="its record is gone"):
            await collected(job)


async def collected(job: Job[Any]) -> list[Update]:
    return [update async for update in job.updates()]


async def is_active(queue: Queue, job: Job[Any]) -> bool:
    return (await stored(queue, job)).status is Status.ACTIVE


async def no_channels(queue: Queue) -> bool:
    return not await queue.redis.pubsub_channels("saq:job:*")
