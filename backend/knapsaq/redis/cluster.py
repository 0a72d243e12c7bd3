"""Cluster: a queue's connections go to the node that owns the queue's slot.

Where in the flow: ``open_redis`` makes a client of these for a cluster's URL, and each queue takes its own of it. A
connection asks some node of the cluster who owns the slot, and connects there. What a node says that has lost the slot
is an outage like any other: the connection is closed, and the next one asks again.

Invariants, each a test in ``tests/redis/test_cluster.py``:

* a queue's commands go to the owner of its slot, also after the slot has moved or its owner has died;
* a command that a node has refused for the slot was not run, and nobody repeats it by itself;
* a name whose keys would lie in several slots is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import redis
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from knapsaq.errors import SettingsError
from knapsaq.redis.prompt import Tcp, Tls
from knapsaq.shards import slot_of, tag_of, tagged

ASK_TIMEOUT = 2.0
OWN_OPTIONS = ("host", "port", "connection_class")
"""What a connection to a slot's owner decides for itself."""
ELSEWHERE = (AskError, TryAgainError, ClusterDownError)
"""What a node says that has not run a command, as it has the slot not, not wholly, or not safely; MOVED is an ASK."""


def is_lasting(error: Exception) -> bool:
    """Tell whether a node that answers so will not have the slot in a moment."""
    return isinstance(error, (MovedError, ClusterDownError))


class ElsewhereError(RedisConnectionError):
    """The slot of a queue is not, or not yet, where it was looked for."""


def elsewhere(error: Exception) -> ElsewhereError:
    """Return what a node that has not run a command answered as the outage that it is."""
    place = f"slot {error.slot_id} is at {error.host}:{error.port}" if isinstance(error, AskError) else str(error)
    return ElsewhereError(place)


class NoClusterError(ResponseError):
    """A server is of no cluster."""


class Address(NamedTuple):
    """Where a node is."""

    host: str
    port: int


class Owners:
    """Who owns which slot, as the nodes tell.

    Args:
        seeds: Nodes that may be asked first.
        tls: Whether they speak TLS.
        options: redis-py's options for the connections on which they are asked.
    """

    def __init__(self, seeds: Iterable[Address], options: Mapping[str, Any], *, tls: bool) -> None:
        self._seeds = self._nodes = list(dict.fromkeys(seeds))
        self._tls = tls
        limits = {"socket_timeout": ASK_TIMEOUT, "socket_connect_timeout": ASK_TIMEOUT}
        self._options = {**options, **limits}

    async def of(self, slot: int) -> Address:
        """Return where the owner of a slot is.

        Raises:
            redis.exceptions.ConnectionError: No node can be asked, or nobody owns the slot.
        """
        error: Exception | None = None
        for node in self._in_turn():
            asked: Any = (Tls if self._tls else Tcp)(host=node.host, port=node.port, **self._options)
            try:
                await asked.connect()
                await asked.send_command("CLUSTER", "SLOTS")
                return self._owner(await asked.read_response(), node, slot)
            except (RedisError, OSError) as problem:
                error = _told(problem)
            finally:
                await asked.disconnect(nowait=True)
        raise _unknown(error) from error

    def of_blocking(self, slot: int) -> Address:
        """Return the same, in a thread that may block."""
        error: Exception | None = None
        kind: type[Any] = redis.SSLConnection if self._tls else redis.Connection
        options = {name: value for name, value in self._options.items() if is_shared(name)}
        for node in self._in_turn():
            asked = kind(host=node.host, port=node.port, socket_timeout=ASK_TIMEOUT, **options)
            try:
                asked.connect()
                asked.send_command("CLUSTER", "SLOTS")
                return self._owner(asked.read_response(), node, slot)
            except (RedisError, OSError) as problem:
                error = _told(problem)
            finally:
                asked.disconnect()
        raise _unknown(error) from error

    def _in_turn(self) -> list[Address]:
        """Return the nodes, another one first each time: one that is cut off from the others does not know better."""
        nodes = self._nodes
        self._nodes = nodes[1:] + nodes[:1]
        return nodes

    def _owner(self, reply: Any, asked: Address, slot: int) -> Address:
        """Return the owner of a slot, and remember the nodes that are told of beside the seeds, and no others."""
        found: Address | None = None
        told: list[Address] = []
        for first, last, *nodes in reply:
            addresses = [_address(node, asked) for node in nodes]
            told += addresses
            if first <= slot <= last:
                found = addresses[0]
        known = {*self._seeds, *told}
        self._nodes = [*(node for node in self._nodes if node in known), *(known - {*self._nodes})]
        if found is None:
            raise ElsewhereError(f"no node of the cluster owns slot {slot}")
        return found


