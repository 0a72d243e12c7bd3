"""Flows: what may be asked of a workflow, and the two orders that it takes: revoke, and retry what failed.

Where in the flow: beside the scripts that move a workflow on, see ``lua/shared/flow.lua``. A node that begins reads
here what it takes of others, and a caller waits here.

Invariants, each a test in ``tests/redis/test_flows.py``:

* whoever waits for a workflow hears of its end by a push, also after an outage;
* a node that starts reads its inputs with one call, and nothing is read for any other job.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from redis.exceptions import AuthenticationError, RedisError

from knapsaq.codec import copied
from knapsaq.errors import BrokerError, nearest
from knapsaq.job import Job
from knapsaq.job_errors import ResultError
from knapsaq.nodes import ABORTED, DONE, FAILED, node_key, place_of
from knapsaq.plan import FAILURES, Shape
from knapsaq.reading import AWAY, LOOK_PAUSE, ReadingQueue
from knapsaq.reasons import Reason
from knapsaq.redis import scripts
from knapsaq.redis.connection import broker_errors
from knapsaq.redis.keys import FlowKeys
from knapsaq.redis.line import text
from knapsaq.slots import given_up
from knapsaq.workflow import NodeState, WorkflowState, WorkflowStatus
from knapsaq.workflow_errors import (
    NodeFailure,
    WorkflowError,
    WorkflowFailedError,
    WorkflowMissingError,
    WorkflowNotEndedError,
    WorkflowRevokedError,
)

GONE = "the id is wrong, or its ttl after its end is over; keep it longer with .enqueue(ttl=...)"
STATES: dict[str, NodeState] = {DONE: "complete", FAILED: "failed", ABORTED: "aborted", "c": "cancelled"}
ABORTED_AT_ONCE = 100
READ_AT_ONCE = 1000
SHOWN = 5  # names of nodes in a sentence


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A workflow as Redis has it."""

    state: WorkflowState
    stop: str | None
    result: int
    tasks: Mapping[int, str]
    names: Mapping[int, str]
    queues: Mapping[int, str]
    states: Mapping[int, str]
    results: Mapping[int, bytes]
    errors: Mapping[int, str]

    def name(self, node: int) -> str:
        """Return a node's name: its own, or its task's and its number."""
        return self.names.get(node) or f"{self.tasks[node]}#{node}"

    def failures(self) -> list[NodeFailure]:
        """Return what has failed, in the order of the nodes."""
        return [
            NodeFailure(self.name(node), self.tasks[node], error)
            for node, error in sorted(self.errors.items())
            if node in self.tasks
        ]


