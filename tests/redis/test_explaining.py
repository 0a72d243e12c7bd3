"""``job.why()``: each reason why a job does not run."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from tests.redis.conftest import Gate
from tests.support import working

from knapsaq import Client, Concurrency, Job, Queue, Rate, Reason, Registry, WorkflowError, chain, chord
from knapsaq.nodes import node_key
from knapsaq.outcomes import Released, Succeeded
from knapsaq.registry import AnyTask
from knapsaq.testing import ManualClock


async def only(job: Job[Any]) -> Reason:
    """Return the one thing that a job waits for, workers left aside."""
    [reason] = [reason for reason in await job.why() if reason.kind != "no worker"]
    return reason


class TestWhy:
    async def test_a_job_in_the_queue_is_told_how_many_are_before_it(self, queue: Queue, echo: AnyTask) -> None:
        """And that nobody serves the queue."""
        for _ in range(3):
            job = await echo.enqueue("a")
        waits, nobody = await job.why()
        assert (waits.kind, waits.ahead, str(waits)) == ("queued", 2, "2 jobs ahead of it in queue default")
        assert str(nobody) == "no worker serves queue default"
        await queue.revoke([job.key])

    async def test_a_delayed_job_is_told_when_it_is_due(self, queue: Queue, echo: AnyTask) -> None:
        """To the millisecond."""
        job = await echo.using(delay=60).enqueue("a")
        reason = await only(job)
        assert reason.kind == "scheduled"
        assert reason.until is not None
        assert abs(reason.until.timestamp() - job.scheduled) < 1

    async def test_a_rate_tells_when_it_lets_the_job_run(
        self, queue: Queue, registry: Registry, client: Client
    ) -> None:
        """By the jobs that wait before it."""
        limited = registry.task(rate_limit=Rate("6/m"))(_work)
        jobs = [await limited.enqueue() for _ in range(4)]
        await queue.claim(4, worker="w1")
        untils = [(await only(job)).until for job in jobs[1:]]
        assert [(await only(job)).kind for job in jobs] == ["running"] + ["rate limit"] * 3
        assert all(until is not None for until in untils)
        gaps = [later - sooner for sooner, later in pairwise(untils) if sooner and later]
        assert gaps == [timedelta(seconds=10)] * 2
        assert (await only(jobs[2])).ahead == 1
        await queue.revoke([job.key for job in jobs])

    async def test_a_slot_is_told_with_who_holds_it(self, queue: Queue, registry: Registry) -> None:
        """By its key, and how many wait before."""
        locked = registry.task(concurrency=Concurrency(1, key="account"))(_of_account)
        holder, waiting, other = [await locked.enqueue(account) for account in (1, 1, 2)]
        await queue.claim(3, worker="w1")
        reason = await only(waiting)
        assert (reason.kind, reason.jobs) == ("concurrency", (holder.key,))
        assert str(reason) == f"the slots of 'of_account/account=1' are held by job {holder.key}"
        assert (await only(other)).kind == "running"

    async def test_a_struck_argument_that_sounds_secret_is_shown_to_nobody(
        self, queue: Queue, registry: Registry
    ) -> None:
        """Reasons are shown over HTTP and on the command line, where no other argument is."""

        @registry.task
        async def call(token: str) -> str:
            return token

        strike = await queue.strike("call", token="hunter2")
        job = await call.enqueue("hunter2")
        await queue.claim(1, worker="w1")
        assert (await only(job)).words == "task 'call' with token=*** was struck; queue.restore() lets it run"
        assert "hunter2" not in f"{strike} {await queue.strikes()}"
        await queue.restore("call", token="hunter2")
        await queue.revoke([job.key])

    async def test_a_struck_and_a_paused_job_are_told_how_to_go_on(self, queue: Queue, echo: AnyTask) -> None:
        """Both at once."""
        job = await echo.enqueue("a")
        await queue.strike("echo")
        await queue.claim(1, worker="w1")
        await queue.pause()
        assert [str(reason) for reason in await job.why()] == [
            "task 'echo' was struck; queue.restore() lets it run",
            "queue default is paused; queue.resume() goes on",
        ]
        await queue.resume()
        await queue.restore("echo")
        await queue.revoke([job.key])

    async def test_an_unknown_task_is_told_with_since_when(self, queue: Queue) -> None:
        """Its job has been put back for a while."""
        sent: Any = await Queue(queue.redis, queue.name).enqueue("not_here")
        async with working(queue):
            job = await queue.job(sent.key)
            assert job is not None
            while (reason := (await job.why())[0]).kind != "unknown task":
                pass
        assert str(reason).startswith("no worker has known task 'not_here' since ")
        await job.revoke()

    async def test_a_job_that_runs_or_has_ended_says_so(self, queue: Queue, gate: Gate, registry: Registry) -> None:
        """It waits for nothing."""
        async with working(queue) as worker:
            job = await registry.get("held").enqueue()
            await gate.entered()
            assert [str(reason) for reason in await job.why()] == [f"worker {worker.id} runs it"]
            gate.open()
            await job.wait(10)
        assert [str(reason) for reason in await job.why()] == ["it has ended: it is complete"]

    async def test_a_job_that_was_put_back_is_told_when_its_next_attempt_is_due(
        self, queue: Queue, echo: AnyTask, clock: ManualClock
    ) -> None:
        """As an attempt is not the first run."""
        job = await echo.enqueue("a")
        [claim] = await queue.claim(1, worker="w1")
        claim.job.attempts = 2
        await queue.settle(claim, Released("later", 30.0), worker="w1")
        assert (await only(job)).words.startswith("its next attempt is due at ")
        await queue.replay()
        await queue.revoke([job.key])

    async def test_a_missing_job_is_told_to_be_gone(self, queue: Queue, echo: AnyTask) -> None:
        """No error: it is the answer."""
        job = await echo.using(ttl=-1).enqueue("a")
        [claim] = await queue.claim(1, worker="w1")
        await queue.settle(claim, Succeeded("a"), worker="w1")
        assert [str(reason) for reason in await job.why()] == ["it has ended: it is not in Redis any more"]


class TestNodes:
    async def test_a_node_is_told_which_parents_have_not_ended(self, queue: Queue, registry: Registry) -> None:
        """Through the join that stands for a group; and by its own job once it is queued."""

        @registry.task
        async def part(number: int) -> int:
            return number

        @registry.task
        async def total(numbers: list[int]) -> int:
            return sum(numbers)

        flow = await chord([part.s(1), part.s(2)], total.s()).enqueue()
        [reason] = await flow.why("total#3")
        assert (reason.kind, str(reason)) == ("parent", "part#0, part#1 before it have not ended")
        assert reason.jobs == (node_key(flow.id, 0), node_key(flow.id, 1))
        assert (await flow.why("part#1"))[0].ahead == 1
        [claim] = await queue.claim(1, worker="w1")
        await queue.settle(claim, Succeeded(1), worker="w1")
        assert str((await flow.why("total#3"))[0]) == "part#1 before it has not ended"
        assert str((await flow.why("part#0"))[0]) == "it has ended: it is complete"
        with pytest.raises(WorkflowError, match=r"no node 'totl'.*total#3"):
            await flow.why("totl")
        await flow.revoke()

    async def test_what_runs_at_the_end_says_so(self, queue: Queue, registry: Registry) -> None:
        """It has no parents."""
        work = registry.task(_work)
        told = registry.task(_of_account)
        flow = await chain(work.s()).enqueue(on_success=told.si(1))
        [name] = [name for name in (await flow.status()).nodes if name.startswith("of_account")]
        assert [str(reason) for reason in await flow.why(name)] == ["it runs when the workflow has ended"]
        await flow.revoke()


async def _work() -> None: ...


async def _of_account(account: int) -> None: ...


_work.__name__, _of_account.__name__ = "work", "of_account"
