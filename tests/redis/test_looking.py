"""How many jobs there are, where they are, and lanes that nobody lets go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.redis.places import clear, define, fill
from tests.support import store, working

from knapsaq import Counts, OpenJob, OptionError, Queue, Registry
from knapsaq.outcomes import Dead, Succeeded
from knapsaq.registry import AnyTask
from knapsaq.steering import Tidier


@pytest.fixture
def tasks(registry: Registry) -> dict[str, AnyTask]:
    """A task for each way of waiting."""
    return define(registry)


def names(found: list[OpenJob]) -> list[str]:
    """Return which tasks' jobs were found."""
    return [one.key.partition("-")[0] for one in found]


class TestCounts:
    async def test_each_job_that_has_not_ended_is_counted_once(self, queue: Queue, tasks: dict[str, AnyTask]) -> None:
        """Those with a priority, of tenants and for limits too; SAQ's numbers have them all."""
        await fill(queue, tasks)
        expected = Counts(queued=6, active=2, scheduled=2, parked=6, incomplete=16, dead=0)
        assert await queue.counts() == expected
        for kind in ("queued", "active", "scheduled", "parked", "incomplete", "dead"):
            assert await queue.count(kind) == getattr(expected, kind)
        info = await queue.info()
        assert (info["queued"], info["active"], info["scheduled"]) == (12, 2, 2)
        await clear(queue)

    async def test_a_job_that_was_let_go_counts_as_queued(self, queue: Queue, tasks: dict[str, AnyTask]) -> None:
        """As it may run, and is listed there."""
        first, second = [await tasks["slot"].enqueue() for _ in range(2)]
        [claim] = await queue.claim(2, worker="w1")
        assert claim.job.key == first.key
        assert (await queue.counts()).parked == 1
        await queue.settle(claim, Succeeded(None), worker="w1")
        counts = await queue.counts()
        assert (counts.queued, counts.parked) == (1, 0)
        assert [(one.key, one.place) for one in await queue.open_jobs()] == [(second.key, "queued")]
        await queue.revoke(second.key)

    async def test_dead_letters_count_apart(self, queue: Queue, tasks: dict[str, AnyTask]) -> None:
        """They have ended."""
        job = await tasks["plain"].enqueue()
        [claim] = await queue.claim(1, worker="w1")
        await queue.settle(claim, Dead("enough"), worker="w1")
        assert await queue.counts() == Counts(0, 0, 0, 0, 0, dead=1)
        letter = await queue.dead_letter(job.key)
        assert letter is not None
        assert letter == (await queue.dead())[0]
        assert await queue.dead_letter("another") is None


class TestPages:
    async def test_each_job_is_on_one_page(self, queue: Queue, tasks: dict[str, AnyTask]) -> None:
        """Active, queued, parked, then scheduled ones, however the pages are cut; SAQ's have the same jobs."""
        await fill(queue, tasks)
        found = await queue.open_jobs()
        assert [one.place for one in found] == ["active"] * 2 + ["queued"] * 6 + ["parked"] * 6 + ["scheduled"] * 2
        assert len({one.key for one in found}) == 16
        for size in (1, 3, 7):
            pages = [await queue.open_jobs(offset=start, limit=size) for start in range(0, 16, size)]
            assert [one.key for page in pages for one in page] == [one.key for one in found]
            shown = [(await queue.info(jobs=True, offset=start, limit=size))["jobs"] for start in range(0, 16, size)]
            assert [job["key"] for page in shown for job in page] == [one.key for one in found]
        await clear(queue)

    async def test_a_page_says_what_there_is_to_say_of_its_place(self, queue: Queue, tasks: dict[str, AnyTask]) -> None:
        """The worker, the lane, the due time; and the job as it is stored."""
        await fill(queue, tasks)
        assert {one.worker for one in await queue.open_jobs("active")} == {"w1"}
        assert names(await queue.open_jobs("queued")) == ["urgent"] * 2 + ["plain"] * 2 + ["fair"] * 2
        lanes = {one.key.partition("-")[0]: one.lane for one in await queue.open_jobs("parked")}
        assert (lanes["slot"], lanes["rate"], str(lanes["struck"])[:2]) == ("c:slot", "r:rate", "s:")
        late = await queue.open_jobs("scheduled")
        assert names(late) == ["late"] * 2
        for one in late:
            assert one.job is not None
            assert one.due is not None
            assert abs(one.due.timestamp() - one.job.scheduled) < 1
        await clear(queue)

    async def test_a_record_that_cannot_be_read_is_shown_by_its_key(self, queue: Queue) -> None:
        """It is there, and somebody looks for it."""
        await store(queue, "strange", b"{")
        [one] = await queue.open_jobs()
        assert (one.key, one.place, one.job) == ("strange", "queued", None)
        assert (await queue.info(jobs=True))["jobs"] == []
        await queue.redis.flushall()

    @pytest.mark.parametrize(
        ("place", "numbers", "option"),
        [
            ("nowhere", {}, "place"),
            (None, {"offset": -1}, "offset"),
            (None, {"limit": 0}, "limit"),
            (None, {"limit": 10_001}, "limit"),
            (None, {"limit": True}, "limit"),
        ],
    )
    async def test_what_cannot_be_listed_is_refused(
        self, queue: Queue, place: Any, numbers: dict[str, Any], option: str
    ) -> None:
        """With what is legal."""
        with pytest.raises(OptionError) as raised:
            await queue.open_jobs(place, **numbers)
        assert raised.value.option == option


