"""A cluster: each queue on the node that owns its slot, and slots that move."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import SSLConnection as BlockingSSLConnection
from redis.asyncio.connection import SSLConnection
from tests.redis.conftest import Gate
from tests.redis.nodes import QUEUES, Node, Nodes
from tests.support import PATIENCE, eventually, working

from knapsaq import (
    BrokerError,
    Client,
    JobRevokedError,
    Queue,
    Registry,
    Settings,
    SettingsError,
    Task,
    connect,
)
from knapsaq.cli.doctor import examine
from knapsaq.liveness import LeaseKeeper
from knapsaq.redis.connection import open_redis
from knapsaq.registry import AnyTask
from knapsaq.scheduler import Scheduler
from knapsaq.shards import SLOTS
from knapsaq.testing import ManualClock

Echo = Task[..., Any, Any]


@pytest.fixture
async def queue(cluster: Client) -> Queue:
    """The first queue."""
    return cluster.queue(QUEUES[0])


@pytest.fixture
def echo(registry: Registry) -> Echo:
    """A task that gives back what it is given."""

    @registry.task(queue=QUEUES[0])
    async def echo(text: str) -> str:
        return text

    return echo


async def runs(echo: Echo, queue: str) -> str:
    """Run a job in a queue, however often it takes to send it."""
    while True:
        with suppress(BrokerError):
            return await (await echo.using(queue=queue).enqueue("x")).wait(10)
        await asyncio.sleep(0.05)


class TestQueues:
    async def test_jobs_of_three_queues_run_on_three_nodes(self, cluster: Client, nodes: Nodes, echo: Echo) -> None:
        """Those that wait for a due time too, and whoever waits hears of the end by a push."""
        assert len({nodes.owner(queue).port for queue in QUEUES}) == 3
        async with (
            working(cluster.queue(QUEUES[0])),
            working(cluster.queue(QUEUES[1])),
            working(cluster.queue(QUEUES[2])),
        ):
            for queue in QUEUES:
                jobs = [
                    await echo.using(queue=queue).enqueue("now"),
                    await echo.using(queue=queue, delay=0.05).enqueue("later"),
                ]
                assert [await job.wait(5) for job in jobs] == ["now", "later"]

    async def test_a_running_job_is_ended_on_purpose(self, queue: Queue, gate: Gate, cluster: Client) -> None:
        """The order reaches the worker as it does on one server."""
        job = await cluster.registry.get("held").using(queue=queue.name).enqueue()
        async with working(queue):
            await gate.entered()
            await job.revoke(reason="not needed")
            with pytest.raises(JobRevokedError, match="not needed"):
                await job.wait(5)

    async def test_a_push_is_heard_at_any_node(self, queue: Queue, nodes: Nodes) -> None:
        """A cluster gives what is published to all of its nodes, so a subscription outlives the move of its slot."""
        async with queue.pushed("news") as news:
            for node in nodes.nodes:
                node.admin.eval("return redis.call('PUBLISH', 'news', 'hello')", 0)
                async with asyncio.timeout(5):
                    assert await news.get() == ("news", b"hello")

    async def test_a_schedule_goes_with_its_task_to_a_queue_on_another_node(
        self, nodes: Nodes, registry: Registry, clock: ManualClock, cluster_settings: Settings
    ) -> None:
        """With its due time and what operators have changed; what has fired does not fire again."""
        nodes.flush()

        def define(queue: str) -> AnyTask:
            registry.clear()

            @registry.scheduled_task(every=timedelta(hours=1), queue=queue)
            async def tick() -> None:
                pass

            return tick

        async with connect(cluster_settings, registry=registry, clock=clock) as client:
            old, new = client.queue(QUEUES[0]), client.queue(QUEUES[1])
            scheduler = Scheduler(old, [define(QUEUES[0])])
            await scheduler.run_once()
            await registry.schedules.set("tick", jitter=5)
            clock.advance(timedelta(hours=1))
            assert await scheduler.run_once() == 1
            moved = define(QUEUES[1])
            for queue in (new, old):
                assert await Scheduler(queue, [moved]).run_once() == 0
            [entry] = await registry.schedules.list()
            assert (entry.queue, set(entry.edited)) == (QUEUES[1], {"jitter"})
            clock.advance(timedelta(hours=1))
            assert [await Scheduler(queue, [moved]).run_once() for queue in (old, new)] == [0, 1]
        nodes.flush()

    async def test_tasks_that_name_no_queue_have_the_one_with_the_tag(self, registry: Registry, nodes: Nodes) -> None:
        """The default queue is called {default} in a cluster."""

        @registry.task
        async def plain() -> str:
            return "done"

        settings = Settings(broker_url=nodes.url, queues=("{default}",), _env_file=None)
        async with connect(settings, registry=registry) as client, working(client.queue("{default}")):
            assert await (await plain.enqueue()).wait(5) == "done"
        nodes.flush()

    async def test_a_name_without_a_tag_is_refused_with_what_to_write(self, nodes: Nodes) -> None:
        """Its keys would lie in many slots."""
        settings = Settings(broker_url=nodes.url, queues=("mail",), _env_file=None)
        with pytest.raises(SettingsError, match=r"KNAPSAQ_QUEUES is 'mail'.*KNAPSAQ_QUEUES=\{mail\}"):
            async with connect(settings, registry=Registry()):
                pass


class TestAddress:
    async def test_a_node_without_its_cluster_is_refused(self, nodes: Nodes) -> None:
        """It has a part of the slots alone."""
        with pytest.raises(BrokerError, match=r"is a node of a cluster.*redis\+cluster://"):
            async with connect(f"redis://127.0.0.1:{nodes.nodes[0].port}", registry=Registry()):
                pass

    async def test_a_server_without_a_cluster_is_refused(self, site: Any) -> None:
        """And the error says which scheme is right."""
        settings = Settings(broker_url=f"redis+cluster://127.0.0.1:{site.port}", queues=QUEUES, _env_file=None)
        with pytest.raises(BrokerError, match=r"is no cluster.*write redis://"):
            async with connect(settings, registry=Registry()):
                pass

    async def test_a_cluster_without_an_owner_of_each_slot_is_refused(self, tmp_path: Path) -> None:
        """It takes no commands, though its nodes answer."""
        node = Node(tmp_path / "alone")
        try:
            node.ask("CLUSTER", "ADDSLOTSRANGE", 1, SLOTS - 1)
            settings = Settings(broker_url=f"redis+cluster://127.0.0.1:{node.port}", queues=QUEUES, _env_file=None)
            with pytest.raises(BrokerError, match="is down: 16383 of 16384 slots"):
                async with connect(settings, registry=Registry()):
                    pass
        finally:
            node.stop()

    async def test_one_seed_that_answers_is_enough(self, nodes: Nodes, cluster: Client) -> None:
        """The others are heard of from it."""
        redis = open_redis(f"redis+cluster://127.0.0.1:1,127.0.0.1:{nodes.nodes[0].port}?max_connections=5")
        for name in QUEUES:
            queue = Queue(redis, name)
            assert await queue.count("queued") == 0
            await queue.disconnect()

    async def test_options_and_tls_hold_for_each_connection(self) -> None:
        """For the pool's, for those that ask, and for the lease's thread."""
        url = "rediss+cluster://me:secret@127.0.0.1:1?ssl_cert_reqs=none&max_connections=5"
        queue = Queue(open_redis(url), "{a}", settings=Settings(broker_url=url, _env_file=None))
        made: list[Any] = [queue.redis.connection_pool.make_connection()]
        keeper = LeaseKeeper(queue, "w")
        made.append(keeper._redis.connection_pool.make_connection())
        for connection in made:
            assert (connection.username, connection.password) == ("me", "secret")
            assert isinstance(connection, (SSLConnection, BlockingSSLConnection))
        with pytest.raises(BrokerError, match="cannot be reached"):
            await queue.enqueue("any")
        with pytest.raises(BrokerError, match="is not a URL"):
            open_redis("redis+cluster://127.0.0.1:1?nonsense=1")

    async def test_no_node_that_answers_is_a_broker_error(self) -> None:
        """As with any other server."""
        settings = Settings(broker_url="redis+cluster://127.0.0.1:1,127.0.0.1:2", queues=QUEUES, _env_file=None)
        with pytest.raises(BrokerError, match="cannot be reached"):
            async with connect(settings, registry=Registry()):
                pass

    async def test_the_doctor_names_the_node_of_each_queue(
        self, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """And says nothing twice."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KNAPSAQ_BROKER_URL", nodes.url)
        monkeypatch.setenv("KNAPSAQ_QUEUES", ",".join(QUEUES))
        found = await examine(None)
        assert len([one for one in found if "answers" in one.text]) == 3
        assert len([one for one in found if "append-only" in one.text]) == 1
        monkeypatch.setenv("KNAPSAQ_QUEUES", "mail")
        assert any("KNAPSAQ_QUEUES={mail}" in one.text for one in await examine(None) if one.state == "fail")


