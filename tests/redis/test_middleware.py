"""Middlewares with a queue and a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import pytest
from saq.job import Job as SaqJob
from tests.redis.conftest import Gate
from tests.support import ended, eventually, left_behind, lists, working

from knapsaq import (
    Context,
    Job,
    JobMissingError,
    Middleware,
    Queue,
    Registry,
    Snooze,
    SoftTimeLimitExceeded,
    Task,
)
from knapsaq.claims import CRASH_LIMIT
from knapsaq.middleware import CallNext
from knapsaq.testing import running_worker
from knapsaq.worker import Worker

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Tenancy(Middleware):
    """Takes a context variable along: what programs write first of all."""

    def before_enqueue(self, job: Job[Any]) -> None:
        """Put it on the job."""
        job.add_headers({"tenant": tenant.get()})

    async def around(self, ctx: Context, call_next: CallNext) -> Any:
        """Set it for the task."""
        tenant.set(ctx.headers["tenant"])
        return await call_next()


class Guard(Middleware):
    """Refuses the text ``no``, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any] | None] = []

    async def before_enqueue(self, job: Job[Any]) -> None:
        """Look at it."""
        self.asked.append(job.kwargs)
        if job.kwargs == {"text": "no"}:
            raise PermissionError("not that")


class Ear(Middleware):
    """Notes how jobs end."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []

    def on_success(self, ctx: Context, result: Any) -> None:
        """Note it."""
        self.heard.append(("success", ctx.id, str(result)))

    def on_failure(self, ctx: Context, error: BaseException) -> None:
        """Note it."""
        self.heard.append(("failure", ctx.id, str(error)))

    def on_retry(self, ctx: Context, error: BaseException, after: float) -> None:
        """Note it."""
        self.heard.append(("retry", ctx.id, f"{error} {after:g}"))

    def on_revoked(self, ctx: Context, reason: str) -> None:
        """Note it."""
        self.heard.append(("revoked", ctx.id, reason))


class TestBeforeEnqueue:
    async def test_what_it_raises_refuses_the_job_in_each_way_to_enqueue(
        self, queue: Queue, registry: Registry, echo: Task[..., Any, Any]
    ) -> None:
        """The caller gets the very error, and nothing is queued: of many jobs none."""
        registry.use(Guard())
        for enqueuing in (
            echo.enqueue(text="no"),
            echo.using(key="k").enqueue(text="no"),
            queue.enqueue("echo", text="no"),
            queue.enqueue(SaqJob("echo", {"text": "no"})),
            echo.enqueue_many([{"text": "yes"}, {"text": "no"}]),
            queue.enqueue_many("echo", [{"text": "no"}, {"text": "yes"}]),
            queue.apply("echo", text="no"),
            queue.map("echo", [{"text": "no"}]),
        ):
            with pytest.raises(PermissionError, match="not that"):
                await enqueuing
        assert await lists(queue) == {"queued": [], "active": [], "incomplete": []}
        assert [key async for key in queue.redis.scan_iter()] == []

    async def test_it_concerns_its_own_queue_or_task_alone(
        self, queue: Queue, registry: Registry, echo: Task[..., Any, Any]
    ) -> None:
        """A queue's middleware is asked for jobs that are sent there by the call, too."""
        of_mail, of_task = Guard(), Guard()
        registry.use(of_mail, queue="mail")

        @registry.task(middleware=of_task)
        async def guarded(text: str) -> None: ...

        await echo.enqueue(text="a")
        await echo.using(queue="mail").enqueue(text="b")
        await guarded.enqueue(text="c")
        assert (of_mail.asked, of_task.asked) == ([{"text": "b"}], [{"text": "c"}])

    async def test_it_may_change_the_job(self, queue: Queue, registry: Registry, echo: Task[..., Any, Any]) -> None:
        """What it leaves is what is stored, also of a job that a program of SAQ has made."""

        class Louder(Middleware):
            def before_enqueue(self, job: Job[Any]) -> None:
                assert job.kwargs is not None
                job.kwargs = {"text": job.kwargs["text"].upper()}
                job.add_headers({"loud": "yes"})

        registry.use(Louder())
        async with running_worker(registry=registry):
            assert await (await echo.enqueue(text="hi")).wait(5) == "HI"
            await queue.enqueue(SaqJob("echo", {"text": "hi"}, key="saqs"))
            job = await queue.job("saqs")
            assert job is not None
            assert await job.wait(5) == "HI"
        assert job.headers == {"loud": "yes"}

    async def test_a_call_is_asked_about_once_even_if_its_key_is_taken(
        self, queue: Queue, registry: Registry, echo: Task[..., Any, Any]
    ) -> None:
        """Looking for the job that has the key is no second call."""
        guard = Guard()
        registry.use(guard)
        first = await echo.using(key="k").enqueue(text="a")
        again = await echo.using(key="k").enqueue(text="b")
        assert (again.key, again.kwargs) == (first.key, {"text": "a"})
        assert guard.asked == [{"text": "a"}, {"text": "b"}]

        await queue.redis.set(first.id, b"nobody can read this")
        with pytest.raises(JobMissingError):
            await echo.using(key="k").enqueue(text="c")
        assert guard.asked[2:] == [{"text": "c"}]

    async def test_a_scheduled_job_that_is_refused_is_skipped_and_the_next_schedule_goes_on(
        self, queue: Queue, registry: Registry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nobody waits for its call, so the log has the error."""
        registry.use(Guard())

        @registry.scheduled_task(cron="* * * * * *", kwargs={"text": "no"})
        async def refused(text: str) -> None: ...

        @registry.scheduled_task(cron="* * * * * *")
        async def fine() -> None: ...

        async def queued() -> set[str]:
            return {job.function async for job in queue.iter_jobs()}

        async with working(queue):
            await eventually(queued)
        assert await queued() == {"fine"}
        assert "schedule refused of queue default: the job of a due time was refused" in caplog.text
        assert "PermissionError" in caplog.text

    async def test_a_queue_without_a_registry_asks_nobody(self, queue: Queue, registry: Registry) -> None:
        """As programs of SAQ make them."""
        registry.use(Guard())
        assert await Queue(queue.redis, "free").enqueue("echo", text="no")
        await queue.redis.flushall()


class TestAround:
    async def test_context_variables_go_from_the_caller_to_the_task_and_on_to_its_followers(
        self, queue: Queue, registry: Registry
    ) -> None:
        """Of an async task and of a plain one in its thread."""
        registry.use(Tenancy())

        @registry.task
        async def parent() -> str:
            return await (await child.enqueue()).wait(5)

        @registry.task
        def child() -> str:
            return tenant.get()

        async with running_worker(registry=registry):
            token = tenant.set("acme")
            job = await parent.enqueue()
            tenant.reset(token)
            other = await parent.enqueue()
            assert [await job.wait(5), await other.wait(5)] == ["acme", "nobody"]

    async def test_an_aborted_job_is_cancelled_through_it(self, queue: Queue, registry: Registry, gate: Gate) -> None:
        """Its clean-up runs, and the job ends aborted."""
        left: list[str] = []

        class Cleans(Middleware):
            async def around(self, ctx: Context, call_next: CallNext) -> Any:
                try:
                    return await call_next()
                finally:
                    left.append(ctx.id)

        registry.use(Cleans())
        async with working(queue):
            job = await queue.enqueue("held")
            assert job is not None
            await gate.entered()
            await queue.abort(job, "not needed")
            await ended(job)
        assert (job.status, job.error, left) == ("aborted", "not needed", [job.key])

    async def test_a_signal_that_a_task_returns_passes_as_one_that_it_raises(
        self, queue: Queue, registry: Registry
    ) -> None:
        """So nobody takes it for a result; the snoozed attempt has not ended, and no hook hears of it."""
        ear = Ear()

        class Packs(Middleware):
            async def around(self, ctx: Context, call_next: CallNext) -> Any:
                return {"packed": await call_next()}

        registry.use(ear, Packs())
        snoozed: list[bool] = []

        @registry.task
        async def later() -> int | Snooze:
            snoozed.append(True)
            return 7 if len(snoozed) > 1 else Snooze(after=0.001)

        async with running_worker(registry=registry):
            job = await later.using(key="k").enqueue()
            await ended(job)
        assert (job.result, ear.heard) == ({"packed": 7}, [("success", "k", "{'packed': 7}")])

    @pytest.mark.parametrize("run", ["async", "thread"])
    async def test_a_soft_limit_interrupts_the_task_inside_of_it(
        self, queue: Queue, registry: Registry, run: str
    ) -> None:
        """It passes through what is around like any failure, and is what the hook hears of."""
        ear = Ear()
        passed: list[BaseException] = []

        class Sees(Middleware):
            async def around(self, ctx: Context, call_next: CallNext) -> Any:
                try:
                    return await call_next()
                except SoftTimeLimitExceeded as error:
                    passed.append(error)
                    raise

        registry.use(ear, Sees())
        if run == "async":

            @registry.task(name="slow", soft_timeout=0.05)
            async def slow() -> None:
                await asyncio.sleep(30)

        else:

            @registry.task(name="slow", soft_timeout=0.05)
            def slow() -> None:
                while True:
                    time.sleep(0.001)

        async with working(queue):
            job = await queue.enqueue("slow", key="k")
            await ended(job)
            await eventually(lambda: ear.heard)
        assert len(passed) == 1
        assert ear.heard == [("failure", "k", str(passed[0]))]


class TestHearing:
    async def test_each_end_is_heard_with_the_retries_before_it(self, queue: Queue, registry: Registry) -> None:
        """The task's own errors, its requests for a retry with their cause, and what it discards."""
        ear = Ear()
        registry.use(ear)

        @registry.task(retries=1, retry_delay=0)
        async def flaky(ctx: Context, *, way: str) -> str:
            if way == "asks" and ctx.retries == 0:
                raise ctx.retry(after=0.001, cause=OSError("busy"))
            if way == "fails":
                raise OSError("down")
            return way

        async with running_worker(registry=registry):
            for way in ("works", "asks", "fails"):
                job = await flaky.using(key=way).enqueue(way=way)
                await ended(job)
        assert ear.heard == [
            ("success", "works", "works"),
            ("retry", "asks", "busy 0.001"),
            ("success", "asks", "asks"),
            ("retry", "fails", "down 0"),
            ("failure", "fails", "down"),
        ]

    async def test_an_abort_of_a_running_job_is_heard(self, queue: Queue, registry: Registry, gate: Gate) -> None:
        """With its reason."""
        ear = Ear()
        registry.use(ear)
        async with working(queue):
            job = await queue.enqueue("held")
            assert job is not None
            await gate.entered()
            await queue.abort(job, "not needed")
            await ended(job)
            await eventually(lambda: ear.heard)
        assert ear.heard == [("revoked", job.key, "not needed")]

    async def test_a_worker_that_stops_tells_of_nothing_that_it_puts_back(
        self, queue: Queue, registry: Registry, gate: Gate
    ) -> None:
        """The job has not ended; whoever finishes it tells."""
        ear = Ear()
        registry.use(ear)
        async with working(queue, shutdown_grace_period_s=0):
            job = await queue.enqueue("held")
            assert job is not None
            await gate.entered()
        assert ear.heard == []
        gate.open()
        async with working(queue):
            await ended(job)
        assert ear.heard == [("success", job.key, "let go")]

    async def test_a_task_that_does_not_end_is_heard_of_when_it_is_given_up(
        self, queue: Queue, registry: Registry
    ) -> None:
        """Without an exception of its own there is the job's error."""
        ear = Ear()
        registry.use(ear)
        stop = asyncio.Event()

        @registry.task(timeout=0.01)
        async def stubborn() -> None:
            while not stop.is_set():
                try:
                    await stop.wait()
                except asyncio.CancelledError:
                    continue

        async with working(queue) as worker:
            job = await stubborn.enqueue()
            await eventually(lambda: worker._running and all(one.begun for one in worker._running.values()))
            [running] = worker._running.values()
            await eventually(lambda: running.overdue(float("inf")))
            worker._give_up(running, running.overdue(float("inf")))  # type: ignore[arg-type]
            await ended(job)
            await eventually(lambda: ear.heard)
            stop.set()
        [(what, key, text)] = ear.heard
        assert (what, key) == ("failure", job.key)
        assert "it does not end" in text

    async def test_a_job_that_killed_its_workers_is_heard_of(
        self, queue: Queue, registry: Registry, echo: Task[..., Any, Any]
    ) -> None:
        """Nobody has run it here, and it is a failure all the same."""
        ear = Ear()
        registry.use(ear)
        job = await echo.enqueue(text="deadly")
        redis: Any = queue.redis
        await redis.hset(queue.keys.crashes, job.id, "1 dead\n" * CRASH_LIMIT)
        async with working(queue):
            await ended(job)
            await eventually(lambda: ear.heard)
        [(what, key, text)] = ear.heard
        assert (what, key) == ("failure", job.key)
        assert "died 3 times" in text

    async def test_a_job_that_has_expired_is_heard_of_by_middlewares_alone(
        self, queue: Queue, registry: Registry, echo: Task[..., Any, Any]
    ) -> None:
        """It was ended on purpose; SAQ's functions stand around attempts, of which it had none."""
        ear = Ear()
        registry.use(ear)
        called: list[str] = []

        async def after_process(ctx: Any) -> None:
            called.append(ctx["job"].key)

        job = await echo.using(expires=0.001).enqueue(text="late")
        await asyncio.sleep(0.01)
        async with working(queue, after_process=after_process):
            await ended(job)
            await eventually(lambda: ear.heard)
        [(what, key, text)] = ear.heard
        assert (what, key, called) == ("revoked", job.key, [])
        assert "expired, as it was not started by" in text

    async def test_what_a_hook_enqueues_follows_the_job(
        self, queue: Queue, registry: Registry, echo: Task[..., Any, Any]
    ) -> None:
        """The job is its parent, and its headers go on."""

        class Follows(Middleware):
            async def on_success(self, ctx: Context, result: Any) -> None:
                await echo.using(key="follower").enqueue(text="next")

        @registry.task(middleware=Follows())
        async def first() -> None: ...

        async with running_worker(registry=registry):
            await (await first.using(key="k", headers={"tenant": "acme"}).enqueue()).wait(5)
            await eventually(lambda: queue.job("follower"))
            follower = await queue.job("follower")
            await ended(follower)
        assert follower is not None
        assert (follower.parent_id, follower.headers) == ("k", {"tenant": "acme"})

    async def test_a_hook_that_raises_leaves_the_job_as_it_ended(
        self, queue: Queue, registry: Registry, echo: Task[..., Any, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log has it."""

        class Raises(Middleware):
            def on_success(self, ctx: Context, result: Any) -> None:
                raise OSError("the log is full")

        registry.use(Raises())
        async with running_worker(registry=registry):
            job = await echo.enqueue(text="hi")
            assert await job.wait(5) == "hi"
        assert "on_success of a middleware failed" in caplog.text
        assert await left_behind(queue) == []

    async def test_a_worker_that_stops_waits_for_those_who_are_told(
        self, queue: Queue, registry: Registry, echo: Task[..., Any, Any]
    ) -> None:
        """What somebody writes down then is not cut off."""
        told, begun, go_on = [], asyncio.Event(), asyncio.Event()

        class Slow(Middleware):
            async def on_success(self, ctx: Context, result: Any) -> None:
                begun.set()
                await go_on.wait()
                told.append(result)

        registry.use(Slow())
        async with working(queue) as worker:
            await ended(await echo.enqueue(text="hi"))
            await begun.wait()
            worker.request_stop()
            asyncio.get_running_loop().call_later(0.2, go_on.set)
        assert told == ["hi"]

    async def test_a_worker_that_is_stepped_by_hand_tells_too(
        self, queue: Queue, registry: Registry, echo: Task[..., Any, Any]
    ) -> None:
        """Before ``process`` returns."""
        told: list[str] = []

        class Slow(Middleware):
            async def on_success(self, ctx: Context, result: Any) -> None:
                await asyncio.sleep(0.05)
                told.append(result)

        registry.use(Slow())
        await echo.enqueue(text="hi")
        assert await Worker(queue).process()
        assert told == ["hi"]


async def test_a_job_that_no_middleware_concerns_makes_no_object_for_it(
    queue: Queue, registry: Registry, echo: Task[..., Any, Any]
) -> None:
    """Neither a stack nor a task of asyncio: the worker's flag is all that is looked at."""
    contexts: list[Context] = []

    @registry.task
    async def look(ctx: Context) -> None:
        contexts.append(ctx)

    async with working(queue) as worker:
        await ended(await look.enqueue())
        assert not worker._aftermath._tasks
    assert contexts[0].stack is None
    assert not registry.layers._stacks
