"""Where jobs wait, and every write that changes one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from saq.job import Job as SaqJob
from saq.job import Status
from tests.redis.conftest import Gate
from tests.support import ended, eventually, left_behind, lists, named, store, working

from knapsaq import (
    BrokerError,
    Client,
    InvalidArgumentsError,
    Job,
    JobMissingError,
    OptionError,
    PayloadTooLargeError,
    Queue,
    Registry,
    Settings,
    Task,
    Unique,
    UnknownTaskError,
)
from knapsaq.claims import Abort
from knapsaq.outcomes import Retried, Succeeded
from knapsaq.sweeping import Sweeper
from knapsaq.testing import ManualClock

pytestmark = pytest.mark.usefixtures("echo")


async def queued(queue: Queue, *, key: str = "one", **options: Any) -> Job[Any]:
    """Queue a job of the task ``echo``."""
    job = await queue.enqueue("echo", key=key, text="hi", **options)
    assert job is not None
    return job


async def stored(queue: Queue, key: str = "one") -> Job[Any]:
    """Return a job as Redis has it."""
    job = await queue.job(key)
    assert job is not None
    return job


async def calls_of_scripts(queue: Queue) -> int:
    """Return how often scripts were called since the counters were reset."""
    stats = await queue.redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


class TestEnqueue:
    async def test_a_job_whose_key_is_taken_goes_through_the_hooks_once(
        self, queue: Queue, echo: Task[..., Any, Any]
    ) -> None:
        """Also as one of many; the job that has the key takes its place."""
        standing = await queue.enqueue("echo", key="taken", text="hi")
        seen: list[str] = []

        async def note(job: SaqJob) -> None:
            seen.append(job.key)

        queue.register_before_enqueue(note)
        jobs = await queue.enqueue_many("echo", [{"key": "taken", "text": "hi"}, {"key": "free", "text": "hi"}])
        assert jobs[0] == standing
        assert seen == ["taken", "free"]

    async def test_a_job_waits_as_soon_as_enqueue_returns(self, queue: Queue) -> None:
        """Its record, its place in the queue and its place among the unfinished are there together."""
        job = await queued(queue)

        found = await stored(queue)
        assert (found.function, found.kwargs, found.status) == ("echo", {"text": "hi"}, Status.QUEUED)
        assert (found.timeout, found.ttl) == (queue.settings.task_timeout, queue.settings.result_ttl)
        assert await lists(queue) == {"queued": [job.key], "active": [], "incomplete": [job.key]}

    async def test_a_key_is_taken_until_its_job_has_ended(self, queue: Queue) -> None:
        """The second job of a key is refused while the first waits, runs or is delayed, not later."""
        await queued(queue)
        assert await queue.enqueue("echo", key="one", text="other") is None
        [claim] = await queue.claim(1, worker="w")
        assert await queue.enqueue("echo", key="one", text="other") is None
        await queue.settle(claim, Retried("later", 60), worker="w")
        assert await queue.enqueue("echo", key="one", text="other") is None
        assert (await stored(queue)).kwargs == {"text": "hi"}

        await queue.abort(await stored(queue), "enough")
        assert await queue.enqueue("echo", key="one", text="other") is not None
        assert (await stored(queue)).kwargs == {"text": "other"}

    @pytest.mark.parametrize("scheduled", [0, 0.0, -1, -0.5])
    async def test_a_job_scheduled_for_zero_or_earlier_runs_now(self, queue: Queue, scheduled: float) -> None:
        """SAQ stores such a job and never runs it."""
        await queued(queue, scheduled=scheduled)
        assert len(await queue.claim(1, worker="w")) == 1

    async def test_a_key_never_gives_back_another_tasks_job(
        self, client: Client, registry: Registry, clock: ManualClock
    ) -> None:
        """Its result would be of another kind, and the call would be lost without a word."""
        once = Unique(until=timedelta(days=1))

        @registry.task
        async def charge() -> str:
            return "charged"

        @registry.task
        async def refund() -> str:
            return "refunded"

        first = await charge.using(key="order:7", unique=once).enqueue()
        for other in (refund.using(key="order:7"), refund.using(key="order:7", unique=once)):
            with pytest.raises(OptionError, match="a job of task 'charge' has this one"):
                await other.enqueue()

        await client.queue().revoke([first.key])
        second = await refund.using(key="order:7", unique=once).enqueue()
        assert second.function == "refund"
        with pytest.raises(OptionError, match="a job of task 'refund' has this one"):
            await charge.using(key="order:7", unique=once).enqueue()
        clock.advance(timedelta(days=1))

    async def test_concurrent_calls_share_script_calls(self, queue: Queue) -> None:
        """A hundred jobs of one turn of the loop cost a handful of round trips, and each caller gets its own answer."""
        await queue.redis.config_resetstat()
        jobs = await asyncio.gather(*(queue.enqueue("echo", key=str(n % 90), text="hi") for n in range(100)))

        assert await calls_of_scripts(queue) <= 5
        assert [job is None for job in jobs] == [False] * 90 + [True] * 10
        assert (await lists(queue))["queued"] == [str(n) for n in range(90)]

    async def test_more_jobs_than_fit_a_call_are_all_accepted(self, queue: Queue) -> None:
        """They travel in several calls."""
        await asyncio.gather(*(queue.enqueue("echo", key=str(n), text="hi") for n in range(1100)))
        assert set((await lists(queue))["queued"]) == {str(n) for n in range(1100)}

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            ({"text": "x" * 2_000_000}, PayloadTooLargeError),
            ({"text": "hi", "meta": {"key": object()}}, InvalidArgumentsError),
            ({"text": "hi", "scheduled": "soon"}, InvalidArgumentsError),
            ({"text": "hi", "scheduled": True}, InvalidArgumentsError),
            ({"text": "hi", "ttl": "long"}, InvalidArgumentsError),
            ({"text": "hi", "retries": 1.5}, InvalidArgumentsError),
            ({"text": "hi", "key": 5}, InvalidArgumentsError),
        ],
        ids=named,
    )
    async def test_a_job_that_cannot_be_stored_is_its_callers_error_alone(
        self, queue: Queue, wrong: dict[str, Any], error: type[Exception]
    ) -> None:
        """The jobs of the same turn are accepted; of the wrong one nothing is stored."""
        before, failed, after = await asyncio.gather(
            queued(queue, key="before"),
            queue.enqueue("echo", **wrong),
            queued(queue, key="after"),
            return_exceptions=True,
        )
        assert isinstance(failed, error)
        assert isinstance(before, Job)
        assert isinstance(after, Job)
        assert (await lists(queue))["incomplete"] == ["after", "before"]

    @pytest.mark.parametrize("cancelled", [0, 1, 2])
    async def test_a_caller_that_gives_up_takes_no_other_along(self, queue: Queue, cancelled: int) -> None:
        """Also when it was the first of the turn, who sends for all."""
        calls = [asyncio.create_task(queued(queue, key=str(n))) for n in range(3)]
        await asyncio.sleep(0)
        calls[cancelled].cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)

        assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [n == cancelled for n in range(3)]
        assert set((await lists(queue))["queued"]) >= {str(n) for n in range(3) if n != cancelled}

    async def test_an_unknown_task_is_refused_at_the_call(self, queue: Queue) -> None:
        """The error names the nearest; nothing is stored."""
        with pytest.raises(UnknownTaskError, match="echo"):
            await queue.enqueue("ecco", text="hi")
        with pytest.raises(InvalidArgumentsError, match="text"):
            await queue.enqueue("echo", text=5)
        assert (await lists(queue))["incomplete"] == []

    async def test_a_queue_without_registry_takes_any_name(self, queue: Queue, settings: Settings) -> None:
        """As SAQ does, for producers that do not have the tasks."""
        plain = Queue(queue.redis, "default", settings=settings)
        job = await plain.enqueue("anything", a=1, timeout=7)
        assert job is not None
        assert (job.kwargs, job.timeout) == ({"a": 1}, 7)

    async def test_a_parameter_named_like_a_field_of_the_job_reaches_the_task(
        self, queue: Queue, registry: Registry
    ) -> None:
        """SAQ takes all names of its fields away from the task."""

        @registry.task
        async def named(timeout: str, result: int, status: str) -> list[Any]:
            return [timeout, result, status]

        job = await queue.enqueue("named", timeout="long", result=3, status="fine", retries=2)
        assert job is not None
        assert (job.kwargs, job.retries) == ({"timeout": "long", "result": 3, "status": "fine"}, 2)

    @pytest.mark.parametrize("name", ["incomplete", "queued"])
    async def test_a_spoilt_key_refuses_a_job_whole(self, queue: Queue, name: str) -> None:
        """Nothing of it is written, not even that it was accepted once, so that it can be sent again."""
        redis: Any = queue.redis
        key = getattr(queue.keys, name)
        await redis.set(key, "spoilt")
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            await queue.accept(Job("echo", key="one", kwargs={"text": "hi"}), once=True)
        assert await redis.keys() == [key.encode()]
        await redis.delete(key)
        assert await queue.accept(Job("echo", key="one", kwargs={"text": "hi"}), once=True)

    async def test_an_unreachable_broker_is_every_callers_error(self, queue: Queue) -> None:
        """It says what to do; the calls do not hang."""
        lost = Queue.from_url("unix:///nowhere/broker.sock", settings=queue.settings)
        calls = [lost.enqueue("anything", n=n) for n in range(3)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [BrokerError] * 3


async def waiting(queue: Queue) -> None:
    await queued(queue)


async def delayed(queue: Queue) -> None:
    await queued(queue, scheduled=time.time() + 600)


async def delayed_for_its_next_attempt(queue: Queue) -> None:
    await queued(queue)
    [claim] = await queue.claim(1, worker="w")
    await queue.settle(claim, Retried("later", 600), worker="w")


class TestAbort:
    @pytest.mark.parametrize("state", [waiting, delayed, delayed_for_its_next_attempt])
    async def test_a_job_that_does_not_run_ends_at_once(
        self, queue: Queue, state: Callable[[Queue], Awaitable[None]]
    ) -> None:
        """It is aborted with the reason, never runs, and expires; SAQ leaves a delayed one aborting for ever."""
        await state(queue)
        job = await stored(queue)
        await job.abort("enough")

        assert (job.status, job.error) == (Status.ABORTED, "enough")
        found = await stored(queue)
        assert (found.status, found.error) == (Status.ABORTED, "enough")
        assert await queue.redis.ttl(job.id) > 0
        assert await queue.claim(5, worker="w") == []
        assert await left_behind(queue) == []

    async def test_the_worker_of_a_running_job_hears_of_it(self, queue: Queue) -> None:
        """Its next step gets the reason, and no other worker's does."""
        await queued(queue)
        await queued(queue, key="two")
        [claim] = await queue.claim(1, worker="w")
        await queue.claim(1, worker="other")
        await (await stored(queue)).abort("enough")

        assert (await stored(queue)).status is Status.ABORTING
        assert (await queue.advance("other", [], 0)).aborts == {}
        assert (await queue.advance("w", [], 0)).aborts == {claim.job.id: Abort("enough", terminate=True)}
        await queue.settle(claim, Succeeded("in time"), worker="w")
        assert (await queue.advance("w", [], 0)).aborts == {}

    async def test_an_ended_job_is_not_changed(self, queue: Queue) -> None:
        """Neither its record nor its expiry nor the copy in hand; SAQ makes it aborting for ever."""
        await queued(queue)
        [claim] = await queue.claim(1, worker="w")
        await queue.settle(claim, Succeeded("done"), worker="w")
        job = await stored(queue)
        before = job.to_dict()
        await job.abort("too late")

        assert job.to_dict() == before
        assert (await stored(queue)).to_dict() == before
        assert await queue.redis.ttl(job.id) > 0

    async def test_the_same_key_in_another_queue_is_another_job(self, queue: Queue, client: Any) -> None:
        """An abort in one queue neither ends nor blocks a job of the other."""
        other = client.queue("mail")
        await queued(queue)
        await queued(other)
        await (await stored(queue)).abort("enough")

        assert (await stored(other)).status is Status.QUEUED
        await (await stored(other)).abort("enough")
        assert await queue.enqueue("echo", key="one", text="again") is not None
        assert await other.enqueue("echo", key="one", text="again") is not None

    async def test_an_abort_that_a_saq_worker_carried_out_does_not_hit_the_next_job_of_its_key(
        self, queue: Queue
    ) -> None:
        """The reason that was kept for our workers ends with the job."""
        await queued(queue)
        await queue.dequeue()
        job = await stored(queue)
        await job.update(status=Status.ACTIVE)
        await job.abort("enough")
        await queue.finish_abort(job)

        await queued(queue)
        step = await queue.advance("w", [], 1)
        assert [claim.job.key for claim in step.claims] == ["one"]
        assert step.aborts == {}