class TestStranded:
    async def test_a_lane_that_somebody_will_let_go_is_not_stranded(
        self, queue: Queue, tasks: dict[str, AnyTask]
    ) -> None:
        """A rate has a due time, a slot its holder or a job that was let go, a strike itself."""
        await fill(queue, tasks)
        assert await queue.stranded() == {}
        await queue.purge()
        [holder] = [one for one in await queue.open_jobs("active") if names([one]) == ["slot"]]
        waiting = [await tasks["slot"].enqueue() for _ in range(2)]
        await queue.claim(2, worker="w1")
        assert await queue.stranded() == {}
        assert await queue.revoke([holder.key]) == [holder.key]
        [abort] = (await queue.advance("w1", [], 0)).aborts
        assert abort == queue.job_id(holder.key)
        await queue.revoke([job.key for job in waiting])
        await clear(queue)

    async def test_a_lane_whose_holder_is_gone_for_good_is_stranded_until_a_worker_tidies(
        self, queue: Queue, tasks: dict[str, AnyTask]
    ) -> None:
        """As after somebody took the claim away by hand."""
        jobs = [await tasks["slot"].enqueue() for _ in range(3)]
        [claim] = await queue.claim(3, worker="w1")
        await queue.line.execute("DEL", queue.keys.claims)
        assert await queue.stranded() == {"c:slot": 2}
        await Tidier(queue).run_once()
        assert await queue.stranded() == {}
        await queue.line.execute("LREM", queue.keys.active, 1, claim.job_id)
        await queue.revoke([job.key for job in jobs])

    async def test_a_rate_without_a_due_time_and_a_strike_that_is_gone_strand_their_jobs(
        self, queue: Queue, tasks: dict[str, AnyTask]
    ) -> None:
        """Each is named, with how many wait."""
        await fill(queue, tasks)
        [strike] = await queue.strikes()
        await queue.line.execute("DEL", f"saq:{queue.name}:lanes", queue.keys.strikes)
        assert await queue.stranded() == {"r:rate": 2, f"s:{strike.id}": 2}
        await clear(queue)

    async def test_a_busy_worker_strands_nothing(self, queue: Queue, registry: Registry) -> None:
        """However often one looks while slots change hands."""

        @registry.task(concurrency=1)
        async def quick() -> None:
            await asyncio.sleep(0)

        jobs = [await quick.enqueue() for _ in range(100)]
        async with working(queue):
            while not await _all_ended(queue, [job.key for job in jobs]):
                assert await queue.stranded() == {}


async def _all_ended(queue: Queue, keys: list[str]) -> bool:
    return all(job is not None and job.ended for job in await queue.jobs(keys))
