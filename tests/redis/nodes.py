"""A cluster for tests: three nodes, among which slots can be moved, and a replica that can take over."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis as BlockingRedis
from tests.support import PATIENCE, answers, free_port

from knapsaq.redis.server import find_program
from knapsaq.shards import SLOTS, slot_of

QUEUES = ("{a}", "{b}", "{c}")
"""Three queues in the slots of three nodes: the last, the first and the second."""


class Node:
    """One server."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.port, bus = free_port(), free_port()
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "cluster-enabled": "yes",
            "cluster-port": str(bus),
            "cluster-node-timeout": "500",
            "cluster-replica-validity-factor": "0",
            "repl-diskless-sync-delay": "0",
            "save": "",
            "dir": os.fspath(directory),
            "logfile": "log",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen([os.fspath(find_program()), *arguments], cwd=directory)  # noqa: S603 - our own arguments
        self.admin: Any = BlockingRedis(port=self.port)
        until(lambda: answers(f"redis://127.0.0.1:{self.port}"))
        self.id = self.ask("CLUSTER", "MYID").decode()
        self.address = ("127.0.0.1", self.port, bus)

    def ask(self, *words: str | int) -> Any:
        """Return the reply to a command."""
        return self.admin.execute_command(*words)

    def stop(self) -> None:
        """End it as ``kill -9`` does."""
        self.admin.close()
        self.process.kill()
        self.process.wait()


class Nodes:
    """Three nodes that share the slots."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.nodes: list[Node] = [Node(directory / f"{number}") for number in range(3)]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "ADDSLOTSRANGE", SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", *self.nodes[0].address)
        self.agree()
        self.doubt_after(PATIENCE)

    @property
    def url(self) -> str:
        """The cluster's URL, with two nodes in it."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[1:])

    def agree(self) -> None:
        """Wait until every node knows all others, and all slots have an owner."""
        until(lambda: all(self._is_whole(node) for node in self.nodes))

    def doubt_after(self, seconds: float) -> None:
        """Let nodes take one for dead that has not answered for so long."""
        for node in self.nodes:
            node.ask("CONFIG", "SET", "cluster-node-timeout", int(seconds * 1000))

    def owner(self, queue: str) -> Node:
        """Return the node that owns a queue's slot, as the first one knows it."""
        for first, last, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot_of(queue) <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(queue)

    def move(self, queue: str, to: Node) -> None:
        """Move a queue's slot with its keys to another node, as ``redis-cli --cluster reshard`` does."""
        old, slot = self.owner(queue), slot_of(queue)
        self.begin_move(queue, to)
        while keys := old.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            old.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        for node in (to, old, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", to.id)

    def begin_move(self, queue: str, to: Node) -> None:
        """Begin to move a queue's slot: it is between two nodes from now on."""
        old, slot = self.owner(queue), slot_of(queue)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", old.id)
        old.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)

    def spread(self) -> None:
        """Give each queue a node of its own."""
        for queue, node in zip(QUEUES, self.nodes, strict=True):
            if self.owner(queue) is not node:
                self.move(queue, node)

    def replicate(self, owner: Node) -> Node:
        """Start a replica of a node, which takes over half a second after its end."""
        replica = Node(self._directory / f"{len(self.nodes)}")
        self.nodes.append(replica)
        replica.ask("CLUSTER", "MEET", *self.nodes[0].address)
        self.agree()
        replica.ask("CLUSTER", "REPLICATE", owner.id)
        until(lambda: replica.admin.info("replication").get("master_link_status") == "up")
        self.doubt_after(0.5)
        return replica

    def kill(self, node: Node) -> None:
        """End a node for good."""
        node.stop()
        self.nodes.remove(node)

    def flush(self) -> None:
        """Forget all keys."""
        for node in self._owners():
            node.admin.flushall()

    def keys(self) -> dict[str, int]:
        """Return every key of all nodes, and in how many seconds it ends; -1 is never."""
        return {key.decode(): node.admin.ttl(key) for node in self._owners() for key in node.admin.scan_iter()}

    def stop(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.stop()

    def _owners(self) -> list[Node]:
        return [node for node in self.nodes if node.admin.info("replication")["role"] == "master"]

    def _is_whole(self, node: Node) -> bool:
        info = node.admin.cluster("INFO")
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(self.nodes)


def until(condition: Callable[[], Any]) -> None:
    """Look until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not become true"
        time.sleep(0.01)
