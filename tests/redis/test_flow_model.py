"""Every way a workflow can go, at random, against a model; after each step Redis has to be as the model says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saq.job import Status
from tests.chaos.site import LONG_FORM
from tests.redis.flow_model import FlowModel

from knapsaq import (
    Registry,
    Settings,
    Workflow,
    WorkflowError,
    WorkflowFailedError,
    WorkflowRevokedError,
    chain,
    connect,
    group,
)
from knapsaq.canvas import Expression, FlowOptions, Sendable
from knapsaq.claims import Claim
from knapsaq.flows import inputs
from knapsaq.mending import Mender
from knapsaq.nodes import node_key, place_of
from knapsaq.outcomes import Aborted, Dead, Failed, Released, Retried, Succeeded
from knapsaq.plan import compiled
from knapsaq.redis.keys import FlowKeys
from knapsaq.submission import extend
from knapsaq.testing import ManualClock
from knapsaq.upkeep import Rescuer

T = TypeVar("T")
LEASE_SECONDS = 10
STEPS = (
    "claim",
    "claim",
    "succeed",
    "succeed",
    "fail",
    "retry",
    "release",
    "die",
    "late word",
    "said twice",
    "abort",
    "by hand",
    "lost",
    "revoke",
    "retry failed",
    "spawn",
    "replace",
)
registry = Registry()


@registry.task
async def one(*given: Any) -> Any: ...


parts = st.recursive(
    st.sampled_from([one.s(), one.si(), one.s().set(on_failure="continue")]),
    lambda inner: st.one_of(st.lists(inner, min_size=1, max_size=3).map(chain), st.lists(inner, max_size=3).map(group)),
    max_leaves=6,
)


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[T]], T]) -> Workflow:
    """A graph of up to five nodes, each of which may be anything."""
    flow = Workflow().add("n0", one.s())
    for number in range(1, draw(st.integers(1, 5))):
        names = [step.name for step in flow.steps]
        after = draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
        flow = flow.add(
            f"n{number}", draw(parts), after=after, on_failure=draw(st.sampled_from(["cancel", "continue"]))
        )
    return flow


class Site:
    """A connection that all examples share, with a clock that stands still."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        chosen = Settings(broker_url=url, queues=("default",), lease=LEASE_SECONDS, _env_file=None)
        self.connection = connect(chosen, registry=registry, clock=self.clock)
        self.client = self.runner.run(self.connection.__aenter__())

    def close(self) -> None:
        """Close it."""
        self.runner.run(self.connection.__aexit__(None, None, None))
        self.runner.close()


