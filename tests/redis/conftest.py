"""The tasks that most tests of storage and running use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis import Redis as BlockingRedis
from tests.conftest import ENDLESS_KEYS
from tests.redis.lines import Site
from tests.redis.nodes import QUEUES, Nodes
from tests.support import Server, eventually, free_port

from knapsaq import Client, Queue, Registry, Settings, Task, connect
from knapsaq.registry import AnyTask
from knapsaq.relay import Relay


@pytest.fixture
def echo(registry: Registry) -> Task[..., Any, Any]:
    """A task that gives back what it is given."""

    @registry.task
    async def echo(text: str) -> str:
        return text

    return echo


@pytest.fixture
def one(registry: Registry) -> AnyTask:
    """A task that gives back what it is given."""

    @registry.task
    async def one(given: Any = None) -> Any:
        return given

    return one


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster of three nodes."""
    nodes = Nodes(tmp_path_factory.mktemp("cluster"))
    yield nodes
    nodes.stop()


@pytest.fixture
def cluster_settings(nodes: Nodes) -> Settings:
    """Settings for the cluster."""
    return Settings(broker_url=nodes.url, queues=QUEUES, shutdown_grace=5.0, lease=1, _env_file=None)


@pytest.fixture
async def cluster(nodes: Nodes, cluster_settings: Settings, registry: Registry) -> AsyncIterator[Client]:
    """An open connection with an empty cluster behind it, whose keys are looked at when the test ends."""
    nodes.flush()
    nodes.spread()
    async with connect(cluster_settings, registry=registry) as client:
        yield client
        await eventually(lambda: _carried(client))
    strays = [key for key, ttl in nodes.keys().items() if ttl == -1 and not ENDLESS_KEYS.fullmatch(key.encode())]
    assert not strays, f"keys without owner or expiry: {strays}"


async def _carried(client: Client) -> bool:
    """Carry what workers have left that stopped as they were at it; False while the lock of one of them holds."""
    return not any([await Relay(queue, "next").run_once() for queue in client.queues.values()])


@pytest.fixture
def here(cluster: Client) -> Queue:
    """The queue in which workflows are kept."""
    return cluster.queue(QUEUES[0])


@pytest.fixture
def there(cluster: Client) -> Queue:
    """A queue in another slot."""
    return cluster.queue(QUEUES[1])


class Gate:
    """A task ``held`` whose jobs begin and then wait until the test lets them go.

    Attributes:
        begun: The ids of the jobs that have begun, once for each attempt.
        ended: The ids of the jobs whose function has returned.
        most: How many were inside at once, at most.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.most = 0
        self._inside = 0
        self._opened = asyncio.Event()

    def open(self) -> None:
        """Let all jobs go, now and from now on."""
        self._opened.set()

    async def run(self, key: str) -> str:
        """Note that a job is inside, and wait."""
        self.begun.append(key)
        self._inside += 1
        self.most = max(self.most, self._inside)
        try:
            await self._opened.wait()
        finally:
            self._inside -= 1
        self.ended.append(key)
        return "let go"

    async def entered(self, times: int = 1) -> None:
        """Wait until so many attempts have begun."""
        await eventually(lambda: len(self.begun) >= times)


@pytest.fixture
async def gate(registry: Registry) -> AsyncIterator[Gate]:
    """The gate before the task ``held``; it is opened when the test ends."""
    gate = Gate()

    @registry.task(retries=2)
    async def held(ctx: dict[str, Any]) -> str:
        return await gate.run(ctx["job"].key)

    yield gate
    gate.open()


@pytest.fixture(scope="session")
def line_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of the lines' own."""
    server = Server(tmp_path_factory.mktemp("line"))
    admin = BlockingRedis.from_url(server.start(), decode_responses=True)
    port = free_port()
    admin.config_set("port", port)
    admin.acl_setuser("bob", enabled=True, passwords=["+builder"], keys=["*"], commands=["+@all", "-hget"])
    yield Site(server.url, port, admin)
    admin.close()
    server.stop()


@pytest.fixture
def site(line_server: Site) -> Iterator[Site]:
    """The server, empty, and at the end nobody is connected to it any more."""
    line_server.admin.flushall()
    yield line_server
    asyncio.run(eventually(lambda: not line_server.connections()))
