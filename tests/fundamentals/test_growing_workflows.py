"""The manual as code: tasks that add to their own workflow, and tasks that wait for others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support import eventually, working

from knapsaq import (
    Client,
    Context,
    JobFailedError,
    Registry,
    Retry,
    Settings,
    WorkflowError,
    WorkflowFailedError,
    chain,
    chord,
    connect,
    get_workflow,
    group,
)
from knapsaq.nodes import node_key
from knapsaq.testing import make_context, running_worker


class TestSpawn:
    async def test_a_task_adds_to_its_workflow(self, client: Client, registry: Registry) -> None:
        """The workflow ends after what was added; that knows where it comes from."""
        visited: list[str] = []

        @registry.task
        async def visit(ctx: Context, page: str, depth: int) -> str:
            visited.append(page)
            assert ctx.headers == {"crawl": "7"}
            if depth:
                assert ctx.parent_id == (None if page == "/" else ctx.job.parent_id)
                await ctx.spawn(group(visit.s(f"{page}{name}/", depth - 1) for name in "ab"))
            return page

        async with running_worker(registry=registry):
            flow = await chain(visit.s("/", 2)).enqueue(headers={"crawl": "7"})
            assert await flow.wait(5) == "/"
        assert sorted(visited) == ["/", "/a/", "/a/a/", "/a/b/", "/b/", "/b/a/", "/b/b/"]
        assert (await flow.status()).counts == {"complete": 7}
        child = await client.queue().job(node_key(flow.id, 2))
        assert child is not None
        assert (child.root_id, child.parent_id) == (flow.id, node_key(flow.id, 0))

    async def test_a_worker_need_not_serve_the_queue_of_the_workflow(
        self, client: Client, settings: Settings, registry: Registry
    ) -> None:
        """The workflow is kept with its first task's queue; this one works for another."""

        @registry.task
        async def first() -> int:
            return 1

        @registry.task(queue="mail")
        async def later(ctx: Context, n: int) -> int:
            if n < 3:
                await ctx.spawn(later.s(n + 1))
            return n

        flow = await (first.s() | later.s()).enqueue()
        async with working(client.queue()):
            await eventually(lambda: client.queue("mail").count("queued"))
        only_mail = settings.with_values(queues=("mail",))
        async with connect(only_mail, registry=registry) as other, working(other.queue("mail")):
            assert await flow.wait(5) == 1
        assert (await flow.status()).counts == {"complete": 4}

    async def test_a_failure_of_what_was_added_fails_the_workflow(self, client: Client, registry: Registry) -> None:
        """It counts for the end like any other node."""

        @registry.task
        async def fails() -> None:
            raise ValueError("bad")

        @registry.task
        async def begin(ctx: Context) -> str:
            await ctx.spawn(fails.s() | fails.si())
            return "begun"

        async with running_worker(registry=registry):
            flow = await chain(begin.s()).enqueue()
            with pytest.raises(WorkflowFailedError, match="ValueError: bad"):
                await flow.wait(5)
        assert (await flow.status()).counts == {"complete": 1, "failed": 1, "cancelled": 1}

    async def test_a_job_of_no_workflow_has_none_to_add_to(self, client: Client, registry: Registry) -> None:
        """And the error says what to do instead."""

        @registry.task
        async def alone(ctx: Context) -> None:
            await ctx.spawn(alone.s())

        async with running_worker(registry=registry):
            with pytest.raises(JobFailedError, match=r"send this by itself with \.enqueue"):
                await (await alone.enqueue()).wait(5)

    async def test_a_task_that_is_called_directly_has_no_workflow(self, registry: Registry) -> None:
        """As in a unit test of its function."""

        @registry.task
        async def alone(ctx: Context) -> None:
            await ctx.spawn(alone.s())

        with pytest.raises(WorkflowError, match="called directly"):
            await alone(make_context())

    async def test_nothing_is_added_to_a_workflow_that_was_revoked(self, client: Client, registry: Registry) -> None:
        """So that it ends."""
        caught: list[str] = []

        @registry.task
        async def stubborn(ctx: Context) -> None:
            await get_workflow(ctx.root_id, registry=registry).revoke()
            try:
                await ctx.spawn(stubborn.s())
            except WorkflowError as error:
                caught.append(str(error))

        async with running_worker(registry=registry):
            flow = await chain(stubborn.s()).enqueue()
            with pytest.raises(WorkflowError):
                await flow.wait(5)
        assert all("nothing was added" in text for text in caught)
        assert len((await flow.status()).nodes) == 1