class TestRetry:
    async def test_an_ended_job_runs_again_from_its_first_attempt(self, queue: Queue) -> None:
        """What its earlier run spent is forgotten."""
        await queued(queue)
        [claim] = await queue.claim(1, worker="w")
        claim.job.attempts += 1
        await queue.settle(claim, Succeeded("done"), worker="w")
        await (await stored(queue)).retry("by hand")

        found = await stored(queue)
        assert (found.status, found.attempts, found.completed, found.result) == (Status.QUEUED, 0, 0, None)
        assert await queue.redis.ttl(found.id) == -1
        [again] = await queue.claim(5, worker="w")
        assert again.job.key == "one"

    async def test_a_scheduled_job_that_is_retried_runs_once(self, queue: Queue) -> None:
        """SAQ puts it into the queue and leaves its due time, so that it runs a second time."""
        await queued(queue, scheduled=time.time() - 5)
        [claim] = await queue.claim(5, worker="w")
        await queue.settle(claim, Retried("again", 0.0), worker="w")

        assert len(await queue.claim(5, worker="w")) == 1
        assert await queue.claim(5, worker="w") == []
        assert (await lists(queue))["queued"] == []

    async def test_a_scheduled_job_that_is_retried_by_hand_runs_once(self, queue: Queue) -> None:
        """The same through the button of the page."""
        await queued(queue, scheduled=time.time() - 5)
        [claim] = await queue.claim(5, worker="w")
        await queue.settle(claim, Succeeded("done"), worker="w")
        await (await stored(queue)).retry("by hand")

        assert len(await queue.claim(5, worker="w")) == 1
        assert await queue.claim(5, worker="w") == []

    @pytest.mark.parametrize("state", [waiting, delayed, delayed_for_its_next_attempt])
    async def test_a_job_that_has_not_ended_is_not_queued_twice(
        self, queue: Queue, state: Callable[[Queue], Awaitable[None]]
    ) -> None:
        """It stays where it is."""
        await state(queue)
        before = await lists(queue)
        await (await stored(queue)).retry("impatient")
        assert await lists(queue) == before

    async def test_a_job_that_one_of_our_workers_runs_is_left_to_it(self, queue: Queue) -> None:
        """It does not run in two places, stamped or not."""
        await queued(queue)
        [claim] = await queue.claim(1, worker="w")
        redis: Any = queue.redis
        await redis.zadd(queue.keys.leases, {"w": 4_000_000_000_000})
        await (await stored(queue)).retry("impatient")
        await queue.advance("w", [queue.stamp(claim)], 0)
        await (await stored(queue)).retry("impatient")

        assert await queue.claim(1, worker="other") == []
        assert (await stored(queue)).status is Status.ACTIVE
        assert await queue.settle(claim, Succeeded("done"), worker="w")
        await redis.delete(queue.keys.leases)


