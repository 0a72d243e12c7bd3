"""Takes jobs, runs them, and writes how they ended: in quiet times, in outages, and when it has to stop."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from saq.job import CronJob, Status
from tests.redis.conftest import Gate
from tests.support import Proxy, Server, ended, eventually, left_behind, lists, store, working

from knapsaq import Client, Job, Queue, Registry, Settings, connect
from knapsaq.claims import CRASH_LIMIT
from knapsaq.outcomes import Retried
from knapsaq.process import run_workers
from knapsaq.redis.scripts import advance
from knapsaq.registry import AnyTask
from knapsaq.testing import ManualClock, running_worker
from knapsaq.upkeep import Rescuer
from knapsaq.worker import Worker


async def queued(queue: Queue, function: str = "echo", **options: Any) -> Job[Any]:
    """Queue a job."""
    if function == "echo":
        options = {"text": "hi", **options}
    job = await queue.enqueue(function, **options)
    assert job is not None
    return job


async def stored(queue: Queue, job: Job[Any]) -> Job[Any]:
    """Return a job as Redis has it."""
    found = await queue.job(job.key)
    assert found is not None
    return found


@pytest.fixture
def hasty(settings: Settings) -> Settings:
    """Settings under which a stopping worker waits for nobody."""
    return settings.with_values(shutdown_grace=0.0)


class TestRunning:
    async def test_a_worker_never_runs_more_jobs_than_its_concurrency(self, queue: Queue, gate: Gate) -> None:
        """And it does run as many, also when they come one by one."""
        async with working(queue, concurrency=3):
            first = [await queued(queue, "held") for _ in range(2)]
            await gate.entered(2)
            rest = [await queued(queue, "held") for _ in range(6)]
            await gate.entered(3)
            assert len((await lists(queue))["active"]) == 3
            assert len((await lists(queue))["queued"]) == 5
            gate.open()
            await ended(*first, *rest)
        assert gate.most == 3
        assert sorted(gate.begun) == sorted(gate.ended)
        assert await left_behind(queue) == []

    async def test_a_running_job_is_shown_as_active(self, queue: Queue, gate: Gate) -> None:
        """With its attempt, its start and its worker."""
        async with working(queue) as worker:
            job = await queued(queue, "held")
            await gate.entered()
            found = await eventually(lambda: self._active(queue, job))
            gate.open()
            await ended(job)
        assert (found.attempts, found.worker_id) == (1, worker.id)
        assert found.started >= found.queued

    async def _active(self, queue: Queue, job: Job[Any]) -> Job[Any] | None:
        found = await stored(queue, job)
        return found if found.status is Status.ACTIVE else None

    async def test_a_delayed_job_runs_when_it_is_due(self, queue: Queue, echo: AnyTask) -> None:
        """An idle worker is told of a due time and wakes at it, without a poll."""
        async with working(queue):
            await ended(await queued(queue))  # now it is idle
            job = await echo.using(delay=0.3).enqueue(text="later")
            await ended(job)
        assert job.result == "later"
        assert 250 <= job.started - job.queued <= 2000

    async def test_a_failing_job_is_run_again_and_then_fails_with_its_traceback(
        self, queue: Queue, registry: Registry
    ) -> None:
        """As often as it may be."""
        attempts: list[int] = []

        @registry.task(retries=2, retry_delay=0.001)
        async def failing(ctx: dict[str, Any]) -> None:
            attempts.append(ctx["job"].attempts)
            raise LookupError("no such thing")

        async with working(queue):
            job = await failing.enqueue()
            await ended(job)
        assert attempts == [1, 2, 3]
        assert job.status is Status.FAILED
        assert "LookupError: no such thing" in (job.error or "")

    async def test_workers_share_a_queue_without_running_a_job_twice(self, queue: Queue, registry: Registry) -> None:
        """Three workers, three hundred jobs, each once."""
        runs: list[int] = []

        @registry.task
        async def count(number: int) -> None:
            await asyncio.sleep(0)
            runs.append(number)

        async with working(queue), working(queue), working(queue):
            await ended(*await asyncio.gather(*(count.enqueue(n) for n in range(300))))
        assert sorted(runs) == list(range(300))
        assert await left_behind(queue) == []

    async def test_an_idle_worker_costs_redis_less_than_a_command_a_second(self, queue: Queue) -> None:
        """Whatever its concurrency; what its scripts do inside is not counted."""
        seconds = 3.0
        async with working(queue, concurrency=50), queue.redis.monitor() as monitor:
            settled = time.monotonic() + 0.5
            sent: list[str] = []
            try:
                async with asyncio.timeout(0.5 + seconds):
                    while True:
                        command = await monitor.next_command()
                        if command["client_type"] != "lua" and time.monotonic() > settled:
                            sent.append(command["command"])
            except TimeoutError:
                pass
        # A lease of 10 s is renewed every 2 s, and the queue is looked at every 5 s; two for the edges.
        assert len(sent) <= seconds + 2, sent


class TestOneJobAlone:
    """Whatever is wrong with a job is that job's own end; its neighbours run."""

    async def _with_neighbours(self, queue: Queue, wrong: Any) -> Any:
        before = await queued(queue)
        job = await wrong()
        after = await queued(queue)
        async with working(queue):
            await ended(before, after)
            if isinstance(job, Job):
                await ended(job)
            await eventually(lambda: self._nothing_left(queue))
        assert [before.result, after.result] == ["hi", "hi"]
        assert await left_behind(queue) == []
        return job

    async def _nothing_left(self, queue: Queue) -> bool:
        return not (await lists(queue))["incomplete"]

    async def test_an_unknown_task(self, queue: Queue, echo: AnyTask, settings: Settings) -> None:
        """A producer may be ahead of the worker for a while; then the job is dead and says what is missing."""
        queue.settings = settings.with_values(unknown_task_limit=0.1)
        producer = Queue(queue.redis, "default", settings=settings)
        job = await self._with_neighbours(queue, lambda: producer.enqueue("unheard_of", retries=5))
        assert job.status is Status.FAILED
        assert "no task is named 'unheard_of'" in job.error

    async def test_arguments_that_do_not_fit(self, queue: Queue, echo: AnyTask, settings: Settings) -> None:
        """They are not tried a second time."""
        producer = Queue(queue.redis, "default", settings=settings)
        job = await self._with_neighbours(queue, lambda: producer.enqueue("echo", text=[1], retries=5))
        assert (job.status, job.attempts) == (Status.FAILED, 1)

    @pytest.mark.parametrize("record", [b"\x00\xff\x13 noise", b"[]", b'{"function": "echo", "queue": "default"}'])
    async def test_a_record_that_cannot_be_read(self, queue: Queue, echo: AnyTask, record: bytes) -> None:
        """It leaves the queue, expires, and is kept among the dead letters."""
        await self._with_neighbours(queue, lambda: store(queue, "wrong", record))
        assert await queue.redis.ttl(queue.job_id("wrong")) > 0
        assert [letter.payload for letter in await queue.dead()] == [record]

    async def test_a_result_that_json_cannot_carry(self, queue: Queue, echo: AnyTask, registry: Registry) -> None:
        """The work is done, so the job is complete and says why there is no result; it is not run again."""

        @registry.task(retries=5)
        async def opaque() -> Any:
            return object()

        job = await self._with_neighbours(queue, opaque.enqueue)
        assert (job.status, job.attempts, job.result) == (Status.COMPLETE, 1, None)
        assert "cannot be stored" in job.error

    async def test_a_result_over_the_limit(
        self, queue: Queue, echo: AnyTask, registry: Registry, settings: Settings
    ) -> None:
        """Likewise."""

        @registry.task
        async def huge() -> str:
            return "x" * settings.max_payload_bytes

        job = await self._with_neighbours(queue, huge.enqueue)
        assert (job.status, job.result) == (Status.COMPLETE, None)
        assert "over the limit" in job.error

    @pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), RecursionError(), GeneratorExit()])
    async def test_an_error_that_is_none_of_python_s_exceptions(
        self, queue: Queue, echo: AnyTask, registry: Registry, error: BaseException
    ) -> None:
        """A task may raise what it likes; the worker lives."""

        @registry.task
        async def raising() -> None:
            raise error

        job = await self._with_neighbours(queue, raising.enqueue)
        assert job.status is Status.FAILED

    async def test_a_cancellation_of_its_own_spends_an_attempt_like_any_error(
        self, queue: Queue, echo: AnyTask, registry: Registry
    ) -> None:
        """As where a task awaits something that somebody else cancels."""

        @registry.task(retries=1, retry_delay=0)
        async def awaiting(ctx: Any) -> str:
            if ctx.retries == 0:
                future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
                future.cancel()
                return await future
            return "done"

        job = await self._with_neighbours(queue, awaiting.enqueue)
        assert (job.status, job.result, job.attempts) == (Status.COMPLETE, "done", 2)

    async def test_large_arguments_do_not_count_as_a_result(
        self, queue: Queue, echo: AnyTask, settings: Settings
    ) -> None:
        """Each has the whole limit for itself."""
        text = "x" * (settings.max_payload_bytes * 2 // 3)
        job = await self._with_neighbours(queue, lambda: queued(queue, text=text))
        assert (job.status, job.error, job.result) == (Status.COMPLETE, None, text)

    async def test_a_ttl_that_redis_would_refuse(self, queue: Queue, echo: AnyTask) -> None:
        """An expiry is whole seconds, and not past the end of time."""
        await self._with_neighbours(queue, lambda: queued(queue, ttl=1.5))
        await self._with_neighbours(queue, lambda: queued(queue, ttl=10**17))


class TestAbort:
    async def test_a_job_that_waits(self, queue: Queue, gate: Gate) -> None:
        """It never runs."""
        async with working(queue, concurrency=1):
            first, second = await queued(queue, "held"), await queued(queue, "held")
            await gate.entered()
            await second.abort("enough")
            gate.open()
            await ended(first, second)
        assert gate.begun == [first.key]
        assert (second.status, second.error) == (Status.ABORTED, "enough")

    async def test_a_job_that_is_delayed(self, queue: Queue, echo: AnyTask) -> None:
        """It never runs."""
        async with working(queue):
            job = await echo.using(delay=0.2).enqueue(text="hi")
            await job.abort("enough")
            await ended(job, await echo.using(delay=0.2).enqueue(text="hi"))
        assert (job.status, job.attempts) == (Status.ABORTED, 0)

    @pytest.mark.parametrize("concurrency", [1, 5])
    async def test_a_job_that_runs(self, queue: Queue, gate: Gate, concurrency: int) -> None:
        """It is cancelled at once, also by a worker that has no room for another job, and is not run again."""
        async with working(queue, concurrency=concurrency):
            job = await queued(queue, "held")
            await gate.entered()
            await eventually(lambda: self._shown(queue, job))
            asked = time.monotonic()
            await job.abort("enough")
            await ended(job)
            assert time.monotonic() - asked < 2
        assert (job.status, job.error, gate.ended) == (Status.ABORTED, "enough", [])
        assert await left_behind(queue) == []

    async def _shown(self, queue: Queue, job: Job[Any]) -> bool:
        return (await stored(queue, job)).status is Status.ACTIVE

    async def test_a_job_that_runs_in_a_stopping_worker(self, queue: Queue, gate: Gate) -> None:
        """The grace period does not make it deaf."""
        async with working(queue) as worker:
            job = await queued(queue, "held")
            await gate.entered()
            worker.request_stop()
            await job.abort("enough")
            await ended(job)
        assert (job.status, job.error) == (Status.ABORTED, "enough")

    async def test_a_job_that_has_ended(self, queue: Queue, echo: AnyTask) -> None:
        """Nothing happens to it."""
        async with working(queue):
            job = await queued(queue)
            await ended(job)
            await job.abort("too late")
            await ended(await queued(queue))
        assert (await stored(queue, job)).result == "hi"

    async def test_a_job_that_is_claimed_as_it_is_aborted(self, queue: Queue, gate: Gate) -> None:
        """Its claim and the order to end it come in one reply: it ends before its first step."""
        job = await queued(queue, "held")
        [claim] = await queue.claim(1, worker="dead")
        await job.abort("enough")
        redis: Any = queue.redis
        await redis.zadd(queue.keys.leases, {"dead": 1})

        async with working(queue):
            await ended(job)
        assert (job.status, job.error, gate.begun) == (Status.ABORTED, "enough", [])
        assert claim.job.key == job.key
        assert await left_behind(queue) == []

    async def test_one_that_swallows_its_cancellation_holds_up_no_other(self, queue: Queue, registry: Registry) -> None:
        """In SAQ every later abort of the worker waits for it."""
        stubborn_inside, let_go = asyncio.Event(), asyncio.Event()

        @registry.task
        async def stubborn() -> str:
            stubborn_inside.set()
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            return "finished all the same"

        @registry.task
        async def obedient() -> None:
            await let_go.wait()

        async with working(queue):
            first, second = await stubborn.enqueue(), await obedient.enqueue()
            await stubborn_inside.wait()
            await eventually(lambda: self._shown(queue, second))
            await first.abort("enough")
            await second.abort("enough")
            await ended(second)
            let_go.set()
            await ended(first)
        assert second.status is Status.ABORTED
        assert (first.status, first.result) == (Status.COMPLETE, "finished all the same")


class TestStopping:
    async def test_a_stopping_worker_takes_no_new_job_and_waits_for_the_running_ones(
        self, queue: Queue, gate: Gate
    ) -> None:
        """What arrives after the order stays in the queue."""
        async with working(queue) as worker:
            running = await queued(queue, "held")
            await gate.entered()
            worker.request_stop()
            late = await queued(queue, "held")
            gate.open()
            await worker.stop()
        assert (await stored(queue, running)).result == "let go"
        assert (await stored(queue, late)).status is Status.QUEUED
        assert (await lists(queue))["active"] == []
        await late.abort("end of test")

    async def test_an_idle_worker_stops_at_once(self, queue: Queue, echo: AnyTask) -> None:
        """It has nothing to wait for; SAQ's waits out its grace."""
        async with working(queue) as worker:
            await ended(await queued(queue))
            asked = time.monotonic()
            await worker.stop()
        assert time.monotonic() - asked < 2
        assert await left_behind(queue) == []

    async def test_what_outlives_the_grace_is_put_back_without_an_attempt_and_run_by_another(
        self, queue: Queue, gate: Gate, hasty: Settings
    ) -> None:
        """Its place is the first, and its attempts are as before."""
        job = await queued(queue, "held")
        async with working(queue, settings=hasty):
            await gate.entered()
        found = await stored(queue, job)
        assert (found.status, found.attempts, found.error) == (Status.QUEUED, 0, None)
        assert await left_behind(queue) == ["saq:default:incomplete", "saq:default:queued"]

        gate.open()
        async with working(queue):
            await ended(job)
        assert (job.result, job.attempts) == ("let go", 1)

    async def test_a_second_order_ends_the_grace(self, queue: Queue, gate: Gate) -> None:
        """Whoever presses Ctrl-C twice does not want to wait."""
        patient = queue.settings.with_values(shutdown_grace=600.0)
        async with working(queue, settings=patient) as worker:
            job = await queued(queue, "held")
            await gate.entered()
            worker.request_stop()
            worker.request_stop()
            await worker.stop()
        assert (await stored(queue, job)).status is Status.QUEUED
        await job.abort("end of test")

    async def test_a_job_that_ignores_its_cancellation_is_put_back(
        self, queue: Queue, registry: Registry, hasty: Settings
    ) -> None:
        """Its worker does not wait for it for ever, and what it finds later is not written."""
        inside, let_go = asyncio.Event(), asyncio.Event()
        found: list[str] = []

        @registry.task
        async def stubborn() -> str:
            inside.set()
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            found.append("too late")
            return "too late"

        job = await stubborn.enqueue()
        async with working(queue, settings=hasty, cancellation_hard_deadline_s=0.05):
            await inside.wait()
        assert (await stored(queue, job)).status is Status.QUEUED
        let_go.set()
        await eventually(lambda: found)
        assert (await stored(queue, job)).status is Status.QUEUED
        async with working(queue):
            await ended(job)
        assert job.result == "too late"

    async def test_a_claim_that_arrives_after_the_order_is_put_back(
        self, queue: Queue, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its call was under way when the worker was told to stop; nobody would have ended its grace."""
        worker: Worker
        advance = queue.advance

        async def late(*args: Any) -> Any:
            step = await advance(*args)
            if step.claims:
                worker.request_stop()
            return step

        job = await queued(queue, "held")
        monkeypatch.setattr(queue, "advance", late)
        async with working(queue) as worker:
            await worker.stop()
        found = await stored(queue, job)
        assert (found.status, found.attempts, gate.begun) == (Status.QUEUED, 0, [])
        assert await left_behind(queue) == ["saq:default:incomplete", "saq:default:queued"]
        await job.abort("end of test")

    async def test_a_worker_that_is_cancelled_loses_nothing(self, queue: Queue, gate: Gate) -> None:
        """Whoever cancels its task gets an orderly stop, at whatever moment."""
        settings = queue.settings.with_values(shutdown_grace=0.0)
        jobs = [await queued(queue, "held") for _ in range(20)]
        for turns in range(0, 40, 2):
            worker = Worker(queue, settings=settings, concurrency=3)
            worker.SIGNALS = []
            running = asyncio.create_task(worker.start())
            await eventually(lambda: bool(worker._deadlines) or worker._running or running.done())  # noqa: B023
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            async with asyncio.timeout(10):
                await asyncio.gather(running, return_exceptions=True)
            assert await left_behind(queue) == ["saq:default:incomplete", "saq:default:queued"]
        assert len((await lists(queue))["queued"]) == 20
        assert [(await stored(queue, job)).attempts for job in jobs] == [0] * 20
        gate.open()
        async with working(queue):
            await ended(*jobs)

    async def test_hooks_of_ended_jobs_are_waited_for(self, queue: Queue, echo: AnyTask) -> None:
        """Whoever counts or cleans up after a job gets its turn."""
        entered, let_go = asyncio.Event(), asyncio.Event()
        cleaned: list[str] = []

        async def clean_up(ctx: dict[str, Any]) -> None:
            entered.set()
            await let_go.wait()
            cleaned.append(ctx["job"].key)

        async with working(queue, after_process=clean_up) as worker:
            job = await queued(queue)
            await entered.wait()
            worker.request_stop()
            asyncio.get_running_loop().call_later(0.05, let_go.set)
            await worker.stop()
            assert cleaned == [job.key]

    async def test_an_order_that_comes_before_the_start_is_heard(self, client: Client) -> None:
        """``run_workers`` with a stop that is set returns."""
        stop = asyncio.Event()
        stop.set()
        async with asyncio.timeout(10):
            await run_workers(client, stop)

    async def test_a_worker_can_be_started_again(self, queue: Queue, echo: AnyTask) -> None:
        """The same object, as SAQ's."""
        worker = Worker(queue)
        worker.SIGNALS = []
        for _ in range(2):
            running = asyncio.create_task(worker.start())
            await ended(await queued(queue))
            await worker.stop()
            await running


class TestBurst:
    async def test_a_burst_ends_when_the_queue_is_empty(self, queue: Queue, echo: AnyTask) -> None:
        """All that waited has run, and nobody had to stop it."""
        jobs = [await queued(queue) for _ in range(25)]
        worker = Worker(queue, burst=True, dequeue_timeout=0.1, concurrency=4)
        worker.SIGNALS = []
        async with asyncio.timeout(10):
            await worker.start()
        assert [(await stored(queue, job)).status for job in jobs] == [Status.COMPLETE] * 25

    async def test_a_burst_of_so_many_jobs_lets_them_end(self, queue: Queue, gate: Gate, hasty: Settings) -> None:
        """No more are taken, and a grace period is for who is stopped, not for them."""
        jobs = [await queued(queue, "held") for _ in range(5)]
        limits: dict[str, Any] = {"max_burst_jobs": 3, "concurrency": 2, "dequeue_timeout": 0.1}
        worker = Worker(queue, burst=True, settings=hasty, **limits)
        worker.SIGNALS = []
        running = asyncio.create_task(worker.start())
        await gate.entered(2)
        gate.open()
        async with asyncio.timeout(10):
            await running
        assert [(await stored(queue, job)).status.value for job in jobs] == ["complete"] * 3 + ["queued"] * 2
        async with working(queue):
            await ended(*jobs)


class TestCrashes:
    @pytest.mark.parametrize("stamped", [False, True])
    async def test_a_crash_spends_no_attempt(self, queue: Queue, registry: Registry, stamped: bool) -> None:
        """A job without retries whose worker died runs again, as its first attempt."""

        @registry.task
        async def once() -> str:
            return "survived"

        job = await once.enqueue()
        [claim] = await queue.claim(1, worker="dead")
        if stamped:
            claim.job.attempts += 1
            await queue.advance("dead", [queue.stamp(claim)], 0)
        redis: Any = queue.redis
        await redis.zadd(queue.keys.leases, {"dead": 1})
        async with working(queue):
            await ended(job)
        assert (job.status, job.result, job.attempts) == (Status.COMPLETE, "survived", 1)
        assert await left_behind(queue) == []

    async def test_a_job_that_kills_its_workers_ends_failed_with_the_reason(self, queue: Queue, gate: Gate) -> None:
        """After the limit it is not run once more."""
        job = await queued(queue, "held")
        redis: Any = queue.redis
        await redis.hset(queue.keys.crashes, job.id, "1 dead\n" * CRASH_LIMIT)
        async with working(queue):
            await ended(job)
        assert job.status is Status.FAILED
        assert f"died {CRASH_LIMIT} times" in (job.error or "")
        assert gate.begun == []
        assert await left_behind(queue) == []

    @pytest.mark.parametrize("shown", [True, False])
    @pytest.mark.parametrize("failed", [0, 2])
    async def test_a_dead_letter_has_the_attempts_that_were_begun_and_the_crashes(
        self, queue: Queue, gate: Gate, shown: bool, failed: int
    ) -> None:
        """Also where no worker lived long enough to show the job as active; a crash is no further attempt."""
        job = await queued(queue, "held", retries=5)
        redis: Any = queue.redis
        for _ in range(failed):
            [claim] = await queue.claim(1, worker="well")
            claim.job.attempts += 1
            await queue.settle(claim, Retried("no luck", 0), worker="well")
        for number in range(CRASH_LIMIT):
            [claim] = await queue.claim(1, worker=f"dead{number}")
            claim.job.attempts += claim.job.status is not Status.ACTIVE
            stamp = queue.stamp(claim)
            assert stamp is not None
            await queue.advance(f"dead{number}", [stamp] if shown else [], 0)
            await redis.zadd(queue.keys.leases, {f"dead{number}": 1})
            assert await Rescuer(queue).run_once() == 1
        async with working(queue):
            await ended(job)
        assert (job.status, job.attempts) == (Status.FAILED, failed + 1)
        [letter] = await queue.dead()
        assert (letter.attempts, letter.crashes) == (failed + 1, CRASH_LIMIT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill."""
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def connected(server: Server, settings: Settings, registry: Registry) -> AsyncIterator[Queue]:
    """Connect to a server of one test."""
    own = settings.with_values(broker_url=server.url)
    async with connect(own, registry=registry) as client:
        yield client.queue()


class TestOutage:
    async def test_outcomes_are_kept_until_redis_has_them(
        self, server: Server, settings: Settings, registry: Registry, gate: Gate
    ) -> None:
        """The server is killed while jobs run; they end without it, and are complete, once, when it is back."""
        async with connected(server, settings, registry) as queue, working(queue, concurrency=3):
            jobs = [await queued(queue, "held") for _ in range(5)]
            await gate.entered(3)
            await asyncio.to_thread(server.kill)
            gate.open()
            await eventually(lambda: len(gate.ended) == 3)
            await asyncio.to_thread(server.start)
            await ended(*jobs)
            assert [job.result for job in jobs] == ["let go"] * 5
            assert [job.attempts for job in jobs] == [1] * 5
            assert sorted(gate.begun) == sorted(job.key for job in jobs)
            assert await lists(queue) == {"queued": [], "active": [], "incomplete": []}

    async def test_a_worker_without_redis_waits_longer_each_time(
        self, server: Server, settings: Settings, registry: Registry, echo: AnyTask, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It logs the outage once and its end once, and takes jobs again; SAQ's spins without a word."""
        caplog.set_level("INFO", logger="knapsaq")
        async with connected(server, settings, registry) as queue, working(queue) as worker:
            await ended(await queued(queue))
            steps = worker.queue._calls
            await asyncio.to_thread(server.kill)
            await eventually(lambda: worker._exchange._pause_seconds > 0.4)
            assert worker.queue._calls - steps < 10
            await asyncio.to_thread(server.start)
            await ended(await queued(queue))
        said = [
            record.getMessage() for record in caplog.records if f"worker {worker.id}: Redis is" in record.getMessage()
        ]
        assert ["away" in line for line in said] == [True, False]

    async def test_a_claim_whose_reply_was_lost_is_put_back(
        self, broker_url: str, tmp_path: Path, settings: Settings, registry: Registry, gate: Gate
    ) -> None:
        """The worker holds a job that it has never heard of; it finds it, and runs it once."""
        proxy = Proxy(tmp_path / "proxy", broker_url)
        own = settings.with_values(broker_url=proxy.url)
        async with proxy.listening(), connect(own, registry=registry) as client:
            queue = client.queue()
            producer = Queue.from_url(broker_url, registry=registry, settings=settings)
            await queue.redis.flushall()
            async with working(queue, concurrency=5):
                known = await queued(queue, "held")
                await gate.entered()
                proxy.lose(1, lambda request, reply: advance.sha.encode() in request and b"held" in reply)
                unheard_of = await queued(producer, "held")  # over a line of its own, which is not cut
                await eventually(lambda: proxy.lost == 1)
                await gate.entered(2)
                gate.open()
                await ended(known, unheard_of)
            await producer.disconnect()
            assert sorted(gate.begun) == sorted([known.key, unheard_of.key])
            assert unheard_of.attempts == 1
            assert await left_behind(queue) == []

    async def test_a_worker_with_a_line_that_keeps_breaking_runs_each_job_once(
        self, broker_url: str, tmp_path: Path, settings: Settings, registry: Registry
    ) -> None:
        """Whether the reply that was lost had written outcomes or claimed jobs."""
        runs: list[int] = []

        @registry.task
        async def count(number: int) -> int:
            await asyncio.sleep(0)
            runs.append(number)
            return number

        proxy = Proxy(tmp_path / "proxy", broker_url)
        own = settings.with_values(broker_url=proxy.url)
        async with proxy.listening(), connect(own, registry=registry) as client:
            queue = client.queue()
            await queue.redis.flushall()
            dice = itertools.cycle([False, True, False, False, True])
            jobs = await asyncio.gather(*(count.enqueue(n) for n in range(12)))
            proxy.lose(5, lambda request, _: advance.sha.encode() in request and next(dice))
            async with working(queue, concurrency=2):
                await ended(*jobs)
            assert proxy.lost == 5
            assert sorted(runs) == list(range(12))
            assert [job.result for job in jobs] == list(range(12))
            assert await left_behind(queue) == []


class TestSettingsStyle:
    async def test_a_worker_takes_saqs_arguments(self, queue: Queue) -> None:
        """Functions, hooks and start-up functions as in SAQ's settings, with the same context for all."""
        seen: list[str] = []

        async def startup(ctx: dict[str, Any]) -> None:
            ctx["db"] = "open"
            seen.append("startup")

        async def shutdown(ctx: dict[str, Any]) -> None:
            seen.append(f"shutdown, {ctx['db']}")

        async def before(ctx: dict[str, Any]) -> None:
            ctx["started"] = True
            seen.append(f"before {ctx['job'].function}")

        async def after(ctx: dict[str, Any]) -> None:
            seen.append(f"after {ctx['job'].status.value}")

        async def greet(ctx: dict[str, Any], *, name: str) -> str:
            return f"{name}, {ctx['db']}, {ctx['started']}, {type(ctx['worker']).__name__}"

        def plain(ctx: dict[str, Any]) -> str:
            return f"in a thread, {ctx['db']}"

        own = Queue(queue.redis, "default", settings=queue.settings)
        hooks = {"startup": startup, "shutdown": shutdown, "before_process": before, "after_process": [after]}
        async with working(own, [("greet", greet), ("renamed", plain)], **hooks):
            first, second = await queued(own, "greet", name="Ann"), await queued(own, "renamed")
            await ended(first, second)
        assert (first.error, second.error) == (None, None)
        assert (first.result, second.result) == ("Ann, open, True, Worker", "in a thread, open")
        assert seen[0] == "startup"
        assert seen[-1] == "shutdown, open"
        assert sorted(seen[1:-1]) == ["after complete"] * 2 + ["before greet", "before renamed"]

    async def test_cron_jobs_run_once_at_their_due_time(self, queue: Queue, settings: Settings) -> None:
        """SAQ's CronJob, on two workers: one run for the due time."""
        runs: list[str] = []

        async def each_second(ctx: dict[str, Any], *, name: str) -> None:
            runs.append(name)

        name = each_second.__qualname__
        own = Queue(queue.redis, "default", settings=settings)
        crons: list[CronJob[Any]] = [CronJob(each_second, cron="* * * * * */1", kwargs={"name": "tick"})]
        async with working(own, cron_jobs=crons), working(own, cron_jobs=crons):
            await eventually(lambda: len(runs) >= 2)
            keys = {job.function async for job in own.iter_jobs()}
        assert keys == {name}
        assert set(runs) == {"tick"}
        assert len(runs) <= 4

    async def test_a_hook_that_fails_ends_its_job_alone(self, queue: Queue, echo: AnyTask) -> None:
        """Before the job: it fails with the reason. After it: the job has ended already."""

        async def failing(ctx: dict[str, Any]) -> None:
            if ctx["job"].kwargs == {"text": "wrong"}:
                raise LookupError("no such thing")

        async with working(queue, before_process=failing):
            wrong, right = await queued(queue, text="wrong"), await queued(queue)
            await ended(wrong, right)
        assert (wrong.status, right.status) == (Status.FAILED, Status.COMPLETE)
        assert "no such thing" in (wrong.error or "")
        async with working(queue, after_process=failing):
            wrong = await queued(queue, text="wrong")
            await ended(wrong)
        assert wrong.status is Status.COMPLETE

    async def test_what_a_task_raised_is_shown_to_after_process(self, queue: Queue, registry: Registry) -> None:
        """SAQ's hooks report it from ``ctx["exception"]``."""
        seen: list[object] = []

        @registry.task
        async def failing() -> None:
            raise KeyError("gone")

        async with working(queue, after_process=lambda ctx: seen.append(ctx.get("exception"))):
            await ended(await failing.enqueue())
            await eventually(lambda: seen)
        assert [repr(error) for error in seen] == ["KeyError('gone')"]


class TestRunningWorker:
    async def test_it_runs_a_worker_for_each_queue(self, client: Client, registry: Registry, echo: AnyTask) -> None:
        """The helper for tests serves all queues of the connection while its block runs."""
        async with running_worker(registry=registry):
            jobs = [await echo.using(queue=name).enqueue(text=name) for name in client.queues]
            assert [await job.wait(5) for job in jobs] == list(client.queues)

    async def test_a_clock_that_tests_move_makes_jobs_due(self, settings: Settings, registry: Registry) -> None:
        """A worker of a connection with a clock goes by it."""
        clock = ManualClock()

        @registry.task
        async def later() -> str:
            return "now"

        async with connect(settings, registry=registry, clock=clock) as client, running_worker(registry=registry):
            job = await later.using(delay=3600).enqueue()
            assert not job.ended
            clock.advance(3601)
            await client.queue().redis.publish(client.queue().keys.wake, "due")
            assert await job.wait(5) == "now"
