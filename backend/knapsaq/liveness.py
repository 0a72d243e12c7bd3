"""Liveness: a worker's lease, its sign of life.

Where in the flow: beside the worker's loop, in a thread with a connection of its
own, so that a task which blocks the loop does not cost the worker its lease. While
the lease stands, nobody else takes the worker's jobs.

Invariants, each a test in ``tests/redis/test_liveness.py``:

* a blocked event loop keeps its lease;
* a worker that has stopped leaves no lease behind;
* a worker that gives its lease up hands its jobs back, and can no longer settle them;
* an outage of Redis does not end the thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import redis
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.exceptions import NoScriptError, RedisError

from knapsaq import events, watchdog
from knapsaq.claims import ClaimingQueue, belongs_to
from knapsaq.job import Job
from knapsaq.redis import scripts
from knapsaq.redis.cluster import BlockingTcp, BlockingTls, ClusterPool, is_shared
from knapsaq.redis.connection import broker_errors

RENEWALS_A_LEASE = 5


class LeaseKeeper(threading.Thread):
    """Renews the lease of one worker on one queue until it is told to stop.

    Args:
        queue: The queue.
        worker: The worker's id.
        on_expired: Called in this thread when other workers' leases have run out.
        on_work: Called in this thread when a job waits to be claimed.
    """

    def __init__(
        self,
        queue: ClaimingQueue,
        worker: str,
        on_expired: Callable[[], None] = lambda: None,
        on_work: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name=f"lease-{queue.name}", daemon=True)
        self._queue = queue
        self._worker = worker
        self._on_expired, self._on_work = on_expired, on_work
        self._ended = threading.Event()
        self._redis = _blocking_client(queue.redis)
        self._lease_ms = int(queue.settings.lease * 1000)
        self._away = False
        self._others_have_until = 0.0
        self._given_up = False
        self._lapses, self._renewed_at = 0, -math.inf
        self.stall_limit = queue.settings.loop_stall_limit
        self.job_of: Callable[[asyncio.Task[Any]], Job[Any] | None] = lambda _task: None

    def guard(self, job_of: Callable[[asyncio.Task[Any]], Job[Any] | None]) -> None:
        """Watch the running loop from now on, and give the lease up if it is blocked for ``loop_stall_limit``.

        Args:
            job_of: Returns the job that a task of asyncio runs; called in another thread.
        """
        self.job_of = job_of
        watchdog.watch(self)

    @property
    def lapses(self) -> int:
        """How often the lease has run out, as far as this process can know: while Redis was away, or it stood still."""
        return self._lapses + (time.monotonic() - self._renewed_at > self._lease_ms / 1000)

    def renew(self) -> None:
        """Renew the lease once.

        Raises:
            redis.exceptions.RedisError: Redis cannot be reached.
        """
        keys = self._queue.keys
        asked, lapses = time.monotonic(), self.lapses
        expired, waits = _run(
            self._redis,
            scripts.lease,
            [keys.leases, keys.saq_sweep_lock, keys.saq_schedule_lock, keys.queued, keys.incomplete],
            [self._queue.now_argument, self._worker, self._lease_ms],
        )
        self._lapses = lapses  # before the other, as the loop's thread may look in between
        self._renewed_at = asked
        if expired and time.monotonic() >= self._others_have_until:
            self._on_expired()
        if waits:
            self._on_work()

    def run(self) -> None:
        """Renew the lease five times in its length, until ``stop``."""
        while not self._ended.wait(self._lease_ms / 1000 / RENEWALS_A_LEASE):
            try:
                self.renew()
            except (RedisError, OSError) as error:
                if not self._away:
                    events.broker_lost(f"lease of worker {self._worker}", error)
                self._away = True
                # After an outage the others need as long as we to renew their leases.
                self._others_have_until = time.monotonic() + self._lease_ms / 1000
                continue
            if self._away:
                events.broker_back(f"lease of worker {self._worker}")
            self._away = False
        if self._given_up:
            with contextlib.suppress(RedisError, OSError):  # it runs out by itself
                self._hand_back()

    def give_up(self) -> None:
        """End the thread and hand the jobs back, for a process that is about to end; ``join`` waits for both."""
        self._given_up = True
        self._ended.set()

    def _hand_back(self) -> None:
        """Do as whoever finds the lease run out; should this process end in between, somebody will."""
        keys = self._queue.keys
        self._redis.zadd(keys.leases, {self._worker: 0}, xx=True)
        _run(
            self._redis,
            scripts.rescue,
            keys.of_rescue,
            [self._queue.now_argument, self._worker],
        )

    def stop(self) -> None:
        """End the thread and give the lease up; blocks until both are done."""
        watchdog.leave(self)
        self._ended.set()
        if self.is_alive():
            self.join()
        try:
            keys = self._queue.keys
            claims: Any = self._redis.hvals(keys.claims)
            if any(belongs_to(claim, self._worker) for claim in claims):
                return  # jobs whose outcome Redis does not have; they are handed back when the lease has run out
            self._redis.zrem(keys.leases, self._worker)
            self._redis.publish(keys.wake, "due")  # the due times that this worker alone had heard of
            if not self._redis.exists(keys.leases):
                self._redis.delete(keys.saq_sweep_lock, keys.saq_schedule_lock)
        except (RedisError, OSError):
            pass  # it runs out by itself
        finally:
            self._redis.close()


async def end_leases(queue: ClaimingQueue, prefix: str) -> None:
    """Have the leases of workers run out whose process is gone: the next one that renews its own rescues their jobs.

    Args:
        queue: The queue.
        prefix: The beginning of their ids.

    Raises:
        BrokerError: Redis cannot be reached.
    """
    execute, leases, beginning = queue.line.execute, queue.keys.leases, prefix.encode()
    with broker_errors(queue.settings.broker_url):
        found = [worker for worker in await execute("ZRANGE", leases, 0, -1) if worker.startswith(beginning)]
        if found:
            await execute("ZADD", leases, "XX", *(word for worker in found for word in (0, worker)))


def _blocking_client(client: Redis) -> redis.Redis:
    """Return a client for threads that reaches the same server as an asynchronous one."""
    pool = client.connection_pool
    options = {
        name: value
        for name, value in pool.connection_kwargs.items()
        if name in ("host", "port", "path") or is_shared(name)
    }
    kind: type[Any] = redis.Connection
    if isinstance(pool, ClusterPool):
        kind = BlockingTls if pool.tls else BlockingTcp
    elif issubclass(pool.connection_class, SSLConnection):
        kind = redis.SSLConnection
    elif issubclass(pool.connection_class, UnixDomainSocketConnection):
        kind = redis.UnixDomainSocketConnection
    return redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, socket_timeout=2.0, **options))


def _run(client: redis.Redis, script: scripts.Script, keys: list[str], args: list[scripts.Argument]) -> Any:
    execute: Any = client.execute_command
    try:
        return execute("EVALSHA", script.sha, len(keys), *keys, *args)
    except NoScriptError:
        return execute("EVAL", script.source, len(keys), *keys, *args)
