"""The systems that are measured: how each counts what is left, and which measures it takes part in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ADAPTERS = Path(__file__).parent / "adapters"
ASYNCIO = frozenset({"drain", "drain-two", "enqueue", "latency", "apply", "fan", "idle", "start"})
WORKFLOWS = ASYNCIO | {"flow"}


@dataclass(frozen=True)
class System:
    """A task queue; its adapter is the module of its name.

    Attributes:
        name: Its name, and its adapter's.
        left: Redis commands whose replies add up to the number of jobs that have not ended.
        queued: The same for jobs that have not begun, where that is another question.
        results: The keys that hold results, as a pattern, or a hash of results.
        mark: What a record holds once the job has its result, where the key is there from the start.
        ways: How it can enqueue.
        measures: The measures that it takes part in; ``None`` is all.
        settings: How it is set up.
    """

    name: str
    left: tuple[tuple[str, ...], ...]
    results: str
    settings: str
    mark: bytes = b""
    queued: tuple[tuple[str, ...], ...] = ()
    ways: tuple[str, ...] = ("one", "gather")
    measures: frozenset[str] | None = ASYNCIO

    @property
    def requirements(self) -> Path | None:
        """The pinned packages of its own environment; ``None`` if it lives in the project's."""
        path = ADAPTERS / f"{self.name}.txt"
        return path if path.exists() else None

    def takes_part(self, measure: str) -> bool:
        """Return whether the system has what a measure needs."""
        return self.measures is None or measure in self.measures


KNAPSAQ = System(
    name="knapsaq",
    left=(("ZCARD", "saq:bench:incomplete"),),
    results="saq:job:bench:*",
    mark=b'"complete"',
    settings="uvloop, default guarantees: leases, claims, fencing, a finish event a job",
    ways=("one", "gather", "many"),
    measures=None,
)
SAQ = System(
    name="saq",
    left=KNAPSAQ.left,
    results=KNAPSAQ.results,
    mark=KNAPSAQ.mark,
    settings="uvloop, json, 100 concurrent operations, map polls every 0.01 s",
    measures=ASYNCIO | {"drain-100", "drain-10", "aof", "schedules", "backlog"},
)
PEERS = (
    System(
        name="arq",
        left=(("ZCARD", "arq:queue"),),
        results="arq:result:*",
        settings="uvloop, 100 jobs at once, polls every 0.01 s (at its default 0.5 s: 256 ms latency)",
    ),
    System(
        name="taskiq",
        left=(("XPENDING", "taskiq", "taskiq"),),
        queued=(("XLEN", "taskiq"),),
        results="result:*",
        settings="uvloop, Redis stream, orjson, 100 jobs at once, 100 prefetched, no parameter parsing",
    ),
    System(
        name="streaq",
        left=(("XLEN", "streaq:bench:queues:normal"),),
        results="streaq:bench:task:results:*",
        settings="anyio on uvloop, 32 jobs at once, silent tasks",
        ways=("one", "gather", "many"),
        measures=WORKFLOWS,
    ),
    System(
        name="celery",
        left=(("LLEN", "celery"), ("HLEN", "unacked")),
        results="celery-task-meta-*",
        settings="prefork with 2 processes, prefetch 4, late acknowledgement",
        ways=("one",),
        measures=WORKFLOWS,
    ),
    System(
        name="dramatiq",
        left=(("HLEN", "dramatiq:default.msgs"),),
        results="dramatiq-results:*",
        settings="1 process with 8 threads, Results middleware",
        ways=("one",),
    ),
    System(
        name="huey",
        left=(("LLEN", "huey.redis.bench"),),
        results="huey.results.bench",
        settings="2 processes, blocking pop, no acknowledgement: a killed worker loses its jobs",
        ways=("one",),
    ),
)
