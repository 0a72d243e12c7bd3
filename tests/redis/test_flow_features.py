"""Workflows whose jobs have what other jobs have: headers, hooks, a time to expire, an order to end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.redis.conftest import Gate
from tests.redis.flows import claim, give_results, waiting
from tests.support import eventually, lists, working

from knapsaq import Context, Job, Middleware, Queue, Registry, WorkflowFailedError, bound_headers, chain
from knapsaq.nodes import node_key
from knapsaq.outcomes import Succeeded
from knapsaq.registry import AnyTask
from knapsaq.testing import ManualClock, running_worker


class TestLine:
    async def test_each_job_has_the_headers_of_where_it_was_sent(self, queue: Queue, one: AnyTask) -> None:
        """Also those that Redis queues later, when nobody is there to ask; a signature's own win."""
        with bound_headers({"tenant": "acme", "lane": "a"}):
            flow = await (one.s(1) | one.s().set(headers={"lane": "b"})).enqueue()
        assert (await claim(queue)).job.headers == {"tenant": "acme", "lane": "a"}
        await flow.revoke()

        with bound_headers({"tenant": "acme", "lane": "a"}):
            await (one.s(1) | one.s().set(headers={"lane": "b"})).enqueue()
        await give_results(queue, 1)
        assert (await claim(queue)).job.headers == {"tenant": "acme", "lane": "b"}

    async def test_one_that_a_task_sends_follows_from_its_job_and_is_its_own_root(
        self, queue: Queue, registry: Registry, one: AnyTask
    ) -> None:
        """The first nodes have the sender as parent, the next ones those before them; headers go on."""
        seen: list[tuple[str | None, str, str]] = []

        @registry.task
        async def step(ctx: Context, given: Any = None) -> None:
            seen.append((ctx.parent_id, ctx.root_id, ctx.headers["tenant"]))

        @registry.task
        async def sends() -> str:
            flow = await chain(step.s(), step.s()).enqueue()
            await flow.wait(5)
            return flow.id

        async with running_worker(registry=registry):
            job = await sends.using(headers={"tenant": "acme"}).enqueue()
            flow_id = await job.wait(5)
        assert seen == [(job.key, flow_id, "acme"), (node_key(flow_id, 0), flow_id, "acme")]


class Asked(Middleware):
    """Refuses the lane ``no``, and marks what it lets pass."""

    def __init__(self) -> None:
        self.asked = 0

    def before_enqueue(self, job: Job[Any]) -> None:
        """Look at it."""
        self.asked += 1
        if job.headers.get("lane") == "no":
            raise PermissionError("not that lane")
        job.add_headers({"passed": "yes"})


class TestBeforeEnqueue:
    async def test_it_sees_each_job_before_any_is_queued(self, queue: Queue, registry: Registry, one: AnyTask) -> None:
        """As nobody could be told later."""
        asked = Asked()
        registry.use(asked)
        await (one.s(1) | one.s()).enqueue()
        assert asked.asked == 2
        await give_results(queue, 1)
        assert (await claim(queue)).job.headers == {"passed": "yes"}

    async def test_what_it_raises_for_one_refuses_all(self, queue: Queue, registry: Registry, one: AnyTask) -> None:
        """The caller gets the very error, and nothing is queued."""
        registry.use(Asked())
        with pytest.raises(PermissionError, match="not that lane"):
            await (one.s(1) | one.s().set(headers={"lane": "no"})).enqueue()
        assert not any((await lists(queue)).values())


class TestExpiry:
    async def test_the_time_counts_from_when_a_job_may_run(
        self, queue: Queue, one: AnyTask, clock: ManualClock
    ) -> None:
        """What waits for others does not expire for that; one that nobody starts in time ends the workflow."""
        queue.clock = clock
        flow = await (one.s(1) | one.s().set(expires=60) | one.s().set(expires=60)).enqueue()
        clock.advance(3600)
        await give_results(queue, 1)
        clock.advance(59)
        second = await claim(queue)
        assert second.job.expired(queue.now_ms()) is None
        assert await queue.settle(second, Succeeded(2), worker="w")
        clock.advance(61)
        async with working(queue):
            with pytest.raises(WorkflowFailedError, match="expired, as it was not started by"):
                await flow.wait(5)

    async def test_a_delay_comes_first(self, queue: Queue, one: AnyTask, clock: ManualClock) -> None:
        """As of any job."""
        queue.clock = clock
        await (one.s(1) | one.s().set(countdown=600, expires=60)).enqueue()
        await give_results(queue, 1)
        clock.advance(630)
        assert (await claim(queue)).job.expired(queue.now_ms()) is None


class TestOrders:
    async def test_jobs_that_are_revoked_by_key_tell_their_workflow(self, queue: Queue, one: AnyTask) -> None:
        """With the reason."""
        flow = await (one.s(1) | one.s()).enqueue()
        assert await queue.revoke([node_key(flow.id, 0)], reason="enough") == [node_key(flow.id, 0)]
        with pytest.raises(WorkflowFailedError, match="enough"):
            await flow.wait(5)
        assert await waiting(queue) == []


async def test_a_task_that_looks_on_gives_up_its_slot(queue: Queue, registry: Registry, gate: Gate) -> None:
    """As one that waits does: a worker with one slot runs the job that it looks at."""

    @registry.task
    async def looks_on() -> list[str]:
        job = await registry.get("held").enqueue()
        seen = [update.status.value async for update in job.updates()]
        return [seen[0], seen[-1]]

    async with working(queue, concurrency=1):
        job = await looks_on.enqueue()
        await eventually(lambda: gate.begun)
        gate.open()
        assert await job.wait(5) == ["queued", "complete"]


async def test_a_hook_that_waits_when_its_job_has_ended_has_no_slot_to_give_up(
    queue: Queue, registry: Registry, gate: Gate
) -> None:
    """The job has given it back, so no more jobs run at once than there are slots."""

    class Follows(Middleware):
        async def on_success(self, ctx: Context, result: Any) -> None:
            await (await registry.get("held").using(key="first").enqueue()).wait(5)

    @registry.task(middleware=Follows())
    async def leads() -> None: ...

    async with working(queue, concurrency=1):
        await (await leads.enqueue()).wait(5)
        await gate.entered()
        second = await registry.get("held").enqueue()
        await asyncio.sleep(0.2)
        assert gate.begun == ["first"]
        gate.open()
        assert await second.wait(5) == "let go"
    assert gate.most == 1
