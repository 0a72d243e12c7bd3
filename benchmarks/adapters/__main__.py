"""One verb of one system, in a process of its own: ``python -m benchmarks.adapters SYSTEM VERB URL ...``.

What a verb finds out it prints as JSON; what bodies do is in the ledger.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any

from benchmarks.adapters import LEDGER, Producer

GATHERED = 100  # enqueues at once
CHUNK = 1000  # jobs a call of enqueue_many
WARM_UP = 200  # jobs sent before the clock starts


def chunks(numbers: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    """Return numbers in chunks."""
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


async def one_by_one(system: Producer, numbers: Sequence[int]) -> None:
    """Queue each job after the one before."""
    for number in numbers:
        await system.enqueue(number)


async def gathered(system: Producer, numbers: Sequence[int]) -> None:
    """Queue a hundred jobs at a time."""
    for chunk in chunks(numbers, GATHERED):
        await asyncio.gather(*(system.enqueue(number) for number in chunk))


async def in_bulk(system: Any, numbers: Sequence[int]) -> None:
    """Queue a thousand jobs a call."""
    for chunk in chunks(numbers, CHUNK):
        await system.enqueue_many(chunk)


WAYS: dict[str, Callable[[Any, Sequence[int]], Coroutine[Any, Any, None]]] = {
    "one": one_by_one,
    "gather": gathered,
    "many": in_bulk,
}


async def fill(system: Producer, first: str, last: str) -> None:
    """Queue jobs as fast as the system can."""
    way = in_bulk if hasattr(system, "enqueue_many") else gathered
    await way(system, range(int(first), int(last)))


async def park(system: Any, first: str, last: str) -> None:
    """Queue jobs of which one an hour may run."""
    for chunk in chunks(range(int(first), int(last)), CHUNK):
        await system.park(chunk)


async def send(system: Producer, way: str, jobs: str) -> float:
    """Queue jobs in one way and return the seconds that it takes."""
    await WAYS[way](system, range(WARM_UP))
    return await timed(WAYS[way](system, range(WARM_UP, WARM_UP + int(jobs))))


async def pace(system: Producer, first: str, last: str, rate: str) -> None:
    """Queue jobs at a steady rate, and note when each was sent."""
    assert LEDGER is not None  # noqa: S101 - the benchmark gives one
    started = time.perf_counter()
    for number in range(int(first), int(last)):
        due = started + (number - int(first)) / float(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        LEDGER.send(number)
        await system.enqueue(number)


async def apply(system: Any, jobs: str, limit: str) -> list[float]:
    """Queue a job and wait for its result, again and again; return the seconds of each but the first."""

    async def plain(number: int) -> object:
        return await system.result(await system.enqueue(number))

    call = getattr(system, "apply", plain)
    started = time.perf_counter()
    await call(0)
    seconds: list[float] = []
    while len(seconds) < int(jobs) - 1 and (len(seconds) < 3 or time.perf_counter() - started < float(limit)):  # noqa: PLR2004
        seconds.append(await timed(call(len(seconds) + 1)))
    return seconds


async def fan(system: Any, jobs: str, times: str) -> list[float]:
    """Queue many jobs and wait for all of their results; return the seconds of each time but the first."""

    async def plain(numbers: Sequence[int]) -> None:
        if hasattr(system, "enqueue_many"):
            handles = await system.enqueue_many(numbers)
        else:
            handles = await asyncio.gather(*(system.enqueue(number) for number in numbers))
        await asyncio.gather(*(system.result(handle) for handle in handles))

    call = getattr(system, "fan", plain)
    size = int(jobs)
    seconds = [await timed(call(range(turn * size, (turn + 1) * size))) for turn in range(int(times) + 1)]
    return seconds[1:]


async def flow(system: Any, kind: str, jobs: str, times: str) -> list[float]:
    """Queue a chord or a chain of so many jobs and wait for its last; return the seconds of each time but the first."""
    call, size = getattr(system, kind), int(jobs)
    waits = size - 1 if kind == "chord" else size  # a chord's last job is its join
    seconds = [await timed(call(range(turn * size, turn * size + waits))) for turn in range(int(times) + 1)]
    return seconds[1:]


async def timed(call: Awaitable[object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    await call
    return time.perf_counter() - started


VERBS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "fill": fill,
    "park": park,
    "send": send,
    "pace": pace,
    "apply": apply,
    "fan": fan,
    "flow": flow,
}


async def produce(adapter: Any, verb: str, url: str, arguments: Sequence[str]) -> Any:
    """Connect a system and run a verb."""
    async with adapter.connected(url) as system:
        return await VERBS[verb](system, *arguments)


def main() -> None:
    """Run what the command line says."""
    name, verb, url, *arguments = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING)
    adapter = importlib.import_module(f"benchmarks.adapters.{name}")
    if verb == "work":
        concurrency, *words = arguments
        if "held" in words:
            os.kill(os.getpid(), signal.SIGSTOP)  # imported and ready: workers that are to start together wait here
        schedules = [int(word.partition("=")[2]) for word in words if word.startswith("schedules=")]
        adapter.work(url, int(concurrency), *schedules)
        return
    try:
        import uvloop  # noqa: PLC0415 - a system without coroutines lives without it
    except ModuleNotFoundError:
        run: Callable[..., Any] = asyncio.run
    else:
        run = uvloop.run
    sys.stdout.write(json.dumps(run(produce(adapter, verb, url, arguments))) + "\n")


if __name__ == "__main__":
    main()
