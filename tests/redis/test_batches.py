"""Batched tasks in a worker: slots, interruptions, stops, deaths, and all that surrounds a job."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from saq.job import Status
from tests.redis.conftest import Gate
from tests.support import ended, eventually, left_behind, lists, working

from knapsaq import (
    Batch,
    Context,
    Job,
    JobFailedError,
    JobRevokedError,
    Middleware,
    Queue,
    Registry,
    Settings,
    bound_headers,
    chain,
    chord,
    group,
)
from knapsaq.claims import CRASH_LIMIT, Claim
from knapsaq.redis.scripts import rescue
from knapsaq.registry import AnyTask
from knapsaq.running import OVERDUE_SECONDS, Running
from knapsaq.worker import Worker

HOUR = 3600.0


class Runs:
    """Tasks ``batched``, whose runs begin and then wait until the test lets them go, and ``counted``, whose do not.

    Attributes:
        lists: The lists of the runs, in the order in which they began.
        most: How many runs were inside at once, at most.
    """

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self.most = self.inside = 0
        self.opened = asyncio.Event()
        self.cleaned: list[int] = []

    async def run(self, texts: list[str]) -> list[str]:
        """Note a run, and wait."""
        self.lists.append(texts)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cleaned.append(len(texts))
            raise
        finally:
            self.inside -= 1
        return [text.upper() for text in texts]

    async def begun(self, times: int = 1) -> None:
        """Wait until so many runs have begun."""
        await eventually(lambda: len(self.lists) >= times)


@pytest.fixture
def runs() -> Any:
    """The runs, let go when the test ends."""
    runs = Runs()
    yield runs
    runs.opened.set()


def batched(registry: Registry, runs: Runs, size: int, wait: float = HOUR, **options: Any) -> AnyTask:
    """Define a task whose runs wait for the test."""

    async def batched(texts: list[str]) -> list[str]:
        return await runs.run(texts)

    return registry.task(batch=Batch(size, wait), **options)(batched)


async def sent(task: AnyTask, number: int, **options: Any) -> list[Job[Any]]:
    """Queue jobs of a task."""
    return await task.using(**options).enqueue_many({task.parameters[0]: f"t{n}"} for n in range(number))


async def gathered(worker: Worker, number: int) -> None:
    """Wait until so many jobs gather."""
    await eventually(lambda: sum(running.claim.job.gathers for running in worker._running.values()) == number)


async def stored(queue: Queue, job: Job[Any]) -> Job[Any]:
    """Return a job as Redis has it."""
    found = await queue.job(job.key)
    assert found is not None
    return found


class TestSlots:
    async def test_a_worker_gathers_more_jobs_than_it_runs_at_once(
        self, queue: Queue, registry: Registry, runs: Runs
    ) -> None:
        """A job that gathers has no slot; each gets its own result."""
        task = batched(registry, runs, size=100)
        runs.opened.set()
        async with working(queue, concurrency=3):
            jobs = await sent(task, 100)
            assert [await job.wait(10) for job in jobs] == [f"T{n}" for n in range(100)]
        assert [len(texts) for texts in runs.lists] == [100]
        assert await left_behind(queue) == []

    async def test_a_run_holds_one_slot(self, queue: Queue, registry: Registry, runs: Runs, gate: Gate) -> None:
        """So no more of them run at once than the worker's concurrency, and what is left over waits in the queue."""
        task = batched(registry, runs, size=5)
        async with working(queue, concurrency=2) as worker:
            jobs = await sent(task, 20)
            await runs.begun(2)
            plain = await queue.enqueue("held")
            assert plain is not None
            await eventually(lambda: worker._slots.freed == 8)
            assert [len(keys) for keys in (await lists(queue)).values()] == [11, 10, 21]
            assert gate.begun == []
            runs.opened.set()
            gate.open()
            await ended(*jobs, plain)
            await eventually(lambda: worker._slots.freed == 0)
        assert (runs.most, [len(texts) for texts in runs.lists]) == (2, [5, 5, 5, 5])

    async def test_a_run_begins_although_no_slot_is_left(
        self, queue: Queue, registry: Registry, runs: Runs, gate: Gate
    ) -> None:
        """Whoever holds the last one may wait for the run."""
        task = batched(registry, runs, size=2)
        runs.opened.set()
        async with working(queue, concurrency=1) as worker:
            [first] = await sent(task, 1)
            await gathered(worker, 1)
            await queue.enqueue("held")
            await gate.entered()
            worker._executor.hurry()
            await ended(first)
            gate.open()
        assert first.result == "T0"

    async def test_a_function_that_waits_for_a_job_gives_up_the_slot_of_its_run(
        self, queue: Queue, registry: Registry, echo: AnyTask
    ) -> None:
        """A worker with one slot can run both, and a batch can wait for another."""

        @registry.task(batch=Batch(2, HOUR))
        async def inner(texts: list[str]) -> list[str]:
            return [text * 2 for text in texts]

        @registry.task(batch=Batch(2, HOUR))
        async def outer(texts: list[str]) -> list[str]:
            jobs = [await inner.enqueue(text) for text in texts]
            await (await echo.enqueue(text="hi")).wait(10)
            return [await job.wait(10) for job in jobs]

        async with working(queue, concurrency=1) as worker:
            jobs = [await outer.enqueue(text) for text in "ab"]
            assert [await job.wait(10) for job in jobs] == ["aa", "bb"]
            await eventually(lambda: worker._slots.freed == 0)

    async def test_a_lonely_job_runs_when_it_has_waited(self, queue: Queue, registry: Registry, runs: Runs) -> None:
        """By itself, without a push."""
        task = batched(registry, runs, size=10, wait=0.2)
        runs.opened.set()
        async with working(queue):
            [job] = await sent(task, 1)
            assert await job.wait(10) == "T0"