class TestUpdate:
    async def test_an_update_is_stored_and_leaves_the_state(self, queue: Queue) -> None:
        """Progress of a running job is seen; its status is not the caller's copy's."""
        job = await queued(queue)
        [claim] = await queue.claim(1, worker="w")
        await queue.advance("w", [queue.stamp(claim)], 0)
        await job.update(progress=0.5, meta={"step": 2})

        found = await stored(queue)
        assert (found.progress, found.meta, found.status) == (0.5, {"step": 2}, Status.ACTIVE)

    async def test_an_update_never_brings_a_finished_job_back(self, queue: Queue) -> None:
        """Progress that arrives late changes neither status nor result nor expiry; in SAQ it is active for ever."""
        job = await queued(queue)
        [claim] = await queue.claim(1, worker="w")
        running = await stored(queue)
        await queue.settle(claim, Succeeded("done"), worker="w")
        await job.update(progress=0.5)
        await running.update(progress=0.7)
        await claim.job.update()

        found = await stored(queue)
        assert (found.status, found.result, found.progress) == (Status.COMPLETE, "done", 1.0)
        assert await queue.redis.ttl(found.id) > 0
        assert (await lists(queue))["incomplete"] == []

    async def test_an_ended_job_can_be_annotated(self, queue: Queue) -> None:
        """Whoever has read it ended may write, and its expiry stays."""
        await queued(queue)
        [claim] = await queue.claim(1, worker="w")
        await queue.settle(claim, Succeeded("done"), worker="w")
        await (await stored(queue)).update(meta={"seen": True})

        found = await stored(queue)
        assert (found.meta, found.result) == ({"seen": True}, "done")
        assert await queue.redis.ttl(found.id) > 0

    async def test_an_update_of_a_job_that_is_gone_stores_nothing(self, queue: Queue) -> None:
        """No record without an expiry comes into being."""
        job = await queued(queue, ttl=-1)
        [claim] = await queue.claim(1, worker="w")
        await queue.settle(claim, Succeeded("done"), worker="w")
        await job.update(progress=0.5)
        assert await queue.job("one") is None

    async def test_progress_that_races_the_end_never_wins(self, queue: Queue, registry: Registry) -> None:
        """Jobs with a progress loop beside them all end complete, with their result."""

        @registry.task
        async def racing(ctx: dict[str, Any]) -> str:
            async def tell() -> None:
                while not enough.is_set():
                    await ctx["job"].update(progress=0.5)

            loops.append(asyncio.create_task(tell()))
            await asyncio.sleep(0)
            return "done"

        enough = asyncio.Event()
        loops: list[asyncio.Task[None]] = []
        async with working(queue, concurrency=5):
            jobs = await asyncio.gather(*(racing.enqueue() for _ in range(20)))
            await ended(*jobs)
            await eventually(lambda: len(loops) == 20)
            enough.set()
            await asyncio.gather(*loops)
        found = await queue.jobs(job.key for job in jobs)
        assert [job.result for job in found if job] == ["done"] * 20
        assert await left_behind(queue) == []


