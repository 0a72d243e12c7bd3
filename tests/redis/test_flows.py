"""Workflows in Redis: how they are sent, and how each settlement moves them on, once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.redis.flows import claim, give_results, states, waiting
from tests.support import working

from knapsaq import (
    BrokerError,
    Client,
    PayloadTooLargeError,
    Queue,
    Registry,
    UnknownQueueError,
    WorkflowDefinitionError,
    chord,
    group,
)
from knapsaq.nodes import node_key, place_of
from knapsaq.outcomes import Retried, Succeeded
from knapsaq.redis import scripts
from knapsaq.registry import AnyTask
from knapsaq.submission import FIELDS_A_CALL, UNBEGUN_SECONDS
from knapsaq.testing import running_worker
from knapsaq.upkeep import Rescuer


class TestSteps:
    async def test_the_next_step_is_queued_in_the_call_that_settles_the_last(self, queue: Queue, one: AnyTask) -> None:
        """No moment in between in which a crash could lose it; the same call may claim it."""
        flow = await (one.s(1) | one.s()).enqueue()
        first = await claim(queue)
        step = await queue.advance("w", [queue.settlement(first, Succeeded(7))], 5)
        assert [place_of(claim.job.key) for claim in step.claims] == [(flow.id, 1)]
        assert await queue.settle(step.claims[0], Succeeded(8), worker="w")
        assert await flow.wait(5) == 8

    async def test_an_attempt_that_lost_its_job_moves_nothing_on(self, queue: Queue, one: AnyTask) -> None:
        """Only the claim that stands counts, and so no callback is doubled."""
        await (one.s(1) | one.s()).enqueue()
        stale = await claim(queue)
        redis: Any = queue.redis
        await redis.zadd(queue.keys.leases, {"w": 1})
        assert await Rescuer(queue).run_once() == 1
        assert not await queue.settle(stale, Succeeded(7), worker="w")
        assert await waiting(queue) == [0]
        await give_results(queue, 1, 2)
        assert await waiting(queue) == []

    async def test_a_settlement_that_is_sent_twice_counts_once(self, queue: Queue, one: AnyTask) -> None:
        """As after a reply that was lost."""
        await (one.s(1) | one.s()).enqueue()
        settlement = queue.settlement(await claim(queue), Succeeded(7))
        await queue.advance("w", [settlement, settlement], 0)
        await queue.advance("w", [settlement], 0)
        assert await waiting(queue) == [1]
        await give_results(queue, 2)

    async def test_a_chord_waits_for_the_last_member_whatever_the_order(self, queue: Queue, one: AnyTask) -> None:
        """And its callback gets the results in the order of the members."""
        flow = await chord([one.s(), one.s(), one.s()], one.s()).enqueue()
        claims = await queue.claim(5, worker="w")
        for place in (2, 0, 1):
            assert await waiting(queue) == []
            await queue.settle(claims[place], Succeeded(f"result {place}"), worker="w")
        async with working(queue):
            assert await flow.wait(5) == ["result 0", "result 1", "result 2"]

    async def test_results_keep_what_json_can_say(self, queue: Queue, one: AnyTask) -> None:
        """Large numbers, empty lists and text of all kinds pass through the scripts as they are."""
        values = [2**60 + 1, [], {}, {"a": []}, 'ü\u2028\n"', None, 0.1, [[]], True]
        flow = await chord(group(one.s(value) for value in values), one.s()).enqueue()
        async with working(queue):
            assert await flow.wait(5) == values

    async def test_a_retry_does_not_move_it_on(self, queue: Queue, one: AnyTask) -> None:
        """The node goes on waiting for its end."""
        flow = await (one.s(1) | one.s()).enqueue()
        await queue.settle(await claim(queue), Retried("no luck", 0.0), worker="w")
        assert await waiting(queue) == [0]
        assert await states(flow) == "qw"
        await give_results(queue, 1, 2)

    async def test_nodes_of_other_queues_go_to_their_queues(
        self, client: Client, queue: Queue, registry: Registry, one: AnyTask
    ) -> None:
        """There and back."""

        @registry.task(queue="mail")
        async def other(given: list[int]) -> int:
            return sum(given)

        flow = await (one.s([1, 2]) | other.s() | one.s()).enqueue()
        assert (await flow.status()).nodes == {"one#0": "queued", "other#1": "waiting", "one#2": "waiting"}
        async with running_worker(registry=registry):
            assert await flow.wait(5) == 3
        job = await client.queue("mail").job(node_key(flow.id, 1))
        assert job is not None
        assert (job.result, job.root_id, job.parent_id) == (3, flow.id, node_key(flow.id, 0))

    async def test_a_function_that_is_called_as_saq_calls_them_gets_results_too(
        self, queue: Queue, one: AnyTask
    ) -> None:
        """A worker of ours that does not know the task, and was given a function of its name."""

        async def plain(_ctx: Any, *, given: int) -> int:
            return given + 1

        flow = await (one.s(1) | one.s()).enqueue()
        async with working(queue, [("one", plain)], registry=Registry()):
            assert await flow.wait(5) == 3

    async def test_a_countdown_begins_when_the_step_before_has_ended(self, queue: Queue, one: AnyTask) -> None:
        """And an idle worker hears of the due time."""
        flow = await (one.s(1) | one.s().set(countdown=0.2) | one.s()).enqueue()
        await give_results(queue, 1)
        redis: Any = queue.redis
        [(job_id, due)] = await redis.zrange(queue.keys.incomplete, 0, -1, withscores=True)
        seconds, microseconds = await redis.time()
        assert due == pytest.approx(seconds + microseconds / 1e6 + 0.2, abs=2)
        job = await queue.job(queue.job_key_from_id(job_id.decode()))
        assert job is not None
        assert job.scheduled == pytest.approx(due)
        async with working(queue):
            assert await flow.wait(5) == 1


class TestSubmission:
    @pytest.mark.parametrize("count", [1, FIELDS_A_CALL + 3])
    async def test_nothing_is_queued_where_one_node_cannot_be(self, queue: Queue, one: AnyTask, count: int) -> None:
        """An argument too large, or a queue that is not connected, refuses the whole."""
        redis: Any = queue.redis
        with pytest.raises(PayloadTooLargeError):
            await group(*one.map(range(count)).members, one.s("x" * 2_000_000)).enqueue()
        with pytest.raises(UnknownQueueError):
            await group(*one.map(range(count)).members, one.s().set(queue="elsewhere")).enqueue()
        assert await redis.dbsize() == 0

    async def test_a_broken_submission_leaves_nothing_for_ever(
        self, queue: Queue, one: AnyTask, monkeypatch: Any
    ) -> None:
        """What was written before the line broke expires; and nothing of it runs."""

        async def broken(*_: Any) -> None:
            raise ConnectionResetError

        with monkeypatch.context() as patch:
            patch.setattr(scripts, "flow_start", broken)
            with pytest.raises(BrokerError):
                await one.map(range(FIELDS_A_CALL)).enqueue()
        redis: Any = queue.redis
        [key] = [key async for key in redis.scan_iter("*")]
        assert 0 < await redis.ttl(key) <= UNBEGUN_SECONDS
        assert await queue.claim(5, worker="w") == []

    async def test_hooks_before_enqueue_see_each_node(self, queue: Queue, one: AnyTask) -> None:
        """As with jobs that are sent alone."""
        seen: list[str] = []

        async def note(job: Any) -> None:
            seen.append(job.key)

        queue.register_before_enqueue(note)
        flow = await (one.s(1) | one.s()).enqueue()
        assert seen == [node_key(flow.id, 0), node_key(flow.id, 1)]
        await give_results(queue, 1, 1)

    async def test_records_that_are_not_json_cannot_be_kept(
        self, client: Client, registry: Registry, one: AnyTask
    ) -> None:
        """The scripts put the status into them."""
        client.queues["default"] = Queue(
            client.queue().redis,
            registry=registry,
            settings=client.settings,
            dump=repr,
            load=eval,
        )
        with pytest.raises(WorkflowDefinitionError, match="one that stores JSON"):
            await (one.s(1) | one.s()).enqueue()

    async def test_a_thousand_members_and_more_are_one_workflow(self, queue: Queue, registry: Registry) -> None:
        """Sent in parts, begun with the last of them, and joined once."""

        @registry.task
        async def number(n: int) -> int:
            return n

        @registry.task
        async def total(ns: list[int]) -> int:
            return sum(ns)

        flow = await chord(number.map(range(3000)), total.s()).enqueue()
        async with working(queue, concurrency=100):
            assert await flow.wait(30) == sum(range(3000))


class TestPlainJobs:
    async def test_a_job_of_no_workflow_is_settled_as_ever(self, queue: Queue, one: AnyTask) -> None:
        """Not a byte more in the settlement, and no read before it runs."""
        await one.enqueue(1)
        claimed = await claim(queue)
        settlement = queue.settlement(claimed, Succeeded(1))
        assert settlement.head == f"finish {queue.settings.result_ttl} complete {claimed.token}"
        assert json.loads(settlement.payload)["result"] == 1
        before = await _commands(queue)
        await queue.advance("w", [settlement], 0)
        after = await _commands(queue)
        assert set(after) - set(before) <= {"del", "set"}
        assert after.get("hget", 0) == before.get("hget", 0)
        assert after.get("evalsha", 0) == before.get("evalsha", 0) + 1


async def _commands(queue: Queue) -> dict[str, int]:
    redis: Any = queue.redis
    stats = await redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}
