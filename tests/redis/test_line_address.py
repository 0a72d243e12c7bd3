"""Where a line leads and how errors come back, with a real server at its other end."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from pathlib import Path

import pytest
from redis import exceptions
from tests.redis.lines import (
    NAME,
    Site,
    identity,
    on_each_loop,
    open_line,
    relaying,
)
from tests.support import free_port


class TestErrors:
    @on_each_loop
    async def test_error_replies_are_redis_pys_exceptions(self, site: Site) -> None:
        """Exactly the class that redis-py raises; the line stays."""
        async with open_line(f"redis://bob:builder@127.0.0.1:{site.port}?client_name={NAME}") as line:
            before = await identity(line)
            await line.execute("SET", "text", "x")
            with pytest.raises(exceptions.NoScriptError):
                await line.execute("EVALSHA", "0" * 40, 0)
            with pytest.raises(exceptions.NoPermissionError):
                await line.execute("HGET", "text", "field")
            with pytest.raises(exceptions.ResponseError, match="WRONGTYPE") as wrong:
                await line.execute("LPUSH", "text", "x")
            assert type(wrong.value) is exceptions.ResponseError
            site.admin.config_set("maxmemory", 1)
            try:
                with pytest.raises(exceptions.OutOfMemoryError):
                    await line.execute("SET", "text", "y")
            finally:
                site.admin.config_set("maxmemory", 0)
            assert await identity(line) == before

    @on_each_loop
    async def test_a_server_that_has_become_a_replica_is_left(self, site: Site) -> None:
        """There is another primary now: the writer is told, and the next command looks for it."""
        async with open_line(site.named_url) as line:
            before = await identity(line)
            site.admin.replicaof("127.0.0.1", free_port())
            try:
                with pytest.raises(exceptions.ReadOnlyError):
                    await line.execute("SET", "text", "x")
                after = await identity(line)
                assert after > before
                with pytest.raises(exceptions.ReadOnlyError):
                    await line.execute("EVAL", "return redis.call('SET', KEYS[1], 'x')", 1, "text")
                assert await identity(line) > after
            finally:
                site.admin.replicaof("no", "one")
            await line.execute("SET", "text", "x")

    @on_each_loop
    async def test_a_refused_login_is_told_to_all_and_tried_again(self, site: Site) -> None:
        """Nobody waits for ever, and a password that was set right later is used."""
        async with open_line(f"redis://late:secret@127.0.0.1:{site.port}?client_name={NAME}") as line:
            for call in [asyncio.ensure_future(line.execute("PING")) for _ in range(2)]:
                with pytest.raises(exceptions.AuthenticationError):
                    await call
            site.admin.acl_setuser("late", enabled=True, passwords=["+secret"], commands=["+@all"])
            assert await line.execute("PING") == b"PONG"
            site.admin.acl_deluser("late")


class TestAddress:
    @on_each_loop
    async def test_the_url_is_understood_as_by_redis_py(self, site: Site) -> None:
        """Socket or port, user and password, the number of the database."""
        for url, user, database in (
            (site.named_url, "default", "0"),
            (f"{site.named_url}&db=2&username=bob&password=builder", "bob", "2"),
            (f"redis://127.0.0.1:{site.port}/5?client_name={NAME}", "default", "5"),
            (f"redis://bob:builder@localhost:{site.port}?client_name={NAME}", "bob", "0"),
        ):
            async with open_line(url) as line:
                assert await line.execute("ACL", "WHOAMI") == user.encode()
                [client] = site.connections()
                assert (client["user"], client["db"]) == (user, database)

    @on_each_loop
    async def test_a_server_with_tls(self, site: Site, authority: Path) -> None:
        """The certificate is checked; long commands and replies come through, and a cut is noticed."""
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(authority, authority.with_suffix(".key"))
        text = os.urandom(3_000_000)
        async with relaying(site.url, tls) as port:
            url = f"rediss://127.0.0.1:{port}?client_name={NAME}"
            noticed = asyncio.Event()
            async with open_line(f"{url}&ssl_ca_certs={authority}", on_cut=noticed.set) as line:
                assert await asyncio.gather(*(line.execute("ECHO", one) for one in (text, "b"))) == [text, b"b"]
                before = await identity(line)
                site.cut()
                await noticed.wait()
                assert await identity(line) > before
            async with open_line(url) as line:
                with pytest.raises(exceptions.ConnectionError, match="certificate"):
                    await line.execute("PING")

    @pytest.fixture
    def authority(self, tmp_path: Path) -> Path:
        """A certificate that has signed itself; its key is beside it."""
        path = tmp_path / "own.pem"
        words = f"-x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here -out {path} -keyout {path.with_suffix('.key')}"
        command = ["openssl", "req", *words.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own arguments
        return path
