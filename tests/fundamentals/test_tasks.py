"""The manual as code: defining a task, calling it, and getting its result."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from knapsaq import (
    Client,
    Context,
    InvalidArgumentsError,
    JobFailedError,
    JobRevokedError,
    NotConnectedError,
    OptionError,
    PayloadTooLargeError,
    Queue,
    Registry,
    ResultError,
    UnknownQueueError,
    UnknownTaskError,
)
from knapsaq.testing import ManualClock, make_context, running_worker


class TestFirstSteps:
    async def test_put_task_on_a_function_enqueue_it_and_wait(self, client: Client, registry: Registry) -> None:
        """That is all there is to it."""

        @registry.task
        async def send_email(ctx: Context, *, to: str, subject: str) -> dict[str, str]:
            return {"to": to, "subject": subject, "job": ctx.id}

        async with running_worker(registry=registry):
            job = await send_email.enqueue(to="a@b.c", subject="Hi")
            assert await job.wait(5) == {"to": "a@b.c", "subject": "Hi", "job": job.key}
        assert job.ended

    async def test_the_context_is_optional_and_arguments_may_be_positional(
        self, client: Client, registry: Registry
    ) -> None:
        """A task can be any function."""

        @registry.task
        async def add(x: int, y: int = 1) -> int:
            return x + y

        async with running_worker(registry=registry):
            assert await (await add.enqueue(1, 2)).wait(5) == 3
            assert await (await add.enqueue(1)).wait(5) == 2

    async def test_a_plain_function_runs_in_a_thread(self, client: Client, registry: Registry) -> None:
        """Blocking code does not stop the other jobs."""

        @registry.task
        def resize() -> str:
            return threading.current_thread().name

        async with running_worker(registry=registry):
            assert await (await resize.enqueue()).wait(5) != threading.current_thread().name

    async def test_a_task_is_enqueued_by_its_name(self, queue: Queue, registry: Registry) -> None:
        """A route handler need not import the task; SAQ's spelling works."""

        @registry.task(name="mail.send")
        async def send(*, to: str) -> str:
            return to

        async with running_worker(registry=registry):
            job = await queue.enqueue("mail.send", to="a@b.c")
            assert job is not None
            assert await job.wait(5) == "a@b.c"

    async def test_a_task_is_still_the_function(self, registry: Registry) -> None:
        """A unit test calls it directly, with a dictionary as its context; no broker is needed."""

        @registry.task
        async def greet(ctx: Context, *, name: str) -> str:
            return f"Hello {name}{ctx['mark']}"

        assert await greet({"mark": "!"}, name="Ann") == "Hello Ann!"
        assert await greet(make_context(mark="?"), name="Ann") == "Hello Ann?"

    async def test_a_task_goes_to_its_own_queue(self, client: Client, registry: Registry) -> None:
        """Each queue can have workers of its own."""

        @registry.task(queue="mail")
        async def send() -> None: ...

        await send.enqueue()
        assert await client.queue("mail").count("queued") == 1
        assert await client.queue().count("queued") == 0
        async with running_worker(["mail"], registry=registry):
            await (await send.enqueue()).wait(5)

    async def test_a_worker_runs_many_jobs_at_once(self, client: Client, registry: Registry) -> None:
        """Waiting for a server costs nobody else time."""
        here = asyncio.Barrier(5)

        @registry.task
        async def meet() -> None:
            await here.wait()

        async with running_worker(concurrency=5, registry=registry):
            jobs = [await meet.enqueue() for _ in range(5)]
            await asyncio.gather(*(job.wait(5) for job in jobs))


class TestOtherSpellings:
    async def test_delay_is_another_word_for_enqueue(self, client: Client, registry: Registry) -> None:
        """``task.delay(...)`` as in Celery."""

        @registry.task
        async def my_custom_task(arg1: str, arg2: int) -> dict[str, Any]:
            return {"status": "success", "data": [arg1, arg2]}

        async with running_worker(registry=registry):
            job = await my_custom_task.delay("arg1", 123)
            assert await job.wait(5) == {"status": "success", "data": ["arg1", 123]}

    async def test_apply_async_takes_celerys_options(self, client: Client, registry: Registry) -> None:
        """Arguments as lists and dictionaries, ``countdown``, ``time_limit``, ``queue`` and ``headers``."""

        @registry.task
        async def my_custom_task(ctx: Context, arg1: str, arg2: int = 0) -> list[Any]:
            return [arg1, arg2, ctx.job.timeout, ctx.headers["trace"], ctx.queue.name]

        async with running_worker(registry=registry):
            job = await my_custom_task.apply_async(
                args=["arg1"],
                kwargs={"arg2": 123},
                countdown=0.01,
                time_limit=600,
                queue="mail",
                headers={"trace": "t-1"},
            )
            assert await job.wait(5) == ["arg1", 123, 600.0, "t-1", "mail"]


