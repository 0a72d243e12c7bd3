"""Liveness: a worker's lease, its sign of life.

Where in the flow: beside the worker's loop, in a thread with a connection of its
own, so that a task which blocks the loop does not cost the worker its lease. While
the lease stands, nobody else takes the worker's jobs.

Invariants, each a test in ``tests/redis/test_liveness.py``:

* a blocked event loop keeps its lease;
* a worker that has stopped leaves no lease behind;
* an outage of Redis does not end the thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import redis
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.exceptions import NoScriptError, RedisError

from knapsaq import events
from knapsaq.claims import ClaimingQueue, belongs_to
from knapsaq.redis import scripts

RENEWALS_A_LEASE = 5
SHARED_OPTIONS = ("host", "port", "db", "username", "password", "path", "socket_connect_timeout")


class LeaseKeeper(threading.Thread):
    """Renews the lease of one worker on one queue until it is told to stop.

    Args:
        queue: The queue.
        worker: The worker's id.
        on_expired: Called in this thread when other workers' leases have run out.
    """

    def __init__(self, queue: ClaimingQueue, worker: str, on_expired: Callable[[], None]) -> None:
        super().__init__(name=f"lease-{queue.name}", daemon=True)
        self._queue = queue
        self._worker = worker
        self._on_expired = on_expired
        self._ended = threading.Event()
        self._redis = _blocking_client(queue.redis)
        self._lease_ms = int(queue.settings.lease * 1000)
        self._away = False

    def renew(self) -> None:
        """Renew the lease once.

        Raises:
            redis.exceptions.RedisError: Redis cannot be reached.
        """
        keys = self._queue.keys
        expired = _run(
            self._redis,
            scripts.lease,
            [keys.leases, keys.saq_sweep_lock, keys.saq_schedule_lock],
            [self._queue.now_argument, self._worker, self._lease_ms],
        )
        if expired:
            self._on_expired()

    def run(self) -> None:
        """Renew the lease five times in its length, until ``stop``."""
        while not self._ended.wait(self._lease_ms / 1000 / RENEWALS_A_LEASE):
            try:
                self.renew()
            except (RedisError, OSError) as error:
                if not self._away:
                    events.broker_lost(f"lease of worker {self._worker}", error)
                self._away = True
                continue
            if self._away:
                events.broker_back(f"lease of worker {self._worker}")
            self._away = False

    def stop(self) -> None:
        """End the thread and give the lease up; blocks until both are done."""
        self._ended.set()
        if self.is_alive():
            self.join()
        try:
            keys = self._queue.keys
            claims: Any = self._redis.hvals(keys.claims)
            if any(belongs_to(claim, self._worker) for claim in claims):
                return  # jobs whose outcome Redis does not have; they are handed back when the lease has run out
            self._redis.zrem(keys.leases, self._worker)
            if not self._redis.exists(keys.leases):
                self._redis.delete(keys.saq_sweep_lock, keys.saq_schedule_lock)
        except (RedisError, OSError):
            pass  # it runs out by itself
        finally:
            self._redis.close()


def _blocking_client(client: Redis) -> redis.Redis:
    """Return a client for threads that reaches the same server as an asynchronous one."""
    pool = client.connection_pool
    options = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if name in SHARED_OPTIONS or name.startswith("ssl_")
    }
    kind: type[Any] = redis.Connection
    if issubclass(pool.connection_class, SSLConnection):
        kind = redis.SSLConnection
    elif issubclass(pool.connection_class, UnixDomainSocketConnection):
        kind = redis.UnixDomainSocketConnection
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=kind, socket_timeout=2.0, **options))


def _run(client: redis.Redis, script: scripts.Script, keys: list[str], args: list[scripts.Argument]) -> Any:
    execute: Any = client.execute_command
    try:
        return execute("EVALSHA", script.sha, len(keys), *keys, *args)
    except NoScriptError:
        return execute("EVAL", script.source, len(keys), *keys, *args)
