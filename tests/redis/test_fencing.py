"""What a worker may not do once a job is no longer its own, and what may not stop it from working."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from saq.job import Status
from saq.queue.redis import RedisQueue
from tests.support import ended, eventually, working

from knapsaq import BrokerError, Context, JobMissingError, JobRevokedError, Queue, Registry, Settings, Task
from knapsaq.deadline import Deadline
from knapsaq.exchange import Exchange
from knapsaq.outcomes import Aborted, Dead, Succeeded
from knapsaq.redis.connection import open_redis
from knapsaq.running import OVERDUE_SECONDS, Running
from knapsaq.testing import ManualClock
from knapsaq.upkeep import Rescuer
from knapsaq.wakeup import Wakeup

AnyTask = Task[..., Any, Any]


class TestAnotherJobOfTheKey:
    async def test_a_job_that_was_finished_by_hand_cannot_settle_the_next_one_of_its_key(
        self, queue: Queue, echo: AnyTask
    ) -> None:
        """The old attempt's claim ends with the new job, which runs with its own arguments."""
        await queue.enqueue("echo", key="one", text="first")
        [old] = await queue.claim(1, worker="w")
        await old.job.finish(Status.COMPLETE, result="by hand")

        await queue.enqueue("echo", key="one", text="second")
        [new] = await queue.claim(1, worker="w")
        assert new.job.kwargs == {"text": "second"}
        assert not await queue.settle(old, Succeeded("first"), worker="w")
        assert await queue.settle(new, Succeeded("second"), worker="w")

    async def test_crashes_are_not_inherited_by_the_next_job_of_the_key(
        self, queue: Queue, echo: AnyTask, clock: ManualClock
    ) -> None:
        """An aborted job takes its count along."""
        queue.clock = clock
        job = await queue.enqueue("echo", key="one", text="hi")
        await queue.claim(1, worker="dead")
        clock.advance(timedelta(seconds=queue.settings.lease + 1))
        assert await Rescuer(queue).run_once() == 1
        assert job is not None
        await job.abort("enough")

        await queue.enqueue("echo", key="one", text="hi")
        [claim] = await queue.claim(1, worker="alive")
        assert claim.crashes == 0

    async def test_a_key_whose_record_is_gone_is_free(self, queue: Queue, echo: AnyTask) -> None:
        """What Redis has evicted keeps nobody out for ever."""
        await echo.using(key="one").enqueue(text="hi")
        await queue.redis.delete(queue.job_id("one"))
        job = await echo.using(key="one").enqueue(text="again")
        assert [claim.job for claim in await queue.claim(5, worker="w")] == [job]

    async def test_a_key_whose_record_cannot_be_read_is_told(self, queue: Queue, echo: AnyTask) -> None:
        """The caller gets an answer, not an endless try."""
        await echo.using(key="one").enqueue(text="hi")
        await queue.redis.set(queue.job_id("one"), b"\xff{")
        with pytest.raises(JobMissingError, match="use another key"):
            await echo.using(key="one").enqueue(text="again")


class TestLostClaims:
    async def test_an_attempt_that_lost_its_claim_cannot_update_the_record(
        self, queue: Queue, echo: AnyTask, clock: ManualClock
    ) -> None:
        """Progress of a stale attempt does not show on the new one."""
        queue.clock = clock
        await echo.using(key="one").enqueue(text="hi")
        [stale] = await queue.claim(1, worker="dead")
        clock.advance(timedelta(seconds=queue.settings.lease + 1))
        await Rescuer(queue).run_once()
        [live] = await queue.claim(1, worker="alive")

        await stale.job.update(progress=0.9)
        await live.job.update(progress=0.1)
        found = await queue.job("one")
        assert found is not None
        assert found.progress == 0.1

    async def test_a_worker_without_a_lease_gets_one_with_its_first_claim(
        self, queue: Queue, echo: AnyTask, clock: ManualClock
    ) -> None:
        """A worker that claims and dies before its first sign of life is missed all the same."""
        queue.clock = clock
        await echo.enqueue(text="hi")
        await queue.claim(1, worker="dead")
        clock.advance(timedelta(seconds=queue.settings.lease + 1))
        assert await Rescuer(queue).run_once() == 1

    async def test_a_worker_that_claims_its_own_lost_job_ends_the_old_attempt(
        self, queue: Queue, registry: Registry
    ) -> None:
        """One attempt of a job runs in a process, and the outcome is the new one's."""
        inside = 0
        most = 0
        attempts: list[asyncio.Event] = []

        @registry.task
        async def held() -> int:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            attempts.append(asyncio.Event())
            try:
                await attempts[-1].wait()
            finally:
                inside -= 1
            return len(attempts)

        async with working(queue) as worker:
            job = await held.enqueue()
            await eventually(lambda: len(attempts) == 1)
            await queue.redis.zadd(queue.keys.leases, {worker.id: 1})
            assert await Rescuer(queue).run_once() == 1
            await eventually(lambda: len(attempts) == 2 and inside == 1)
            attempts[1].set()
            assert await job.wait(5) == 2