class TestBadRecords:
    async def test_a_bad_record_does_not_stop_info_or_the_sweep(self, queue: Queue) -> None:
        """SAQ's page and sweeper stop at the first record that a newer version wrote."""
        await queued(queue, key="good")
        await store(queue, "bad", b"\xff{")
        await store(queue, "foreign", json.dumps({"function": "f", "key": "foreign", "queue": "mail"}).encode())
        for _ in range(3):
            await queue.dequeue()

        info = await queue.info(jobs=True)
        assert [job["key"] for job in info["jobs"]] == ["good"]
        assert [job.key async for job in queue.iter_jobs()] == ["good"]
        swept = await Sweeper(queue).run_once()
        assert sorted(swept) == [queue.job_id("bad"), queue.job_id("foreign")]
        left = await lists(queue)
        assert (left["active"], sorted(left["queued"])) == (["good"], ["bad", "foreign"])
        async with working(queue):  # who claims them buries them
            await eventually(lambda: self._two_letters(queue))
        assert await queue.redis.ttl(queue.job_id("bad")) > 0

    async def _two_letters(self, queue: Queue) -> bool:
        return {letter.key for letter in await queue.dead()} == {"bad", "foreign"}

    async def test_saqs_own_sweep_goes_past_it_too(self, queue: Queue) -> None:
        """The method of SAQ's queue, for who calls it."""
        await store(queue, "bad", b"\xff{")
        await queue.dequeue()
        assert await queue.sweep() == [queue.job_id("bad")]


