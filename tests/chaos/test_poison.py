"""Jobs that kill whoever runs them: they end, and those that happened to run beside them come to no harm."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

import pytest
from saq.job import Status
from tests.chaos.site import PATIENCE, Site, audit, nothing_open, pour, producing, sized, watched

MEGABYTES = 200
"""What a worker may take; it has some 60 at rest."""


def megabytes(worker: subprocess.Popen[bytes]) -> int:
    """Return how much memory a process has; macOS has no ``/proc``."""
    status = Path(f"/proc/{worker.pid}/statm")
    if status.exists():
        return int((status.read_text().split() or "00")[1]) * 4096 // 2**20
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(worker.pid)], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return int(said.stdout or 0) // 1024


async def keep_memory(site: Site) -> None:
    """Kill, as the kernel does, each worker that takes too much memory."""
    while True:
        for worker in site.workers:
            if worker.poll() is None and megabytes(worker) > MEGABYTES:
                worker.kill()
        await asyncio.sleep(0.02)


class TestPoison:
    @pytest.mark.parametrize("task", ["poison", "eat"])
    async def test_a_job_that_kills_its_workers_is_dead_after_three(self, site: Site, task: str) -> None:
        """By itself or by its hunger: the reason is kept, and its neighbours complete, each once, none blamed.

        The neighbours run long, so that all of them die along with the first two workers.
        """
        neighbours, seconds, lease = sized((3, 0.6, 1.0), (19, 3.0, 10.0))
        began = time.monotonic()
        async with producing(site) as queue:
            accepted = await pour(queue, range(neighbours // 2), seconds=seconds)
            culprit = await queue.enqueue(task, key=task, timeout=0)
            accepted |= await pour(queue, range(neighbours // 2, neighbours), seconds=seconds)
            assert culprit is not None
            keeper = asyncio.create_task(keep_memory(site))

            async def over() -> bool:
                if all(worker.poll() is not None for worker in site.workers):
                    site.hire(concurrency=neighbours + 1, lease=lease)
                return await nothing_open(queue)

            await watched(queue, over, within=3 * PATIENCE)  # in the end suspects run one by one
            keeper.cancel()
            took = time.monotonic() - began
            await culprit.refresh()
            assert culprit.status is Status.FAILED
            assert "died 3 times" in (culprit.error or "")
            assert site.entries()[task] == 3
            [dead] = await queue.dead()
            assert (dead.key, dead.function) == (task, task)
            assert "died 3 times" in dead.reason
            assert await queue.discard(task) == 1
            await audit(site, queue, accepted | {task}, doubles=0, dead={task})
        site.figures.append(f"{task}: all over after {took:.1f} s")
