"""A line that breaks at every place of a command, at random: nothing is lost, and nothing runs twice for it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import hiredis
import pytest
from saq.job import Status
from tests.chaos.site import LONG_FORM
from tests.support import Proxy, left_behind, lists, working

from knapsaq import BrokerError, Context, Job, Queue, Registry, Settings, Task, connect
from knapsaq.redis import scripts

SEEDS = range(200 if LONG_FORM else 8)
JOBS = 200
SENDERS = 20
CONCURRENCY = 5
AGAIN = 10
"""Each job whose number can be divided by this fails the first time."""
LIMIT = 60.0
LONGEST_DELAY = 0.1

SCRIPTS = {script.sha: script.name for script in (scripts.advance, scripts.enqueue)}
EVERY = {"advance": 20, "enqueue": 8, "MGET": 25, "SUBSCRIBE": 30, "BLMOVE": 3}
"""Of so many commands of a kind one is hit, as a rule."""

Fault = Literal["cut before", "cut behind", "reply lost", "reply halved", "reply late"]
FAULTS: tuple[Fault, ...] = ("cut before", "cut behind", "reply lost", "reply halved", "reply late")
UNHEARD = frozenset(FAULTS) - {"cut before", "reply late"}


class Hit(NamedTuple):
    """A command that a fault has hit."""

    fault: Fault
    kind: str
    words: tuple[bytes, ...]


class FaultyProxy(Proxy):
    """A proxy that hits commands of some kinds, each kind with every fault before it begins again.

    * *cut before*: the command does not reach the server;
    * *cut behind*: it does, and the line is cut at once;
    * *reply lost*: the line is cut when the reply comes;
    * *reply halved*: the line is cut in the middle of the reply;
    * *reply late*: this reply and all behind it come later.
    """

    def __init__(self, path: Path, url: str, seed: int) -> None:
        super().__init__(path, url)
        self.hits: list[Hit] = []
        self.quiet = False
        self._dice = random.Random(seed)  # noqa: S311 - faults that are the same each time
        self._plans = {kind: self._plan(every) for kind, every in EVERY.items()}

    def _plan(self, every: int) -> Iterator[Fault | None]:
        while True:
            for fault in self._dice.sample(FAULTS, len(FAULTS)):
                yield from (None for _ in range(self._dice.randrange(2 * every - 1)))
                yield fault

    def _choose(self, words: tuple[bytes, ...]) -> Fault | None:
        kind = _kind(words)
        if kind not in self._plans or self.quiet:
            return None
        fault = next(self._plans[kind])
        if fault is not None:
            self.hits.append(Hit(fault, kind, words))
        return fault

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)
        from_server, to_server = await asyncio.open_unix_connection(self._server_path)
        asked: deque[Fault | None] = deque()
        ways = {
            asyncio.create_task(self._pass_commands(reader, to_server, asked)),
            asyncio.create_task(self._pass_replies(from_server, writer, asked)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_server.close()
            writer.close()

    async def _pass_commands(
        self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter, asked: deque[Fault | None]
    ) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(1 << 16):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                words = tuple(command)
                fault = self._choose(words)
                if fault == "cut before":
                    return
                asked.append(fault)
                to_server.write(hiredis.pack_command(words))
                if fault == "cut behind":
                    return

    async def _pass_replies(
        self, from_server: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: deque[Fault | None]
    ) -> None:
        rest = b""
        while data := await from_server.read(1 << 16):
            rest += data
            while end := _end_of_reply(rest):
                reply, rest = rest[:end], rest[end:]
                fault = asked.popleft() if asked else None  # a push answers nothing
                if fault == "reply lost":
                    return
                if fault == "reply halved":
                    writer.write(reply[: end // 2])
                    return
                if fault == "reply late":
                    await asyncio.sleep(self._dice.uniform(0, LONGEST_DELAY))
                writer.write(reply)


def _kind(words: tuple[bytes, ...]) -> str:
    """Return the script's name, or the command."""
    match words:
        case (b"EVALSHA", sha, *_):
            return SCRIPTS.get(sha.decode(), "")
        case (b"EVAL", source, *_):
            return SCRIPTS.get(hashlib.sha1(source, usedforsecurity=False).hexdigest(), "")
        case _:
            return words[0].decode()


def _end_of_reply(data: bytes, start: int = 0) -> int:
    """Return where the reply ends that begins there; 0 if it is not whole yet."""
    end = data.find(b"\r\n", start) + 2
    if end < 2:
        return 0
    size = int(data[start + 1 : end]) if data[start : start + 1] in b"$*" else -1
    if data[start : start + 1] == b"$" and size >= 0:
        end += size + 2
    elif size > 0:
        for _ in range(size):
            end = _end_of_reply(data, end)
            if not end:
                return 0
    return end if end <= len(data) else 0


