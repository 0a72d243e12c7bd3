from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from tests.support import free_port

from knapsaq.environment import redact
from knapsaq.errors import BrokerError
from knapsaq.job_errors import JobNotEndedError
from knapsaq.redis.connection import ServerInfo, broker_errors, check_broker, open_redis
from knapsaq.redis.server import find_program

PASSWORD = "hunter2"


@dataclass(frozen=True)
class Server:
    """A real server that asks for a password, on a socket and on a port."""

    process: subprocess.Popen[bytes]
    socket: str
    port: int

    @property
    def tcp(self) -> str:
        """Its URL by port."""
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}"

    @property
    def unix(self) -> str:
        """Its URL by socket."""
        return f"unix://{self.socket}?password={PASSWORD}"


def is_up(port: int) -> bool:
    """Whether something listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module")
def make_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts real servers, and stops them after the last test."""
    processes: list[subprocess.Popen[bytes]] = []

    def make(*options: str) -> Server:
        port, directory = free_port(), tmp_path_factory.mktemp("server")
        path = str(directory / "s.sock")
        process = subprocess.Popen(  # noqa: S603 - our own arguments
            [
                *(str(find_program()), "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", path, "--save", ""),
                *("--dir", str(directory), "--requirepass", PASSWORD, *options),
            ],
            stdout=subprocess.DEVNULL,
        )
        processes.append(process)
        deadline = time.monotonic() + 10
        while not is_up(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return Server(process, path, port)

    yield make
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def server(make_server: Callable[..., Server]) -> Server:
    """The server that most tests use."""
    return make_server("--appendonly", "yes", "--user", "bob", "on", ">builder", "~*", "+@all", "-info")


@pytest.fixture
async def client() -> AsyncIterator[Callable[..., Redis]]:
    """Opens clients, and closes them after the test."""
    async with contextlib.AsyncExitStack() as opened:

        def make(url: str, *, blocking: bool = False) -> Redis:
            redis = open_redis(url, blocking=blocking)
            opened.push_async_callback(redis.aclose)
            return redis

        yield make


@contextlib.asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server of any behaviour; gives its port."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.close()

    listening = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


async def command(reader: asyncio.StreamReader) -> list[bytes]:
    """Read one command as a server does."""
    words = []
    for _ in range(int((await reader.readexactly(4))[1:2])):
        size = int((await reader.readuntil(b"\r\n"))[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return words


def describing(info: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A server that says of itself what it is told to."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            [verb, *_] = await command(reader)
            text = info.replace(" ", "\r\n")
            answers = {b"PING": "+PONG\r\n", b"INFO": f"${len(text)}\r\n{text}\r\n"}
            writer.write(answers.get(verb, "+OK\r\n").encode())

    return handle


def saying(text: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A server that answers whatever comes with the same bytes, and hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(text)
        await writer.drain()

    return handle


async def refusal(redis: Redis, url: str, *, limit: float = 5) -> BrokerError:
    """Check a server that must be refused, and return the error; neither it nor its causes may show the password."""
    started = time.monotonic()
    with pytest.raises(BrokerError) as caught:
        await check_broker(redis, url, limit=limit)
    assert time.monotonic() - started < limit + 1
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    assert caught.value.remedy
    return caught.value


class TestCommands:
    @pytest.mark.parametrize("kind", ["tcp", "unix"])
    async def test_bytes_go_in_and_come_out_under_our_name(
        self, server: Server, client: Callable[..., Redis], kind: str
    ) -> None:
        """Both kinds of connection work, and an operator sees in CLIENT LIST whose they are."""
        redis = client(getattr(server, kind))
        await redis.set("k", b"\xff\x00")
        assert await redis.get("k") == b"\xff\x00"
        assert await redis.client_getname() == "knapsaq"

    @pytest.mark.parametrize("query", ["", "?retry_on_timeout=true"])
    async def test_a_script_whose_reply_was_lost_is_not_sent_again(
        self, server: Server, client: Callable[..., Redis], query: str
    ) -> None:
        """A connection that breaks after the server ran the script must not make it run twice."""
        seen = 0

        async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal seen
            while True:
                words = await command(reader)
                if words[0] == b"EVAL":
                    seen += 1
                    await direct.execute_command(*words)  # type: ignore[no-untyped-call]
                    return
                writer.write(b"+PONG\r\n" if words == [b"PING"] else b"+OK\r\n")

        direct = client(server.unix)
        await direct.delete("runs")
        async with serving(cut_off) as port:
            redis = client(f"redis://127.0.0.1:{port}{query}")
            with pytest.raises(RedisConnectionError):
                await cast("Awaitable[object]", redis.eval("return redis.call('incr', 'runs')", 0))
        assert seen == 1
        assert await direct.get("runs") == b"1"

    async def test_a_waiting_command_may_take_longer_than_any_other(
        self, server: Server, client: Callable[..., Redis]
    ) -> None:
        """A blocking client has no limit on a reply, even if the URL asks for one; another client has."""
        url = f"{server.unix}&socket_timeout=0.1"
        waiting, ordinary = client(url, blocking=True), client(url)
        assert await waiting.blmove("nothing", "nowhere", 0.3) is None  # type: ignore[arg-type]
        with pytest.raises(RedisTimeoutError):
            await ordinary.blmove("nothing", "nowhere", 0.3)  # type: ignore[arg-type]

    async def test_a_connection_that_the_server_has_closed_is_replaced(
        self, server: Server, client: Callable[..., Redis]
    ) -> None:
        """After a restart of the server the next command works, as nothing of it was sent yet."""
        redis, other = client(server.tcp), client(server.unix)
        await redis.set("k", 1)
        [idle] = redis.connection_pool._available_connections
        assert idle._reader
        await other.client_kill_filter(_id=await redis.client_id())
        async with asyncio.timeout(5):
            while not idle._reader.at_eof():
                await other.echo("still there?")
        assert await redis.get("k") == b"1"

    @pytest.mark.parametrize(
        "url",
        ["embedded", "http://localhost", f"redis://u:{PASSWORD}/x@h:1", "redis://h?colour=red", "redis://h?db=first"],
    )
    def test_a_url_that_cannot_work_is_refused_at_once(self, url: str) -> None:
        """Not with the first command; the parts of a wrongly written password stay hidden."""
        with pytest.raises(BrokerError, match="KNAPSAQ_BROKER_URL") as caught:
            open_redis(url)
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))

    def test_a_password_is_looked_for_only_where_a_url_is_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every command is guarded like this, so what hides it must not run with each of them."""
        shown: list[str] = []

        def noted(url: str) -> str:
            shown.append(url)
            return redact(url)

        monkeypatch.setattr("knapsaq.redis.connection.redact", noted)
        with broker_errors(f"redis://u:{PASSWORD}@h"):
            pass
        assert not shown
        with pytest.raises(BrokerError) as caught, broker_errors(f"redis://u:{PASSWORD}@h"):
            raise RedisConnectionError
        assert len(shown) == 1
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))


class TestCheck:
    @pytest.mark.parametrize("kind", ["tcp", "unix"])
    async def test_a_usable_server_is_described(self, server: Server, client: Callable[..., Redis], kind: str) -> None:
        """What an operator should know of it: kind, version, and whether it may lose jobs."""
        url = getattr(server, kind)
        info = await check_broker(client(url), url)
        assert info.server in ("redis", "valkey")
        assert info.version >= (6, 2)
        assert (info.maxmemory_policy, info.aof) == ("noeviction", True)

    @pytest.mark.parametrize(
        ("says", "info"),
        [
            (
                "redis_version:7.2.4 server_name:valkey valkey_version:9.1.2 role:master aof_enabled:0",
                ServerInfo("valkey", (9, 1, 2), None, aof=False),
            ),
            (
                "redis_version:6.2.0 role:master maxmemory_policy:allkeys-lru",
                ServerInfo("redis", (6, 2, 0), "allkeys-lru", aof=None),
            ),
        ],
    )
    async def test_other_kinds_of_server_are_described_as_far_as_they_tell(
        self, client: Callable[..., Redis], says: str, info: ServerInfo
    ) -> None:
        """Hosted servers keep some things to themselves; Valkey counts versions of its own."""
        async with serving(describing(says)) as port:
            assert await check_broker(client(f"redis://127.0.0.1:{port}"), "") == info

    @pytest.mark.parametrize(
        ("says", "problem", "remedy"),
        [
            ("redis_version:6.0.16 role:master", "6.0.16, which is too old", "Redis 6.2"),
            ("redis_mode:standalone role:master", "too old", "Redis 6.2"),
            ("redis_version:7.2.4 redis_mode:sentinel", "sentinel", "primary"),
        ],
    )
    async def test_a_server_that_lacks_what_we_need_is_refused(
        self, client: Callable[..., Redis], says: str, problem: str, remedy: str
    ) -> None:
        """It would fail later, in the middle of the work."""
        async with serving(describing(says)) as port:
            error = await refusal(client(f"redis://127.0.0.1:{port}"), "")
        assert problem in error.problem
        assert remedy in error.remedy

    async def test_a_replica_is_refused_with_the_address_of_its_primary(
        self, make_server: Callable[..., Server], client: Callable[..., Redis]
    ) -> None:
        """Nothing can be written to it."""
        url = make_server("--replicaof", "127.0.0.1", str(free_port())).tcp
        error = await refusal(client(url), url)
        assert "replica" in error.problem
        assert "primary server, 127.0.0.1:" in error.remedy

    async def test_a_port_that_nobody_listens_on(self, client: Callable[..., Redis]) -> None:
        """The remedy is to start a server, or to use the embedded one."""
        url = f"redis://:{PASSWORD}@127.0.0.1:{free_port()}"
        error = await refusal(client(url), url)
        assert "cannot be reached" in error.problem
        assert "start the server" in error.remedy
        assert error.url == url.replace(PASSWORD, "***")

    async def test_a_socket_and_a_host_that_do_not_exist(self, client: Callable[..., Redis], tmp_path: Path) -> None:
        """The same remedy for the same mistake."""
        for url in (f"unix://{tmp_path}/none.sock", "redis://no-such-host.invalid"):
            error = await refusal(client(url), url)
            assert "cannot be reached" in error.problem

    @pytest.mark.parametrize("kind", ["tcp", "unix"])
    @pytest.mark.parametrize("password", ["", "wrong"])
    async def test_a_missing_or_wrong_password(
        self, server: Server, client: Callable[..., Redis], kind: str, password: str
    ) -> None:
        """Both are the same to who has to put it right."""
        url = getattr(server, kind).replace(PASSWORD, password)
        error = await refusal(client(url), url)
        assert "refused the login" in error.problem
        assert "password" in error.remedy

    async def test_a_user_who_may_not_run_every_command(self, server: Server, client: Callable[..., Redis]) -> None:
        """The remedy is in the server's access list, not in the URL."""
        url = f"redis://bob:builder@127.0.0.1:{server.port}"
        error = await refusal(client(url), url)
        assert "forbids a command" in error.problem
        assert "access list" in error.remedy

    async def test_a_server_that_does_not_answer(
        self, make_server: Callable[..., Server], client: Callable[..., Redis]
    ) -> None:
        """It accepts the connection and is silent: the check ends within its limit all the same."""
        server = make_server()
        os.kill(server.process.pid, signal.SIGSTOP)
        error = await refusal(client(server.tcp), server.tcp, limit=0.3)
        assert error.problem == "did not answer within 0.3 s"
        assert "may have been done" in error.remedy
        assert "TLS" in error.remedy

    @pytest.mark.parametrize(
        ("scheme", "answer", "problem", "remedy"),
        [
            ("rediss", b"-ERR Protocol error\r\n", "did not agree on TLS", "redis://"),
            ("redis", b"", "ended the conversation", "rediss://"),
            ("redis", b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not a Redis server", "host and port"),
            ("redis", b"-LOADING Redis is loading the dataset in memory\r\n", "still loading", "wait"),
            ("redis", b"-DENIED Redis is running in protected mode\r\n", "protected mode", "configuration"),
        ],
    )
    async def test_other_things_that_listen_on_a_port(
        self, client: Callable[..., Redis], scheme: str, answer: bytes, problem: str, remedy: str
    ) -> None:
        """TLS where there is none and the reverse, a web server, a server that is not ready."""
        async with serving(saying(answer)) as port:
            url = f"{scheme}://127.0.0.1:{port}"
            error = await refusal(client(url), url)
        assert problem in error.problem
        assert remedy in error.remedy

    async def test_what_the_caller_was_handling_is_not_taken_for_the_cause(
        self, server: Server, client: Callable[..., Redis]
    ) -> None:
        """A check in the middle of another error's handling finds the right cause."""
        url = server.tcp.replace(PASSWORD, "wrong")
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0)
        except TimeoutError:
            error = await refusal(client(url), url)
        assert "refused the login" in error.problem


def test_an_error_of_ours_is_not_taken_for_one_of_the_server() -> None:
    """Though it is a TimeoutError too, as where a startup function has waited for a job in vain."""
    with pytest.raises(JobNotEndedError), broker_errors("redis://localhost"):
        raise JobNotEndedError("echo", "one", 1.0, "queued")
