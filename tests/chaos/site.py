"""A site of worker processes on one server, with a ledger of what they did and an audit at the end.

``KNAPSAQ_CHAOS=long`` runs the long form of every fault test: more jobs, longer outages, leases as in production.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from saq.job import Status
from tests.support import Server, eventually

from knapsaq import BrokerError, Client, Job, Queue, Registry, Settings, connect

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests/chaos/worker.py"
LONG_FORM = os.environ.get("KNAPSAQ_CHAOS") == "long"
CONCURRENCY = 5
LEASE = 1.5
PATIENCE = 120.0 if LONG_FORM else 30.0
"""Seconds after which what a fault test waits for will not come; far more than it takes on a busy machine."""
TIMEOUT = 300  # seconds; what is enqueued without a task at hand has SAQ's 10
LOOK_PAUSE = 0.02  # seconds; a look reads the whole queue
FURTHER = range(10_000_000, 10_000_100)
"""The numbers of the jobs that show at the end of a test that the workers still work."""


def sized(short: T, long: T) -> T:
    """Return the one that belongs to the form that runs."""
    return long if LONG_FORM else short


class Beginning(NamedTuple):
    """That a job began: in which process, and when."""

    number: str
    pid: int
    at: float


class Site:
    """A server, the worker processes on it, and their ledger."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.server = server
        self.ledger = directory / "ledger"
        self.log = directory / "log"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.figures: list[str] = []
        """What a test has measured, for the summary."""

    def hire(self, *, program: Path = WORKER, url: str | None = None, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker process; ``settings`` are fields of ``Settings``."""
        chosen = {"concurrency": CONCURRENCY, "lease": LEASE, "shutdown_grace": 5, "log_level": "WARNING", **settings}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KNAPSAQ_")}
        own = {f"KNAPSAQ_{name.upper()}": str(value) for name, value in chosen.items()}
        with self.log.open("ab") as log:
            worker = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, str(program), str(self.ledger)],
                cwd=self.ledger.parent,
                env={
                    **clean,
                    **own,
                    "KNAPSAQ_BROKER_URL": url or self.server.url,
                    "PYTHONPATH": str(ROOT / "backend"),
                    "PYTHONUNBUFFERED": "1",
                },
                stdout=log,
                stderr=log,
            )
        self.workers.append(worker)
        return worker

    def open_gate(self) -> None:
        """Let the jobs that are held come to their end."""
        self.ledger.with_name("gate").touch()

    def lines(self) -> list[str]:
        """Return the ledger."""
        return self.ledger.read_text().split() if self.ledger.exists() else []

    def begun(self) -> list[Beginning]:
        """Return what the ledger says of jobs that leave a line when they begin, in its order."""
        found = (line.split(":") for line in self.lines() if line.startswith("begun:"))
        return [Beginning(number, int(pid), float(at)) for _, number, pid, at in found]

    def entries(self) -> Counter[str]:
        """Return how often each line is in the ledger, but those of jobs that only began."""
        return Counter(line for line in self.lines() if ":" not in line)

    def said(self) -> list[str]:
        """Return the lines that the workers have logged."""
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def close(self) -> None:
        """End all processes and show what they said."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.server.stop()
        sys.stdout.write("\n".join(self.said()[-500:]))


@asynccontextmanager
async def producing(site: Site, **settings: Any) -> AsyncIterator[Queue]:
    """Connect as a producer that does not have the tasks."""
    chosen = Settings(broker_url=site.server.url, queues=("default",), _env_file=None, **settings)
    async with connect(chosen, registry=Registry()) as client:
        queue = plain(client)
        try:
            yield queue
        finally:
            await queue.disconnect()


def plain(client: Client) -> Queue:
    """Return the queue without a registry, so that it takes any task's name."""
    return Queue(client.queue().redis, "default", settings=client.settings)


async def pour(
    queue: Queue,
    numbers: range,
    *,
    task: str = "note",
    seconds: float = 0.01,
    spread: float = 0.0,
    group: int = 10,
    pause: float = 0.005,
) -> set[str]:
    """Enqueue jobs in small groups and return the numbers of those that were accepted.

    Each takes ``seconds``, more or less by up to the part of it that ``spread`` says.
    """

    def length(number: int) -> float:
        return seconds * (1 + spread * (number % 11 - 5) / 5)

    accepted: set[str] = set()
    for start in range(numbers.start, numbers.stop, group):
        batch = range(start, min(start + group, numbers.stop))
        calls = (
            queue.enqueue(task, key=str(number), timeout=TIMEOUT, number=number, seconds=length(number))
            for number in batch
        )
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for number, answer in zip(batch, answers, strict=True):
            assert isinstance(answer, (Job, BrokerError)), answer
            if isinstance(answer, Job):
                accepted.add(str(number))
        await asyncio.sleep(pause)
    return accepted


async def nothing_open(queue: Queue) -> bool:
    """Whether every job has ended."""
    return not await queue.count("incomplete")


async def conserved(queue: Queue) -> None:
    """Fail unless each job that has not ended waits or runs: nothing is nowhere, nothing is in two places."""
    redis: Any = queue.redis
    async with redis.pipeline(transaction=True) as pipe:
        pipe.lrange(queue.keys.queued, 0, -1)
        pipe.lrange(queue.keys.active, 0, -1)
        pipe.zrange(queue.keys.incomplete, 0, -1, withscores=True)
        queued, active, incomplete = await pipe.execute()
    delayed = [job for job, score in incomplete if score > 0]
    placed, open_jobs = Counter([*queued, *active, *delayed]), Counter(job for job, _ in incomplete)
    assert placed == open_jobs, f"in two places {placed - open_jobs}, nowhere {open_jobs - placed}"


async def watched(queue: Queue, until: Callable[[], Awaitable[bool]], *, within: float = PATIENCE) -> None:
    """Wait for something, and look all the time whether jobs are conserved."""

    async def look() -> bool:
        await conserved(queue)
        await asyncio.sleep(LOOK_PAUSE)
        return await until()

    await eventually(look, within=within)


async def staffed(queue: Queue, workers: int) -> None:
    """Wait until so many workers have a lease."""
    redis: Any = queue.redis

    async def counted() -> bool:
        return bool(await redis.zcard(queue.keys.leases) == workers)

    await eventually(counted, within=PATIENCE)


async def hire_two(site: Site, queue: Queue, **settings: Any) -> None:
    """Start two workers and wait until they work: one that finds no server when it starts does not stay."""
    for _ in range(2):
        site.hire(**settings)
    await staffed(queue, 2)


async def freeze(worker: subprocess.Popen[bytes]) -> None:
    """Stop a worker in the middle of whatever it does."""
    worker.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{worker.pid}/stat")
    await eventually(lambda: state.read_text(encoding="utf-8").rpartition(") ")[2].startswith("T"))


async def audit(site: Site, queue: Queue, accepted: set[str], *, doubles: int, dead: Iterable[str] = ()) -> int:
    """Wait until every job has ended, and fail unless the books are right; return how many effects were doubled.

    Accepted = finished + dead: each has its own result and its line in the ledger, or is in ``dead``, with no more
    than ``doubles`` lines too many. The workers still take jobs, and when they have gone, no key is left without owner
    or expiry.
    """
    await watched(queue, lambda: nothing_open(queue))
    finished = accepted.difference(dead)
    entries = site.entries()
    assert not (lost := sorted(finished - entries.keys())), f"{len(lost)} lost: {lost[:50]}"
    twice = {line: times for line, times in entries.items() if times > 1 and line not in dead}
    found = sum(twice.values()) - len(twice)
    assert found <= doubles, f"{found} doubled, where {doubles} may be: {twice}"
    await complete(queue, finished)
    codes = [worker.poll() for worker in site.workers]
    assert set(codes) <= {None, 0, -signal.SIGKILL}, f"workers ended by themselves: {codes}"
    assert None in codes, "nobody is left to take jobs"
    further = await pour(queue, FURTHER, seconds=0, group=len(FURTHER))
    await watched(queue, lambda: nothing_open(queue))
    await complete(queue, further)
    await leave(site, queue)
    return found


async def leave(site: Site, queue: Queue) -> None:
    """Tell all workers to go, and fail on what they leave behind."""
    staying = [worker for worker in site.workers if worker.poll() is None]
    for worker in staying:
        worker.terminate()
    codes = [await asyncio.to_thread(worker.wait, PATIENCE) for worker in staying]
    # One that has only just been started does not handle the signal yet.
    assert set(codes) <= {0, -signal.SIGTERM}, f"workers ended with {codes}"
    redis: Any = queue.redis
    own = queue.keys.leases.encode()  # those of killed workers, until somebody looks
    left = [key async for key in redis.scan_iter(count=1000) if key != own and await redis.ttl(key) == -1]
    assert not left, f"left behind: {left}"


async def complete(queue: Queue, accepted: set[str]) -> None:
    """Fail unless each accepted job is complete with its own result."""
    numbers = sorted(accepted)
    for start in range(0, len(numbers), 1000):
        keys = numbers[start : start + 1000]
        found = await queue.jobs(keys)
        wrong = {
            key: (job and (job.status, job.result))
            for key, job in zip(keys, found, strict=True)
            if job is None or job.status is not Status.COMPLETE or job.result != int(key)
        }
        assert not wrong, f"{len(wrong)} are not complete: {dict(list(wrong.items())[:20])}"
