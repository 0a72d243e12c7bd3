"""Submission: how a workflow, or more nodes of one that runs, get into Redis.

Where in the flow: a client does it for ``enqueue()`` of an expression, and for ``ctx.spawn`` and ``ctx.replace``. All
records are made and checked first; then the nodes are written, and one script begins the workflow.

Invariants, each a test in ``tests/redis/test_flows.py``:

* a workflow is accepted whole or not at all; what a broken submission leaves behind expires;
* no call carries more than 1 MiB or 2,000 fields;
* nodes are added only while the claim of the job that adds them stands.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from itertools import groupby
from typing import Any, cast

import msgspec

from knapsaq import events
from knapsaq.canvas import Expression, FlowOptions
from knapsaq.flows import Flow
from knapsaq.job import META_KEY, PARENT, ROOT, Job, new_key
from knapsaq.nodes import APART, Place, is_apart, node_key, place_of
from knapsaq.plan import Node, Plan, compiled
from knapsaq.queue import Queue
from knapsaq.redis import scripts
from knapsaq.redis.cluster import in_cluster
from knapsaq.redis.connection import broker_errors
from knapsaq.redis.keys import FlowKeys
from knapsaq.redis.line import text
from knapsaq.relay import add_nodes, drop, leave_word
from knapsaq.workflow import WorkflowJob
from knapsaq.workflow_errors import WorkflowDefinitionError, WorkflowError

Lookup = Callable[[str], Queue]
"""Returns a queue by its name, or raises ``UnknownQueueError``."""

Fields = list[scripts.Argument]
"""Names and values of a hash, by turns."""

FIELDS_A_CALL = 2000
BYTES_A_CALL = 1024 * 1024
UNBEGUN_SECONDS = 3600
"""How long the nodes of a workflow are kept whose submission broke off."""

REFUSED = {
    b"lost": "nothing was added, as the job is no longer this attempt's",
    b"revoked": "nothing was added, as it was revoked",
    b"ended": "nothing was added, as it has ended, and the job is what runs then",
}


async def start(lookup: Lookup, expression: Expression, options: FlowOptions) -> WorkflowJob:
    """Send a workflow; see ``Sendable.enqueue``."""
    plan = compiled(expression, options)
    home = lookup(next(node.queue for node in plan.nodes if node.sig))
    flow_id = f"{home.name}:{APART if in_cluster(home.redis) else ''}{new_key()}"
    fields = [*await _written(lookup, home, flow_id, plan, None), *_head(home, plan, options)]
    keys, line = FlowKeys.of(flow_id), home.line
    with broker_errors(home.settings.broker_url):
        *parts, last = _parts(fields)
        for part in parts:
            await line.execute("HSET", keys.flow, *part)
            await line.execute("EXPIRE", keys.flow, UNBEGUN_SECONDS)
        first = plan.first_ones
        args = [home.now_argument, flow_id, len(first), *last, *first]
        await scripts.flow_start(line, [keys.flow, keys.states, keys.flows], args)
    events.workflow_enqueued(flow_id, len(plan.nodes))
    return WorkflowJob(flow_id, Flow(home, flow_id))


async def extend(lookup: Lookup, job: Job[Any], expression: Expression, *, replaces: bool) -> None:
    """Add nodes to the workflow of a job that runs; see ``Context.spawn`` and ``Context.replace``."""
    place = place_of(job.key)
    if place is None:
        raise WorkflowError("none", f"job {job.key} is of no workflow; send this by itself with .enqueue()")
    options = FlowOptions(headers=job.headers)
    size = len(compiled(expression, options).nodes)
    queue = cast("Queue", job.get_queue())
    home = queue.sibling(place.home)  # the worker need not serve it
    keys = FlowKeys.of(place.flow)
    with broker_errors(home.settings.broker_url):
        if not await home.line.execute("HEXISTS", keys.flow, "next"):
            raise WorkflowError(place.flow, "nothing was added, as it is not in Redis any more")
        after = int(await home.line.execute("HINCRBY", keys.flow, "next", size))
        plan = compiled(expression, options, first=after - size)
        if replaces:
            for end in plan.ends:
                plan.children.setdefault(end, []).append((place.node, True))
        shape = msgspec.json.encode(plan.shape) if replaces else b""
        fields = await _written(lookup, home, place.flow, plan, job.key)
        for node in plan.nodes:
            fields += (f"t{node.number}", node.sig.task.name) if node.sig else ()
        if replaces:
            fields += (f"o{place.node}", after - size)
        first = plan.first_ones
        sent = [len(plan.nodes), shape, len(plan.ends), len(first), *fields, *first]
        answer = await _added(queue, home, job, place, sent)
    if answer in REFUSED:
        raise WorkflowError(place.flow, REFUSED[answer])


async def _added(queue: Queue, home: Queue, job: Job[Any], place: Place, sent: list[scripts.Argument]) -> Any:
    """Add nodes while the claim of the job stands, and return the script's answer."""
    if not is_apart(place.flow, queue.name):
        keys = FlowKeys.of(place.flow)
        args = [home.now_argument, place.flow, place.node, job.token, *sent]
        return await scripts.flow_extend(home.line, [keys.flow, keys.states, queue.keys.claims, job.id], args)
    # The claim stands as word is left, which is what counts; should this process end then, the relay adds them.
    left = await leave_word(queue, job.key, job.token, msgspec.msgpack.encode(sent), (place.flow, place.node))
    if not left:
        return b"lost"
    answer = await add_nodes(home, place.flow, place.node, text(left[1]), sent)
    await drop(queue, left[0])
    return answer