class TestLater:
    @pytest.fixture
    async def at(self, client: Client) -> ManualClock:
        """The clock of the connection."""
        clock = ManualClock()
        for queue in client.queues.values():
            queue.clock = clock
        return clock

    @pytest.mark.parametrize("how", ["delay", "eta"])
    async def test_a_job_waits_until_it_is_due(
        self, client: Client, registry: Registry, at: ManualClock, how: str
    ) -> None:
        """After a delay, or at a moment; the job itself is there at once."""

        @registry.task
        async def remind() -> str:
            return "reminded"

        when = {"delay": timedelta(hours=1), "eta": datetime.now(UTC) + timedelta(hours=1)}
        job = await remind.using(**{how: when[how]}).enqueue()
        async with running_worker(registry=registry):
            with pytest.raises(TimeoutError):
                await job.wait(0.05)
            assert await client.queue().count("queued") == 0
            assert await client.queue().count("incomplete") == 1
            at.advance(timedelta(hours=1, seconds=1))
            await remind.enqueue()  # wakes the worker, which looks at the clock
            assert await job.wait(5) == "reminded"


class TestOptionsOfOneCall:
    async def test_a_key_makes_it_the_same_job_until_that_has_ended(self, client: Client, registry: Registry) -> None:
        """Two clicks send one e-mail; later, the same key may be used again."""

        @registry.task
        async def welcome(*, user_id: int) -> int:
            return user_id

        first = await welcome.using(key="welcome:7").enqueue(user_id=7)
        again = await welcome.using(key="welcome:7").enqueue(user_id=8)
        assert again.key == first.key == "welcome:7"
        assert await client.queue().count("queued") == 1
        async with running_worker(registry=registry):
            assert await again.wait(5) == 7
            assert await (await welcome.using(key="welcome:7").enqueue(user_id=9)).wait(5) == 9

    async def test_headers_travel_with_the_job(self, client: Client, registry: Registry) -> None:
        """A request's id is found again in the task's log."""

        @registry.task
        async def trace(ctx: Context) -> str:
            return ctx.headers["request-id"]

        async with running_worker(registry=registry):
            assert await (await trace.using(headers={"request-id": "r-1"}).enqueue()).wait(5) == "r-1"

    async def test_a_job_is_found_again_by_its_key(self, queue: Queue, registry: Registry) -> None:
        """A key in a URL leads back to status and result."""

        @registry.task
        async def report() -> list[int]:
            return [1]

        key = (await report.enqueue()).key
        async with running_worker(registry=registry):
            job = await queue.job(key)
            assert job is not None
            assert await job.wait(5) == [1]
        assert (job.status, job.result, job.error, job.attempts) == ("complete", [1], None, 1)
        assert await queue.job("unknown") is None


class TestFollowUp:
    async def test_a_task_enqueues_another_one_through_its_context(self, client: Client, registry: Registry) -> None:
        """``ctx["queue"]`` is the queue that the job came from."""
        sent = asyncio.Event()

        @registry.task
        async def send_email(ctx: Context, *, to: str) -> None:
            sent.set()

        @registry.task
        async def enqueue_follow_up(ctx: Context, *, user_id: int) -> dict[str, bool]:
            await ctx["queue"].enqueue("send_email", to=f"user{user_id}@example.com")
            return {"enqueued": True}

        async with running_worker(registry=registry):
            assert await (await enqueue_follow_up.enqueue(user_id=1)).wait(5) == {"enqueued": True}
            await asyncio.wait_for(sent.wait(), 5)


class TestScheduledTasks:
    async def test_a_scheduled_task_can_be_triggered_by_hand(self, queue: Queue, registry: Registry) -> None:
        """It is a task like any other; the schedule's arguments are those of its own jobs."""

        @registry.scheduled_task(cron="0 2 * * *", timeout=900, kwargs={"batch_size": 100})
        async def cleanup_old_records(ctx: Context, *, batch_size: int = 50) -> dict[str, int]:
            return {"deleted": batch_size}

        assert registry.get_scheduled_tasks() == [cleanup_old_records]
        async with running_worker(registry=registry):
            job = await queue.enqueue("cleanup_old_records")
            assert job is not None
            assert await job.wait(5) == {"deleted": 50}
            assert job.timeout == 900


