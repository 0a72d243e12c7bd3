"""Servers that are killed, read-only, replaced or full: workers wait without noise and go on by themselves."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.site import CONCURRENCY, PATIENCE, Site, audit, hire_two, pour, producing, sized, staffed
from tests.support import eventually

from knapsaq import BrokerError, Queue

SLACK = sized(3.0, 0.5)
LONGEST_BACKOFF = 5.0


def cpu_seconds(worker: subprocess.Popen[bytes]) -> float:
    """Return how much processor time a process has used; macOS has no ``/proc``."""
    status = Path(f"/proc/{worker.pid}/schedstat")
    if status.exists():
        return int(status.read_text().split()[0]) / 1e9
    used = subprocess.run(["ps", "-o", "time=", "-p", str(worker.pid)], capture_output=True, text=True, check=True)  # noqa: S603, S607
    minutes, _, seconds = used.stdout.strip().rpartition(":")
    return 60 * int(minutes or 0) + float(seconds)


@asynccontextmanager
async def quiet(site: Site, seconds: float) -> AsyncIterator[None]:
    """Let a fault that the block makes last so long, and fail if the workers are busy or talkative meanwhile.

    The first moments belong to what was running when the fault came.
    """
    yield
    await asyncio.sleep(0.3)
    workers = [worker for worker in site.workers if worker.poll() is None]
    before, lines = sum(map(cpu_seconds, workers)), len(site.said())
    await asyncio.sleep(seconds - 0.3)
    used = (sum(map(cpu_seconds, workers)) - before) / len(workers) / (seconds - 0.3)
    said = site.said()[lines:]
    site.figures.append(f"in {seconds:g} s of the fault {used:.1%} of a processor a worker, {len(said)} lines in all")
    assert used <= 0.05, f"{used:.1%} of a processor"
    assert len(said) <= 2 * seconds * len(workers), said


async def resumed(site: Site) -> float:
    """Wait until a job has its effect, and return how many seconds that took."""
    began, done = time.monotonic(), len(site.lines())
    await eventually(lambda: len(site.lines()) > done, within=PATIENCE)
    return time.monotonic() - began


class TestKilledServers:
    async def test_a_killed_server_costs_nothing_but_the_time_it_is_away(self, site: Site) -> None:
        """Kill -9 under load and a start on the same files: nothing lost, nothing doubled, on at once."""
        jobs, outage = sized((400, 1.0), (2000, 3.0))
        async with producing(site) as queue:
            await hire_two(site, queue, concurrency=20, lease=10)
            accepted = await pour(queue, range(jobs), seconds=0.02, spread=0.5, group=100)
            await eventually(lambda: len(site.entries()) >= jobs * 0.4, within=PATIENCE)
            pouring = asyncio.create_task(pour(queue, range(jobs, 2 * jobs), seconds=0.02, spread=0.5, pause=0.05))
            async with quiet(site, outage):
                await asyncio.to_thread(site.server.kill)
            await asyncio.to_thread(site.server.start)
            took = await resumed(site)
            accepted |= await pouring
            doubled = await audit(site, queue, accepted, doubles=0)
        site.figures.append(f"on after {took:.2f} s, {doubled} doubled")
        assert took <= 1 + SLACK

    async def test_an_outage_that_outlasts_the_leases_takes_no_running_job_away(self, site: Site) -> None:
        """All leases have run out when the server is back, but their owners live: what they did counts, once."""
        lease, outage = sized((1.0, 2.0), (10.0, 60.0))
        async with producing(site) as queue:
            await hire_two(site, queue, lease=lease)
            accepted = await pour(queue, range(4 * CONCURRENCY), task="held", group=4 * CONCURRENCY)
            await eventually(lambda: len(site.begun()) == 2 * CONCURRENCY, within=PATIENCE)
            async with quiet(site, outage):
                await asyncio.to_thread(site.server.kill)
            site.open_gate()
            await eventually(lambda: len(site.entries()) == 2 * CONCURRENCY, within=PATIENCE)
            await asyncio.to_thread(site.server.start)
            took = await resumed(site)
            await audit(site, queue, accepted, doubles=0)
        site.figures.append(f"on after {took:.2f} s")
        assert took <= LONGEST_BACKOFF + SLACK


class TestUnusableServers:
    async def test_a_server_that_is_read_only_for_a_while_loses_nothing(self, site: Site) -> None:
        """As in a fail-over: enqueueing fails with a typed error, workers keep what they did until they can write."""
        jobs, outage = sized((400, 1.0), (2000, 5.0))
        async with producing(site) as queue:
            redis: Any = queue.redis
            await hire_two(site, queue, concurrency=20, lease=10)
            accepted = await pour(queue, range(jobs), seconds=0.02, spread=0.5, group=100)
            await eventually(lambda: len(site.entries()) >= jobs * 0.4, within=PATIENCE)
            async with quiet(site, outage):
                await redis.replicaof("127.0.0.1", 1)  # nobody is there: it keeps its data and takes no writes
                await refused(queue, "replica")
            await redis.replicaof("NO", "ONE")
            took = await resumed(site)
            await audit(site, queue, accepted, doubles=0)
        site.figures.append(f"on after {took:.2f} s")
        assert took <= LONGEST_BACKOFF + SLACK

    async def test_an_empty_server_in_its_place_is_worked_on(self, site: Site) -> None:
        """A fail-over to an empty replica: what the old one held is gone; workers need no restart, nor do scripts."""
        async with producing(site) as queue:
            await hire_two(site, queue, lease=10)
            await pour(queue, range(4 * CONCURRENCY), task="held")
            await eventually(lambda: len(site.begun()) == 2 * CONCURRENCY, within=PATIENCE)
            await asyncio.to_thread(site.server.kill)
            shutil.rmtree(site.ledger.with_name("server") / "appendonlydir")
            await asyncio.to_thread(site.server.start)
            site.open_gate()  # the running jobs come to an end that nobody wants to know
            await eventually(lambda: len(site.entries()) == 2 * CONCURRENCY, within=PATIENCE)
            await staffed(queue, 2)
            accepted = await pour(queue, range(100, 300))
            await audit(site, queue, accepted, doubles=0)

    async def test_a_full_server_refuses_jobs_and_keeps_those_it_has(self, site: Site) -> None:
        """Maxmemory reached: enqueueing says so, workers stay, and what they did meanwhile counts after relief."""
        outage = sized(1.0, 5.0)
        async with producing(site) as queue:
            redis: Any = queue.redis
            accepted = await pour(queue, range(200), task="held")
            await hire_two(site, queue, lease=10)
            await eventually(lambda: len(site.begun()) == 2 * CONCURRENCY, within=PATIENCE)
            async with quiet(site, outage):
                await redis.config_set("maxmemory", 1)
                await refused(queue, "memory")
                site.open_gate()
            await redis.config_set("maxmemory", 0)
            await audit(site, queue, accepted, doubles=0)


async def refused(queue: Queue, why: str) -> None:
    """Fail unless enqueueing raises, soon, an error that says why."""
    asked = time.monotonic()
    with pytest.raises(BrokerError, match=why):
        await queue.enqueue("note", key="refused", number=-1)
    assert time.monotonic() - asked <= 2 + SLACK