class TestWaiting:
    async def test_a_caller_gets_the_result_as_soon_as_it_is_there(self, queue: Queue, gate: Gate) -> None:
        """Also when it asks before the job runs."""
        job = await queue.enqueue("held")
        assert job is not None
        waiting = asyncio.create_task(job.wait(5))
        async with working(queue):
            await gate.entered()
            assert not waiting.done()
            gate.open()
            assert await waiting == "let go"

    async def test_a_caller_that_waits_too_long_is_told_and_may_ask_again(self, queue: Queue) -> None:
        """The job goes on."""
        job = await queued(queue)
        with pytest.raises(TimeoutError):
            await job.wait(0.01)
        async with working(queue):
            assert await job.wait(5) == "hi"

    async def test_a_job_that_is_gone_is_missing(self, queue: Queue) -> None:
        """Nobody waits for ever for a result that is not kept."""
        job = await queued(queue, ttl=-1)
        async with working(queue):
            with pytest.raises(JobMissingError):
                await job.wait(5)


class TestBatch:
    async def test_a_batch_that_raises_takes_its_own_jobs_back(self, queue: Queue) -> None:
        """Also when it is cancelled, as the example in SAQ's manual has it."""
        for error in (RuntimeError("no"), asyncio.CancelledError()):
            with pytest.raises(type(error)):
                await self._raise_in_batch(queue, error)
            assert (await stored(queue)).status is Status.ABORTED

    async def test_a_batch_leaves_the_jobs_of_others_alone(self, queue: Queue) -> None:
        """What a concurrent caller enqueues meanwhile, and a job that had the key already."""
        await queued(queue, key="earlier")
        entered = asyncio.Event()

        async def other() -> None:
            await entered.wait()
            await queued(queue, key="concurrent")

        concurrent = asyncio.create_task(other())

        async def refused() -> None:
            async with queue.batch():
                assert await queue.enqueue("echo", key="earlier", text="hi") is None
                entered.set()
                await concurrent
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await refused()
        assert (await lists(queue))["queued"] == ["earlier", "concurrent"]

    async def _raise_in_batch(self, queue: Queue, error: BaseException) -> None:
        async with queue.batch():
            await queued(queue)
            raise error


class TestHandMadeJobs:
    async def test_a_job_of_saq_can_be_enqueued(self, queue: Queue) -> None:
        """Programs written for SAQ build the job themselves."""
        job = SaqJob(function="echo", kwargs={"text": "hi"}, key="one")
        assert await queue.enqueue(job, retries=3) is not None
        assert (await stored(queue)).retries == 3
        with pytest.raises(ValueError, match="different queue"):
            await Queue(queue.redis, "mail", settings=queue.settings).enqueue(job)


class TestDelay:
    async def test_a_delay_is_reckoned_by_the_queues_clock(
        self, queue: Queue, echo: Task[..., Any, Any], clock: ManualClock
    ) -> None:
        """A sender whose own clock is wrong does not run jobs early or late."""
        queue.clock = clock
        clock.travel(datetime(2040, 1, 1, tzinfo=UTC))
        job = await echo.using(delay=3600).enqueue(text="hi")
        clock.advance(3599)
        assert await queue.claim(1, worker="w") == []
        clock.advance(1)
        assert [claim.job for claim in await queue.claim(1, worker="w")] == [job]
