"""Relay: what the queues of a workflow have to tell each other when they lie in different slots of a cluster.

Where in the flow: beside the worker's loop. A script cannot reach another slot; so where a workflow begins a node whose
queue is in another one, or a node ends in another one than its workflow's, the same step leaves an entry in the relay
of its own queue (see ``flow_relay`` in ``lua/shared/flow.lua``). One worker of that queue at a time carries the entries
to where they belong and drops them only then: at least once. So each is such that a second time changes nothing:

* *begin* has the run of each node. The other queue marks which run it has accepted, and accepts none twice;
* *end* has the run that ended. A node that has ended, or runs once more, does not hear of it;
* *extend* has the nodes that a job has added while its claim stood. Nodes that are there are not added again.

Invariants, each a test in ``tests/redis/test_cluster_flows.py`` or ``test_relay.py``:

* a crash between the two steps neither loses a node nor runs one twice, nor does a second worker at the same entries;
* an entry that cannot be carried keeps back no other, but the ends of its own workflow;
* a workflow that was revoked begins no node any more;
* when all has ended there is no entry and no mark that does not expire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from knapsaq import events
from knapsaq.nodes import node_key, told
from knapsaq.queue import Queue
from knapsaq.redis import scripts
from knapsaq.redis.keys import FlowKeys
from knapsaq.redis.line import text

TAKEN_A_CALL = 100
BYTES_A_CALL = 1024 * 1024
CARRIED_AT_ONCE = 10  # entries, each of up to a hundred nodes with their records
LOCK_MS = 5_000
LOOK_SECONDS = 5.0  # until a worker looks for itself: a push may have been lost, or the one who heard it has died


class Entry(NamedTuple):
    """One thing to tell.

    Attributes:
        number: The entry's id in the relay.
        kind: ``"begin"``, ``"end"`` or ``"extend"``.
        flow: The workflow.
        runs: The nodes, each with the number of its run; empty where that is not known.
        state: How the node ended.
        value: Its result or error, or what is added.
    """

    number: bytes
    kind: str
    flow: str
    runs: list[tuple[int, str]]
    state: str = ""
    value: bytes = b""

    @classmethod
    def of(cls, number: bytes, words: Sequence[bytes]) -> Entry:
        """Return what Redis has of an entry.

        Raises:
            ValueError: It is none.
        """
        kind, flow, *rest = words
        fields = dict(zip(rest[::2], rest[1::2], strict=True))
        runs = text(fields.get(b"runs", b"")).split(" ")
        pairs = [(int(node), run) for node, run in zip(runs[::2], runs[1::2], strict=True)]
        return cls(number, text(kind), text(flow), pairs, text(fields.get(b"state", b"")), fields.get(b"value", b""))


class _Begun(NamedTuple):
    node: int
    run: str
    record: bytes
    due: bytes


class Relay:
    """Carries the entries of one queue.

    Args:
        queue: The queue.
        worker: The worker's id.

    Attributes:
        news: Set when there may be entries.
    """

    def __init__(self, queue: Queue, worker: str) -> None:
        self._queue = queue
        self._worker = worker
        self._pause = 0.0
        self._at_once = asyncio.Semaphore(CARRIED_AT_ONCE)
        self.news = asyncio.Event()

    async def run(self) -> None:
        """Wait until there may be something to carry, and carry it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await self.news.wait()
        self.news.clear()
        self._pause = 0.0  # what fails is tried again at once, that is after the pause of whoever repeats it
        self._pause = min(await self.run_once() or LOOK_SECONDS, LOOK_SECONDS)

    async def run_once(self) -> float:
        """Carry all that there is, and return for how many seconds another worker may be at it; 0 where none is.

        Raises:
            redis.exceptions.RedisError: Something could not be carried, and stays; all else was.
        """
        problems: list[Exception] = []
        after: bytes | str = "-"
        while True:
            locked_ms, rows = await self._take(after)
            if not rows:
                break
            after = rows[-1][0]
            problems += await self._carry_and_drop(rows)
        if problems:
            raise problems[0]
        return float(locked_ms) / 1000

    async def entries(self) -> list[Entry]:
        """Return the first entries; nobody else gets them for a while."""
        _, rows = await self._take("-")
        return [Entry.of(*row) for row in rows]

    async def carry(self, entry: Entry) -> None:
        """Tell what an entry says to whom it concerns.

        Raises:
            redis.exceptions.RedisError: Redis cannot be reached, or refuses.
        """
        if entry.kind == "begin":
            await self._begin(entry)
            return
        [(node, run)] = entry.runs
        home = self._queue.sibling(entry.flow.partition(":")[0])
        if entry.kind == "extend":
            await add_nodes(home, entry.flow, node, run, msgspec.msgpack.decode(entry.value))
        else:
            await _tell_end(home, entry.flow, node, run, (entry.state, entry.value))

    async def _take(self, after: bytes | str) -> Any:
        keys = self._queue.keys
        args: list[scripts.Argument] = [self._worker, LOCK_MS, after, TAKEN_A_CALL, BYTES_A_CALL]
        return await scripts.relay_take(self._queue.line, [keys.relay, keys.relay_lock], args)

    async def _carry_and_drop(self, rows: Sequence[Any]) -> list[Exception]:
        """Carry entries, drop those that were, and return what went wrong."""
        entries, carried, problems = [], [], []
        for number, words in rows:
            try:
                entries.append(Entry.of(number, words))
            except ValueError as error:
                events.record_unreadable(self._queue.name, number, error)
                carried.append(number)
        late: set[str] = set()
        for entry in entries:
            if entry.kind == "extend":  # before the end of the node that added them, and in their order
                if problem := await self._carried(entry):
                    problems.append(problem)
                    late.add(entry.flow)
                else:
                    carried.append(entry.number)
        others = [entry for entry in entries if entry.kind != "extend" and entry.flow not in late]
        for entry, problem in zip(others, await asyncio.gather(*map(self._carried, others)), strict=True):
            if problem:
                problems.append(problem)
            else:
                carried.append(entry.number)
        if carried:
            await scripts.relay_drop(self._queue.line, [self._queue.keys.relay], carried)
        return problems

    async def _carried(self, entry: Entry) -> Exception | None:
        try:
            async with self._at_once:
                await self.carry(entry)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other entries are to go on
            return error
        return None

    async def _begin(self, entry: Entry) -> None:
        ask, flow = self._queue.line.execute, FlowKeys.of(entry.flow).flow
        fields = [f"{letter}{node}" for node, _ in entry.runs for letter in "rqd"]
        stop, *values = await ask("HMGET", flow, "stop", *fields)
        by_queue: dict[str, list[_Begun]] = {}
        for (node, run), record, name, due in zip(entry.runs, values[::3], values[1::3], values[2::3], strict=True):
            if record is not None and name is not None:
                by_queue.setdefault(text(name), []).append(_Begun(node, run, record, due or b""))
        if stop is None:
            for name, nodes in by_queue.items():
                await self._accept(self._queue.sibling(name), entry.flow, nodes)
            # Whoever has revoked it since may have looked for the jobs before they were there.
            stop = await ask("HGET", flow, "stop")
        if stop is not None:
            for name, nodes in by_queue.items():
                await self._stop(self._queue.sibling(name), entry.flow, nodes, text(stop))

    async def _accept(self, queue: Queue, flow: str, nodes: Sequence[_Begun]) -> None:
        for part in _parts(nodes):
            keys = [queue.keys.relay]
            args: list[scripts.Argument] = [queue.now_argument, queue.name]
            for node in part:
                key = node_key(flow, node.node)
                keys += (queue.job_id(key), queue.keys.run(key))
                args += (node.run, node.record, node.due)
            await scripts.relay_begin(queue.line, keys, args)

    async def _stop(self, queue: Queue, flow: str, nodes: Sequence[_Begun], reason: str) -> None:
        """End nodes of a workflow that was revoked: the jobs of those that were accepted, the others here."""
        keys = [node_key(flow, node.node) for node in nodes]
        marks = await queue.line.execute("MGET", *(queue.keys.run(key) for key in keys))
        end = told("aborted", None, reason)
        for node, key, mark in zip(nodes, keys, marks, strict=True):
            if int(mark or 0) < int(node.run):
                await _tell_end(self._queue, flow, node.node, node.run, end)
            elif (job := await queue.job(key)) and not job.ended:
                await queue.abort(job, reason)


