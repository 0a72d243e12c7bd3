"""Connections that are cut and paused, and scripts that the server forgets: nobody notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from saq.job import Status
from tests.chaos.faults import cut_connections, forget_scripts, pause
from tests.chaos.site import PATIENCE, Site, audit, hire_two, nothing_open, pour, producing, sized
from tests.support import eventually

SLACK = 3.0


async def under_load(
    site: Site, fault: Callable[[Any], Awaitable[object]], *, every: float, before: float = 0.0
) -> None:
    """Make a fault again and again while two workers do many jobs, then audit: nothing lost, nothing doubled.

    If it says so, the server pauses ``before`` that.
    """
    jobs = sized(600, 5000)
    async with producing(site) as queue, producing(site) as operator:
        await hire_two(site, queue, lease=10)
        accepted = await pour(queue, range(jobs), seconds=0.02, spread=0.5, group=100)
        if before:
            await pause(operator.redis, before)
        faults = 0
        while not await nothing_open(operator):
            await fault(operator.redis)
            faults += 1
            await asyncio.sleep(every)
        assert faults > 5
        await audit(site, operator, accepted, doubles=0)
        site.figures.append(f"{faults} times")


class TestConnections:
    async def test_connections_that_are_cut_again_and_again_lose_and_double_nothing(self, site: Site) -> None:
        """CLIENT PAUSE, then CLIENT KILL of all kinds: a reply that is lost leaves no job with nobody, nor with two."""
        await under_load(site, cut_connections, every=0.2, before=sized(0.5, 2.0))

    async def test_what_is_pushed_arrives_again_on_new_connections(self, site: Site) -> None:
        """After a cut, idle workers hear of work, due times and aborts at once, and callers of ends."""
        async with producing(site) as queue, producing(site) as operator:
            site.hire(lease=10)
            job = await queue.enqueue("note", key="1", number=1)
            assert job is not None
            await job.refresh(until_complete=PATIENCE)
            await cut_connections(operator.redis)

            began = time.monotonic()
            work = await queue.enqueue("note", key="2", number=2)
            due = await queue.enqueue("note", key="3", number=3, scheduled=int(time.time()) + 2)
            doomed = await queue.enqueue("held", key="4", number=4)
            assert work is not None
            assert due is not None
            assert doomed is not None
            await work.refresh(until_complete=PATIENCE)
            heard = time.monotonic() - began
            await eventually(site.begun, within=PATIENCE)
            await doomed.abort("not wanted")
            await doomed.refresh(until_complete=PATIENCE)
            aborted = time.monotonic() - began
            await due.refresh(until_complete=PATIENCE)
            assert (work.status, doomed.status, due.status) == (Status.COMPLETE, Status.ABORTED, Status.COMPLETE)
            ended = time.monotonic() - began
            site.figures.append(f"work after {heard:.2f} s, abort after {aborted:.2f} s, due after {ended:.2f} s")
            assert heard <= 1 + SLACK
            assert aborted <= 2 + SLACK
            assert ended <= 2 + 1 + SLACK
            await audit(site, queue, {"1", "2", "3"}, doubles=0)


class TestScripts:
    async def test_a_server_that_forgets_its_scripts_is_told_again(self, site: Site) -> None:
        """SCRIPT FLUSH and FUNCTION FLUSH under load have no effect that anybody could see."""
        await under_load(site, forget_scripts, every=0.02)
        assert site.said() == []