class _Placed:
    """A connection to the owner of a slot, which is asked for as it connects."""

    def __init__(self, *, slot: int, owners: Owners, **options: Any) -> None:
        super().__init__(**options)
        self._slot, self._owners = slot, owners

    async def _connect(self) -> None:
        self.host, self.port = await self._owners.of(self._slot)
        await super()._connect()  # type: ignore[misc]

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ELSEWHERE as error:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise elsewhere(error) from error


class _PlacedTcp(_Placed, Tcp):
    pass


class _PlacedTls(_Placed, Tls):
    pass


class _Blocking:
    """The same for threads."""

    def __init__(self, *, slot: int, owners: Owners, **options: Any) -> None:
        super().__init__(**options)
        self._slot, self._owners = slot, owners

    def _connect(self) -> Any:
        self.host, self.port = self._owners.of_blocking(self._slot)
        return super()._connect()  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except ELSEWHERE as error:
            self.disconnect()  # type: ignore[attr-defined]
            raise elsewhere(error) from error


class BlockingTcp(_Blocking, redis.Connection):
    """A connection to the owner of a slot, for threads."""


class BlockingTls(_Blocking, redis.SSLConnection):
    """A connection to the owner of a slot, with TLS, for threads."""


class ClusterPool(ConnectionPool):
    """The connections to the owner of one slot.

    Attributes:
        cluster: All that go to the same cluster.
    """

    def __init__(self, cluster: Cluster, slot: int, options: Mapping[str, Any], *, tls: bool) -> None:
        kind = _PlacedTls if tls else _PlacedTcp
        super().__init__(connection_class=kind, slot=slot, owners=cluster.owners, **options)
        self.cluster = cluster
        self.tls = tls


class Cluster:
    """The clients of one cluster, one for each slot that is used.

    Args:
        seeds: redis-py's options for each node that the URL names; they differ in host and port alone.
        tls: Whether to speak TLS.
    """

    def __init__(self, seeds: Iterable[Mapping[str, Any]], *, tls: bool) -> None:
        each = [{"host": "localhost", "port": 6379, **options} for options in seeds]
        self._tls = tls
        self._options = {name: value for name, value in each[0].items() if name not in OWN_OPTIONS}
        addresses = [Address(str(one["host"]), int(one["port"])) for one in each]
        asked_with = {name: value for name, value in self._options.items() if name != "max_connections"}  # a pool's
        self.owners = Owners(addresses, asked_with, tls=tls)
        self.clients: dict[int, Redis] = {}

    def client(self, slot: int) -> Redis:
        """Return the client whose commands go to the owner of a slot."""
        if slot not in self.clients:
            self.clients[slot] = Redis.from_pool(ClusterPool(self, slot, self._options, tls=self._tls))
        return self.clients[slot]


def redis_of(client: Redis, queue: str) -> Redis:
    """Return the client for a queue: the one that was given, or in a cluster the one of the queue's slot.

    Raises:
        SettingsError: It is a cluster, where the keys of a queue of that name would lie in several slots.
    """
    pool = client.connection_pool
    if not isinstance(pool, ClusterPool):
        return client
    if tag_of(queue) is None:
        tag = tagged(queue)
        expected = (
            f"names with a hash tag, which keeps the keys of a queue together, as the broker is a cluster: "
            f"KNAPSAQ_QUEUES={tag}, and queue={tag!r} for the tasks of that queue"
        )
        raise SettingsError("KNAPSAQ_QUEUES", queue, expected)
    return pool.cluster.client(slot_of(queue))


def in_cluster(client: Redis) -> bool:
    """Tell whether a client is one of a cluster's."""
    return isinstance(client.connection_pool, ClusterPool)


def clients_of(client: Redis) -> list[Redis]:
    """Return all clients that were made of one: itself, or in a cluster those of all slots."""
    pool = client.connection_pool
    return [*pool.cluster.clients.values()] if isinstance(pool, ClusterPool) else [client]


def is_shared(option: str) -> bool:
    """Tell whether an option of a connection holds for redis-py's blocking connections too."""
    shared = ("db", "username", "password", "credential_provider", "socket_connect_timeout", "slot", "owners")
    return option in shared or option.startswith("ssl_")


def _address(node: Any, asked: Address) -> Address:
    # A node that does not know its own address says nothing: it is where it was asked.
    host = (node[0] or b"").decode()
    return Address(host or asked.host, int(node[1]))


def _told(problem: Exception) -> Exception:
    """Return what a node answered to the question as what it means."""
    if isinstance(problem, ResponseError) and "cluster support disabled" in str(problem):
        return NoClusterError(str(problem))
    return problem


def _unknown(error: Exception | None) -> RedisConnectionError:
    if isinstance(error, ElsewhereError):
        return error
    return RedisConnectionError(f"no node of the cluster tells who owns a slot: {error}")
