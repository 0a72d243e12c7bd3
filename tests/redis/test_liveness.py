"""A worker's sign of life, given from a thread of its own."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.credentials import UsernamePasswordCredentialProvider
from tests.redis.lines import NAME, Site
from tests.support import PATIENCE, Server, ended, eventually, left_behind, lists, working

from knapsaq import Client, Queue, Registry, Settings, connect
from knapsaq.liveness import LeaseKeeper, end_leases
from knapsaq.outcomes import Succeeded
from knapsaq.registry import AnyTask
from knapsaq.upkeep import Rescuer
from knapsaq.worker import Worker


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The shortest lease that may be set."""
    return settings.with_values(lease=1.0)


@pytest.fixture
async def second(client: Client, settings: Settings) -> AsyncIterator[Client]:
    """A connection of somebody else who watches the worker."""
    async with connect(settings, registry=Registry()) as other:
        yield other


async def leases(queue: Queue) -> dict[str, float]:
    """Return the milliseconds that each lease has left."""
    redis: Any = queue.redis
    seconds, microseconds = await redis.time()
    now = seconds * 1000 + microseconds / 1000
    return {name.decode(): end - now for name, end in await redis.zrange(queue.keys.leases, 0, -1, withscores=True)}


class TestLease:
    async def test_a_blocked_loop_keeps_its_lease(self, queue: Queue, registry: Registry) -> None:
        """A task that blocks for twice the lease is run once: nobody takes the worker for dead."""
        runs: list[float] = []

        @registry.task
        async def blocking() -> str:
            runs.append(time.monotonic())
            while time.monotonic() < runs[0] + 2.0:
                pass
            return "done"

        kept: list[float] = []
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(queue, kept, stop))
        async with working(queue):
            await eventually(lambda: leases(queue))
            watcher.start()
            job = await blocking.enqueue()
            await ended(job)
            stop.set()
            watcher.join()
        assert (job.result, len(runs), job.attempts) == ("done", 1, 1)
        assert len(kept) >= 10
        assert min(kept) > 0

    async def test_whoever_knows_that_a_process_is_gone_ends_its_leases_alone(
        self, queue: Queue, echo: AnyTask
    ) -> None:
        """Others, whose names begin otherwise, keep theirs; without a lease nothing is made."""
        await end_leases(queue, "gone-")
        assert await leases(queue) == {}
        await echo.enqueue_many([{"text": "hi"}] * 3)
        claims = [claim for name in ("gone-1", "gone", "other-gone-1") for claim in await queue.claim(1, worker=name)]
        await end_leases(queue, "gone-")
        assert await Rescuer(queue).run_once() == 1
        assert (await lists(queue))["queued"] == [claims[0].job.key]
        assert sorted(await leases(queue)) == ["gone", "other-gone-1"]

    def _watch(self, queue: Queue, kept: list[float], stop: threading.Event) -> None:
        """Look at the lease from a thread, as the loop is blocked."""
        redis: Any = LeaseKeeper(queue, "watcher", lambda: None)._redis
        while not stop.wait(0.1):
            seconds, microseconds = redis.time()
            for _, end in redis.zrange(queue.keys.leases, 0, -1, withscores=True):
                kept.append(end - (seconds * 1000 + microseconds / 1000))
        redis.close()

    async def test_a_worker_that_has_stopped_leaves_no_lease_behind(self, queue: Queue, echo: AnyTask) -> None:
        """Nor the locks that keep SAQ's sweeper away."""
        async with working(queue):
            await ended(await echo.enqueue(text="hi"))
            assert await leases(queue)
        assert await left_behind(queue) == []
        assert not await queue.redis.exists(queue.keys.saq_sweep_lock, queue.keys.saq_schedule_lock)

    async def test_the_locks_stay_while_another_worker_lives(self, queue: Queue, echo: AnyTask) -> None:
        """The first that leaves does not let SAQ's sweeper in."""
        async with working(queue):
            await eventually(lambda: leases(queue))
            async with working(queue):
                await eventually(lambda: self._two(queue))
            assert len(await leases(queue)) == 1
            assert await queue.redis.exists(queue.keys.saq_sweep_lock, queue.keys.saq_schedule_lock) == 2

    async def _two(self, queue: Queue) -> bool:
        return len(await leases(queue)) == 2

    async def test_a_login_that_a_provider_gives_reaches_the_thread(self, queue: Queue, site: Site) -> None:
        """As where passwords come from a vault; the thread's own connection logs in likewise."""
        provider = UsernamePasswordCredentialProvider("bob", "builder")
        redis = Redis(host="127.0.0.1", port=site.port, client_name=NAME, credential_provider=provider)
        keeper = LeaseKeeper(Queue(redis, settings=queue.settings), "w")
        await asyncio.to_thread(keeper.renew)
        assert "bob" in {client["user"] for client in site.admin.client_list()}
        await asyncio.to_thread(keeper.stop)
        await redis.aclose()

    async def test_a_worker_that_stops_hands_its_due_times_on(self, queue: Queue, second: Client) -> None:
        """It may have been the only one to hear of them: the others look again."""
        pubsub = second.queue().redis.pubsub()
        await pubsub.subscribe(queue.keys.wake)
        keeper = LeaseKeeper(queue, "w")
        await asyncio.to_thread(keeper.renew)
        await asyncio.to_thread(keeper.stop)
        message = await eventually(lambda: pubsub.get_message(ignore_subscribe_messages=True))
        assert message["data"] == b"due"
        await pubsub.aclose()

    async def test_a_worker_that_is_stepped_by_hand_has_a_lease(self, queue: Queue, registry: Registry) -> None:
        """Its job is not handed to others while it runs for longer than a lease."""
        left: list[float] = []

        @registry.task
        async def slow() -> None:
            for _ in range(3):
                await asyncio.sleep(queue.settings.lease / 2)
                left.extend((await leases(queue)).values())

        job = await slow.enqueue()
        assert await Worker(queue).process()
        await ended(job)
        assert len(left) == 3
        assert min(left) > 0

    async def test_a_lease_that_may_have_run_out_is_counted(
        self, queue: Queue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a clock that goes on while the process stands still; also once the lease has been renewed."""
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        keeper = LeaseKeeper(queue, "w")
        keeper.renew()
        before = keeper.lapses
        now += queue.settings.lease / 2
        keeper.renew()
        assert keeper.lapses == before
        now += queue.settings.lease + 1
        assert keeper.lapses == before + 1
        keeper.renew()
        assert keeper.lapses == before + 1
        monkeypatch.undo()
        keeper.stop()

    async def test_a_worker_that_leaves_jobs_behind_keeps_its_lease(self, queue: Queue, echo: AnyTask) -> None:
        """Without one nobody would look for them: they are handed back when it has run out."""
        job = await echo.enqueue(text="hi")
        keeper = LeaseKeeper(queue, "leaving", lambda: None)
        keeper.renew()
        await queue.claim(1, worker="leaving")
        keeper.stop()

        assert await leases(queue)
        async with working(queue):
            await ended(job)
        assert job.result == "hi"
        assert await left_behind(queue) == []

    async def test_a_worker_that_gives_its_lease_up_hands_its_jobs_back_and_can_no_longer_settle_them(
        self, queue: Queue, echo: AnyTask
    ) -> None:
        """At once, as a crash of the worker: the process is about to end, and its job may be why."""
        job = await echo.enqueue(text="hi")
        keeper = LeaseKeeper(queue, "stuck", lambda: None)
        keeper.renew()
        keeper.start()
        [stale] = await queue.claim(1, worker="stuck")
        keeper.give_up()
        await asyncio.to_thread(keeper.join)

        assert await leases(queue) == {}
        [claim] = await queue.claim(1, worker="other")
        assert (claim.job.key, claim.crashes) == (job.key, 1)
        assert not await queue.settle(stale, Succeeded('"late"'), worker="stuck")
        assert await queue.settle(claim, Succeeded('"in time"'), worker="other")
        keeper.stop()
        await queue.redis.zrem(queue.keys.leases, "other")

    async def test_a_worker_that_gives_up_does_not_wait_for_a_server_that_is_away(
        self, tmp_path: Path, settings: Settings
    ) -> None:
        """Its lease runs out by itself."""
        server = Server(tmp_path / "server")
        own = settings.with_values(broker_url=server.start())
        async with connect(own, registry=Registry()) as client:
            keeper = LeaseKeeper(client.queue(), "stuck", lambda: None)
            keeper.start()
            await eventually(lambda: leases(client.queue()))
            server.kill()
            keeper.give_up()
            keeper.join(PATIENCE)
            assert not keeper.is_alive()
            keeper.stop()
        server.stop()

    async def test_the_lease_is_renewed_in_time(self, queue: Queue) -> None:
        """Several times in its length, so that one lost renewal does not cost it."""
        ends: set[float] = set()
        redis: Any = queue.redis

        async def seen() -> bool:
            ends.update(end for _, end in await redis.zrange(queue.keys.leases, 0, -1, withscores=True))
            return len(ends) > 5

        async with working(queue):
            await eventually(seen, within=2 * queue.settings.lease)
        renewals = sorted(ends)
        steps = [later - earlier for earlier, later in itertools.pairwise(renewals[1:])]
        assert max(steps) < queue.settings.lease * 1000 / 2

    async def test_whoever_renews_is_told_of_leases_that_ran_out(self, queue: Queue) -> None:
        """That is how the living hear of the dead; no timer looks for them."""
        redis: Any = queue.redis
        told = threading.Event()
        keeper = LeaseKeeper(queue, "alive", told.set)
        keeper.renew()
        assert not told.is_set()
        await redis.zadd(queue.keys.leases, {"dead": 1})
        keeper.renew()
        assert told.is_set()
        assert await Rescuer(queue).run_once() == 0
        assert set(await leases(queue)) == {"alive"}
        keeper.stop()

    async def test_an_outage_does_not_end_the_thread(
        self, tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        """When Redis is back, so is the lease; the log has a line for each."""
        caplog.set_level("INFO", logger="knapsaq")
        server = Server(tmp_path / "server")
        own = settings.with_values(broker_url=server.start())
        async with connect(own, registry=Registry()) as client:
            queue = client.queue()
            keeper = LeaseKeeper(queue, "steady", lambda: None)
            keeper.start()
            await eventually(lambda: leases(queue))
            server.kill()
            await eventually(lambda: keeper._away)
            server.start()
            await eventually(lambda: not keeper._away)
            assert (await leases(queue))["steady"] > 0
            keeper.stop()
            assert await leases(queue) == {}
        server.stop()
        said = [record.getMessage() for record in caplog.records if "steady" in record.getMessage()]
        assert ["away" in line for line in said] == [True, False]

    async def test_a_keeper_that_never_started_can_be_stopped(self, settings: Settings, queue: Queue) -> None:
        """A worker whose start-up failed closes in the same way, also without Redis."""
        LeaseKeeper(queue, "new", lambda: None).stop()
        lost = Queue.from_url("unix:///nowhere/broker.sock", settings=settings)
        LeaseKeeper(lost, "new", lambda: None).stop()
