"""What may be asked of a workflow that was sent: wait, revoke, retry what failed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError
from tests.redis.conftest import Gate
from tests.redis.flows import claim, give_results, states, told, waiting
from tests.support import Server, eventually, working

from knapsaq import (
    Client,
    Job,
    Queue,
    Registry,
    Settings,
    WorkflowError,
    WorkflowFailedError,
    WorkflowJob,
    WorkflowMissingError,
    WorkflowNotEndedError,
    WorkflowRevokedError,
    chain,
    chord,
    connect,
    group,
)
from knapsaq.nodes import node_key
from knapsaq.outcomes import Dead, Failed, Succeeded
from knapsaq.redis.keys import FlowKeys
from knapsaq.registry import AnyTask


class TestRevoke:
    async def test_it_ends_what_waits_what_is_queued_and_what_runs(
        self, queue: Queue, gate: Gate, one: AnyTask, registry: Registry
    ) -> None:
        """The whole tree; the reason is told."""
        held = registry.get("held")
        flow = await chain(
            group(held.s(), one.s(5).set(countdown=600)), one.s(), one.s().set(on_failure="continue")
        ).enqueue()
        async with working(queue):
            await gate.entered()
            assert (await flow.status()).nodes["held#0"] in ("queued", "active")
            assert await flow.revoke("not needed") is True
            with pytest.raises(WorkflowRevokedError, match="not needed"):
                await flow.wait(5)
        assert await states(flow) == "AAxx"
        assert await flow.revoke() is False
        assert gate.ended == []

    async def test_a_node_that_ends_well_while_it_is_revoked_keeps_its_result(self, queue: Queue, one: AnyTask) -> None:
        """But nothing follows it."""
        flow = await (one.s(1) | one.s()).enqueue()
        claimed = await claim(queue)
        assert await flow.revoke()
        await queue.settle(claimed, Succeeded(7), worker="w")
        with pytest.raises(WorkflowRevokedError):
            await flow.wait(5)
        assert await flow.results() == {"one#0": 7}

    async def test_neither_end_is_called_then(self, queue: Queue, one: AnyTask) -> None:
        """``on_success`` and ``on_failure`` are about work that was done."""
        flow = await chain(one.s(1)).enqueue(on_success=one.s(), on_failure=one.s())
        await flow.revoke()
        assert await waiting(queue) == []


class TestRetryFailed:
    async def test_it_goes_on_from_what_failed_with_the_results_kept(self, queue: Queue, one: AnyTask) -> None:
        """What was done is not done again; what was cancelled follows."""
        flow = await chord([one.s("a"), one.s("b"), one.s("c")], one.s()).enqueue()
        claims = await queue.claim(5, worker="w")
        for claimed, outcome in zip(claims, (Succeeded("a"), Failed("bad"), Dead("worse")), strict=True):
            await queue.settle(claimed, outcome, worker="w")
        with pytest.raises(WorkflowFailedError, match=r"one#1 \(one\): bad; one#2 \(one\): worse"):
            await flow.wait(5)

        assert await flow.retry_failed() == 3
        assert await queue.count("dead") == 0
        assert (await flow.status()).state == "running"
        assert await waiting(queue) == [1, 2]
        assert await flow.errors() == []
        async with working(queue):
            assert await flow.wait(5) == ["a", "b", "c"]

    async def test_it_goes_on_while_other_nodes_still_run(self, queue: Queue, one: AnyTask) -> None:
        """The join waits for both."""
        flow = await chord([one.s("a"), one.s("b")], one.s()).enqueue()
        first, second = await queue.claim(5, worker="w")
        await queue.settle(first, Failed("bad"), worker="w")
        assert await flow.retry_failed() == 1
        [again] = await queue.claim(5, worker="w")
        await queue.settle(again, Succeeded("a2"), worker="w")
        assert await waiting(queue) == []
        await queue.settle(second, Succeeded("b2"), worker="w")
        async with working(queue):
            assert await flow.wait(5) == ["a2", "b2"]

    async def test_it_takes_up_what_was_revoked(self, queue: Queue, one: AnyTask) -> None:
        """Revoked by mistake."""
        flow = await (one.s(1) | one.s()).enqueue()
        await flow.revoke()
        assert await flow.retry_failed() == 2
        async with working(queue):
            assert await flow.wait(5) == 1

    async def test_there_may_be_nothing_to_retry(self, queue: Queue, one: AnyTask) -> None:
        """A workflow that runs or has succeeded stays as it is."""
        flow = await (one.s(1) | one.s()).enqueue()
        assert await flow.retry_failed() == 0
        async with working(queue):
            assert await flow.wait(5) == 1
        assert await flow.retry_failed() == 0
        assert (await flow.status()).state == "complete"

    async def test_a_node_that_is_retried_by_hand_does_not_count_for_the_workflow(
        self, queue: Queue, one: AnyTask
    ) -> None:
        """It has heard of its end; ``retry_failed`` is for that, and bears that the job runs."""
        flow = await (one.s(1) | one.s()).enqueue()
        await told(Failed("bad"))(queue)
        job = await queue.job(node_key(flow.id, 0))
        assert job is not None
        await job.retry("by hand")
        running = await claim(queue)
        assert await flow.retry_failed() == 2
        assert await waiting(queue) == []
        await queue.settle(running, Succeeded(4), worker="w")
        async with working(queue):
            assert await flow.wait(5) == 4


class TestEnds:
    async def test_on_success_takes_the_result(self, queue: Queue, registry: Registry, one: AnyTask) -> None:
        """A workflow is kept until it has run, and those who wait do not wait for it."""
        heard: list[Any] = []

        @registry.task
        async def report(result: list[int], note: str) -> None:
            heard.append((result, note))

        flow = await one.map([1, 2]).enqueue(on_success=report.s("well"), on_failure=report.s("badly"))
        await give_results(queue, 1, 2)
        assert await flow.wait(5) == [1, 2]
        redis: Any = queue.redis
        assert await redis.ttl(FlowKeys.of(flow.id).flow) == -1
        async with working(queue):
            await eventually(lambda: heard)
            await eventually(lambda: _expires(queue, flow))
        assert heard == [([1, 2], "well")]

    async def test_on_failure_takes_what_failed(self, queue: Queue, registry: Registry, one: AnyTask) -> None:
        """Each node's name, task and error; and it runs again if a retry fails again."""
        heard: list[list[dict[str, str]]] = []

        @registry.task
        async def alarm(failures: list[dict[str, str]]) -> None:
            heard.append(failures)

        flow = await chord([one.s(1), one.s(2)], one.s()).enqueue(on_failure=alarm.s())
        first, second = await queue.claim(5, worker="w")
        await queue.settle(first, Failed("bad"), worker="w")
        await queue.settle(second, Succeeded(2), worker="w")
        async with working(queue):
            await eventually(lambda: _expires(queue, flow))
        assert heard == [[{"node": "one#0", "task": "one", "error": "bad"}]]
        await flow.retry_failed()
        await told(Failed("worse"))(queue)
        async with working(queue):
            await eventually(lambda: len(heard) == 2 and _expires(queue, flow))
        assert heard[1][0]["error"] == "worse"

    async def test_a_workflow_of_which_some_was_handled_succeeds(self, queue: Queue, one: AnyTask) -> None:
        """It is judged by the nodes at which it ends; ``errors`` tells of the others."""
        flow = await chord([one.s(1), one.s(2)], one.s().set(on_failure="continue")).enqueue()
        first, second = await queue.claim(5, worker="w")
        await queue.settle(first, Failed("bad"), worker="w")
        await queue.settle(second, Succeeded(2), worker="w")
        async with working(queue):
            assert await flow.wait(5) == [None, 2]
        assert [failure.error for failure in await flow.errors()] == ["bad"]

    async def test_a_ttl_is_kept(self, queue: Queue, one: AnyTask) -> None:
        """Of a call, else of the settings; at least a minute, so that those who wait can read it."""
        redis: Any = queue.redis
        for ttl, kept in ((None, queue.settings.result_ttl), (500, 500), (-1, 60), (3, 60)):
            flow = await chain(one.s(1)).enqueue(ttl=ttl)
            await give_results(queue, 1)
            assert kept - 5 < await redis.ttl(FlowKeys.of(flow.id).results) <= kept

    async def test_a_workflow_that_is_gone_says_so(self, client: Client, queue: Queue, one: AnyTask) -> None:
        """Whatever is asked of it."""
        flow = client.workflow("default:gone")
        for ask in (flow.wait, flow.status, flow.results, flow.errors, flow.revoke, flow.retry_failed):
            with pytest.raises(WorkflowMissingError, match="keep it longer with"):
                await ask()
        redis: Any = queue.redis
        assert await redis.dbsize() == 0

    @pytest.mark.parametrize("wrong", ["", "default", "default:", ":key", "a:b:c", None, 5])
    def test_what_is_no_id_is_refused(self, client: Client, wrong: Any) -> None:
        """With what one is."""
        with pytest.raises(WorkflowError, match="take WorkflowJob"):
            client.workflow(wrong)

    async def test_a_waiter_that_came_first_hears_of_the_end(self, queue: Queue, one: AnyTask) -> None:
        """By a push."""
        flow = await (one.s(1) | one.s()).enqueue()
        waiter = asyncio.create_task(flow.wait(5))
        await asyncio.sleep(0.05)
        await give_results(queue, 1, 2)
        assert await waiter == 2

    async def test_a_waiter_bears_that_its_line_is_cut(self, queue: Queue, one: AnyTask) -> None:
        """Both lines, in the middle of waiting; the end comes all the same."""
        flow = await (one.s(1) | one.s()).enqueue()
        waiter = asyncio.create_task(flow.wait(10))
        await asyncio.sleep(0.05)
        redis: Any = queue.redis
        for kind in ("pubsub", "normal"):
            await redis.client_kill_filter(_type=kind)
        await eventually(lambda: _gave_results(queue, 1, 2))
        assert await waiter == 2

    async def test_waiting_has_an_end_of_its_own(self, queue: Queue, one: AnyTask) -> None:
        """The workflow goes on."""
        flow = await (one.s(1) | one.s()).enqueue()
        with pytest.raises(TimeoutError, match=f"workflow {flow.id} has not ended within 0.05 s: it goes on") as caught:
            await flow.wait(0.05)
        assert isinstance(caught.value, WorkflowNotEndedError)
        assert (caught.value.args, caught.value.errno) == ((flow.id, 0.05, True), None)
        await give_results(queue, 1, 2)
        assert await flow.wait(5) == 2

    async def test_a_workflow_that_has_ended_as_the_time_is_over_gives_its_result(
        self, queue: Queue, one: AnyTask
    ) -> None:
        """However short the time."""
        flow = await (one.s(1) | one.s()).enqueue()
        await give_results(queue, 1, 2)
        assert await flow.wait(0) == 2

    async def test_without_redis_nobody_says_that_a_workflow_goes_on(self, tmp_path: Path, settings: Settings) -> None:
        """How it stands is not known then."""
        server, registry = Server(tmp_path / "server"), Registry()

        @registry.task
        async def anything() -> None: ...

        async with connect(settings.with_values(broker_url=server.start()), registry=registry):
            flow = await (anything.s() | anything.si()).enqueue()
            server.kill()
            with pytest.raises(WorkflowNotEndedError, match="Redis does not say how it stands"):
                await flow.wait(0.05)
        server.stop()

    async def test_inputs_that_are_gone_fail_their_node_alone(self, queue: Queue, one: AnyTask) -> None:
        """Somebody deleted the workflow; the job says so and ends."""
        flow = await (one.s(1) | one.s()).enqueue()
        await give_results(queue, 1)
        redis: Any = queue.redis
        await redis.delete(*FlowKeys.of(flow.id))
        async with working(queue):
            job = await eventually(lambda: _ended_job(queue, node_key(flow.id, 1)))
        assert "is not in Redis" in job.error


async def _gave_results(queue: Queue, *results: Any) -> bool:
    """Run the next jobs by hand, once the line is there again."""
    try:
        await queue.count("queued")
    except (RedisError, OSError):
        return False
    await give_results(queue, *results)
    return True


async def _expires(queue: Queue, flow: WorkflowJob) -> bool:
    redis: Any = queue.redis
    return bool(await redis.ttl(FlowKeys.of(flow.id).flow) > 0)


async def _ended_job(queue: Queue, key: str) -> Job[Any] | None:
    job = await queue.job(key)
    return job if job is not None and job.ended else None