class Flow:
    """One workflow.

    Args:
        queue: The queue in which it is kept.
        flow_id: Its id.
    """

    def __init__(self, queue: ReadingQueue, flow_id: str) -> None:
        self.id = flow_id
        self._queue = queue
        self._keys = FlowKeys.of(flow_id)

    async def wait(self, timeout: float | None) -> Any:
        """Return its result once it has ended; see ``WorkflowJob.wait``."""
        with given_up():
            try:
                async with asyncio.timeout(timeout):
                    while True:
                        if await self._ended():
                            with suppress(*AWAY):
                                return await self._result()
                        await asyncio.sleep(LOOK_PAUSE)  # Redis is away; the workflow is not lost for that
            except TimeoutError:
                known = False
                with suppress(BrokerError, RedisError, OSError):
                    async with asyncio.timeout(LOOK_PAUSE):
                        if await self._queue.line.execute("HGET", self._keys.flow, "state") is not None:
                            return await self._result()
                        known = True
                raise WorkflowNotEndedError(self.id, timeout or 0.0, known) from None

    async def _result(self) -> Any:
        snapshot = await self._snapshot()
        if snapshot.state == "aborted":
            raise WorkflowRevokedError(self.id, snapshot.stop or "revoked")
        if snapshot.state == "failed":
            raise WorkflowFailedError.of(self.id, snapshot.failures())
        shape, [value] = await self._shape(snapshot.result), await self.values([snapshot.result])
        return self._decoded(snapshot, shape, value)

    async def read(self) -> tuple[WorkflowStatus, dict[str, Any], list[NodeFailure]]:
        """Return how it stands, what its nodes have returned, and why some have not."""
        with broker_errors(self._queue.settings.broker_url):
            snapshot = await self._snapshot()
            open_ones = [node for node, state in snapshot.states.items() if state == "q"]
            active = await self._active(open_ones, snapshot.queues)
        nodes: dict[str, NodeState] = {}
        for node in sorted(snapshot.tasks):
            state = snapshot.states.get(node)
            going_on: NodeState = "active" if node in active else "queued"
            nodes[snapshot.name(node)] = "waiting" if state is None else STATES.get(state, going_on)
        results = {
            snapshot.name(node): self._decoded(snapshot, node, msgspec.json.decode(value))
            for node, value in sorted(snapshot.results.items())
        }
        return WorkflowStatus(snapshot.state, nodes), results, snapshot.failures()

    async def reasons(self, name: str) -> list[Reason]:
        """Return why a node does not run; see ``WorkflowJob.why``."""
        with broker_errors(self._queue.settings.broker_url):
            snapshot = await self._snapshot()
            node = next((number for number in snapshot.tasks if snapshot.name(number) == name), None)
            if node is None:
                names = (snapshot.name(number) for number in sorted(snapshot.tasks))
                raise WorkflowError(self.id, f"it has no node {name!r}: {nearest(name, names)}")
            state = snapshot.states.get(node)
            if state is None:
                return [await self._waits_for(snapshot, node)]
            queue = self._queue.sibling(snapshot.queues.get(node, self._queue.name))
            job = await queue.job(node_key(self.id, node)) if state == "q" else None
        if job is None:
            return [Reason("ended", f"it has ended: it is {STATES.get(state, 'on its way to its queue')}")]
        return await queue.reasons(job)

    async def _waits_for(self, snapshot: _Snapshot, node: int) -> Reason:
        """Return the parents of a node that have not ended; a join stands for what it joins."""
        total = int(await self._queue.line.execute("HGET", self._keys.flow, "next"))
        parents: dict[int, list[int]] = {}
        for first in range(0, total, READ_AT_ONCE):
            part = range(first, min(first + READ_AT_ONCE, total))
            edges = await self._queue.line.execute("HMGET", self._keys.flow, *(f"e{number}" for number in part))
            for number, children in zip(part, edges, strict=True):
                for child in re.findall(rb"\d+", children or b""):
                    parents.setdefault(int(child), []).append(number)
        found: dict[int, None] = {}
        seen, behind = {node}, parents.get(node, [])
        while behind:
            seen.update(behind)
            found |= {one: None for one in behind if one in snapshot.tasks}
            behind = [one for join in behind if join not in snapshot.tasks for one in parents.get(join, [])]
            behind = [one for one in dict.fromkeys(behind) if one not in seen]
        pending = [one for one in sorted(found) if snapshot.states.get(one) in (None, "q")]
        if not pending:
            return Reason("parent", "it runs when the workflow has ended")
        names = ", ".join(snapshot.name(one) for one in pending[:SHOWN]) + (", ..." if len(pending) > SHOWN else "")
        verb = "has" if len(pending) == 1 else "have"
        jobs = tuple(node_key(self.id, one) for one in pending)
        return Reason("parent", f"{names} before it {verb} not ended", jobs=jobs)

    async def revoke(self, reason: str) -> bool:
        """End it; see ``WorkflowJob.revoke``."""
        with broker_errors(self._queue.settings.broker_url):
            snapshot = await self._snapshot()
            if snapshot.state != "running":
                return False
            # From here on no node is queued any more, whichever ends.
            await self._queue.line.execute("HSET", self._keys.flow, "stop", reason)
            going_on = [node for node, state in (await self._snapshot()).states.items() if state == "q"]
            for first in range(0, len(going_on), ABORTED_AT_ONCE):
                await asyncio.gather(
                    *(self._abort(node, snapshot, reason) for node in going_on[first : first + ABORTED_AT_ONCE])
                )
        return True

    async def retry_failed(self) -> int:
        """Run what failed again; see ``WorkflowJob.retry_failed``."""
        queue, keys = self._queue, self._keys
        with broker_errors(queue.settings.broker_url):
            count = int(await scripts.flow_retry(queue.line, [*keys], [queue.now_argument, self.id]))
        if count < 0:
            raise WorkflowMissingError(self.id, GONE)
        return count

    async def values(self, nodes: Sequence[int]) -> list[Any]:
        """Return what nodes returned; None for those that have not succeeded.

        Raises:
            WorkflowMissingError: It is not in Redis.
        """
        keys = [self._keys.flow, self._keys.results]
        texts = await scripts.flow_results(self._queue.line, keys, list(nodes))
        if not texts:
            raise WorkflowMissingError(self.id, GONE)
        return [msgspec.json.decode(one) for one in texts]

    async def failures(self) -> list[dict[str, str]]:
        """Return what its nodes have failed with, as a task gets it."""
        return [failure._asdict() for failure in (await self._snapshot()).failures()]

    async def _ended(self) -> bool:
        """Return True when it has ended, False if Redis went away meanwhile."""
        try:
            async with self._queue.pushed(self._keys.flow) as news:
                while True:
                    exists, state = await self._queue.line.execute("HMGET", self._keys.flow, "next", "state")
                    if exists is None:
                        raise WorkflowMissingError(self.id, GONE)
                    if state is not None:
                        return True
                    await news.get()
        except (RedisError, OSError) as error:
            if isinstance(error, AWAY) and not isinstance(error, AuthenticationError):
                return False
            with broker_errors(self._queue.settings.broker_url):
                raise

    async def _abort(self, node: int, snapshot: _Snapshot, reason: str) -> None:
        queue = self._queue.sibling(snapshot.queues.get(node, self._queue.name))
        job = await queue.job(node_key(self.id, node))
        if job is not None and not job.ended:
            await queue.abort(job, reason)

    async def _active(self, nodes: Sequence[int], queues: Mapping[int, str]) -> set[int]:
        """Return which of some nodes run."""
        active: set[int] = set()
        for first in range(0, len(nodes), READ_AT_ONCE):
            by_queue: dict[str, list[int]] = {}
            for node in nodes[first : first + READ_AT_ONCE]:
                by_queue.setdefault(queues.get(node, self._queue.name), []).append(node)
            for name, part in by_queue.items():
                queue = self._queue.sibling(name)
                ids = [queue.job_id(node_key(self.id, node)) for node in part]
                for node, record in zip(part, await queue.line.execute("MGET", *ids), strict=True):
                    status = fields_of(record).get("status")
                    if status in ("active", "aborting"):
                        active.add(node)
        return active

    async def _snapshot(self) -> _Snapshot:
        execute, keys = self._queue.line.execute, self._keys
        names = ("next", "state", "stop", "result", "tasks", "names", "queues")
        head, states, results = await asyncio.gather(
            execute("HMGET", keys.flow, *names), execute("HGETALL", keys.states), execute("HGETALL", keys.results)
        )
        if head[0] is None:
            raise WorkflowMissingError(self.id, GONE)
        total, state, stop, result, runs, given, elsewhere = head
        tasks = _unrolled(runs)
        queues = _numbered(elsewhere)
        await self._read_later_ones(range(_length(runs), int(total)), tasks, queues)
        return _Snapshot(
            cast("WorkflowState", text(state) if state else "running"),
            text(stop) if stop is not None else None,
            int(result),
            tasks,
            _numbered(given),
            queues,
            {int(node): text(one) for node, one in zip(states[::2], states[1::2], strict=True)},
            {int(node): one for node, one in zip(results[::2], results[1::2], strict=True) if node[:1] != b"!"},
            {
                int(node[1:]): msgspec.json.decode(one)
                for node, one in zip(results[::2], results[1::2], strict=True)
                if node[:1] == b"!"
            },
        )

    async def _read_later_ones(self, nodes: range, tasks: dict[int, str], queues: dict[int, str]) -> None:
        """Add the tasks and queues of nodes that were spawned."""
        for first in range(nodes.start, nodes.stop, READ_AT_ONCE):
            part = range(first, min(first + READ_AT_ONCE, nodes.stop))
            fields = [f"{kind}{node}" for node in part for kind in ("t", "q")]
            found = await self._queue.line.execute("HMGET", self._keys.flow, *fields)
            for node, task, queue in zip(part, found[::2], found[1::2], strict=True):
                if task is not None:
                    tasks[node] = text(task)
                if queue is not None:
                    queues[node] = text(queue)

    async def _shape(self, node: int) -> Shape:
        return cast("Shape", msgspec.json.decode(await self._queue.line.execute("HGET", self._keys.flow, f"s{node}")))

    def _decoded(self, snapshot: _Snapshot, shape: Shape, value: Any) -> Any:
        """Return a value as its tasks' annotated types."""
        if isinstance(shape, list):
            return [self._decoded(snapshot, one, item) for one, item in zip(shape, value, strict=True)]
        if isinstance(shape, dict):
            return {name: self._decoded(snapshot, one, value[name]) for name, one in shape.items()}
        task = self._queue.registry.find(snapshot.tasks[shape]) if self._queue.registry else None
        try:
            return value if task is None else task.signature.result(value)
        except msgspec.ValidationError as error:
            raise ResultError(snapshot.tasks[shape], node_key(self.id, shape), str(error)) from error


