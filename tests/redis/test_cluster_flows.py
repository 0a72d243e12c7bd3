"""Workflows in a cluster: steps between queues in different slots go through a relay, at least once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.redis.flows import give_results, states, waiting
from tests.redis.nodes import QUEUES, Nodes
from tests.support import eventually, working

from knapsaq import (
    BrokerError,
    Client,
    Context,
    Queue,
    Registry,
    WorkflowError,
    WorkflowFailedError,
    WorkflowRevokedError,
    chain,
    chord,
    group,
)
from knapsaq.flows import inputs
from knapsaq.mending import Mender
from knapsaq.nodes import node_key
from knapsaq.outcomes import Failed
from knapsaq.registry import AnyTask
from knapsaq.relay import Relay

A, B, C = QUEUES


@pytest.fixture
def one(registry: Registry) -> AnyTask:
    """A task that gives back what it is given."""

    @registry.task(queue=A)
    async def one(given: Any = None) -> Any:
        return given

    return one


@pytest.fixture
async def workers(cluster: Client) -> AsyncIterator[None]:
    """A worker of each queue."""
    async with AsyncExitStack() as stack:
        for queue in cluster.queues.values():
            await stack.enter_async_context(working(queue))
        yield


async def relay(*queues: Queue) -> None:
    """Carry what the queues have to say."""
    for queue in queues:
        assert await Relay(queue, "w").run_once() == 0


async def taken(queue: Queue) -> int:
    """Return how many jobs wait or run."""
    return await queue.count("incomplete")


@pytest.mark.usefixtures("workers")
class TestWorkers:
    async def test_a_chain_goes_from_slot_to_slot_and_back(self, one: AnyTask) -> None:
        """Each node gets what the one before has returned, which is kept where the workflow is."""
        flow = await chain(one.s(7), one.s().set(queue=B), one.s().set(queue=C), one.s()).enqueue()
        assert await flow.wait(10) == 7
        assert await states(flow) == "cccc"

    async def test_groups_and_chords_join_over_slots(self, one: AnyTask) -> None:
        """As on one server: results in the order in which they were written."""
        spread = [one.s(number).set(queue=QUEUES[number % 3]) for number in range(30)]
        assert await (await group(spread).enqueue()).wait(10) == list(range(30))
        assert await (await chord(spread, one.s().set(queue=C)).enqueue()).wait(10) == list(range(30))

    async def test_many_nodes_begin_in_another_slot(self, one: AnyTask) -> None:
        """More than an entry of the relay holds."""
        flow = await chain(one.s(1), group([one.si(n).set(queue=B) for n in range(250)]), one.s()).enqueue()
        assert await flow.wait(20) == list(range(250))

    async def test_nodes_are_added_from_another_slot(self, one: AnyTask, registry: Registry) -> None:
        """In a node's place, or besides, and in whichever queue."""

        @registry.task(queue=B)
        async def grow(ctx: Context, given: int) -> int:
            await ctx.spawn(one.s("beside").set(queue=C))
            await ctx.replace(chain(one.s(given + 1), one.s().set(queue=B)))
            return 0

        flow = await chain(one.s(1), grow.s(), one.s()).enqueue()
        assert await flow.wait(10) == 2
        assert set((await flow.status()).nodes.values()) == {"complete"}

    async def test_a_failure_calls_its_node_in_another_slot(self, one: AnyTask, registry: Registry) -> None:
        """And it is told what has failed."""

        @registry.task(queue=B)
        async def bad() -> None:
            raise ValueError("no luck")

        told: list[Any] = []

        @registry.task(queue=C)
        async def hear(failures: list[dict[str, str]]) -> None:
            told.extend(failures)

        flow = await chain(one.s(1), bad.si()).enqueue(on_failure=hear.s())
        with pytest.raises(WorkflowFailedError, match="no luck"):
            await flow.wait(10)
        await eventually(lambda: told)
        assert told[0]["task"] == "bad"

    async def test_delayed_nodes_wait_in_their_own_queue(self, one: AnyTask) -> None:
        """From the moment at which the other slot has heard of them."""
        flow = await chain(one.s(1), one.s().set(queue=B, countdown=0.05)).enqueue()
        assert await flow.wait(10) == 1

    async def test_revoking_ends_what_runs_in_other_slots(self, one: AnyTask) -> None:
        """The whole tree."""
        flow = await chain(one.s(1), group([one.s().set(queue=q, countdown=600) for q in QUEUES]), one.s()).enqueue()
        await eventually(lambda: states_are(flow, "cqqqw"))
        assert await flow.revoke("enough")
        with pytest.raises(WorkflowRevokedError, match="enough"):
            await flow.wait(10)
        assert await states(flow) == "cAAAx"

    async def test_a_workflow_goes_on_when_its_slot_moves(self, nodes: Nodes, one: AnyTask) -> None:
        """What was relayed meanwhile is kept, and carried to the new owner."""
        pair = chain(one.s("moved"), one.s().set(queue=B, countdown=0.2), one.s())
        flows = [await pair.enqueue() for _ in range(10)]
        nodes.move(A, nodes.owner(C))
        assert [await flow.wait(15) for flow in flows] == ["moved"] * 10


