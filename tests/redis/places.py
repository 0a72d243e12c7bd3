"""Jobs in each place in which one may be: running, queued in each way, parked for each limit, and delayed."""

from __future__ import annotations

from typing import Any

from knapsaq import Queue, Registry
from knapsaq.registry import AnyTask

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "urgent": {"priority": 7},
    "fair": {"fair_key": "who"},
    "slot": {"concurrency": 1},
    "rate": {"rate_limit": "1/h"},
    "struck": {},
}


def define(registry: Registry) -> dict[str, AnyTask]:
    """Return a task for each way of waiting, by its name."""
    return {name: registry.task(name=name, **given)(_work) for name, given in OPTIONS.items()}


async def fill(queue: Queue, tasks: dict[str, AnyTask]) -> None:
    """Put two jobs into each place, and let one of each limit run; their keys begin with the task's name."""
    await queue.strike("struck")
    for name, number in (("slot", 3), ("rate", 3), ("struck", 2)):
        for each in range(number):
            await tasks[name].using(key=f"{name}-{each}").enqueue()
    assert len(await queue.claim(10, worker="w1")) == 2
    for name in ("plain", "urgent", "fair"):
        for each in range(2):
            await tasks[name].using(key=f"{name}-{each}").enqueue(who=str(each))
    for each in range(2):
        await tasks["plain"].using(key=f"late-{each}", delay=60 * (each + 1)).enqueue()


async def clear(queue: Queue) -> None:
    """End all jobs, and take back what was struck."""
    await queue.restore("struck")
    await queue.purge()
    await queue.redis.flushall()


async def _work(who: str = "") -> None: ...