class Ledger:
    """What the jobs did: each writes down its number when it is done."""

    def __init__(self, registry: Registry) -> None:
        self.begun: Counter[int] = Counter()
        self.done: Counter[int] = Counter()

        @registry.task(retries=1, retry_delay=0)
        async def note(ctx: Context, number: int) -> int:
            self.begun[number] += 1
            await asyncio.sleep(number % 4 / 1000)
            if number % AGAIN == 0 and ctx.job.attempts == 1:
                raise ValueError("once more")
            self.done[number] += 1
            return number

        self.note: Task[..., Any, Any] = note


async def send(ledger: Ledger, number: int) -> Job[Any]:
    """Enqueue a job until it is accepted: under its own key, as whoever wants it once has to."""
    while True:
        try:
            return await ledger.note.using(key=str(number)).enqueue(number)
        except BrokerError:
            continue


async def send_and_wait(ledger: Ledger, numbers: Iterable[int], pace: int) -> None:
    """Enqueue jobs one after the other, wait for one in so many at once, and for the others at the end."""
    jobs = {}
    for number in numbers:
        jobs[number] = job = await send(ledger, number)
        if number % pace == 0:
            assert await job.wait(LIMIT) == number
    for number, job in jobs.items():
        assert await job.wait(LIMIT) == number


async def send_all(ledger: Ledger, hits: list[Hit]) -> int:
    """Enqueue many at once, then single ones until a command of every kind was hit; returns how many that were."""
    shares = (range(start, JOBS, SENDERS) for start in range(SENDERS))
    await asyncio.gather(*(send_and_wait(ledger, share, pace=40 + start) for start, share in enumerate(shares)))
    for number in itertools.count(JOBS):
        if {hit.kind for hit in hits} == EVERY.keys():
            return number
        await send_and_wait(ledger, [number], pace=1)
    raise AssertionError


def check_ledger(ledger: Ledger, sent: int, hits: list[Hit]) -> None:
    """Each job is done once, and once more at most for each time that its sender was not told of its acceptance."""
    unheard = Counter(
        word
        for hit in hits
        if hit.kind == "enqueue" and hit.fault in UNHEARD
        for word in hit.words
        if word.startswith(b"saq:job:")
    )
    for number in range(sent):
        again = unheard[f"saq:job:default:{number}".encode()]
        done, failed = ledger.done[number], ledger.begun[number] - ledger.done[number]
        assert 1 <= done <= 1 + again, f"job {number} is done {done} times, {again} times nobody knew it was accepted"
        assert failed == (done if number % AGAIN == 0 else 0), f"job {number} has begun {done + failed} times"


async def check_redis(queue: Queue, sent: int) -> None:
    """All results are there, and nothing else."""
    assert await lists(queue) == {"queued": [], "active": [], "incomplete": []}
    assert await left_behind(queue) == []
    jobs = await queue.jobs(str(number) for number in range(sent))
    assert [(job.status, job.result) for job in jobs if job] == [(Status.COMPLETE, number) for number in range(sent)]
    assert await queue.count("dead") == 0


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_line_that_breaks_anywhere_loses_nothing_and_doubles_nothing(
    queue: Queue, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Claim, settle, enqueue, wait and wake-up, each broken before, behind and within: every job is done once.

    And of no outcome somebody is told that it was lost.
    """
    proxy = FaultyProxy(tmp_path / "proxy", settings.broker_url, seed)
    registry = Registry()
    ledger = Ledger(registry)
    chosen = settings.with_values(broker_url=proxy.url, queues=("default",))
    try:
        async with (
            asyncio.timeout(LIMIT),
            proxy.listening(),
            connect(chosen, registry=registry) as client,
            working(client.queue(), concurrency=CONCURRENCY),
        ):
            sent = await send_all(ledger, proxy.hits)
            proxy.quiet = True
        check_ledger(ledger, sent, proxy.hits)
        await check_redis(queue, sent)
        assert not [text for text in caplog.messages if "was not written" in text]
    finally:
        shown = (f"{hit.fault}: {hit.kind} {b' '.join(hit.words[3:])[:200]!r}" for hit in proxy.hits)
        sys.stdout.write("\n".join(itertools.chain([f"seed {seed}, {len(proxy.hits)} faults"], shown)))