class TestEachJob:
    async def test_those_of_a_run_that_fails_are_run_again_by_their_own_rules(
        self, queue: Queue, registry: Registry
    ) -> None:
        """In new lists; one that has no retries fails."""
        attempts: list[list[int]] = []

        @registry.task(batch=Batch(3, 0.5), retries=1, retry_delay=0)
        async def flaky(ctx: Context, texts: list[str]) -> list[str]:
            attempts.append([job.attempts for job in ctx.jobs])
            if len(attempts) == 1:
                raise ConnectionError("away")
            return texts

        async with working(queue):
            once = await flaky.using(retries=0).enqueue("once")
            jobs = [await flaky.enqueue(text) for text in "ab"]
            assert [await job.wait(10) for job in jobs] == ["a", "b"]
            with pytest.raises(JobFailedError, match="ConnectionError: away"):
                await once.wait(10)
        assert attempts == [[1, 1, 1], [2, 2]]

    async def test_a_result_over_the_limit_is_one_jobs_alone(
        self, queue: Queue, registry: Registry, settings: Settings
    ) -> None:
        """It is complete without its result, and the others have theirs."""

        @registry.task(batch=Batch(3, HOUR))
        async def mixed(sizes: list[int]) -> list[str]:
            return ["x" * size for size in sizes]

        async with working(queue):
            jobs = [await mixed.enqueue(size) for size in (1, settings.max_payload_bytes, 2)]
            await ended(*jobs)
        assert [job.result for job in jobs] == ["x", None, "xx"]
        assert "the result of task 'mixed'" in str(jobs[1].error)

    async def test_a_job_that_a_plain_saq_program_has_queued_takes_part(
        self, queue: Queue, registry: Registry, runs: Runs
    ) -> None:
        """Its record holds the one item; one that does not fit fails alone."""
        batched(registry, runs, size=2)
        runs.opened.set()
        bare = Queue(queue.redis, "default", settings=queue.settings)
        wrong = await bare.enqueue("batched", texts=5)
        right = [await bare.enqueue("batched", texts=text) for text in "ab"]
        async with working(queue):
            await ended(wrong, *right)
        assert [job.result for job in right if job] == ["A", "B"]
        assert wrong is not None
        assert "InvalidArgumentsError: task 'batched', argument 'texts'" in str(wrong.error)

    async def test_time_limits_end_all_of_a_run(self, queue: Queue, registry: Registry, runs: Runs) -> None:
        """The function is cancelled once."""
        task = batched(registry, runs, size=3, timeout=0.1)
        async with working(queue):
            jobs = await sent(task, 3)
            await ended(*jobs)
        assert all("TaskTimeoutError" in str(job.error) for job in jobs)
        assert runs.cleaned == [3]

    async def test_a_heartbeat_is_not_missed_by_those_that_gather(self, queue: Queue) -> None:
        """It counts from the beginning of the run."""
        job: Job[Any] = Job("batched", heartbeat=5, started=1)
        running = Running(Claim(job.key, job, "token"))
        job.gathers = True
        assert (running.silent(0.0), running.silent(HOUR)) == (None, None)
        job.gathers = False
        assert (running.silent(HOUR), running.silent(HOUR + 5)) == (None, None)
        assert "no heartbeat for 5 s" in str(running.silent(HOUR + 5.1))


