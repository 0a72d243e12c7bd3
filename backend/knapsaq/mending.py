"""Mending: jobs that ended without their workflow's knowledge.

Where in the flow: a worker looks at some workflows of its queue once a minute. Ends that our scripts have not seen are
those in a worker of SAQ, by hand, or with a record.

Invariants, each a test in ``tests/redis/test_flow_ends.py`` or ``test_cluster_flows.py``:

* a job that ended outside of our scripts is told to its workflow within one turn of ``Mender``;
* a node that another slot has not heard of yet has not ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from saq.job import Status

from knapsaq.flows import READ_AT_ONCE, fields_of
from knapsaq.nodes import node_key, told
from knapsaq.reading import ReadingQueue
from knapsaq.redis import scripts
from knapsaq.redis.keys import FlowKeys
from knapsaq.redis.line import text

MENDED_AT_ONCE = 100


class Mender:
    """Tells workflows of jobs that ended outside of our scripts: in a worker of SAQ, by hand, or with their records."""

    def __init__(self, queue: ReadingQueue) -> None:
        self._queue = queue
        self._cursor: int | bytes = 0

    async def run_once(self) -> int:
        """Look at some workflows, the next ones each time, and return how many jobs were told of."""
        execute = self._queue.line.execute
        self._cursor, ids = await execute("SSCAN", self._queue.keys.flows, self._cursor, "COUNT", MENDED_AT_ONCE)
        return sum([await self._mend(text(flow_id)) for flow_id in ids])

    async def _mend(self, flow_id: str) -> int:
        execute, keys = self._queue.line.execute, FlowKeys.of(flow_id)
        states = await execute("HGETALL", keys.states)
        going_on = [int(node) for node, state in zip(states[::2], states[1::2], strict=True) if state == b"q"]
        if not states and not await execute("EXISTS", keys.flow):
            await execute("SREM", keys.flows, flow_id)
        # After the look at the states: what was to begin then, and is in no relay now, has been begun.
        relays = bool(going_on) and await execute("EXISTS", self._queue.keys.relay)
        mended = 0
        for first in range(0, len(going_on), READ_AT_ONCE):
            part = going_on[first : first + READ_AT_ONCE]
            found = await execute("HMGET", keys.flow, *(f"{letter}{node}" for node in part for letter in "qg"))
            queues, runs = found[::2], found[1::2]
            for name in dict.fromkeys(queues):
                queue = self._queue.sibling(text(name)) if name is not None else self._queue
                nodes = {
                    node_key(flow_id, node): run
                    for node, other, run in zip(part, queues, runs, strict=True)
                    if other == name
                }
                on_their_way = await _relayed(queue, nodes, relays=relays)
                mended += await self._tell(queue, [key for key in nodes if key not in on_their_way])
        return mended

    async def _tell(self, queue: ReadingQueue, job_keys: Sequence[str]) -> int:
        if not job_keys:
            return 0
        execute, keys = queue.line.execute, queue.keys
        ids = [queue.job_id(key) for key in job_keys]
        scores = await execute("ZMSCORE", keys.incomplete, *ids)
        lost = [job_id for job_id, score in zip(ids, scores, strict=True) if score is None]
        if not lost:
            return 0
        # Whoever has claimed one will tell himself.
        claims, records = await execute("HMGET", keys.claims, *lost), await execute("MGET", *lost)
        count = 0
        for job_id, claim, record in zip(lost, claims, records, strict=True):
            if claim is None:
                state, value = _end_of(record)
                names = [keys.incomplete, job_id]
                count += int(await scripts.flow_tell(queue.line, names, [queue.now_argument, state, value]))
        return count


async def _relayed(queue: ReadingQueue, runs: Mapping[str, bytes | None], *, relays: bool) -> set[str]:
    """Return which jobs of another slot are not there yet, or have ended, but the relay has not told of it.

    Args:
        queue: Their queue.
        runs: Which run of each has begun; None for those that are not relayed.
        relays: Whether their workflow's queue has anything to relay.
    """
    apart = [key for key, run in runs.items() if run is not None]
    if not apart:
        return set()
    execute, keys = queue.line.execute, queue.keys
    names = [keys.run(key) for key in apart]
    marks, *lives = await asyncio.gather(execute("MGET", *names), *(execute("TTL", name) for name in names))
    ends = await execute("EXISTS", keys.relay)
    return {
        key
        for key, mark, seconds in zip(apart, marks, lives, strict=True)
        if (ends and seconds >= 0 if mark == runs[key] else relays)
    }


def _end_of(record: bytes | None) -> tuple[str, bytes]:
    """Return what a workflow keeps of a job that is no longer in its queue."""
    if record is None:
        return told("failed", None, "its record is gone")
    fields = fields_of(record)
    status = fields.get("status")
    if status == Status.COMPLETE.value:
        return told(status, fields.get("result"), fields.get("error"))
    error = fields.get("error") or "it is no longer in its queue"
    return told("failed" if status == Status.FAILED.value else "aborted", None, str(error))
