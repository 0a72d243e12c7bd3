"""The relay of a cluster's workflows under faults, and in whatever order things happen."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from tests.redis.flows import give_results
from tests.redis.nodes import QUEUES
from tests.support import eventually, working

from knapsaq import Client, Queue, Registry, WorkflowJob, chain, group
from knapsaq.mending import Mender
from knapsaq.nodes import is_apart
from knapsaq.outcomes import Failed, Succeeded
from knapsaq.redis import scripts
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


async def relay(*queues: Queue) -> None:
    """Carry what the queues have to say."""
    for queue in queues:
        assert await Relay(queue, "w").run_once() == 0


class TestRelay:
    async def test_what_cannot_be_carried_keeps_back_nothing_else(
        self, here: Queue, there: Queue, cluster: Client, one: AnyTask
    ) -> None:
        """A queue whose keys somebody has spoilt, and an entry that nobody can read."""
        redis: Any = here.redis
        await redis.xadd(here.keys.relay, {"begin": "?", "runs": "none"})
        await there.redis.set(there.keys.queued, "spoilt")
        flows = [await chain(one.s(1), one.s().set(queue=queue)).enqueue() for queue in (B, C)]
        await give_results(here, 1, 1)
        with pytest.raises(Exception, match="WRONGTYPE"):
            await Relay(here, "w").run_once()
        other = cluster.queue(C)
        await give_results(other, 2)
        await relay(other)
        assert await flows[1].wait(5) == 2
        await there.redis.delete(there.keys.queued)
        [left] = await Relay(here, "w").entries()
        assert left.flow == flows[0].id
        await relay(here)
        await give_results(there, 3)
        await relay(there)
        assert await flows[0].wait(5) == 3

    async def test_a_worker_that_ends_has_told_everything(self, here: Queue, there: Queue, one: AnyTask) -> None:
        """Those of a burst too, which nobody may follow soon."""
        flow = await chain(one.s(1), one.s().set(queue=B)).enqueue()
        for queue in (here, there):
            async with working(queue, burst=True, dequeue_timeout=0.1) as worker:
                await eventually(worker._ended.is_set)
        assert await flow.wait(5) == 1


class Fate:
    """Does one thing after the other to the workflows of a cluster, by chance."""

    def __init__(self, cluster: Client, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - nothing secret
        self.queues = list(cluster.queues.values())
        self.failures = 0.3
        self.runs: dict[str, list[bool]] = {}

    async def strike(self) -> None:
        """Do one thing."""
        queue = self.chance.choice(self.queues)
        await self.chance.choice([self.work, self.work, self.carry, self.carry, self.crash, self.mend])(queue)

    async def work(self, queue: Queue) -> None:
        """Run a job."""
        for claim in await queue.claim(1, worker="w"):
            good = self.chance.random() >= self.failures
            self.runs.setdefault(claim.job.key, []).append(good)
            assert await queue.settle(claim, Succeeded(1) if good else Failed("bad"), worker="w")

    async def carry(self, queue: Queue) -> None:
        """Relay as a worker does."""
        await Relay(queue, "w").run_once()

    async def crash(self, queue: Queue) -> None:
        """Carry some entries, in another order and perhaps twice, and drop none."""
        carrier = Relay(queue, "w")
        entries = await carrier.entries()
        for entry in self.chance.choices(entries, k=self.chance.randint(1, 3)) if entries else ():
            await carrier.carry(entry)

    async def mend(self, queue: Queue) -> None:
        """Look for ends that nobody told of."""
        assert await Mender(queue).run_once() == 0

    def expression(self, one: AnyTask) -> Any:
        """Return a workflow: groups after each other, over all queues."""
        steps = []
        for _ in range(self.chance.randint(1, 4)):
            members = [one.si(1).set(queue=self.chance.choice(QUEUES)) for _ in range(self.chance.randint(1, 4))]
            steps.append(group(members) if len(members) > 1 else members[0])
        return chain(*steps)

    async def until_ended(self, *flows: WorkflowJob) -> None:
        """Go on until workflows have ended."""
        for number in range(3000):
            await self.strike()
            if number % 10 == 0 and all([(await flow.status()).state != "running" for flow in flows]):
                return
        pytest.fail("a node was lost")


class TestFate:
    @pytest.mark.parametrize("seed", range(5))
    async def test_whatever_happens_each_node_succeeds_once(self, cluster: Client, one: AnyTask, seed: int) -> None:
        """Neither crashes nor retries lose one or run one that has succeeded."""
        fate = Fate(cluster, seed)
        flows = [await fate.expression(one).enqueue() for _ in range(3)]
        await fate.until_ended(*flows)
        fate.failures = 0.0
        for flow in flows:
            await flow.retry_failed()
        await fate.until_ended(*flows)
        for flow in flows:
            status = await flow.status()
            assert set(status.nodes.values()) == {"complete"}
            ran = [runs for key, runs in fate.runs.items() if flow.id in key]
            assert len(ran) == len(status.nodes)
        assert all(runs.count(True) == 1 and runs[-1] for runs in fate.runs.values())
        for _ in range(2):
            await relay(*fate.queues)


class TestApart:
    async def test_scripts_and_python_agree_on_it(self, cluster: Client) -> None:
        """Which of the two ways a step goes is decided in both."""
        source = scripts.relay_end.source.rpartition("local flow = unpack(KEYS)")[0]
        text = f"{source}\nreturn flow_is_apart(ARGV[1], ARGV[2]) and 1 or 0"
        line = cluster.queue(A).line
        names = ("{a}", "{b}", "a", "{}", "{}{a}", "x{a}", "{a", "{a}{b}")
        for flow, queue in product([f"{name}:{mark}key" for name in names for mark in ("~", "")], names):
            assert await line.execute("EVAL", text, 0, flow, queue) == int(is_apart(flow, queue)), (flow, queue)