async def inputs(job: Job[Any]) -> dict[str, Any] | None:
    """Return the arguments of a job, those among them that other nodes of its workflow have returned.

    Raises:
        WorkflowMissingError: Its workflow is not in Redis any more.
    """
    takes: Sequence[tuple[str, int]] = job.extras.get("takes", ())
    place = place_of(job.key)
    if not takes or place is None:
        return job.kwargs
    queue = cast("ReadingQueue", job.get_queue())
    flow = Flow(queue.sibling(place.home), place.flow)
    while True:
        try:
            if takes[0][1] == FAILURES:
                values: list[Any] = [await flow.failures()]
            else:
                values = await flow.values([node for _, node in takes])
            break
        except AWAY:
            await asyncio.sleep(LOOK_PAUSE)
    arguments = copied(job.kwargs or {})
    several: dict[str, list[Any]] = {}
    for (name, _), value in zip(takes, values, strict=True):
        if name.startswith("*"):
            several.setdefault(name[1:], []).append(value)
        else:
            arguments[name] = value
    for name, items in several.items():
        arguments[name] = items + arguments.get(name, [])
    return cast("dict[str, Any]", arguments)


def fields_of(record: bytes | None) -> dict[str, Any]:
    """Return the fields of a job's record; none where it cannot be read."""
    try:
        fields = msgspec.json.decode(record or b"")
    except (msgspec.DecodeError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _unrolled(runs: bytes) -> dict[int, str]:
    """Return the tasks of nodes from ``[[task, how many], ...]``; joins have none."""
    tasks: dict[int, str] = {}
    number = 0
    for task, times in msgspec.json.decode(runs):
        if task:
            tasks.update(dict.fromkeys(range(number, number + times), task))
        number += times
    return tasks


def _length(runs: bytes) -> int:
    return sum(times for _, times in msgspec.json.decode(runs))


def _numbered(field: bytes | None) -> dict[int, str]:
    return {int(node): name for node, name in msgspec.json.decode(field).items()} if field else {}


def flow_of(queue: ReadingQueue, flow_id: str) -> Flow:
    """Return the workflow of an id, whether or not there is one.

    Raises:
        WorkflowError: It is none that a workflow can have.
    """
    given: Any = flow_id
    home, _, key = given.partition(":") if isinstance(given, str) else ("", "", "")
    if not home or not key or ":" in key:
        raise WorkflowError(str(flow_id), "a workflow's id is a queue's name, a colon and a key; take WorkflowJob.id")
    return Flow(queue.sibling(home), flow_id)
