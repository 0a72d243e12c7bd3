"""Producers whose server is away, and producers that all want the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from saq.job import Status
from tests.chaos.site import PATIENCE, TIMEOUT, Site, audit, plain, pour, producing, sized
from tests.support import eventually

from knapsaq import BrokerError, Queue, Registry, Settings, connect

CLIENTS = 50
AWAY_SECONDS = sized(5.0, 1.0)
"""How long a producer may take to learn that the server is away."""


class TestServerAway:
    async def test_a_producer_hears_at_once_that_the_server_is_away(self, site: Site) -> None:
        """One typed error a call, however it is made, and no job that appears later without having been accepted."""
        registry = Registry()

        @registry.task
        async def note(number: int) -> int:
            return number

        async with producing(site) as queue, connect(settings(site), registry=registry):
            before = await pour(queue, range(10))
            await asyncio.to_thread(site.server.kill)
            for _ in range(3):  # the first finds its line cut, the others cannot make a new one
                await self._refused(queue.enqueue("note", key="100", number=100))
                await self._refused(note.enqueue(100))
                await self._refused(note.using(delay=5).enqueue(100))
                await self._refused(note.enqueue_many([{"number": 100}, {"number": 101}]))
                await self._refused(queue.enqueue_many("note", [{"number": 100}, {"number": 101}]))
            gathered = [queue.enqueue("note", key=str(number), number=number) for number in range(100, 200)]
            began = time.monotonic()
            answers = await asyncio.gather(*gathered, return_exceptions=True)
            assert {type(answer) for answer in answers} == {BrokerError}
            assert time.monotonic() - began < AWAY_SECONDS
            await asyncio.to_thread(site.server.start)
            after = await pour(queue, range(10, 20))
            assert len(after) == 10
            site.hire()
            await audit(site, queue, before | after, doubles=0)
            assert not [line for line in site.entries() if 100 <= int(line) < 200]

    async def _refused(self, call: Any) -> None:
        began = time.monotonic()
        with pytest.raises(BrokerError):
            await call
        assert time.monotonic() - began < AWAY_SECONDS

    async def test_a_server_killed_under_producers_has_all_that_was_accepted(self, site: Site) -> None:
        """Each call ends with a job or a typed error; a job is there, whatever became of its neighbours."""
        async with producing(site) as queue:
            pouring = asyncio.create_task(pour(queue, range(sized(1000, 10_000)), group=50))
            await eventually(lambda: queue.count("queued"), within=PATIENCE)
            await asyncio.to_thread(site.server.kill)
            await asyncio.to_thread(site.server.start)
            accepted = await pouring
            assert await pour(queue, range(20_000, 20_100)) == {str(number) for number in range(20_000, 20_100)}
            stored = {job.key for job in await queue.jobs(sorted(accepted)) if job}
            assert stored == accepted
            site.hire(concurrency=50)
            await audit(site, queue, accepted, doubles=0)


class TestOneKey:
    async def test_fifty_clients_that_ask_for_the_job_of_a_key_all_get_the_same_one(self, site: Site) -> None:
        """With ``.using(key=...)`` a call that comes second returns the job that is there, and all get its result."""
        async with AsyncExitStack() as stack:
            tasks = []
            for _ in range(CLIENTS):
                registry = Registry()
                client = await stack.enter_async_context(connect(settings(site), registry=registry))
                tasks.append(registry.task(held))
            site.hire()
            jobs = await asyncio.gather(*(task.using(key="7").enqueue(number=7) for task in tasks))
            await let_go(site, plain(client))
            assert await asyncio.gather(*(job.wait(PATIENCE) for job in jobs)) == [7] * CLIENTS
            assert site.entries() == {"7": 1}
            await audit(site, plain(client), {"7"}, doubles=0)

    async def test_fifty_clients_with_one_key_make_one_job_though_its_worker_dies(self, site: Site) -> None:
        """Neither the crash nor the rescue lets a second one in; once the job has ended, the key is free for one."""
        async with clients(site) as queues:
            victim = site.hire()
            assert await accepted_of(queues) == 1
            await eventually(lambda: len(site.begun()) == 1, within=PATIENCE)
            victim.kill()
            assert await accepted_of(queues) == 0
            site.hire()
            await eventually(lambda: len(site.begun()) == 2, within=PATIENCE)
            assert await accepted_of(queues) == 0
            await let_go(site, queues[0])
            turns = sized(2, 20)
            for turn in range(turns):
                assert site.entries() == {"7": 1 + turn}
                assert await accepted_of(queues) == 1
                await let_go(site, queues[0])
            await audit(site, queues[0], {"7"}, doubles=turns)


async def held(number: int) -> int:
    """Stand for the task of the worker's program."""
    return number


@asynccontextmanager
async def clients(site: Site) -> AsyncIterator[list[Queue]]:
    """Connect as fifty producers."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(producing(site)) for _ in range(CLIENTS)]


async def accepted_of(queues: list[Queue]) -> int:
    """Enqueue a job of one key from everywhere at once, and return how many were accepted."""
    answers = await asyncio.gather(*(queue.enqueue("held", key="7", number=7, timeout=TIMEOUT) for queue in queues))
    return len([job for job in answers if job is not None])


async def let_go(site: Site, queue: Queue) -> None:
    """Let the one job come to its end."""
    site.open_gate()

    async def complete() -> bool:
        job = await queue.job("7")
        return job is not None and job.status is Status.COMPLETE

    await eventually(complete, within=PATIENCE)
    site.ledger.with_name("gate").unlink()


def settings(site: Site) -> Settings:
    """Return the settings of a producer."""
    return Settings(broker_url=site.server.url, queues=("default",), _env_file=None)