class TestWrongCalls:
    @pytest.fixture(autouse=True)
    def send(self, registry: Registry) -> Any:
        """A task with a parameter of every simple sort."""

        @registry.task
        async def send(ctx: Context, *, to: str, count: int = 1) -> None: ...

        return send

    @pytest.mark.parametrize(
        ("arguments", "parameter"),
        [
            ({}, "to"),
            ({"to": 5}, "to"),
            ({"to": "a", "count": "5"}, "count"),
            ({"to": "a", "count": True}, "count"),
            ({"to": "a", "subject": "Hi"}, "subject"),
            ({"to": object()}, "to"),
        ],
    )
    async def test_arguments_that_do_not_fit_queue_nothing(
        self, queue: Queue, send: Any, arguments: dict[str, Any], parameter: str
    ) -> None:
        """The caller gets the error, with the parameter's name, both ways of calling."""
        for call in (send.enqueue(**arguments), queue.enqueue("send", **arguments)):
            with pytest.raises(InvalidArgumentsError) as caught:
                await call
            assert (caught.value.task, caught.value.parameter) == ("send", parameter)
        assert await queue.count("incomplete") == 0

    async def test_unknown_names_queue_nothing_and_get_an_answer(self, queue: Queue, send: Any) -> None:
        """Of a task, a queue or an option: each error names the nearest."""
        with pytest.raises(UnknownTaskError, match="did you mean 'send'"):
            await queue.enqueue("sned", to="a")
        with pytest.raises(UnknownQueueError, match="did you mean 'mail'"):
            await send.using(queue="mial").enqueue(to="a")
        with pytest.raises(OptionError, match="did you mean 'delay'"):
            send.using(dealy=5)
        assert await queue.count("incomplete") == 0

    async def test_too_much_data_queues_nothing(self, queue: Queue, send: Any) -> None:
        """A file belongs into a store, its id into the job."""
        with pytest.raises(PayloadTooLargeError, match="pass an id instead"):
            await send.enqueue(to="x" * 2_000_000)
        assert await queue.count("incomplete") == 0

    async def test_without_a_connection_the_error_says_how_to_open_one(self) -> None:
        """Forgetting it is the most common mistake of a first script."""
        alone = Registry()

        @alone.task
        async def f() -> None: ...

        with pytest.raises(NotConnectedError, match=r"async with knapsaq\.connect"):
            await f.enqueue()


class TestWaiting:
    async def test_a_failure_is_raised_where_somebody_waits(self, client: Client, registry: Registry) -> None:
        """With the task, the key and the traceback's text."""

        @registry.task
        async def fail() -> None:
            raise KeyError("lost")

        async with running_worker(registry=registry):
            job = await fail.enqueue()
            with pytest.raises(JobFailedError, match="KeyError: 'lost'") as caught:
                await job.wait(5)
        assert (caught.value.task, caught.value.key) == ("fail", job.key)
        assert "Traceback" in caught.value.error

    async def test_a_job_that_was_ended_on_purpose_is_told_apart(self, queue: Queue, registry: Registry) -> None:
        """Revoked is not failed."""

        @registry.task
        async def wait() -> None: ...

        job = await wait.enqueue()
        await job.abort("not needed")
        with pytest.raises(JobRevokedError, match="not needed"):
            await job.wait(5)

    async def test_waiting_may_end_before_the_job(self, client: Client, registry: Registry) -> None:
        """The job goes on; call again."""

        @registry.task
        async def later() -> str:
            return "done"

        job = await later.enqueue()
        with pytest.raises(TimeoutError):
            await job.wait(0.01)
        async with running_worker(registry=registry):
            assert await job.wait(5) == "done"

    async def test_a_result_that_is_not_what_was_promised_is_refused(self, client: Client, registry: Registry) -> None:
        """The caller gets the annotated type or an error, and the work is not done again."""

        @registry.task(retries=3)
        async def lie() -> int:
            return "not a number"  # type: ignore[return-value]

        @registry.task(retries=3)
        async def hide() -> object:
            return object()

        async with running_worker(registry=registry):
            for task in (lie, hide):
                job = await task.enqueue()
                with pytest.raises(ResultError):
                    await job.wait(5)
                assert (job.status, job.attempts) == ("complete", 1)
