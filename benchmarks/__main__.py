"""Measure Knapsaq beside plain SAQ: alternating rounds on one private server, medians, ratios."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import redis
import uvloop
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.systems import QUEUE, System, open_system
from knapsaq.redis.embedded import EmbeddedBroker

SYSTEMS = ("knapsaq", "saq")
Figures = dict[str, dict[str, list[float]]]
LOWER_IS_BETTER = frozenset({"worker CPU a job, us", "commands a job", "memory, MiB", "apply() of a no-op, ms"})
GATHERED = 100


def drain(name: str, url: str, jobs: int, concurrency: int, figures: dict[str, list[float]]) -> None:
    """Fill the queue, have a worker process empty it, and count what Redis was asked."""
    server = redis.Redis.from_url(url)
    server.flushall()
    uvloop.run(fill(name, url, jobs))
    server.config_resetstat()
    command = [sys.executable, "-m", "benchmarks.worker", name, url, str(jobs), str(concurrency)]
    done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
    commands = sum(int(entry["calls"]) for entry in server.info("commandstats").values())
    figures[f"drain, concurrency {concurrency}, jobs/s"].append(done["jobs_per_s"])
    figures["worker CPU a job, us"].append(done["cpu_us"])
    figures["commands a job"].append(commands / jobs)
    figures["memory, MiB"].append(done["memory_mib"])
    figures["bodies that ran too often"].append(done["ran"] - jobs)
    server.close()


async def fill(name: str, url: str, jobs: int) -> None:
    """Queue the jobs of a drain."""
    async with open_system(name, url, lambda: None) as system:
        for start in range(0, jobs, GATHERED):
            await asyncio.gather(*(system.enqueue(number) for number in range(start, min(start + GATHERED, jobs))))


async def send(name: str, url: str, jobs: int, figures: dict[str, list[float]]) -> None:
    """Enqueue one by one and a hundred at a time."""
    async with open_system(name, url, lambda: None) as system:
        figures["enqueue one by one, jobs/s"].append(jobs / await timed(lambda: one_by_one(system, jobs)))
        figures["enqueue gathered, jobs/s"].append(jobs / await timed(lambda: gathered(system, jobs)))


async def one_by_one(system: System, jobs: int) -> None:
    """Queue each job after the one before."""
    for number in range(jobs):
        await system.enqueue(number)


async def gathered(system: System, jobs: int) -> None:
    """Queue a hundred jobs at a time."""
    for start in range(0, jobs, GATHERED):
        await asyncio.gather(*(system.enqueue(number) for number in range(start, start + GATHERED)))


async def wait_for_results(name: str, url: str, figures: dict[str, list[float]]) -> None:
    """Wait for the result of a no-op, over and over, with the worker in the same loop."""
    async with open_system(name, url, lambda: None) as system:
        done = asyncio.Event()
        working = asyncio.create_task(system.work(10, done))
        calls = 5 if name == "saq" else 50
        times = [await timed(lambda: system.apply(1)) for _ in range(calls)]
        figures["apply() of a no-op, ms"].append(statistics.median(times) * 1000)
        done.set()
        await working


async def timed(call: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    await call()
    return time.perf_counter() - start


def show(figures: Figures, console: Console) -> None:
    """Print medians, their range and the ratio."""
    table = Table("measure", *SYSTEMS, "ratio", title=f"medians (least to most), queue {QUEUE!r}")
    for measure in figures[SYSTEMS[0]]:
        ours, theirs = (figures[name][measure] for name in SYSTEMS)
        mine, other = statistics.median(ours), statistics.median(theirs)
        best, worst = (other, mine) if measure in LOWER_IS_BETTER else (mine, other)
        ratio = f"{best / worst:.2f}" if worst and "too often" not in measure else ""
        table.add_row(measure, *(cell(values) for values in (ours, theirs)), ratio)
    console.print(table)
    console.print("ratio: how many times better Knapsaq is; other load on the machine is not controlled")


def cell(values: list[float]) -> str:
    """Return a median with its range."""
    digits = 0 if statistics.median(values) >= GATHERED else 2
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs a drain (default 20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--json", type=Path, help="write all figures into this file")
    options = parser.parse_args()
    console = Console()
    figures: Figures = {name: defaultdict(list) for name in SYSTEMS}
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(Path(folder)) as broker:
        url = broker.start()
        for number in track(range(options.rounds), "rounds", console=console):
            for name in SYSTEMS if number % 2 == 0 else SYSTEMS[::-1]:
                drain(name, url, options.jobs, 50, figures[name])
                drain(name, url, options.jobs // 2, 10, figures[name])
                uvloop.run(send(name, url, options.jobs // 10, figures[name]))
                redis.Redis.from_url(url).flushall()
                uvloop.run(wait_for_results(name, url, figures[name]))
    show(figures, console)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
