"""Killed workers, killed servers: what was accepted is done, and nothing is left over.

``KNAPSAQ_CHAOS_ROUNDS`` says how often each fault is made; more rounds take longer and find more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from saq.job import Status
from tests.support import Server, eventually, left_behind, lists

from knapsaq import BrokerError, Client, Job, Queue, Registry, Settings, connect

ROUNDS = int(os.environ.get("KNAPSAQ_CHAOS_ROUNDS", "1"))
ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests/chaos/worker.py"
CONCURRENCY = 5
LEASE = 1.5
LONG = 30.0


class Site:
    """A server, the worker processes on it, and their ledger."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.server = server
        self.ledger = directory / "ledger"
        self.log = directory / "log"
        self.workers: list[subprocess.Popen[bytes]] = []

    def hire(self, *, grace: float = 5.0) -> subprocess.Popen[bytes]:
        """Start a worker process."""
        words = (sys.executable, WORKER, self.server.url, self.ledger, grace, CONCURRENCY, LEASE)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KNAPSAQ_")}
        with self.log.open("ab") as log:
            worker = subprocess.Popen(  # noqa: S603 - our own program
                [str(word) for word in words],
                cwd=self.ledger.parent,
                env={**clean, "PYTHONPATH": str(ROOT / "backend")},
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def entries(self) -> Counter[str]:
        """Return how often each line is in the ledger."""
        return Counter(self.ledger.read_text().split()) if self.ledger.exists() else Counter()

    def close(self) -> None:
        """End all processes and show what they said."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.server.stop()
        sys.stdout.write(self.log.read_text(errors="replace") if self.log.exists() else "")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site with a server and nobody on it."""
    server = Server(tmp_path / "server")
    server.start()
    site = Site(tmp_path, server)
    yield site
    site.close()


@asynccontextmanager
async def producing(site: Site) -> AsyncIterator[Queue]:
    """Connect as a producer that does not have the tasks."""
    settings = Settings(broker_url=site.server.url, queues=("default",))
    async with connect(settings, registry=Registry()) as client:
        yield plain(client)


def plain(client: Client) -> Queue:
    """Return the queue without a registry, so that it takes any task's name."""
    return Queue(client.queue().redis, "default", settings=client.settings)


async def pour(queue: Queue, numbers: range, *, seconds: float = 0.01) -> set[str]:
    """Enqueue jobs in small groups and return the numbers of those that were accepted."""
    accepted: set[str] = set()
    for start in range(numbers.start, numbers.stop, 10):
        group = range(start, min(start + 10, numbers.stop))
        calls = (queue.enqueue("note", key=str(number), number=number, seconds=seconds) for number in group)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for number, answer in zip(group, answers, strict=True):
            assert isinstance(answer, (Job, BrokerError)), answer
            if isinstance(answer, Job):
                accepted.add(str(number))
        await asyncio.sleep(0.005)
    return accepted


async def nothing_open(queue: Queue) -> bool:
    """Whether every job has ended, for as long as the server can be asked."""
    return not await queue.count("incomplete")


async def conserved(queue: Queue) -> None:
    """Fail unless each job that has not ended waits or runs: nothing is nowhere, nothing is in two places."""
    redis: Any = queue.redis
    async with redis.pipeline(transaction=True) as pipe:
        pipe.lrange(queue.keys.queued, 0, -1)
        pipe.lrange(queue.keys.active, 0, -1)
        pipe.zrange(queue.keys.incomplete, 0, -1, withscores=True)
        queued, active, incomplete = await pipe.execute()
    delayed = [job for job, score in incomplete if score > 0]
    assert sorted([*queued, *active, *delayed]) == sorted(job for job, _ in incomplete)


async def watched(queue: Queue, until: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something, and look all the time whether jobs are conserved."""

    async def look() -> bool:
        await conserved(queue)
        return await until()

    await eventually(look, within=LONG)


async def leave(site: Site, queue: Queue) -> None:
    """Tell all workers to go, and fail on what they leave behind."""
    for worker in site.workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in site.workers:
        await asyncio.to_thread(worker.wait, LONG)
    assert await left_behind(queue) == []


async def complete(queue: Queue, accepted: set[str]) -> None:
    """Fail unless each accepted job is complete with its own result."""
    found = await queue.jobs(accepted)
    assert {job.key: (job.status, job.result) for job in found if job} == {
        key: (Status.COMPLETE, int(key)) for key in accepted
    }


class TestKilledWorkers:
    async def test_every_job_of_a_killed_worker_runs_again(self, site: Site) -> None:
        """Kill -9 under load: each job at least once, no more doubles than were running, no key left over."""
        async with producing(site) as queue:
            site.hire()
            victim = site.hire()
            accepted: set[str] = set()
            for turn in range(ROUNDS):
                numbers = range(turn * 400, (turn + 1) * 400)
                pouring = asyncio.create_task(pour(queue, numbers, seconds=0.02))
                await eventually(lambda: len(site.entries()) >= numbers.start + 80, within=LONG)  # noqa: B023
                victim.kill()
                victim = site.hire()
                accepted |= await pouring
                await watched(queue, lambda: nothing_open(queue))
            entries = site.entries()
            assert set(entries) == accepted == {str(number) for number in range(ROUNDS * 400)}
            assert entries.total() - len(entries) <= CONCURRENCY * ROUNDS
            await complete(queue, accepted)
            await leave(site, queue)

    async def test_a_worker_that_is_told_to_go_loses_nothing_and_doubles_nothing(self, site: Site) -> None:
        """SIGTERM under load, with a grace that is shorter than some jobs: those are put back and run elsewhere."""
        async with producing(site) as queue:
            site.hire()
            leaving = site.hire(grace=0.1)
            accepted: set[str] = set()
            for turn in range(ROUNDS):
                fast, slow = range(turn * 220, turn * 220 + 200), range(turn * 220 + 200, (turn + 1) * 220)
                pouring = asyncio.gather(pour(queue, slow, seconds=0.4), pour(queue, fast, seconds=0.02))
                await eventually(lambda: len(site.entries()) >= fast.start + 30, within=LONG)  # noqa: B023
                leaving.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(leaving.wait, LONG) == 0
                leaving = site.hire(grace=0.1)
                accepted = accepted.union(*await pouring)
                await watched(queue, lambda: nothing_open(queue))
            entries = site.entries()
            assert set(entries) == accepted
            assert entries.total() == len(accepted) == ROUNDS * 220
            assert {job.attempts for job in await queue.jobs(accepted) if job} == {1}
            await leave(site, queue)


class TestKilledServers:
    async def test_a_killed_server_loses_nothing_that_it_had_accepted(self, site: Site) -> None:
        """Kill -9 under load and a start on the same files: workers and producer go on by themselves."""
        async with producing(site) as queue:
            site.hire()
            site.hire()
            accepted: set[str] = set()
            for turn in range(ROUNDS):
                numbers = range(turn * 400, (turn + 1) * 400)
                pouring = asyncio.create_task(pour(queue, numbers, seconds=0.02))
                await eventually(lambda: len(site.entries()) >= numbers.start * 0.5 + 60, within=LONG)  # noqa: B023
                await asyncio.to_thread(site.server.kill)
                await asyncio.to_thread(site.server.start)
                accepted |= await pouring
                await watched(queue, lambda: nothing_open(queue))
            entries = site.entries()
            assert set(entries) >= accepted
            assert entries.total() - len(entries) <= 2 * CONCURRENCY * ROUNDS
            await complete(queue, accepted)
            await leave(site, queue)


class TestPoison:
    async def test_a_job_that_kills_its_workers_ends_failed_and_its_neighbours_complete(self, site: Site) -> None:
        """After three dead workers, with the reason; those that happened to run beside it are not blamed."""
        async with producing(site) as queue:
            before = await pour(queue, range(4), seconds=0.05)
            poison = await queue.enqueue("poison", key="poison")
            after = await pour(queue, range(4, 8), seconds=0.05)
            assert poison is not None

            async def over() -> bool:
                if all(worker.poll() is not None for worker in site.workers):
                    site.hire()
                return await nothing_open(queue)

            await watched(queue, over)
            await poison.refresh()
            assert poison.status is Status.FAILED
            assert "died 3 times" in (poison.error or "")
            entries = site.entries()
            assert entries["poison"] == 3
            assert set(entries) == {"poison", *before, *after}
            await complete(queue, before | after)
            assert (await lists(queue))["active"] == []
            await leave(site, queue)
