"""Connections: clients for a Redis or Valkey URL, and the check that a server can be used.

Where in the flow: whoever connects opens a client here, checks the server once,
and hands the client to the queues.

Invariants, each a test in ``tests/redis/test_connection.py``:

* a command is sent once; redis-py does not repeat it when the reply is lost, as the server may have run it;
* a client for waiting commands waits as long as they take; any other command ends after 10 s;
* whatever is wrong with a server, the check ends within its limit with a remedy, and shows no password.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from knapsaq.environment import redact
from knapsaq.errors import BrokerError, KnapsaqError
from knapsaq.redis.cluster import Cluster, ElsewhereError, NoClusterError, in_cluster
from knapsaq.redis.prompt import PROMPT
from knapsaq.shards import is_cluster, seeds_of

CONNECT_TIMEOUT = 5.0
COMMAND_TIMEOUT = 10.0
CHECK_TIMEOUT = 5.0
HEALTH_CHECK_INTERVAL = 30.0

OLDEST_SERVER = (6, 2, 0)
"""The first Redis with BLMOVE; every Valkey has it."""

# A peer that vanished without a word is noticed after 30 s, where the kernel's own default is over two hours.
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPALIVE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}

UNREACHABLE = (
    "cannot be reached ({error})",
    "start the server or correct the address in KNAPSAQ_BROKER_URL; unset, it means a private server",
)

DIAGNOSES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str, str], ...] = (
    (AuthenticationError, "refused the login ({error})", "put the right user and password into KNAPSAQ_BROKER_URL"),
    (NoPermissionError, "forbids a command ({error})", "give the user `~* &* +@all` in the server's access list"),
    (
        OutOfMemoryError,
        "has no memory left ({error})",
        "raise its maxmemory, or let results expire sooner with KNAPSAQ_RESULT_TTL",
    ),
    (ReadOnlyError, "is a replica, where nothing can be written", "give the address of its primary server"),
    (BusyLoadingError, "is still loading its data", "wait until it has started, then try again"),
    (
        ssl.SSLCertVerificationError,
        "has a TLS certificate that is not trusted ({error})",
        "name the file of its authority: rediss://...?ssl_ca_certs=/path/to/ca.pem",
    ),
    (ssl.SSLError, "did not agree on TLS ({error})", "use redis:// if the server has no TLS"),
    (
        (TimeoutError, RedisTimeoutError),
        "did not answer within {limit:g} s",
        (
            "what was asked may have been done: send a job again with the same key; check the server's load, the "
            "address, the firewall, and whether it wants redis:// or, with TLS, rediss://"
        ),
    ),
    (OSError, *UNREACHABLE),
    (
        ElsewhereError,
        "is moving the queue to another node, or has lost the one that had it ({error})",
        "try again in a moment; if it stays so, look at CLUSTER INFO",
    ),
    (NoClusterError, "is no cluster", "write redis:// in KNAPSAQ_BROKER_URL, or rediss:// with TLS"),
    (InvalidResponse, "is not a Redis server ({error})", "correct host and port in KNAPSAQ_BROKER_URL"),
    (ResponseError, "answered with an error ({error})", "correct the server's configuration or KNAPSAQ_BROKER_URL"),
)
"""What a failed check may have been caused by, the more particular first, with problem and remedy."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself.

    Attributes:
        server: ``"redis"`` or ``"valkey"``; other servers of the protocol call themselves ``"redis"``.
        version: The version in that server's own counting, such as ``(9, 1, 2)``.
        maxmemory_policy: What it evicts when its memory is full; anything but ``"noeviction"`` may lose jobs.
            ``None`` if it does not tell, as some hosted servers.
        aof: Whether its append-only file is on, so that jobs outlive a restart; ``None`` if it does not tell.
    """

    server: Literal["redis", "valkey"]
    version: tuple[int, ...]
    maxmemory_policy: str | None
    aof: bool | None


def open_redis(url: str, *, blocking: bool = False) -> Redis:
    """Return a client; it connects with its first command, and ``await client.aclose()`` closes it.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, or of a cluster ``redis+cluster://`` or ``rediss+cluster://``,
            with commas between the addresses of some of its nodes; redis-py's options may follow in the query. The
            client of a cluster is where queues take theirs from, see ``cluster.redis_of``.
        blocking: Whether the client is for commands that wait on the server (``BLMOVE``, pub/sub), which may then
            take as long as they like. Otherwise a reply that takes over 10 s raises redis-py's ``TimeoutError``;
            the server may have run the command nevertheless.

    Raises:
        BrokerError: The URL is none of these, or has an option that redis-py does not know.
    """
    try:
        each = [{**parse_url(one)} for one in (seeds_of(url) if is_cluster(url) else [url])]
    except ValueError:
        # Neither redis-py's text nor its traceback: they may hold a part of the password.
        raise _url_error(url) from None
    client = _client(each, clustered=is_cluster(url), blocking=blocking)
    pool = client.connection_pool
    try:
        pool.connection_class(**pool.connection_kwargs)  # checks the options; nothing is sent
    except (TypeError, ValueError, RedisError):
        raise _url_error(url) from None
    return client


def _client(each: list[dict[str, Any]], *, clustered: bool, blocking: bool) -> Redis:
    """Return a client for what a URL says: of a server, or of each node of a cluster that it names."""
    kind = each[0].get("connection_class", Connection)
    options: dict[str, Any] = {
        "client_name": "knapsaq",
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "health_check_interval": HEALTH_CHECK_INTERVAL,
        "socket_timeout": COMMAND_TIMEOUT,
    }
    if kind is not UnixDomainSocketConnection:
        options["socket_keepalive"] = True
        options["socket_keepalive_options"] = _keepalive()
    # No retries: a script whose reply was lost may have run, and would run twice.
    fixed: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "decode_responses": False}
    if blocking:
        fixed["socket_timeout"] = None
    if clustered:
        seeds = [{**options, **one, **fixed} for one in each]
        return Cluster(seeds, tls=kind is SSLConnection).client(0)
    fixed["connection_class"] = PROMPT[kind]
    return Redis.from_pool(ConnectionPool(**{**options, **each[0], **fixed}))


async def check_broker(redis: Redis, url: str, *, limit: float = CHECK_TIMEOUT) -> ServerInfo:
    """Ask a server who it is, and refuse one that cannot be used.

    Args:
        redis: A client of it, as :func:`open_redis` makes.
        url: Its URL, for the error's text; a password in it is not shown.
        limit: Seconds that this may take.

    Raises:
        BrokerError: The server cannot be reached or does not answer, does not accept the password, expects TLS or
            has none, is no Redis, is older than Redis 6.2, is a replica or a sentinel, is in a cluster though the
            URL says otherwise, or may not be used by this user. ``.remedy`` says what to do.
    """
    with broker_errors(url, limit):
        async with asyncio.timeout(limit):
            await cast("Awaitable[bool]", redis.ping())
            info: Mapping[str, Any] = await redis.info()
            state = await redis.execute_command("CLUSTER INFO") if in_cluster(redis) else {}  # type: ignore[no-untyped-call]
    if state.get("cluster_state", "ok") != "ok":
        problem = f"is down: {state.get('cluster_slots_ok')} of 16384 slots have an owner that answers"
        raise BrokerError(
            redact(url), problem, "look at CLUSTER NODES; a cluster that has just been made takes a moment"
        )
    if fault := _unusable(info, clustered=in_cluster(redis)):
        raise BrokerError(redact(url), *fault)
    is_valkey = "valkey_version" in info
    return ServerInfo(
        server="valkey" if is_valkey else "redis",
        version=_version(info["valkey_version" if is_valkey else "redis_version"]),
        maxmemory_policy=info.get("maxmemory_policy"),
        aof=bool(info["aof_enabled"]) if "aof_enabled" in info else None,
    )


class broker_errors:  # noqa: N801 - reads as contextlib's suppress does
    """Raise what goes wrong with a server within the block as ``BrokerError``, with problem and remedy.

    Args:
        url: The server's URL; a password in it is not shown.
        limit: Seconds that a command may take, for the error's text.
    """

    __slots__ = ("_limit", "_url")

    def __init__(self, url: str, limit: float = COMMAND_TIMEOUT) -> None:
        self._url, self._limit = url, limit

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (RedisError, OSError)) and not isinstance(error, KnapsaqError):
            raise BrokerError(redact(self._url), *_diagnose(error, self._limit)) from error


def _url_error(url: str) -> BrokerError:
    return BrokerError(
        redact(url),
        "is not a URL that can be connected to",
        "set KNAPSAQ_BROKER_URL to redis://[user:password@]host[:port][/db], rediss://..., unix:///path or "
        "redis+cluster://host:port,host:port, with / ? # @ : in a password percent-encoded and only options that "
        "redis-py knows after a question mark",
    )


def _keepalive() -> dict[int, int]:
    # The names differ between Linux and macOS.
    return {getattr(socket, name): value for name, value in KEEPALIVE.items() if hasattr(socket, name)}


def _version(text: object) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(text))[:3])


def _unusable(info: Mapping[str, Any], *, clustered: bool) -> tuple[str, str] | None:
    """Return problem and remedy of a server that answers but cannot be used."""
    mode = info.get("redis_mode", info.get("server_mode"))
    if mode == "sentinel":
        return "is a sentinel, which holds no data", "give the address of the primary server"
    if mode == "cluster" and not clustered:
        return "is a node of a cluster", "write redis+cluster:// in KNAPSAQ_BROKER_URL, or rediss+cluster:// with TLS"
    if info.get("role") == "slave":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        return "is a replica, where nothing can be written", f"give the address of its primary server, {primary}"
    version = info.get("redis_version", "unknown")
    if _version(version) < OLDEST_SERVER:
        return f"runs Redis {version}, which is too old", "upgrade it to Redis 6.2 or later, or to Valkey"
    return None


def _diagnose(error: Exception, limit: float) -> tuple[str, str]:
    """Return problem and remedy of a failed check."""
    for cause in _causes(error):
        for kind, problem, remedy in DIAGNOSES:
            if isinstance(cause, kind):
                return problem.format(error=error, limit=limit), remedy
    if "connecting to" in str(error):  # redis-py's own text, where it has dropped the cause
        return UNREACHABLE[0].format(error=error), UNREACHABLE[1]
    return f"ended the conversation ({error})", "look into its log; use rediss:// if it expects TLS"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # redis-py puts its plain ConnectionError around what happened, and not in the same way for TCP and unix sockets.
    while error is not None:
        if type(error) is not RedisConnectionError:
            yield error
        error = error.__cause__ or error.__context__