class TestSaqsPrograms:
    async def test_the_outcome_of_a_job_that_saq_aborted_leaves_the_next_of_its_key_alone(
        self, queue: Queue, echo: AnyTask
    ) -> None:
        """The new job waits with its own arguments until somebody takes it."""
        saq: RedisQueue = RedisQueue(queue.redis, "default")
        await queue.enqueue("echo", key="one", text="first")
        [old] = await queue.claim(1, worker="w")
        theirs = await saq.job("one")
        assert theirs is not None
        await saq.abort(theirs, "by SAQ")
        await queue.redis.delete(theirs.abort_id)
        assert await saq.enqueue("echo", key="one", text="second")

        assert not await queue.settle(old, Succeeded("first"), worker="w")
        [new] = await queue.claim(1, worker="w")
        assert new.job.kwargs == {"text": "second"}

    @pytest.mark.parametrize("ttl", [600, 0])
    async def test_a_job_that_saq_aborted_is_kept_as_long_as_any_other(
        self, queue: Queue, echo: AnyTask, ttl: int
    ) -> None:
        """Whatever its arguments hold, it ends with its worker's outcome."""
        saq: RedisQueue = RedisQueue(queue.redis, "default")
        await queue.enqueue("echo", key="one", text='{"status":"aborting"}', ttl=ttl)
        [claim] = await queue.claim(1, worker="w")
        stamp = queue.stamp(claim)
        theirs = await saq.job("one")
        assert theirs is not None
        await saq.abort(theirs, "by SAQ")
        assert stamp is not None
        await queue.advance("w", [stamp], 0)
        await queue.settle(claim, Aborted("by SAQ"), worker="w")
        job = await queue.job("one")
        assert job is not None
        assert (job.status, job.error, job.kwargs) == (Status.ABORTED, "by SAQ", {"text": '{"status":"aborting"}'})
        assert (await queue.redis.ttl(job.id) > 0) is (ttl > 0)

    async def test_an_abort_by_a_program_of_saq_ends_our_running_job(self, queue: Queue, registry: Registry) -> None:
        """The task is cancelled within a second or two, and the record does not stay on its way."""
        cancelled = asyncio.Event()

        @registry.task
        async def held() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        saq: RedisQueue = RedisQueue(queue.redis, "default")
        async with working(queue):
            job = await held.enqueue()
            await eventually(lambda: _status(queue, job.key, Status.ACTIVE))
            theirs = await saq.job(job.key)
            assert theirs is not None
            await saq.abort(theirs, "by SAQ")
            async with asyncio.timeout(10):
                await cancelled.wait()
            with pytest.raises(JobRevokedError, match="by SAQ"):
                await job.wait(5)
        assert await queue.redis.ttl(job.id) > 0

    async def test_a_job_without_a_heartbeat_ends_as_in_saq(self, queue: Queue, registry: Registry) -> None:
        """``heartbeat`` is how long a task may be silent."""

        @registry.task
        async def silent() -> None:
            await asyncio.Event().wait()

        async with working(queue):
            job = await queue.enqueue("silent", heartbeat=1)
            await ended(job)
        assert job is not None
        assert (job.status, job.error) == (Status.ABORTED, "no heartbeat for 1 s")


