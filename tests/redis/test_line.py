"""The connection that all callers share, with a real server at its other end, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis import exceptions
from tests.redis.lines import (
    LOOPS,
    NAME,
    PATIENCE,
    SLACK,
    NewLoop,
    Site,
    identity,
    on_each_loop,
    open_line,
    relaying,
)
from tests.support import Proxy, eventually

from knapsaq import Queue, Settings
from knapsaq.redis.connection import open_redis
from knapsaq.redis.line import Line, shared_line


async def turns(number: int) -> None:
    """Let the loop turn so often."""
    for _ in range(number):
        await asyncio.sleep(0)


class TestOrder:
    @on_each_loop
    async def test_each_caller_gets_its_own_reply(self, site: Site) -> None:
        """A thousand at once, short and long, errors among them, over one connection."""

        async def ask(number: int) -> None:
            if number % 10 == 9:
                with pytest.raises(exceptions.ResponseError, match=f"unknown command 'NO-{number}'"):
                    await line.execute(f"NO-{number}")
            else:
                text = b"%d " % number * (20_000 if number % 100 == 0 else 1)
                assert await line.execute("ECHO", text) == text

        async with open_line(site.named_url) as line:
            await asyncio.gather(*(ask(number) for number in range(1000)))
            assert len(site.connections()) == 1

    @on_each_loop
    async def test_a_command_is_sent_once(self, site: Site, tmp_path: Path) -> None:
        """When the reply is lost the callers are told, and nobody tries again what may have been done."""
        async with Proxy(tmp_path / "proxy", site.url).listening() as proxy, open_line(proxy.url) as line:
            await line.execute("INCR", "counted")
            proxy.lose(1, lambda request, _reply: b"INCR" in request)
            calls = [asyncio.ensure_future(line.execute("INCR", "counted")) for _ in range(3)]
            for call in calls:
                with pytest.raises(exceptions.ConnectionError):
                    await call
            assert site.admin.get("counted") == "4"
            assert await line.execute("GET", "counted") == b"4"

    @on_each_loop
    async def test_a_cancelled_caller_disturbs_no_other(self, site: Site) -> None:
        """Its reply is dropped when it comes; also when it was the one that connects."""
        async with open_line(site.named_url) as line:
            for _ in ("while it connects", "while it waits"):
                with site.silent():
                    calls = [asyncio.ensure_future(line.execute("ECHO", text)) for text in "abcd"]
                    await asyncio.sleep(0)
                    calls[0].cancel()
                    calls[2].cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await calls[0]
                assert await asyncio.gather(calls[1], calls[3]) == [b"b", b"d"]
                assert await line.execute("ECHO", "e") == b"e"
            assert len(site.connections()) == 1

    @on_each_loop
    async def test_what_cannot_be_sent_disturbs_no_other(self, site: Site) -> None:
        """It is refused before anything is written."""
        async with open_line(site.named_url) as line:
            call = asyncio.ensure_future(line.execute("ECHO", "a"))
            with pytest.raises(exceptions.DataError):
                await line.execute("ECHO", {"no": "text"})
            assert (await call, await line.execute("ECHO", "b")) == (b"a", b"b")

    @on_each_loop
    async def test_all_queues_of_a_client_share_the_line(self, site: Site) -> None:
        """A hundred jobs sent to two queues at once need one connection."""
        redis = open_redis(site.named_url)
        queues = [Queue(redis, name, settings=Settings(broker_url=site.url, _env_file=None)) for name in ("a", "b")]
        await asyncio.gather(*(queues[number % 2].enqueue("any", key=str(number)) for number in range(100)))
        assert queues[0].line is queues[1].line is shared_line(redis)
        assert len(site.connections()) == 1
        for queue in queues:
            await queue.disconnect()


class TestPatience:
    @pytest.mark.parametrize("kind", ["stopped", "paused"])
    @on_each_loop
    async def test_a_server_that_does_not_answer_costs_the_patience(self, site: Site, kind: str) -> None:
        """Whoever waits gets redis-py's TimeoutError, and not before it; then the line is of use again."""
        async with open_line(site.named_url, PATIENCE) as line:
            loop = asyncio.get_running_loop()
            await line.execute("ECHO", "heard")
            with site.silent() if kind == "stopped" else contextlib.nullcontext():
                if kind == "paused":
                    site.admin.client_pause(int(PATIENCE * 2500))
                begun = loop.time()
                calls = [asyncio.ensure_future(line.execute("INCR", "counted")) for _ in range(2)]
                for call in calls:
                    with pytest.raises(exceptions.TimeoutError, match=f"{PATIENCE:g} s"):
                        await call
                assert PATIENCE * 0.99 <= loop.time() - begun <= PATIENCE * 1.1 + SLACK
            site.admin.client_unpause()
            assert await line.execute("ECHO", "again") == b"again"

    @pytest.mark.parametrize("busy", [True, False])
    @pytest.mark.parametrize("heard", [0.0, 0.05, 0.95, 5.0, 9.95])
    async def test_whenever_it_was_heard_last_it_costs_at_most_a_tenth_more(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, heard: float, busy: bool
    ) -> None:
        """Of ten seconds at most eleven, counted from the command that waits first, and never less than ten."""
        loop, moved = asyncio.get_running_loop(), 0.0
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now + moved)

        async def move(seconds: float) -> None:
            nonlocal moved
            moved += seconds
            await turns(3)

        async with open_line(site.named_url) as line:
            await line.execute("ECHO", "the first look is now")
            for _ in range(round(heard / 0.05)):
                await move(0.05)
                await line.execute("ECHO", "busy") if busy else None
            await line.execute("ECHO", "heard last")
            with site.silent():
                call = asyncio.ensure_future(line.execute("INCR", "counted"))
                waited = 0.0
                while not call.done() and waited < 25:
                    await move(0.05)
                    waited += 0.05
                with pytest.raises(exceptions.TimeoutError, match="10 s"):
                    await call
            assert 9.95 <= waited <= 11.05

    async def test_a_reply_that_comes_in_pieces_may_take_longer_than_the_patience(self) -> None:
        """As long as something is heard."""
        closed = asyncio.Event()
        answers = {b"ECHO": [b"$10\r\n", *[b"x"] * 10, b"\r\n"], b"PING": [b"+PONG\r\n"]}

        async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            commands = hiredis.Reader()
            while data := await reader.read(65536):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    for piece in answers.get(command[0], [b"+OK\r\n"]):
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(PATIENCE / 5)
            writer.close()
            await writer.wait_closed()
            closed.set()

        async with await asyncio.start_server(dribble, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with open_line(f"redis://127.0.0.1:{port}?protocol=2", PATIENCE) as line:
                assert await line.execute("ECHO", "slowly") == b"x" * 10
            await closed.wait()

    async def test_a_loop_that_was_blocked_does_not_cut_a_server_that_answers(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the server has said meanwhile is heard first, though the patience is over."""
        loop, moved = asyncio.get_running_loop(), 0.0
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now + moved)
        async with open_line(site.named_url) as line:
            before = await identity(line)
            moved += 30.0
            await turns(3)
            with site.silent():
                call = asyncio.ensure_future(line.execute("ECHO", "late"))
                await turns(3)
                moved += 60.0
                await turns(3)
            assert await call == b"late"
            assert await identity(line) == before

    @on_each_loop
    async def test_connecting_to_a_server_that_does_not_answer_ends_too(self, site: Site) -> None:
        """By the URL's own limits; all who wait for the connection are told."""
        async with open_line(f"{site.named_url}&socket_timeout={PATIENCE}", PATIENCE) as line:
            with site.silent():
                begun = asyncio.get_running_loop().time()
                for call in [asyncio.ensure_future(line.execute("ECHO", text)) for text in "ab"]:
                    with pytest.raises((exceptions.TimeoutError, exceptions.ConnectionError)):
                        await call
                assert asyncio.get_running_loop().time() - begun <= PATIENCE * 2 + SLACK
            assert await line.execute("ECHO", "again") == b"again"


class TestCut:
    @on_each_loop
    async def test_the_next_command_connects_again(self, site: Site) -> None:
        """As the same user and to the same database; who waited is told."""
        url = f"redis://bob:builder@127.0.0.1:{site.port}/3?client_name={NAME}"
        async with open_line(url) as line:
            before = await identity(line)
            waiting = asyncio.ensure_future(line.execute("BLPOP", "nothing", 0))
            await eventually(lambda: [one for one in site.connections() if one["cmd"] == "blpop"])
            site.cut()
            with pytest.raises(exceptions.ConnectionError):
                await waiting
            assert await identity(line) > before
            [client] = site.connections()
            assert (client["user"], client["db"]) == ("bob", "3")

    @on_each_loop
    async def test_a_cut_of_an_idle_line_costs_no_command(self, site: Site) -> None:
        """It is noticed when it happens, not with the next command."""
        noticed = asyncio.Event()
        async with open_line(site.named_url, on_cut=noticed.set) as line:
            before = await identity(line)
            site.cut()
            await noticed.wait()
            assert await identity(line) > before

    @on_each_loop
    async def test_a_server_that_breaks_its_protocol_is_left(self, site: Site) -> None:
        """Nonsense, or a reply that nobody waits for: who waits is told, and the next command connects again."""
        for nonsense in (b"?what\r\n", b"$5\r\nright\r\n$5\r\nextra\r\n"):
            garbled = {b"$5\r\nright\r\n": nonsense}
            async with (
                relaying(site.url, change=lambda reply: garbled.pop(reply, reply)) as port,  # noqa: B023 - used at once
                open_line(f"redis://127.0.0.1:{port}") as line,
            ):
                answers = await asyncio.gather(line.execute("ECHO", "right"), return_exceptions=True)
                assert answers == [b"right"] or isinstance(answers[0], exceptions.ConnectionError)
                assert not garbled
                assert await line.execute("ECHO", "right") == b"right"

    @pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
    def test_another_loop_gets_a_connection_of_its_own(self, site: Site, new_loop: NewLoop) -> None:
        """And each that comes back to the line; there is never more than one."""
        redis = open_redis(site.named_url)
        line = Line(redis)
        with asyncio.Runner(loop_factory=new_loop) as first, asyncio.Runner(loop_factory=new_loop) as second:
            found = [runner.run(identity(line)) for runner in (first, first, second, first)]
            assert found[0] == found[1] < found[2] < found[3]
            second.run(asyncio.sleep(0))  # what it had is closed when it runs again
            asyncio.run(eventually(lambda: len(site.connections()) == 1))
            first.run(line.close())
            first.run(redis.aclose())

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
    def test_a_loop_that_was_closed_meanwhile_is_no_obstacle(self, site: Site, new_loop: NewLoop) -> None:
        """As where each test of a program has a loop, and none of them closes what it opened."""
        redis = open_redis(site.named_url)
        line = Line(redis)
        found = []
        for _ in range(3):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                found.append(runner.run(identity(line)))
        with asyncio.Runner(loop_factory=new_loop) as runner:
            assert runner.run(identity(line)) > found[2] > found[1] > found[0]
            runner.run(line.close())
            runner.run(redis.aclose())
        gc.collect()

    @on_each_loop
    async def test_a_line_that_is_cut_as_a_command_leaves_says_so(self, site: Site) -> None:
        """Nobody waits for a reply that cannot come, whatever the loop makes of such a transport."""
        async with open_line(site.named_url) as line:
            await line.execute("PING")
            assert line._wire is not None
            line._wire._writer.transport.abort()
            async with asyncio.timeout(5):
                with pytest.raises(exceptions.ConnectionError):
                    await line.execute("PING")
                assert await line.execute("PING") == b"PONG"
            wire = line._wire
            wire.close(exceptions.ConnectionError("as between its handshake and the first command"))
            with pytest.raises(exceptions.ConnectionError):
                wire.write(b"PING\r\n")

    @on_each_loop
    async def test_replies_have_one_shape_whatever_the_client_speaks(self, site: Site) -> None:
        """A client of RESP3 gets its scores in pairs; what reads the line does not expect that."""
        site.admin.zadd("set", {"a": 1})
        async with open_line(f"{site.named_url}&protocol=3") as line:
            assert await line.execute("ZRANGE", "set", 0, -1, "WITHSCORES") == [b"a", b"1"]


class TestSubscriber:
    @on_each_loop
    async def test_pushes_and_cuts_are_told(self, site: Site) -> None:
        """Whatever arrives goes to one function, and the loss of the line to another; then it can be made again."""
        pushes: list[Any] = []
        cuts: list[int] = []
        async with open_line(site.named_url, on_push=pushes.append, on_cut=lambda: cuts.append(len(pushes))) as line:
            for count in (1, 2):
                await line.tell("SUBSCRIBE", "news")
                await eventually(lambda: pushes and pushes[-1][0] == b"subscribe")
                site.admin.publish("news", "hello")
                await eventually(lambda: pushes[-1] == [b"message", b"news", b"hello"])
                site.cut()
                await eventually(lambda: len(cuts) == count)  # noqa: B023
            assert cuts == [2, 4]
            await line.tell("NONSENSE")
            await eventually(lambda: isinstance(pushes[-1], exceptions.ResponseError))


class TestClose:
    @on_each_loop
    async def test_no_connection_is_left_and_who_waits_is_told(self, site: Site) -> None:
        """The line can be used again, which connects again."""
        async with open_line(site.named_url) as line:
            await line.execute("PING")
            waiting = asyncio.ensure_future(line.execute("BLPOP", "nothing", 0))
            await eventually(lambda: [one for one in site.connections() if one["cmd"] == "blpop"])
            await line.close()
            with pytest.raises(exceptions.ConnectionError):
                await waiting
            await eventually(lambda: not site.connections())
            assert await line.execute("PING") == b"PONG"
            await line.close()
            await line.close()
            await eventually(lambda: not site.connections())

    @on_each_loop
    async def test_closing_a_line_that_still_connects_tells_who_waits(self, site: Site) -> None:
        """With an error of redis-py's: nobody has cancelled them."""
        async with open_line(site.named_url) as line:
            with site.silent():
                waiting = asyncio.ensure_future(line.execute("PING"))
                await asyncio.sleep(0)
                await line.close()
                with pytest.raises(exceptions.RedisError):
                    await waiting