async def states_are(flow: Any, wanted: str) -> bool:
    return await states(flow) == wanted


class TestBegin:
    async def test_what_is_said_twice_is_begun_once(self, here: Queue, there: Queue, one: AnyTask) -> None:
        """A crash before the entry is dropped: the node may even have run and ended in between."""
        flow = await chain(one.s(1), one.s().set(queue=B)).enqueue()
        await give_results(here, 1)
        first, second = Relay(here, "w"), Relay(here, "w")
        [entry] = await first.entries()
        await first.carry(entry)
        assert await waiting(there) == [1]
        await first.carry(entry)
        assert await waiting(there) == [1]
        await give_results(there, 2)
        assert await second.run_once() == 0
        assert await taken(there) == 0
        assert await first.entries() == []
        await relay(there)
        assert await flow.wait(5) == 2

    async def test_an_entry_that_nobody_has_carried_is_carried_later(
        self, here: Queue, there: Queue, one: AnyTask
    ) -> None:
        """A crash before: it is kept in the step in which the node was begun."""
        flow = await chain(one.s(1), one.s().set(queue=B)).enqueue()
        await give_results(here, 1)
        assert (await flow.status()).nodes["one#1"] == "queued"
        assert await Mender(here).run_once() == 0
        assert await Relay(here, "dead").entries()
        assert 0 < await Relay(here, "other").run_once() <= 5
        assert await taken(there) == 0
        redis: Any = here.redis
        await redis.delete(here.keys.relay_lock)  # as it does by itself
        await relay(here)
        await give_results(there, 2)
        await relay(there)
        assert await flow.wait(5) == 2

    async def test_a_node_runs_again_when_it_is_to_be_retried(self, here: Queue, there: Queue, one: AnyTask) -> None:
        """Each run has its number: what is late of the first disturbs neither the second nor its end."""
        flow = await chain(one.s(1), one.s().set(queue=B)).enqueue()
        await give_results(here, 1)
        carrier = Relay(here, "w")
        [begun] = await carrier.entries()
        await relay(here)
        await fail(there)
        back = Relay(there, "w")
        [end] = await back.entries()
        await relay(there)
        with pytest.raises(WorkflowFailedError):
            await flow.wait(5)

        assert await flow.retry_failed() == 1
        await carrier.carry(begun)
        assert await taken(there) == 0
        await relay(here)
        await carrier.carry(begun)
        assert await waiting(there) == [1]
        await back.carry(end)
        assert await states(flow) == "cq"
        await give_results(there, 2)
        await relay(there)
        assert await flow.wait(5) == 2

    async def test_a_revoked_workflow_begins_nothing(self, here: Queue, there: Queue, one: AnyTask) -> None:
        """Not what was on its way, and what has just arrived is ended."""
        flow = await chain(one.s(1), group([one.s().set(queue=B), one.s().set(queue=C)])).enqueue()
        await give_results(here, 1)
        [entry] = await Relay(here, "w").entries()
        assert await flow.revoke("enough")
        await relay(here)
        assert await taken(there) == 0
        with pytest.raises(WorkflowRevokedError, match="enough"):
            await flow.wait(5)

        again = await chain(one.s(1), one.s().set(queue=B)).enqueue()
        await give_results(here, 1)
        [entry] = await Relay(here, "w").entries()
        await Relay(here, "w").carry(entry)
        redis: Any = here.redis
        await redis.hset(f"saq:{A}:flow:{again.id.partition(':')[2]}", "stop", "too late to be seen")
        await relay(here)
        assert await taken(there) == 0
        await relay(there)
        with pytest.raises(WorkflowRevokedError, match="too late"):
            await again.wait(5)


