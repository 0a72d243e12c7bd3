"""Workflows whose workers and server are killed: each node runs, each callback once, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.chaos.site import PATIENCE, Site, leave, sized
from tests.support import eventually

from knapsaq import Client, Registry, Settings, WorkflowJob, chain, chord, connect
from knapsaq.registry import AnyTask

FLOWS = sized(20, 200)
MEMBERS = 5
NODES = MEMBERS + 3
CONCURRENCY = 20


@asynccontextmanager
async def sending(site: Site) -> AsyncIterator[tuple[Client, AnyTask]]:
    """Connect with a task of the worker's name and shape."""
    registry = Registry()

    @registry.task
    async def note(number: int, seconds: float = 0.0) -> int:
        raise NotImplementedError

    chosen = Settings(broker_url=site.server.url, queues=("default",), _env_file=None)
    async with connect(chosen, registry=registry) as client:
        yield client, note


async def send(note: AnyTask) -> list[WorkflowJob]:
    """Send workflows of a step, a chord and a step; each node has a number of its own."""
    flows = []
    for first in range(0, FLOWS * NODES, NODES):
        begin, *members, callback, last = (note.si(first + place, 0.02) for place in range(NODES))
        flows.append(await chain(begin, chord(members, callback), last).enqueue())
    return flows


async def audit(site: Site, client: Client, flows: list[WorkflowJob], *, doubles: int) -> None:
    """Every workflow ends with the result of its last node, and every node has had its effect."""
    results = [await flow.wait(PATIENCE) for flow in flows]
    assert results == [(number + 1) * NODES - 1 for number in range(FLOWS)]
    entries = site.entries()
    assert entries.keys() == {str(number) for number in range(FLOWS * NODES)}
    assert entries.total() - len(entries) <= doubles
    for flow in flows:
        assert (await flow.status()).counts == {"complete": NODES}
    assert await client.queue().count("incomplete") == 0
    await leave(site, client.queue())


async def test_killed_workers_lose_and_double_no_callback(site: Site) -> None:
    """SIGKILL of one worker after the other; only jobs whose outcome was on its way have their effect twice."""
    kills = sized(2, 6)
    async with sending(site) as (client, note):
        flows = await send(note)
        for turn in range(kills):
            victim = site.hire(concurrency=CONCURRENCY, lease=1.0)
            begun = len(site.entries())
            await eventually(lambda: len(site.entries()) >= begun + FLOWS, within=PATIENCE)  # noqa: B023
            victim.kill()
            site.figures.append(f"kill {turn + 1}: {len(site.entries())} of {FLOWS * NODES} nodes had run")
        site.hire(concurrency=CONCURRENCY, lease=1.0)
        await audit(site, client, flows, doubles=kills * CONCURRENCY)


async def test_a_killed_server_keeps_every_workflow(site: Site) -> None:
    """SIGKILL of the server in the middle; it comes back with what it wrote, and those who wait hear of the end."""
    async with sending(site) as (client, note):
        flows = await send(note)
        site.hire(concurrency=CONCURRENCY)
        waiters = [asyncio.create_task(flow.wait(PATIENCE)) for flow in flows]
        await eventually(lambda: len(site.entries()) >= FLOWS, within=PATIENCE)
        await asyncio.to_thread(site.server.kill)
        await asyncio.to_thread(site.server.start)
        await asyncio.gather(*waiters)
        await audit(site, client, flows, doubles=2 * CONCURRENCY)
