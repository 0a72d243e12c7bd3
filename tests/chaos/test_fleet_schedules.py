"""Schedules in a fleet, of which workers die: each due time gives one job."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any, NamedTuple

from tests.chaos.site import LONG_FORM, PATIENCE, ROOT, Site, audit, freeze, producing, sized, staffed
from tests.support import eventually

from knapsaq import Queue

PROGRAM = ROOT / "tests/chaos/schedules_worker.py"
WORKERS = 5
SECONDS = sized(12, 60)
SLOW_MS = sized(5_000, 60_000)
LATE_MS = sized(5000, 500)
"""How late a fire may be, the one included whose worker was just killed; the short form runs beside other things."""
PROMPT_MS = sized(1500, 50)
"""How late half of them may be."""


class Fire(NamedTuple):
    """A job that a schedule has fired: whose, its due time, how late it ran, and where."""

    schedule: str
    due_ms: int
    late_ms: int
    pid: int


def fires(site: Site, schedule: str) -> list[Fire]:
    """Return the fires of a schedule, in the order of their due times."""
    found = (line.split(":")[1:] for line in site.lines() if line.startswith(f"fired:{schedule}:"))
    return sorted(
        (Fire(name, int(due), int(late), int(pid)) for name, due, late, pid in found), key=lambda it: it.due_ms
    )


async def on_their_way(site: Site, queue: Queue) -> list[tuple[str, int]]:
    """Return schedule and due time of the jobs that have left their line, while Redis does not know their outcome."""
    redis: Any = queue.redis
    found = [(one.schedule, one.due_ms) for name in ("fast", "slow") for one in fires(site, name)]
    scores = await redis.zmscore(queue.keys.incomplete, [queue.job_id(f"cron:{name}:{due}") for name, due in found])
    return [one for one, score in zip(found, scores, strict=True) if score is not None]


def first_runs(site: Site, schedule: str, again: list[tuple[str, int]]) -> list[Fire]:
    """Return the fires of a schedule without the second run of those that had to run again."""
    runs: list[Fire] = []
    for one in fires(site, schedule):
        if not (runs and runs[-1].due_ms == one.due_ms and (schedule, one.due_ms) in again):
            runs.append(one)
    return runs


class TestFleet:
    async def test_each_due_time_gives_one_job_though_workers_are_killed(self, site: Site) -> None:
        """Five workers, one of them killed in the middle, another one started: none is missed, none is double.

        Only a job that has left its line and whose outcome was on its way runs again.
        """
        async with producing(site) as queue:
            await self._crew(site, queue)
            first = await eventually(lambda: fires(site, "fast"), within=PATIENCE)
            await self._reached(site, first[0].due_ms + SECONDS * 400)
            # The one that fires as a rule, so that the others have to notice.
            last = fires(site, "fast")[-1].pid
            victim = next((one for one in site.workers if one.pid == last), site.workers[0])
            await freeze(victim)
            again = await on_their_way(site, queue)
            victim.kill()
            victim.wait()
            await self._reached(site, first[0].due_ms + SECONDS * 700)
            site.hire(program=PROGRAM, chaos_form="long" if LONG_FORM else "short")
            await self._reached(site, first[0].due_ms + SECONDS * 1000)

            fast, slow = first_runs(site, "fast", again), first_runs(site, "slow", again)
            assert [one.due_ms for one in fast] == list(range(fast[0].due_ms, fast[-1].due_ms + 1, 1000))
            assert [one.due_ms for one in slow] == list(range(slow[0].due_ms, slow[-1].due_ms + 1, SLOW_MS))
            assert fast[-1].due_ms - slow[-1].due_ms <= SLOW_MS
            late = [one.late_ms for one in (*fast, *slow)]
            assert min(late) >= 0, "early"
            assert max(late) <= LATE_MS
            assert statistics.median(late) <= PROMPT_MS
            site.figures.append(f"late by {statistics.median(late)} ms, at most {max(late)} ms, of {len(late)} fires")

            await self._pause(queue)
            await audit(site, queue, set(), doubles=0)

    async def _crew(self, site: Site, queue: Queue) -> None:
        for _ in range(WORKERS):
            site.hire(program=PROGRAM, chaos_form="long" if LONG_FORM else "short")
        await staffed(queue, WORKERS)

    async def _reached(self, site: Site, due_ms: int) -> None:
        await eventually(lambda: fires(site, "fast")[-1].due_ms >= due_ms, within=PATIENCE + SECONDS)

    async def _pause(self, queue: Queue) -> None:
        """Take the schedules away, so that what is left in the end is what the workers have left behind."""
        redis: Any = queue.redis
        keys = queue.keys
        # Together: who fires in that moment would set the next due time of a schedule whose record is still there.
        await redis.delete(keys.schedules, keys.schedules_due)
        await asyncio.sleep(0.5)
        await redis.delete(keys.schedules_fires)