async def leave_word(queue: Queue, job_key: str, token: str, sent: scripts.Argument, place: tuple[str, int]) -> Any:
    """Say in a job's queue that it adds nodes to its workflow, while its claim stands.

    Returns:
        The entry and the run of the node; nothing if the claim was lost.
    """
    own, (flow, node) = queue.keys, place
    keys = [own.claims, own.relay, own.run(job_key), queue.job_id(job_key)]
    return await scripts.relay_extend(queue.line, keys, [token, own.wake, flow, node, sent])


async def add_nodes(home: Queue, flow: str, node: int, run: str, sent: Sequence[scripts.Argument]) -> Any:
    """Add nodes to a workflow on behalf of one of its nodes in another slot; see ``lua/flow_extend.lua``."""
    keys = FlowKeys.of(flow)
    return await scripts.flow_extend(home.line, [keys.flow, keys.states], [home.now_argument, flow, node, run, *sent])


async def drop(queue: Queue, entry: bytes) -> None:
    """Take an entry back that was carried otherwise."""
    await scripts.relay_drop(queue.line, [queue.keys.relay], [entry])


async def _tell_end(home: Queue, flow: str, node: int, run: str, end: tuple[str, bytes]) -> None:
    args: list[scripts.Argument] = [home.now_argument, flow, node, run, *end]
    await scripts.relay_end(home.line, [FlowKeys.of(flow).flow], args)


def _parts(nodes: Sequence[_Begun]) -> Iterator[list[_Begun]]:
    """Yield nodes in parts whose records a call may carry."""
    part: list[_Begun] = []
    size = 0
    for node in nodes:
        if part and size + len(node.record) > BYTES_A_CALL:
            yield part
            part, size = [], 0
        part.append(node)
        size += len(node.record)
    if part:
        yield part
