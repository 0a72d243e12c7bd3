"""Workers that are told to go: nothing is lost, nothing is doubled, and nobody waits longer than agreed."""

from __future__ import annotations

import signal
import time
from typing import Any

from tests.chaos.faults import dismiss
from tests.chaos.site import CONCURRENCY, PATIENCE, Site, audit, conserved, pour, producing, sized, staffed
from tests.support import eventually

from knapsaq import Queue

SLACK = sized(3.0, 0.5)
"""Seconds for a busy machine to notice an exit or to start a job."""


async def once(queue: Queue, accepted: set[str]) -> None:
    """Fail unless each of these jobs has spent one attempt."""
    attempts = {job.key: job.attempts for job in await queue.jobs(accepted) if job and job.attempts != 1}
    assert not attempts, f"attempts that were spent: {attempts}"


class TestStops:
    async def test_a_worker_with_short_jobs_goes_at_once(self, site: Site) -> None:
        """SIGTERM under load: the exit code is 0, within a second, and nothing is claimed by then or runs twice."""
        jobs = sized(400, 2000)
        async with producing(site) as queue:
            redis: Any = queue.redis
            accepted = await pour(queue, range(jobs), seconds=0.02, spread=0.5, group=100)
            leaving = site.hire(concurrency=20)
            await eventually(lambda: len(site.entries()) >= jobs * 0.4, within=PATIENCE)
            took = await dismiss(leaving)
            await conserved(queue)
            claimed = await redis.lrange(queue.keys.active, 0, -1)
            assert not claimed, f"still claimed: {claimed}"
            site.hire(concurrency=20)
            await audit(site, queue, accepted, doubles=0)
            await once(queue, accepted)
        site.figures.append(f"gone after {took:.2f} s")
        assert took <= 1 + SLACK

    async def test_a_worker_with_longer_jobs_lets_them_end_and_takes_no_more(self, site: Site) -> None:
        """SIGTERM with a grace that is long enough: what runs comes to its end there, what waits runs elsewhere."""
        seconds = sized(1.0, 4.0)
        async with producing(site) as queue:
            leaving = site.hire()
            accepted = await pour(queue, range(3 * CONCURRENCY), task="trace", seconds=seconds)
            await eventually(lambda: len(site.begun()) == CONCURRENCY, within=PATIENCE)
            site.hire()
            took = await dismiss(leaving)
            began = [beginning for beginning in site.begun() if beginning.pid == leaving.pid]
            assert len(began) == CONCURRENCY
            await audit(site, queue, accepted, doubles=0)
            await once(queue, accepted)
        assert len(site.begun()) == len(accepted)
        site.figures.append(f"gone after {took:.2f} s of the jobs' {seconds:g} s")
        assert took <= seconds + SLACK

    async def test_a_second_signal_hurries(self, site: Site) -> None:
        """What runs is put back at once, spends no attempt, and runs elsewhere within a second."""
        async with producing(site) as queue:
            leaving = site.hire(shutdown_grace=3600)
            accepted = await pour(queue, range(CONCURRENCY), task="held")
            await eventually(lambda: len(site.begun()) == CONCURRENCY, within=PATIENCE)
            site.hire()
            await staffed(queue, 2)
            leaving.send_signal(signal.SIGTERM)
            # The first signal is through when the worker takes no more: what is accepted now runs elsewhere.
            accepted |= await pour(queue, range(100, 100 + CONCURRENCY))
            await eventually(lambda: len(site.entries()) == CONCURRENCY, within=PATIENCE)
            assert leaving.poll() is None
            told = time.time()
            took = await dismiss(leaving)
            await eventually(lambda: len(site.begun()) == 2 * CONCURRENCY, within=PATIENCE)
            again = max(beginning.at for beginning in site.begun()) - told
            site.open_gate()
            await audit(site, queue, accepted, doubles=0)
            await once(queue, accepted)
        site.figures.append(f"gone after {took:.2f} s, all run elsewhere after {again:.2f} s")
        assert took <= 1 + SLACK
        assert again <= 1 + SLACK

    async def test_what_outlasts_the_grace_is_put_back(self, site: Site) -> None:
        """SIGTERM under load with a grace that is shorter than some jobs: those run elsewhere and spend no attempt."""
        async with producing(site) as queue:
            leaving = site.hire(shutdown_grace=0.2)
            accepted = await pour(queue, range(2), task="held")
            await eventually(lambda: len(site.begun()) == 2, within=PATIENCE)
            site.hire()
            accepted |= await pour(queue, range(100, 300), seconds=0.02, spread=0.5)
            took = await dismiss(leaving)
            site.open_gate()
            await audit(site, queue, accepted, doubles=0)
            await once(queue, accepted)
        assert took <= 0.2 + 1 + SLACK

    async def test_a_job_that_ignores_its_cancellation_holds_nobody_up(self, site: Site) -> None:
        """The process ends within grace + 5 s, the log names the job, and the job runs elsewhere."""
        async with producing(site) as queue:
            leaving = site.hire(shutdown_grace=0.5)
            accepted = await pour(queue, range(1), task="stubborn", seconds=0.05)
            await eventually(site.begun, within=PATIENCE)
            took = await dismiss(leaving)
            assert any("job 0 of task stubborn does not end although it was cancelled" in line for line in site.said())
            site.open_gate()
            site.hire()
            await audit(site, queue, accepted, doubles=0)
            await once(queue, accepted)
        site.figures.append(f"gone after {took:.2f} s with a grace of 0.5 s")
        assert took <= 0.5 + 5 + SLACK