class TestMoves:
    async def test_a_worker_follows_its_slot(self, nodes: Nodes, cluster: Client, queue: Queue, echo: Echo) -> None:
        """Jobs that wait are moved with it, and its lease goes on at the new node."""
        async with working(queue):
            assert await runs(echo, queue.name) == "x"
            waiting = await echo.using(delay=0.3).enqueue("delayed")
            nodes.move(queue.name, nodes.owner(QUEUES[1]))
            assert await waiting.wait(10) == "delayed"
            assert await runs(echo, queue.name) == "x"

    async def test_a_slot_between_two_nodes_is_an_outage(
        self, nodes: Nodes, queue: Queue, echo: Echo, cluster: Client
    ) -> None:
        """Nothing is run by halves: who asks is told to try again, and afterwards all goes on."""
        await echo.enqueue("before")
        old, new = nodes.owner(queue.name), nodes.owner(QUEUES[2])
        nodes.begin_move(queue.name, new)
        with pytest.raises(BrokerError, match="is moving the queue to another node"):
            await echo.enqueue("between")
        nodes.move(queue.name, new)
        assert nodes.owner(queue.name) is new is not old
        async with working(queue):
            assert await runs(echo, queue.name) == "x"
            await eventually(lambda: not_queued(queue))

    async def test_a_replica_takes_over(self, nodes: Nodes, cluster: Client, queue: Queue, echo: Echo) -> None:
        """When a node dies its queues are where its replica is, and workers and callers find them there."""
        owner = nodes.owner(queue.name)
        replica = nodes.replicate(owner)
        async with working(queue):
            assert await runs(echo, queue.name) == "x"
            nodes.kill(owner)
            assert await runs(echo, queue.name) == "x"
            assert replica.admin.info("replication")["role"] == "master"
        nodes.doubt_after(PATIENCE)


async def not_queued(queue: Queue) -> bool:
    return await queue.count("incomplete") == 0