class TestHarmless:
    async def test_what_a_task_left_in_its_job_and_json_cannot_carry_is_dropped(
        self, queue: Queue, registry: Registry
    ) -> None:
        """Neither the worker nor the result is concerned, whether the task goes on or ends at once."""

        @registry.task
        async def spoil(ctx: Context, *, goes_on: bool) -> str:
            ctx.job.meta["path"] = Path("/x")
            if goes_on:
                await ctx.queue.count("active")
            return "done"

        async with working(queue):
            jobs = await asyncio.gather(*(spoil.enqueue(goes_on=goes_on) for goes_on in (False, True)))
            assert [await job.wait(5) for job in jobs] == ["done", "done"]

    async def test_an_error_with_text_that_utf8_cannot_carry_is_stored(self, queue: Queue, registry: Registry) -> None:
        """As from a file name that is not UTF-8."""

        @registry.task(retries=1, retry_delay=0)
        async def open_it() -> None:
            raise ValueError("file \udcff missing")

        async with working(queue):
            job = await open_it.enqueue()
            await ended(job)
        assert job.status is Status.FAILED
        assert "missing" in (job.error or "")

    async def test_a_worker_stops_although_a_shutdown_function_fails(self, queue: Queue, registry: Registry) -> None:
        """Everything else is closed, and whoever waits for the stop goes on."""

        async def fail(ctx: Any) -> None:
            raise ValueError("no such thing")

        async with working(queue, shutdown=fail) as worker:
            await eventually(lambda: worker.queue.redis.exists(queue.keys.leases))
        assert not await queue.redis.exists(queue.keys.leases)

    async def test_a_task_that_goes_on_after_its_limit_loses_its_slot(self, queue: Queue, echo: AnyTask) -> None:
        """The worker gives it up once its clean-up should have ended, too."""
        await queue.enqueue("echo", key="one", text="hi", timeout=5)
        [claim] = await queue.claim(1, worker="w")
        running = Running(claim)
        now = asyncio.get_running_loop().time()
        assert running.overdue(now) is None, "it has not begun"
        claim.job.deadline = Deadline(60)
        claim.job.deadline.when = now
        assert running.overdue(now + OVERDUE_SECONDS) is None
        assert "does not end" in str(running.overdue(now + OVERDUE_SECONDS + 0.001))
        claim.job.deadline.close()

    @pytest.mark.parametrize("spoil", ["kwargs", "cycle", "ttl", "function"])
    @pytest.mark.parametrize("goes_on", [False, True], ids=["at_once", "later"])
    async def test_whatever_a_task_makes_of_its_job_its_slot_is_freed(
        self, queue: Queue, registry: Registry, echo: AnyTask, spoil: str, goes_on: bool
    ) -> None:
        """The job ends with the reason, and the next one runs."""
        cycle: dict[str, Any] = {}
        cycle["cycle"] = cycle
        wrong = {"kwargs": {"x": object()}, "cycle": cycle, "ttl": "1h", "function": object()}

        @registry.task
        async def spoiling(ctx: Context) -> None:
            setattr(ctx.job, "meta" if spoil == "cycle" else spoil, wrong[spoil])
            if goes_on:
                await ctx.queue.count("active")

        async with working(queue, concurrency=1):
            bad = await spoiling.enqueue()
            good = await echo.enqueue(text="hi")
            assert await good.wait(5) == "hi"
            await ended(bad)
        assert bad.ended

    async def test_an_update_at_the_start_of_a_task_leaves_the_job_active(
        self, queue: Queue, registry: Registry
    ) -> None:
        """Whichever comes first, the update or the worker's own stamp."""
        begun, go_on = 0, asyncio.Event()

        @registry.task
        async def eager(ctx: Context) -> None:
            nonlocal begun
            await ctx.job.update(meta={"step": 1})
            begun += 1
            await go_on.wait()

        async with working(queue, concurrency=20):
            jobs = await asyncio.gather(*(eager.enqueue() for _ in range(20)))
            await eventually(lambda: begun == 20)
            found = await queue.jobs(job.key for job in jobs)
            assert {job.status for job in found if job} == {Status.ACTIVE}
            go_on.set()
            await ended(*jobs)

    async def test_waiting_without_the_right_to_listen_says_so(
        self, queue: Queue, echo: AnyTask, settings: Settings, broker_url: str
    ) -> None:
        """A missing right is not an outage that one could wait out."""
        job = await echo.enqueue(text="hi")
        admin: Any = queue.redis
        await admin.acl_setuser("deaf", enabled=True, passwords=["+x"], keys=["*"], commands=["+@all"], reset=True)
        redis: Redis = open_redis(f"{broker_url}{'&' if '?' in broker_url else '?'}username=deaf&password=x")
        try:
            theirs = await Queue(redis, settings=settings).job(job.key)
            assert theirs is not None
            with pytest.raises(BrokerError, match="forbids"):
                await theirs.wait(5)
        finally:
            await redis.aclose()
            await admin.acl_deluser("deaf")


async def _status(queue: Queue, key: str, status: Status) -> bool:
    job = await queue.job(key)
    return job is not None and job.status is status


class TestSentAgain:
    @pytest.mark.parametrize("written", [True, False])
    @pytest.mark.parametrize("kind", ["alone", "dead", "of a workflow"])
    async def test_an_outcome_whose_reply_was_lost_is_not_reported_as_lost(
        self,
        queue: Queue,
        echo: AnyTask,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        *,
        kind: str,
        written: bool,
    ) -> None:
        """Sent again it is refused where Redis has it, which is told as such, and written where not."""
        caplog.set_level("INFO", logger="knapsaq")
        await ((echo.s(text="hi") | echo.s()) if kind == "of a workflow" else echo.s(text="hi")).enqueue()
        [claim] = await queue.claim(1, worker="w")
        exchange = Exchange(queue, "w", 4, {}, Wakeup(queue, asyncio.Event()))
        advance, failures = queue.advance, iter([True])

        async def broken(worker: str, settlements: Any, want: int, *line: Any) -> Any:
            if not next(failures, False):
                return await advance(worker, settlements, want, *line)
            if written:
                await advance(worker, settlements, want, *line)
            raise RedisConnectionError("cut")

        monkeypatch.setattr(queue, "advance", broken)
        outcome = Dead("nobody can run it") if kind == "dead" else Succeeded("done")
        exchange.post(queue.settlement(claim, outcome))
        assert (await exchange.next(0))[0] is None
        while exchange.pending:
            await exchange.next(0)
        told = [text for text in caplog.messages if "sent again" in text or "was not written" in text]
        assert told == ["worker w: of the outcomes that were sent again, Redis had these already: 1"] * written