class TestRevoking:
    @pytest.mark.parametrize("terminate", [False, True])
    async def test_a_job_that_is_revoked_while_it_gathers_ends_at_once(
        self, queue: Queue, registry: Registry, runs: Runs, terminate: bool
    ) -> None:
        """And is not in the list; another takes its place."""
        task = batched(registry, runs, size=3)
        runs.opened.set()
        async with working(queue) as worker:
            jobs = await sent(task, 2)
            await gathered(worker, 2)
            await jobs[0].revoke(terminate, reason="not needed")
            with pytest.raises(JobRevokedError, match="not needed"):
                await jobs[0].wait(10)
            assert runs.lists == []
            more = await sent(task, 2)
            assert [await job.wait(10) for job in (jobs[1], *more)] == ["T1", "T0", "T1"]
        assert runs.lists == [["t1", "t0", "t1"]]

    @pytest.mark.parametrize("terminate", [False, True])
    async def test_a_job_that_is_revoked_while_it_runs_ends_and_the_others_go_on(
        self, queue: Queue, registry: Registry, runs: Runs, terminate: bool
    ) -> None:
        """The function hears nothing of it."""
        task = batched(registry, runs, size=3)
        async with working(queue) as worker:
            jobs = await sent(task, 3)
            await runs.begun()
            await jobs[1].revoke(terminate)
            with pytest.raises(JobRevokedError):
                await jobs[1].wait(10)
            assert (runs.inside, worker._slots.freed) == (1, 1)
            runs.opened.set()
            assert [await jobs[n].wait(10) for n in (0, 2)] == ["T0", "T2"]
        assert (runs.cleaned, jobs[1].status) == ([], Status.ABORTED)

    @pytest.mark.parametrize("terminate", [False, True])
    async def test_when_all_are_revoked_the_function_is_cancelled(
        self, queue: Queue, registry: Registry, runs: Runs, terminate: bool
    ) -> None:
        """Once, with its clean-up."""
        task = batched(registry, runs, size=3)
        async with working(queue) as worker:
            jobs = await sent(task, 3)
            await runs.begun()
            await jobs[0].revoke(terminate)
            await ended(jobs[0])
            await queue.revoke([job.key for job in jobs[1:]], terminate=terminate)
            await ended(*jobs)
            await eventually(lambda: worker._slots.freed == 0)
        assert [job.status for job in jobs] == [Status.ABORTED] * 3
        assert runs.cleaned == [3]

    async def test_a_thread_hears_of_it_when_all_are_revoked(self, queue: Queue, registry: Registry) -> None:
        """It ends in its own way, and its jobs after it."""
        inside, heard = threading.Event(), threading.Event()
        pause = threading.Event()

        @registry.task(batch=Batch(2, HOUR))
        def work(ctx: Context, texts: list[str]) -> list[str]:
            inside.set()
            while not ctx.is_aborted():
                pause.wait(0.005)
            heard.set()
            return texts

        async with working(queue):
            jobs = [await work.enqueue(text) for text in "ab"]
            await eventually(inside.is_set)
            await jobs[0].revoke()
            await ended(jobs[0])
            assert not heard.is_set()
            await jobs[1].revoke()
            await ended(jobs[1])
            assert heard.is_set()
        assert [job.status for job in jobs] == [Status.ABORTED] * 2


