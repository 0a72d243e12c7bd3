"""A worker process for the fault tests: ``python worker.py LEDGER``; settings come from ``KNAPSAQ_*``.

Each job leaves one line in the ledger, a file that processes only append to, at its very end. Jobs that may not come
to their end leave a line when they begin, too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from knapsaq import Settings, get_registry, task
from knapsaq.supervisor import WorkerPlan, run

GATE = Path(sys.argv[1]).with_name("gate")
"""A file: jobs that are held, or held and stubborn, wait until it is there."""
MEGABYTE = 1_048_576


def enter(line: object) -> None:
    """Append a line to the ledger; whole, however many processes do so."""
    ledger = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(ledger, f"{line}\n".encode())
    os.close(ledger)


@task
async def note(number: int, seconds: float = 0.0) -> int:
    """Take a while, then leave a line."""
    await asyncio.sleep(seconds)
    enter(number)
    return number


@task
async def trace(number: int, seconds: float = 0.0) -> int:
    """Leave a line that says where and when this begins, take a while, then leave the line that counts."""
    enter(f"begun:{number}:{os.getpid()}:{time.time()}")
    await asyncio.sleep(seconds)
    enter(number)
    return number


@task
async def held(number: int, seconds: float = 0.2) -> int:
    """Wait until the gate is open, looking every so many seconds, then leave a line."""
    enter(f"begun:{number}:{os.getpid()}:{time.time()}")
    while not os.path.exists(GATE):  # noqa: PTH110, ASYNC110, ASYNC240 - as cheap as can be, for thousands of jobs
        await asyncio.sleep(seconds)
    enter(number)
    return number


@task
async def stubborn(number: int, seconds: float = 0.05) -> int:
    """Do what ``held`` does, whoever cancels this."""
    enter(f"begun:{number}:{os.getpid()}:{time.time()}")
    while not os.path.exists(GATE):  # noqa: PTH110, ASYNC240
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            enter(f"cancelled:{number}")
    enter(number)
    return number


@task
async def block(number: int, seconds: float) -> int:
    """Keep the loop from running anything else for a while, then leave a line."""
    enter(f"begun:{number}")
    time.sleep(seconds)  # noqa: ASYNC251 - the fault
    enter(number)
    return number


@task
async def deadlock() -> None:
    """Wait, and the loop with it, for what cannot come."""
    enter("deadlock")
    lock = threading.Lock()
    with lock:
        lock.acquire()


@task
async def poison() -> None:
    """Kill the process that runs this."""
    enter("poison")
    os.kill(os.getpid(), signal.SIGKILL)


@task
async def eat() -> None:
    """Take ever more memory."""
    enter("eat")
    eaten = []
    while True:
        eaten.append(bytearray(b"x") * (8 * MEGABYTE))
        await asyncio.sleep(0.01)


@task
async def large(number: int, size: int) -> str:
    """Leave a line and return so many characters."""
    enter(number)
    return "x" * size


@task
async def unstorable(number: int) -> Any:
    """Leave a line and return what no result can be."""
    enter(number)
    return object()


def main() -> int:
    """Work until SIGTERM."""
    return run(WorkerPlan(settings=Settings(_env_file=None), registry=get_registry()))


if __name__ == "__main__":
    sys.exit(main())