class Run:
    """One workflow and its model; it begins on an empty server."""

    def __init__(self, site: Site, expression: Sendable, options: FlowOptions) -> None:
        self.run = site.runner.run
        self.clock, self.client = site.clock, site.client
        self.queue = self.client.queue()
        self.redis: Any = self.queue.redis
        self.run(self.redis.flushall())
        self.flow = self.run(expression.enqueue(on_success=options.on_success, on_failure=options.on_failure))
        self.model = FlowModel.of(compiled(expression, options))
        self.keys = FlowKeys.of(self.flow.id)
        self.held: dict[int, Claim] = {}
        self.stale: list[Claim] = []
        self.numbers = itertools.count()

    def check(self) -> None:
        """Redis says of each node what the model says, and the jobs that may run are those of its nodes."""
        stored = self.run(self.redis.hgetall(self.keys.states))
        assert {int(node): state.decode() for node, state in stored.items()} == self.model.states
        assert self.run(self.redis.hget(self.keys.flow, "state")) == (self.model.state or "").encode() or (
            self.model.state is None and not self.run(self.redis.hexists(self.keys.flow, "state"))
        )
        left = int(self.run(self.redis.hget(self.keys.flow, "left")))
        going_on = [node for node, state in self.model.states.items() if state == "q"]
        waiting = [node for node in self.model.nodes if node not in self.model.states]
        assert left == len(self.model.nodes & {*going_on, *waiting})
        open_jobs = self.run(self.redis.zrange(self.queue.keys.incomplete, 0, -1))
        nodes = {self.node(job_id.decode()) for job_id in open_jobs}
        assert set(going_on) <= nodes
        assert nodes - set(going_on) <= self.model.shapes.keys()  # jobs that were replaced and still run
        ended = not going_on and not waiting
        for key in self.keys[:2]:
            assert (self.run(self.redis.ttl(key)) > 0) is ended
        assert self.run(self.redis.exists(self.keys.flows)) == (not ended)

    def node(self, job_id: str) -> int:
        """Return which node a job is."""
        place = place_of(self.queue.job_key_from_id(job_id))
        assert place is not None
        return place.node

    def claim(self) -> None:
        """Claim jobs; each gets what its parents have returned."""
        for claim in self.run(self.queue.claim(2, worker="w")):
            node = self.node(claim.job_id)
            expected = [self.model.value(taken) for taken in self.model.takes[node]]
            arguments = self.run(inputs(claim.job)) or {}
            assert arguments.get("given", []) == expected
            if node in self.held:
                self.stale.append(self.held[node])
            self.held[node] = claim

    def settle(self, claim: Claim, state: str) -> None:
        """Tell how a job ended; it counts if its claim stands."""
        node = self.node(claim.job_id)
        result = f"result {next(self.numbers)}"
        outcome = {"d": Succeeded(result), "f": Failed(result), "a": Aborted(result), "D": Dead(result)}[state]
        if self.run(self.queue.settle(claim, outcome, worker="w")):
            self.ended(node, state.lower() if state != "D" else "f", result)

    def ended(self, node: int, state: str, result: Any = None) -> None:
        """Note that a job has ended, unless the workflow no longer waits for that."""
        if self.model.states.get(node) == "q":
            self.model.close(node, state, result)

    def step(self, kind: str, pick: Callable[[list[Any]], Any]) -> None:
        """Do one thing, to a job that is drawn."""
        if kind == "claim":
            self.claim()
        elif kind == "revoke":
            going_on = [node for node, state in self.model.states.items() if state == "q"]
            assert self.run(self.flow.revoke()) is self.model.revoke()
            if self.model.stopped and self.model.state is None:
                for node in going_on:
                    if node not in self.held:
                        self.ended(node, "a")
        elif kind == "retry failed":
            assert self.run(self.flow.retry_failed()) == self.model.retry_failed()
        elif kind == "die" and self.held:
            self.stale += self.held.values()
            self.held.clear()
            self.clock.advance(LEASE_SECONDS + 1)
            self.run(Rescuer(self.queue).run_once())
        elif kind == "late word" and self.stale:
            self.settle(pick(self.stale), "d")
        elif kind in ("succeed", "fail", "retry", "release", "said twice", "spawn", "replace") and self.held:
            self.of_a_held_job(kind, pick(sorted(self.held)), pick)
        elif kind in ("abort", "by hand", "lost"):
            self.of_any_job(kind, pick)

    def of_a_held_job(self, kind: str, node: int, pick: Callable[[list[Any]], Any]) -> None:
        """Do what the worker of a job can do."""
        claim = self.held[node]
        if kind in ("spawn", "replace"):
            self.extend(node, pick([chain(one.s(), one.s()), group(one.s(), one.si()), group([])]), kind == "replace")
            return
        del self.held[node]
        if kind in ("succeed", "fail"):
            self.settle(claim, "d" if kind == "succeed" else pick(["f", "a", "D"]))
        elif kind == "said twice":
            settlement = self.queue.settlement(claim, Succeeded("twice"))
            step = self.run(self.queue.advance("w", [settlement, settlement], 0))
            if step.settled == [1, 0]:
                self.ended(node, "d", "twice")
        else:
            outcome = Retried("no luck", 0.0) if kind == "retry" else Released("not now")
            self.run(self.queue.settle(claim, outcome, worker="w"))

    def extend(self, node: int, expression: Expression, replaces: bool) -> None:
        """Add to the workflow, which works while the claim stands and the workflow goes on."""
        claim = self.held[node]
        claim.job.token = claim.token
        first = int(self.run(self.redis.hget(self.keys.flow, "next")))
        may = self.model.states.get(node) == "q" and not self.model.stopped
        may = may and node not in self.model.finals.values()
        may = may and self.claimed(claim)
        done = node in self.model.shapes and self.claimed(claim)
        try:
            self.run(extend(self.client.queue, claim.job, expression, replaces=replaces))
        except WorkflowError:
            assert not may
            return
        assert may or done
        if may:
            plan = compiled(expression, FlowOptions(), first=first)
            self.model.add(plan, node if replaces else None)
            self.model.close_if_all_ended()

    def claimed(self, claim: Claim) -> bool:
        """Tell whether a claim stands."""
        return bool(self.run(self.redis.hget(self.queue.keys.claims, claim.job_id)) == claim.token.encode())

    def of_any_job(self, kind: str, pick: Callable[[list[Any]], Any]) -> None:
        """Do what somebody else can do to a job."""
        going_on = sorted(node for node, state in self.model.states.items() if state == "q")
        if not going_on:
            return
        node = pick(going_on)
        job = self.run(self.queue.job(node_key(self.flow.id, node)))
        assert job is not None
        if kind == "abort":
            self.run(job.abort("enough"))
            if node not in self.held:
                self.ended(node, "a")
        elif kind == "by hand":
            self.run(job.finish(Status.COMPLETE, result="by hand"))
            self.ended(node, "d", "by hand")
        elif node not in self.held:
            self.run(self.lose(job.id))
            assert self.run(Mender(self.queue).run_once()) == 1
            self.ended(node, "f")

    async def lose(self, job_id: str) -> None:
        """Take a job away without a word."""
        await self.redis.lrem(self.queue.keys.queued, 0, job_id)
        await self.redis.zrem(self.queue.keys.incomplete, job_id)
        await self.redis.delete(job_id)

    def drain(self) -> None:
        """Run what is left to its end; nothing is left behind, and who waits is told."""
        for _ in range(200):
            self.claim()
            if not self.held:
                break
            for node in sorted(self.held):
                self.settle(self.held.pop(node), "d")
            self.check()
        assert self.model.state is not None
        failures = self.run(self.flow.errors())
        assert len(failures) == len([node for node, state in self.model.states.items() if state in "fa"])
        try:
            value = self.run(self.flow.wait(5))
        except WorkflowRevokedError:
            assert self.model.state == "aborted"
        except WorkflowFailedError:
            assert self.model.state == "failed"
        else:
            assert self.model.state == "complete"
            shape = msgspec.json.decode(self.run(self.redis.hget(self.keys.flow, b"s" + self.result)))
            assert value == self.model.value(shape)
        for kind in ("queued", "active", "incomplete"):
            assert self.run(self.queue.count(kind)) == 0
        assert not self.run(self.redis.exists(self.queue.keys.claims, self.keys.flows))

    @property
    def result(self) -> bytes:
        """The number under which the shape of the result is kept."""
        found: bytes = self.run(self.redis.hget(self.keys.flow, "result"))
        return found


def test_a_workflow_goes_as_the_model_says(broker_url: str) -> None:
    """Random graphs, outcomes, deaths, repetitions, revocations: each node runs as promised, and no key is left."""
    site = Site(broker_url)

    @settings(
        max_examples=3000 if LONG_FORM else 150,
        deadline=None,
        derandomize=not LONG_FORM,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs(), st.lists(st.sampled_from(STEPS), max_size=40), st.booleans(), st.data())
    def goes_as_the_model_says(flow: Workflow, steps: list[str], finals: bool, data: st.DataObject) -> None:
        options = FlowOptions(on_success=one.si() if finals else None, on_failure=one.si() if finals else None)
        run = Run(site, flow, options)
        run.check()
        for kind in steps:
            run.step(kind, lambda items: data.draw(st.sampled_from(items)))
            run.check()
        run.drain()

    try:
        goes_as_the_model_says()
    finally:
        site.close()