class TestEnd:
    async def test_an_end_that_is_told_twice_counts_once(self, here: Queue, there: Queue, one: AnyTask) -> None:
        """A crash before the entry is dropped."""
        flow = await chain(one.s(1).set(queue=A), group([one.s().set(queue=B), one.s()]), one.s()).enqueue()
        await give_results(here, 1)
        await relay(here)
        await give_results(there, 2)
        back = Relay(there, "w")
        [entry] = await back.entries()
        for _ in range(3):
            await back.carry(entry)
        assert await waiting(here) == [2]
        await relay(there)
        await give_results(here, 3, 4)
        assert await flow.wait(5) == 4

    async def test_an_end_that_nobody_told_is_found(self, here: Queue, there: Queue, one: AnyTask) -> None:
        """As that of a job whose record somebody has removed."""
        flow = await chain(one.s(1), one.s().set(queue=B)).enqueue()
        await give_results(here, 1)
        await relay(here)
        assert await Mender(here).run_once() == 0
        job, redis = there.job_id(node_key(flow.id, 1)), there.redis
        await redis.delete(job)
        await redis.zrem(there.keys.incomplete, job)
        await redis.lrem(there.keys.queued, 1, job)
        assert await Mender(here).run_once() == 1
        await relay(there)
        with pytest.raises(WorkflowFailedError, match="its record is gone"):
            await flow.wait(5)

    async def test_an_end_on_its_way_is_not_taken_for_a_loss(self, here: Queue, there: Queue, one: AnyTask) -> None:
        """Also where the job's record is not kept."""
        flow = await chain(one.s(1), one.s().set(queue=B, ttl=-1)).enqueue()
        await give_results(here, 1)
        await relay(here)
        await give_results(there, 2)
        assert await Mender(here).run_once() == 0
        await relay(there)
        assert await flow.wait(5) == 2

    async def test_a_node_that_the_other_slot_has_lost_is_told(self, here: Queue, there: Queue, one: AnyTask) -> None:
        """As a fail-over to a replica may lose the last moments: it fails, and may be retried."""
        flow = await chain(one.s(1), one.s().set(queue=B)).enqueue()
        await give_results(here, 1)
        await relay(here)
        key = node_key(flow.id, 1)
        await there.redis.delete(there.keys.run(key), there.job_id(key), there.keys.queued, there.keys.incomplete)
        assert await Mender(here).run_once() == 1
        await relay(there)
        with pytest.raises(WorkflowFailedError, match="its record is gone"):
            await flow.wait(5)
        assert await flow.retry_failed() == 1
        await relay(here)
        await give_results(there, 2)
        await relay(there)
        assert await flow.wait(5) == 2


class TestExtend:
    async def test_nodes_of_a_job_that_died_behind_its_word_are_added_once(
        self, here: Queue, there: Queue, one: AnyTask
    ) -> None:
        """The word counts; whoever carries it, and how often."""
        flow = await chain(one.s(1), one.s().set(queue=B)).enqueue()
        await give_results(here, 1)
        await relay(here)
        [claim] = await there.claim(1, worker="w")
        redis: Any = here.redis
        states_key = f"saq:{flow.id.replace(':', ':flow:')}:states"
        await redis.rename(states_key, states_key + "!")
        await redis.set(states_key, "spoilt")  # so nobody can add them, as if the process had ended
        with pytest.raises(BrokerError, match="WRONGTYPE"):
            await one.extend(claim.job, group([one.s(5)]), replaces=False)
        await redis.rename(states_key + "!", states_key)
        back = Relay(there, "w")
        [entry] = await back.entries()
        await back.carry(entry)
        await back.carry(entry)
        assert await waiting(here) == [3]
        await relay(there)
        await there.settle(claim, Failed("late"), worker="w")
        await give_results(here, 5)
        await relay(there)
        with pytest.raises(WorkflowFailedError, match="late"):
            await flow.wait(5)

    async def test_a_lost_claim_adds_nothing(self, here: Queue, there: Queue, one: AnyTask) -> None:
        """As on one server."""
        flow = await chain(one.s(1), one.s().set(queue=B)).enqueue()
        await give_results(here, 1)
        await relay(here)
        [claim] = await there.claim(1, worker="w")
        assert await inputs(claim.job) == {"given": 1}
        redis: Any = there.redis
        token = await redis.hget(there.keys.claims, claim.job_id)
        await redis.hdel(there.keys.claims, claim.job_id)
        with pytest.raises(WorkflowError, match="no longer this attempt's"):
            await one.extend(claim.job, one.s(5), replaces=False)
        await redis.hset(there.keys.claims, claim.job_id, token)
        await flow.revoke()
        await relay(there)
        with pytest.raises(WorkflowError, match="it was revoked"):
            await one.extend(claim.job, one.s(5), replaces=False)
        assert await Relay(there, "w").entries() == []
        await there.settle(claim, Failed("late"), worker="w")
        await relay(there)


async def fail(queue: Queue) -> None:
    [claim] = await queue.claim(1, worker="w")
    assert await queue.settle(claim, Failed("bad"), worker="w")
