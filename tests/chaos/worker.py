"""A worker process for the fault tests: ``python worker.py URL LEDGER GRACE CONCURRENCY LEASE``.

Each job leaves one line in the ledger, a file that processes only append to, at its very end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from knapsaq import Settings, connect, task
from knapsaq.process import run_workers


def enter(line: object) -> None:
    """Append a line to the ledger; whole, however many processes do so."""
    ledger = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(ledger, f"{line}\n".encode())
    os.close(ledger)


@task
async def note(number: int, seconds: float = 0.0) -> int:
    """Take a while, then leave a line."""
    await asyncio.sleep(seconds)
    enter(number)
    return number


@task
async def poison() -> None:
    """Kill the process that runs this."""
    enter("poison")
    os._exit(3)


async def main(url: str, grace: float, concurrency: int, lease: float) -> None:
    """Work until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings(broker_url=url, lease=lease, shutdown_grace=grace, concurrency=concurrency)
    async with connect(settings) as client:
        await run_workers(client, stop)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
