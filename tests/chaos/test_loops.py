"""Workers whose loop is blocked, for a while or for ever, and workers that are stopped and come back."""

from __future__ import annotations

import asyncio
import signal
import time

from saq.job import Status
from tests.chaos.site import (
    CONCURRENCY,
    PATIENCE,
    ROOT,
    TIMEOUT,
    Site,
    audit,
    nothing_open,
    pour,
    producing,
    sized,
    staffed,
    watched,
)
from tests.support import eventually

from knapsaq import Queue

LOOPS = ROOT / "tests/chaos/loops_worker.py"
BLOCKED_SECONDS = sized(4.0, 30.0)
LATE_SECONDS = sized(BLOCKED_SECONDS, 0.5)
"""How long a job may wait for its start while the other worker is blocked."""
WARNED_SECONDS = sized(BLOCKED_SECONDS, 3.0)
STOPPED_SECONDS = sized(0.0, 20.0)
ENDINGS = ("finish", "retry", "discard", "fail")


class TestBlockedLoop:
    async def test_a_blocked_worker_keeps_its_job_and_delays_nobody_elses(self, site: Site) -> None:
        """The job runs once, though its worker is deaf for leases on end; a log line says which task, and where."""
        async with producing(site) as queue:
            site.hire(lease=1)
            site.hire(lease=1)
            await staffed(queue, 2)
            assert await queue.enqueue("block", key="1000", number=1000, seconds=BLOCKED_SECONDS, timeout=TIMEOUT)
            await eventually(lambda: starts(site, "begun:1000"), within=PATIENCE)
            blocked = time.time()
            poured: dict[str, float] = {}
            while not warned(site, "block", "time.sleep(seconds)"):
                number = len(poured)
                poured[str(number)] = time.time()
                assert await pour(queue, range(number, number + 1), task="trace", seconds=0)
                assert time.time() - blocked < WARNED_SECONDS, "no warning"
            await eventually(lambda: poured.keys() <= site.entries().keys(), within=PATIENCE)
            assert "1000" not in site.entries(), "the other jobs waited until the loop was free again"
            begun = [line.split(":") for line in starts(site, "begun:") if line != "begun:1000"]
            assert max(float(at) - poured[number] for _, number, _, at in begun) < LATE_SECONDS
            await audit(site, queue, {"1000", *poured}, doubles=0)
            assert len(starts(site, "begun:1000")) == 1

    async def test_a_worker_that_stays_blocked_gives_its_jobs_up_and_ends(self, site: Site) -> None:
        """At the limit, with the stack in the log; the job runs elsewhere and is dead after three such ends."""
        async with producing(site) as queue:
            hired = {"lease": 1, "loop_stall_limit": sized(1, 10)}
            for _ in range(2):
                site.hire(**hired)
            await staffed(queue, 2)
            before = await pour(queue, range(20), seconds=0.2)
            job = await queue.enqueue("deadlock", key="deadlock", timeout=TIMEOUT)
            assert job is not None
            after = await pour(queue, range(20, 40), seconds=0.2)

            async def over() -> bool:
                working = [worker for worker in site.workers if worker.poll() is None]
                if len(working) < 2:
                    site.hire(**hired)
                return await nothing_open(queue)

            await watched(queue, over, within=sized(PATIENCE, 3 * PATIENCE))
            assert site.entries()["deadlock"] == 3
            await eventually(lambda: len([worker for worker in site.workers if worker.poll()]) == 3, within=PATIENCE)
            await job.refresh()
            assert job.status is Status.FAILED
            assert "died 3 times" in (job.error or "")
            [dead] = await queue.dead()
            assert (dead.key, dead.function) == ("deadlock", "deadlock")
            assert "died 3 times" in dead.reason
            assert warned(site, "deadlock", "lock.acquire()")
            assert await queue.discard("deadlock") == 1
            site.workers[:] = [worker for worker in site.workers if worker.poll() is None]
            # Their neighbours on the blocked loops ran again, as often as a loop was blocked at most.
            await audit(site, queue, before | after, doubles=2 + 3 * CONCURRENCY)
            assert await queue.count("dead") == 0


def starts(site: Site, what: str) -> list[str]:
    """Return the lines of the ledger that begin so."""
    return [line for line in site.lines() if line.startswith(what)]


def warned(site: Site, task: str, line: str) -> bool:
    """Tell whether the log names a task and has the line of code at which its loop stands."""
    said = site.said()
    return any(f"of task {task} " in one for one in said) and any(line in one for one in said)


def refused(site: Site) -> int:
    """Return how many outcomes the log says were not written."""
    return len([line for line in site.said() if "no longer this worker's" in line])


class TestStoppedWorker:
    async def test_a_worker_that_comes_back_writes_nothing_over_the_new_owners_work(self, site: Site) -> None:
        """SIGSTOP past the lease, SIGCONT: result, progress, retry, failure of the stale attempts are all refused."""
        async with producing(site) as queue:
            stale = site.hire(program=LOOPS, concurrency=20, lease=sized(1, 10), chaos_stale=1)
            names = await self._enqueue_contested(queue)
            await eventually(lambda: len(site.lines()) == len(names), within=PATIENCE)
            stale.send_signal(signal.SIGSTOP)
            site.hire(program=LOOPS, concurrency=20, lease=sized(1, 10))
            site.ledger.with_name("early").touch()
            # Those of one half end before the stale worker comes back, those of the other half run meanwhile.
            await watched(queue, lambda: self._ended(queue, [name for name in names if name.startswith("early")]))
            await eventually(lambda: len(site.lines()) == 2 * len(names), within=PATIENCE)
            await asyncio.sleep(STOPPED_SECONDS)
            await eventually(lambda: self._run(queue, [name for name in names if name.startswith("late")]))
            written = await self._records(queue, names)
            site.ledger.with_name("resumed").touch()
            stale.send_signal(signal.SIGCONT)
            tried = {f"stale:{name}" for name in names}
            await eventually(lambda: tried <= set(site.lines()), within=PATIENCE)
            await eventually(lambda: refused(site) >= len(names), within=PATIENCE)
            fillers = await pour(queue, range(60), seconds=0.05)
            await watched(queue, lambda: self._ended(queue, fillers))
            assert await self._records(queue, names) == written
            site.ledger.with_name("late").touch()
            await watched(queue, lambda: nothing_open(queue))
            jobs = await queue.jobs(names)
            assert {(job.status, job.result, job.progress, job.error) for job in jobs if job} == {
                (Status.COMPLETE, "fresh", 1.0, None)
            }
            assert sorted(starts(site, "began:")) == sorted(2 * [f"began:{name}" for name in names])
            await audit(site, queue, fillers, doubles=0)

    async def _enqueue_contested(self, queue: Queue) -> list[str]:
        names = [f"{gate}:{ending}" for gate in ("early", "late") for ending in ENDINGS]
        for name in names:
            gate, ending = name.split(":")
            assert await queue.enqueue("contest", key=name, gate=gate, ending=ending, retries=4, timeout=TIMEOUT)
        return names

    async def _ended(self, queue: Queue, keys: list[str] | set[str]) -> bool:
        return all(job is not None and job.ended for job in await queue.jobs(keys))

    async def _run(self, queue: Queue, keys: list[str]) -> bool:
        """Whether the records of all of these say so."""
        return all(job is not None and job.status is Status.ACTIVE for job in await queue.jobs(keys))

    async def _records(self, queue: Queue, keys: list[str]) -> list[bytes | None]:
        return [await queue.redis.get(queue.job_id(key)) for key in keys]