class TestReplace:
    async def test_what_takes_the_place_of_a_job_gives_its_result(self, client: Client, registry: Registry) -> None:
        """What follows waits for it, and gets what it returns."""

        @registry.task
        async def count_down(ctx: Context, n: int) -> int:
            return 100 if n == 0 else await ctx.replace(count_down.s(n - 1))

        @registry.task
        async def half(x: int) -> float:
            return x / 2

        async with running_worker(registry=registry):
            flow = await (count_down.s(5) | half.s()).enqueue()
            assert await flow.wait(5) == 50

    async def test_a_group_or_a_chord_can_take_the_place(self, client: Client, registry: Registry) -> None:
        """Any expression, an empty group included; what follows gets the list."""

        @registry.task
        async def square(x: int) -> int:
            return x * x

        @registry.task
        async def fan_out(ctx: Context, n: int) -> list[int]:
            return await ctx.replace(square.map(range(n)))

        @registry.task
        async def total(xs: list[int]) -> int:
            return sum(xs)

        async with running_worker(registry=registry):
            assert await (await (fan_out.s(4) | total.s()).enqueue()).wait(5) == 14
            assert await (await (fan_out.s(0) | total.s()).enqueue()).wait(5) == 0
            assert await (await group(fan_out.s(2), fan_out.s(3)).enqueue()).wait(5) == [[0, 1], [0, 1, 4]]

    async def test_an_attempt_that_is_repeated_finds_it_done(self, client: Client, registry: Registry) -> None:
        """What follows runs once."""
        runs: list[int] = []

        @registry.task
        async def other() -> str:
            return "other"

        @registry.task(retries=1, retry_delay=0)
        async def replaced(ctx: Context) -> Any:
            runs.append(ctx.retries)
            await ctx.replace(other.s())
            if not ctx.retries:
                raise Retry(after=0)

        @registry.task
        async def last(x: str) -> str:
            return f"{x} last"

        async with running_worker(registry=registry):
            flow = await (replaced.s() | last.s()).enqueue()
            assert await flow.wait(5) == "other last"
            await asyncio.sleep(0.1)
        assert runs == [0, 1]
        assert (await flow.status()).counts == {"complete": 3}

    async def test_what_failed_in_its_place_can_be_retried(self, client: Client, registry: Registry) -> None:
        """The replacement runs again, not the job that it replaced."""
        runs: list[str] = []

        @registry.task
        async def flaky() -> int:
            runs.append("flaky")
            if len(runs) < 3:
                raise ValueError("bad")
            return 5

        @registry.task
        async def replaced(ctx: Context) -> int:
            runs.append("replaced")
            result: int = await ctx.replace(flaky.s())
            return result

        @registry.task
        async def double(x: int) -> int:
            return 2 * x

        async with running_worker(registry=registry):
            flow = await (replaced.s() | double.s()).enqueue()
            with pytest.raises(WorkflowFailedError):
                await flow.wait(5)
            assert await flow.retry_failed() == 2
            assert await flow.wait(5) == 10
        assert runs == ["replaced", "flaky", "flaky"]


class TestWaitingInTasks:
    async def test_a_full_worker_does_not_lock_up(self, client: Client, registry: Registry) -> None:
        """A job that waits for another gives up its slot, so that there is one for the other."""

        @registry.task
        async def child(x: int) -> int:
            return x * x

        @registry.task
        async def parent(n: int) -> int:
            jobs = await child.enqueue_many([{"x": x} for x in range(n)])
            return sum(await asyncio.gather(*(job.wait() for job in jobs)))

        @registry.task
        async def grandparent() -> int:
            whole: int = await (await chord([parent.s(2), parent.s(3)], total.s()).enqueue()).wait()
            return whole

        @registry.task
        async def total(xs: list[int]) -> int:
            return sum(xs)

        async with running_worker(registry=registry, concurrency=1):
            jobs = [await grandparent.enqueue() for _ in range(3)]
            assert [await job.wait(10) for job in jobs] == [6, 6, 6]

    async def test_several_waits_of_a_job_give_up_one_slot(self, client: Client, registry: Registry) -> None:
        """And jobs that do not wait are never more than the concurrency."""
        inside: list[int] = []
        most: list[int] = []

        @registry.task
        async def child() -> None:
            inside.append(1)
            most.append(len(inside))
            await asyncio.sleep(0.01)
            inside.pop()

        @registry.task
        async def parent() -> None:
            jobs = await child.enqueue_many([{}] * 12)
            await asyncio.gather(*(job.wait() for job in jobs))

        async with running_worker(registry=registry, concurrency=3):
            await (await parent.enqueue()).wait(10)
            assert max(most) == 3