async def _written(lookup: Lookup, home: Queue, flow_id: str, plan: Plan, parent: str | None) -> Fields:
    """Return what is written of each node."""
    fields: Fields = []
    async for node, record in _records(lookup, flow_id, plan, parent):
        number = node.number
        fields += (f"r{number}", record)
        if node.queue != home.name:
            fields += (f"q{number}", node.queue)
        job = node.job
        if job is not None and (job.delay or job.scheduled):
            fields += (f"d{number}", f"+{job.delay}" if job.delay else str(job.scheduled))
    for node in plan.nodes:
        if node.parents:
            fields += (f"p{node.number}", node.parents)
        if node.sig is None:
            fields += (f"s{node.number}", msgspec.json.encode(node.shape))
    for number, children in plan.children.items():
        fields += (f"e{number}", " ".join(f"{child}!" if runs_on else f"{child}" for child, runs_on in children))
    return fields


async def _records(
    lookup: Lookup, flow_id: str, plan: Plan, parent: str | None
) -> AsyncIterator[tuple[Node, bytes | str]]:
    """Yield each node that has a job, with its record; its job is addressed."""
    for node in plan.everything:
        job = node.job
        if job is None:
            continue
        before = parent if node.parent is None else node_key(flow_id, node.parent)
        extras: dict[str, Any] = {**job.extras, ROOT: flow_id}
        if before is not None:
            extras[PARENT] = before
        if node.takes:
            extras["takes"] = node.takes
        job.key, job.meta = node_key(flow_id, node.number), {META_KEY: extras}
        if job.delay:
            job.scheduled = 0  # it is known once the node begins
        record = await lookup(node.queue).record(job)
        if record[:2] not in (b'{"', '{"'):
            raise WorkflowDefinitionError(job.function, "its queue", "one that stores JSON", "a dump of its own")
        yield node, record


def _head(home: Queue, plan: Plan, options: FlowOptions) -> Fields:
    """Return what is written of the workflow as a whole."""
    each = {node.number: node for node in plan.everything}
    total = plan.result + 1 + len(plan.everything) - len(plan.nodes)
    tasks = [node.sig.task.name if (node := each.get(number)) and node.sig else "" for number in range(total)]
    runs = [[name, len(list(run))] for name, run in groupby(tasks)]
    names = {str(node.number): node.name for node in plan.nodes if node.name}
    queues = {str(node.number): node.queue for node in plan.everything if node.sig and node.queue != home.name}
    fields: Fields = ["left", len(plan.nodes), "next", total, "result", plan.result]
    fields += (f"s{plan.result}", msgspec.json.encode(plan.shape), "tasks", msgspec.json.encode(runs))
    fields += ("ttl", home.settings.result_ttl if options.ttl is None else options.ttl)
    for name, known in (("names", names), ("queues", queues)):
        if known:
            fields += (name, msgspec.json.encode(known))
    for name, node in (("on_success", plan.on_success), ("on_failure", plan.on_failure)):
        if node:
            fields += (name, node.number, f"e{node.number}", "*")
    return fields


def _parts(fields: Fields) -> list[Fields]:
    """Return fields in parts that are no more than a call may carry."""
    parts: list[Fields] = [[]]
    size = 0
    for at in range(0, len(fields), 2):
        length = len(str(fields[at])) + (len(value) if isinstance(value := fields[at + 1], (str, bytes)) else 8)
        if parts[-1] and (len(parts[-1]) >= 2 * FIELDS_A_CALL or size + length > BYTES_A_CALL):
            parts.append([])
            size = 0
        parts[-1] += fields[at : at + 2]
        size += length
    return parts
