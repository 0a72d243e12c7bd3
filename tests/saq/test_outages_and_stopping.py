"""Faults 27 to 33: outages that burn the processor or lose results, and workers that do not stop in order."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from saq.job import Status
from tests.saq.conftest import SOON, Program
from tests.support import Proxy, eventually


class Line(Proxy):
    """A line to the server that can be down: it is cut, and whoever tries to connect is turned away and counted."""

    def __init__(self, path: Path, url: str) -> None:
        super().__init__(path, url)
        self.down = False
        self.turned_away = 0
        self._writers: list[asyncio.StreamWriter] = []

    def go_down(self) -> None:
        """Cut the line."""
        self.down = True
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            self.turned_away += 1
            writer.close()
            return
        self._writers.append(writer)
        await super()._serve(reader, writer)


@pytest.fixture
async def line(saq_or_ours: Program, tmp_path: Path) -> Line:
    """A line to the server that stays as long as the program."""
    return await saq_or_ours.enter(Line(tmp_path / "line", saq_or_ours.settings.broker_url).listening())


class TestOutages:
    async def test_a_worker_without_its_server_rests_between_its_attempts(
        self, saq_or_ours: Program, line: Line
    ) -> None:
        """Fault 27: SAQ's tries as fast as it can, on a whole processor and without a word."""
        async with saq_or_ours.working(saq_or_ours.queue(url=line.url)):
            line.go_down()
            await eventually(lambda: line.turned_away)
            await asyncio.sleep(0.5)
            tried, line.down = line.turned_away, False
        assert tried < 20

    async def test_a_result_that_is_found_during_an_outage_is_kept(
        self, saq_or_ours: Program, line: Line, runs: list[str]
    ) -> None:
        """Fault 28: SAQ's worker drops it, and the job is later swept, or run a second time."""
        begun, let_go = asyncio.Event(), asyncio.Event()

        async def work(ctx: dict[str, Any]) -> str:
            runs.append("work")
            begun.set()
            await let_go.wait()
            return "done"

        async with saq_or_ours.working(saq_or_ours.queue(url=line.url), ("work", work)):
            job = await saq_or_ours.job(saq_or_ours.queue(), "work", retries=3)
            await begun.wait()
            line.go_down()
            let_go.set()
            await eventually(lambda: line.turned_away > 2)
            line.down = False
            await saq_or_ours.ends(job, within=SOON)
        assert (job.status, job.result, runs) == (Status.COMPLETE, "done", ["work"])


class TestStopping:
    async def test_an_idle_worker_has_nothing_to_wait_for(self, saq_or_ours: Program) -> None:
        """Fault 31: SAQ's waits out its grace."""
        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, shutdown_grace_period_s=2) as worker:
            async with asyncio.timeout(SOON):
                await worker.stop()

    async def test_a_stopping_worker_takes_no_job(self, saq_or_ours: Program, runs: list[str]) -> None:
        """Fault 31: SAQ's slots go on waiting for jobs, and run them."""

        async def work(ctx: dict[str, Any]) -> None:
            runs.append("work")

        queue = saq_or_ours.queue()
        async with saq_or_ours.working(queue, ("work", work), shutdown_grace_period_s=SOON) as worker:
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0.05)
            await saq_or_ours.job(queue, "work")
            await stopping
        assert runs == []
        assert await queue.count("queued") == 1

    async def test_a_job_that_is_interrupted_in_a_hook_runs_elsewhere(
        self, saq_or_ours: Program, runs: list[int]
    ) -> None:
        """Fault 32: SAQ leaves it active, with its one attempt spent."""
        inside = asyncio.Event()

        async def work(ctx: dict[str, Any]) -> None:
            runs.append(ctx["job"].attempts)

        async def before(ctx: dict[str, Any]) -> None:
            inside.set()
            await asyncio.Event().wait()

        queue = saq_or_ours.queue()
        job = await saq_or_ours.job(queue, "work")
        async with saq_or_ours.working(queue, ("work", work), before_process=before):
            await inside.wait()
        assert (await saq_or_ours.stored(queue, job)).status is Status.QUEUED
        async with saq_or_ours.working(queue, ("work", work)):
            await saq_or_ours.ends(job)
        assert runs == [1]


class TestThreads:
    async def test_as_many_plain_functions_run_at_once_as_jobs_may(self, saq_or_ours: Program) -> None:
        """Fault 33: SAQ's threads are fewer than its slots, and waiting for one counts as running."""
        queue = saq_or_ours.queue()

        def work(ctx: dict[str, Any]) -> None:
            time.sleep(0.6)

        async with saq_or_ours.working(queue, ("work", work), concurrency=40):
            jobs = [await saq_or_ours.job(queue, "work", timeout=1.1) for _ in range(40)]
            await eventually(lambda: self._all_ended(queue, jobs))
        assert {job.status for job in await queue.jobs(job.key for job in jobs)} == {Status.COMPLETE}

    async def _all_ended(self, queue: Any, jobs: list[Any]) -> bool:
        found = await queue.jobs(job.key for job in jobs)
        return all(job.status in (Status.COMPLETE, Status.FAILED) for job in found)