class TestStopping:
    async def test_what_has_gathered_runs_at_once(self, queue: Queue, registry: Registry, runs: Runs) -> None:
        """Within the grace, and without waiting for more."""
        task = batched(registry, runs, size=10)
        runs.opened.set()
        async with working(queue) as worker:
            jobs = await sent(task, 3)
            await gathered(worker, 3)
        assert [(await stored(queue, job)).result for job in jobs] == ["T0", "T1", "T2"]
        assert [sorted(texts) for texts in runs.lists] == [["t0", "t1", "t2"]]

    async def test_what_has_not_ended_within_the_grace_is_put_back(
        self, queue: Queue, registry: Registry, runs: Runs, settings: Settings
    ) -> None:
        """After the function's clean-up, and no attempt is spent."""
        task = batched(registry, runs, size=3)
        hasty = settings.with_values(shutdown_grace=0.0)
        jobs = await sent(task, 3)
        async with working(queue, settings=hasty):
            await runs.begun()
        assert runs.cleaned == [3]
        assert [(await stored(queue, job)).attempts for job in jobs] == [0, 0, 0]
        assert len((await lists(queue))["queued"]) == 3
        runs.opened.set()
        async with working(queue):
            await ended(*jobs)
        assert [(job.result, job.attempts) for job in jobs] == [("T0", 1), ("T1", 1), ("T2", 1)]

    async def test_a_thread_that_hears_of_it_is_given_its_time(
        self, queue: Queue, registry: Registry, settings: Settings
    ) -> None:
        """Its jobs are put back after it, all of them."""
        inside, pause = threading.Event(), threading.Event()
        active: list[int] = []

        @registry.task(batch=Batch(3, HOUR))
        def work(ctx: Context, texts: list[str]) -> list[str]:
            inside.set()
            while not ctx.is_aborted():
                pause.wait(0.005)
            pause.wait(0.05)
            active.append(len(ctx["worker"]._running))
            return texts

        hasty = settings.with_values(shutdown_grace=0.0)
        jobs = await sent(work, 3)
        async with working(queue, settings=hasty):
            await eventually(inside.is_set)
        assert active == [3]
        assert [(await stored(queue, job)).status for job in jobs] == [Status.QUEUED] * 3
        await queue.revoke([job.key for job in jobs])

    async def test_a_function_that_does_not_end_is_left_behind(
        self, queue: Queue, registry: Registry, settings: Settings
    ) -> None:
        """What it finds later is not written."""
        inside, let_go = asyncio.Event(), asyncio.Event()
        found: list[str] = []

        @registry.task(batch=Batch(2, HOUR))
        async def stubborn(texts: list[str]) -> list[str]:
            inside.set()
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            found.append("too late")
            return texts

        hasty = settings.with_values(shutdown_grace=0.0)
        jobs = await sent(stubborn, 2)
        async with working(queue, settings=hasty, cancellation_hard_deadline_s=0.05):
            await inside.wait()
        let_go.set()
        await eventually(lambda: found)
        assert [(await stored(queue, job)).status for job in jobs] == [Status.QUEUED] * 2
        await queue.revoke([job.key for job in jobs])

    async def test_a_function_that_outlives_its_limit_has_no_slot(
        self, queue: Queue, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its jobs are failed a little later, and others run in its place."""
        monkeypatch.setattr("knapsaq.running.OVERDUE_SECONDS", 0.0)
        assert OVERDUE_SECONDS > 0
        let_go = asyncio.Event()

        @registry.task(batch=Batch(2, HOUR), timeout=0.05)
        async def stubborn(texts: list[str]) -> list[str]:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            return texts

        async with working(queue, concurrency=1) as worker:
            jobs = await sent(stubborn, 2)
            await ended(*jobs)
            assert all("it does not end" in str(job.error) for job in jobs)
            await eventually(lambda: worker._slots.freed == 0)
            let_go.set()
            await eventually(lambda: not worker._executor._gatherings._runs)
            assert worker._slots.freed == 0

    async def test_a_worker_that_is_stepped_by_hand_does_not_wait_for_others(
        self, queue: Queue, registry: Registry, runs: Runs
    ) -> None:
        """It takes one job at a time."""
        task = batched(registry, runs, size=10)
        runs.opened.set()
        [job] = await sent(task, 1)
        assert await Worker(queue).process()
        await ended(job)
        assert job.result == "T0"


class TestDeaths:
    async def _die(self, queue: Queue, number: int) -> None:
        """Claim jobs as a worker that dies."""
        redis: Any = queue.redis
        claims = await queue.claim(number, worker="dead")
        assert len(claims) == number
        await queue.advance("dead", [stamp for claim in claims if (stamp := queue.stamp(claim))], 0)
        await redis.zadd(queue.keys.leases, {"dead": 1})
        await rescue(queue.line, queue.keys.of_rescue, [queue.now_argument, "dead"])

    async def test_the_jobs_of_a_killed_worker_run_elsewhere(
        self, queue: Queue, registry: Registry, runs: Runs
    ) -> None:
        """Together again, and no attempt is spent."""
        task = batched(registry, runs, size=3)
        runs.opened.set()
        jobs = await sent(task, 3)
        await self._die(queue, 3)
        async with working(queue):
            await ended(*jobs)
        assert [(job.result, job.attempts) for job in jobs] == [("T0", 0), ("T1", 0), ("T2", 0)]
        assert [len(texts) for texts in runs.lists] == [3]

    async def test_a_job_whose_workers_have_died_runs_alone_before_it_is_given_up(
        self, queue: Queue, registry: Registry, runs: Runs
    ) -> None:
        """Else one that kills its worker would make dead letters of all that it was with."""
        task = batched(registry, runs, size=3)
        runs.opened.set()
        jobs = await sent(task, 3)
        for _ in range(CRASH_LIMIT - 1):
            await self._die(queue, 3)
        async with working(queue):
            await ended(*jobs)
        assert [job.result for job in jobs] == ["T0", "T1", "T2"]
        assert sorted(map(len, runs.lists)) == [1, 1, 1]


class TestAround:
    async def test_hooks_are_called_for_each_job(self, queue: Queue, registry: Registry) -> None:
        """With the job's own context, result and error."""
        heard: list[tuple[str, str, Any]] = []

        class Ear(Middleware):
            def before_enqueue(self, job: Job[Any]) -> None:
                heard.append(("enqueue", job.key, job.kwargs))

            def on_success(self, ctx: Context, result: Any) -> None:
                heard.append(("success", ctx.id, result))

            def on_failure(self, ctx: Context, error: BaseException) -> None:
                heard.append(("failure", ctx.id, repr(error)))

        registry.use(Ear())

        @registry.task(batch=Batch(2, HOUR))
        async def judge(texts: list[str]) -> list[str | Exception]:
            return [text if text == "good" else ValueError(text) for text in texts]

        async with working(queue):
            jobs = [await judge.using(key=text).enqueue(text) for text in ("good", "bad")]
            await ended(*jobs)
        assert sorted(heard, key=lambda one: one[:2]) == [
            ("enqueue", "bad", {"texts": "bad"}),
            ("enqueue", "good", {"texts": "good"}),
            ("failure", "bad", "ValueError('bad')"),
            ("success", "good", "good"),
        ]

    async def test_what_the_worker_has_made_at_its_start_is_in_the_context(
        self, queue: Queue, registry: Registry
    ) -> None:
        """What a ``before_process`` function puts on one job's context is not."""
        seen: list[Any] = []

        @registry.task(batch=Batch(2, HOUR))
        async def look(ctx: Context, texts: list[str]) -> list[str]:
            seen.append((ctx["pool"], "own" in ctx, ctx.queue, ctx.called_directly))
            return texts

        async def startup(ctx: Any) -> None:
            ctx["pool"] = "the pool"

        async def before(ctx: Any) -> None:
            ctx["own"] = ctx["job"].key

        async with working(queue, startup=startup, before_process=before):
            await ended(*[await look.enqueue(text) for text in "ab"])
        assert seen == [("the pool", False, queue, False)]

    async def test_headers_are_each_jobs_own_and_what_a_run_enqueues_has_no_parent(
        self, queue: Queue, registry: Registry, echo: AnyTask
    ) -> None:
        """Unless the function says whose followers they are."""
        followers: list[Job[Any]] = []

        @registry.task(batch=Batch(2, HOUR))
        async def spread(ctx: Context, texts: list[str]) -> list[str]:
            followers.append(await echo.enqueue(text="none's"))
            for job in ctx.jobs:
                with bound_headers(job.headers):
                    followers.append(await echo.enqueue(text="one's"))
            return texts

        async with working(queue):
            jobs = [await spread.using(headers={"tenant": text}).enqueue(text) for text in "ab"]
            await ended(*jobs, *followers)
            await ended(*followers)
        assert [job.headers.get("tenant") for job in followers] == [None, "a", "b"]
        assert [job.parent_id for job in followers] == [None, None, None]


class TestTogether:
    async def test_a_node_of_a_workflow_may_be_batched(self, queue: Queue, registry: Registry) -> None:
        """It takes the result of the step before it as its item, and gives its own to the next."""
        sizes: list[int] = []

        @registry.task(batch=Batch(3, HOUR))
        async def double(numbers: Sequence[int]) -> list[int]:
            sizes.append(len(numbers))
            return [2 * number for number in numbers]

        @registry.task
        async def total(numbers: list[int]) -> int:
            return sum(numbers)

        @registry.task
        async def add(x: int, y: int) -> int:
            return x + y

        async with working(queue):
            flow = await chord(double.map([1, 2, 3]), total.s()).enqueue()
            assert await flow.wait(10) == 12
            chains = [await chain(add.s(n, 1), double.s(), add.s(10)).enqueue() for n in range(3)]
            assert [await one.wait(10) for one in chains] == [12, 14, 16]
            flow = await group(double.s(n) for n in range(3)).enqueue()
            assert await flow.wait(10) == [0, 2, 4]
        assert sizes == [3, 3, 3]

    async def test_a_schedule_may_fire_one(self, queue: Queue, registry: Registry) -> None:
        """Its job has one item, and gathers with the others."""
        lists: list[list[str]] = []

        @registry.scheduled_task(cron="0 0 1 1 *", args=["from the schedule"])
        @registry.task(batch=Batch(2, HOUR))
        async def send(texts: list[str]) -> list[str]:
            lists.append(texts)
            return texts

        async with working(queue):
            called = await send.enqueue("called")
            await eventually(registry.schedules.list)
            fired = await registry.schedules.run("send")
            assert [await called.wait(10), await fired.wait(10)] == ["called", "from the schedule"]
        assert [sorted(texts) for texts in lists] == [["called", "from the schedule"]]

    async def test_ten_thousand_jobs_run_at_once(self, queue: Queue, registry: Registry) -> None:
        """The largest list that there may be."""
        size = 10_000

        @registry.task(batch=Batch(size, HOUR), ttl=60)
        async def count(numbers: list[int]) -> list[int]:
            return [len(numbers)] * len(numbers)

        async with working(queue, concurrency=100):
            jobs = await count.enqueue_many({"numbers": number} for number in range(size))
            assert await jobs[0].wait(30) == size
            await ended(jobs[-1])
            await eventually(lambda: self._nothing_left(queue))

    async def _nothing_left(self, queue: Queue) -> bool:
        return not (await lists(queue))["incomplete"]
