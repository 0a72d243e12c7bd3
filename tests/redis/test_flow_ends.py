"""Every way in which a job can end moves its workflow on."""

from __future__ import annotations

from typing import Any

import pytest
from saq.job import Status
from tests.redis.flows import claim, give_results, states, told
from tests.support import eventually, lists, working

from knapsaq import (
    Job,
    Queue,
    WorkflowFailedError,
    group,
)
from knapsaq.claims import CRASH_LIMIT
from knapsaq.mending import Mender
from knapsaq.nodes import node_key
from knapsaq.outcomes import Aborted, Dead, Failed, Released, Succeeded
from knapsaq.redis.keys import FlowKeys
from knapsaq.registry import AnyTask
from knapsaq.upkeep import Rescuer


async def by_crashes(queue: Queue) -> None:
    redis: Any = queue.redis
    for _ in range(CRASH_LIMIT):
        await claim(queue)
        await redis.zadd(queue.keys.leases, {"w": 1})
        await Rescuer(queue).run_once()
    async with working(queue):
        await eventually(lambda: queue.count("dead"))


async def by_an_unreadable_record(queue: Queue) -> None:
    redis: Any = queue.redis
    [job_id] = await redis.lrange(queue.keys.queued, 0, -1)
    await redis.set(job_id, b"\xff")
    assert await queue.claim(5, worker="w") == []


async def by_a_lost_record(queue: Queue) -> None:
    redis: Any = queue.redis
    [job_id] = await redis.lrange(queue.keys.queued, 0, -1)
    await redis.delete(job_id)
    for next_one in await queue.claim(5, worker="w"):
        await queue.settle(next_one, Released("it is what follows"), worker="w")


async def first_job(queue: Queue) -> Job[Any]:
    redis: Any = queue.redis
    [job_id] = await redis.zrange(queue.keys.incomplete, 0, -1)
    job = await queue.job(queue.job_key_from_id(job_id.decode()))
    assert job is not None
    return job


async def by_abort_while_it_waits(queue: Queue) -> None:
    await (await first_job(queue)).abort("enough")


async def by_abort_while_it_runs(queue: Queue) -> None:
    claimed = await claim(queue)
    await (await first_job(queue)).abort("enough")
    step = await queue.advance("w", [], 0)
    await queue.settle(claimed, Aborted(step.aborts[claimed.job_id].reason), worker="w")


async def by_hand(queue: Queue) -> None:
    await (await first_job(queue)).finish(Status.FAILED, error="by hand")


async def by_hand_while_it_runs(queue: Queue) -> None:
    claimed = await claim(queue)
    await (await first_job(queue)).finish(Status.FAILED, error="by hand")
    assert not await queue.settle(claimed, Succeeded("late"), worker="w")


async def by_a_worker_of_saq(queue: Queue) -> None:
    """As SAQ's own finish does it, without a word to us."""
    job = await first_job(queue)
    job.status, job.error = Status.FAILED, "in SAQ"
    redis: Any = queue.redis
    await redis.lrem(queue.keys.queued, 1, job.id)
    await redis.zrem(queue.keys.incomplete, job.id)
    await redis.set(job.id, queue.serialize(job), ex=60)
    assert await Mender(queue).run_once() == 1


async def by_an_abort_of_saq(queue: Queue) -> None:
    """A program of SAQ takes a running job out of the queue and waits for its worker."""
    claimed = await claim(queue)
    job = await first_job(queue)
    job.status, job.error = Status.ABORTING, "by SAQ"
    redis: Any = queue.redis
    await redis.zrem(queue.keys.incomplete, job.id)
    await redis.set(job.id, queue.serialize(job), ex=60)
    await queue.settle(claimed, Aborted("by SAQ"), worker="w")


async def by_losing_everything(queue: Queue) -> None:
    redis: Any = queue.redis
    job = await first_job(queue)
    await redis.lrem(queue.keys.queued, 1, job.id)
    await redis.zrem(queue.keys.incomplete, job.id)
    await redis.delete(job.id)
    assert await Mender(queue).run_once() == 1


async def by_sweep(queue: Queue) -> None:
    """A SAQ worker's job that is overdue and has no attempt left."""
    job = await first_job(queue)
    redis: Any = queue.redis
    await redis.rpoplpush(queue.keys.queued, queue.keys.active)
    job.status, job.attempts, job.started, job.timeout = Status.ACTIVE, 1, 1, 1
    await redis.set(job.id, queue.serialize(job))
    assert await queue.sweeper.run_once()


async def by_a_result_that_is_too_large(queue: Queue) -> None:
    assert await queue.settle(await claim(queue), Succeeded("x" * queue.settings.max_payload_bytes), worker="w")


BAD_ENDS = {
    "failed": (told(Failed("Traceback\nValueError: bad")), "ValueError: bad"),
    "dead": (told(Dead("nobody can run it")), "nobody can run it"),
    "discarded": (told(Aborted("pointless")), "pointless"),
    "unstorable": (told(Succeeded(None, "cannot be stored")), "cannot be stored"),
    "too large": (by_a_result_that_is_too_large, "bytes are over the limit"),
    "crashes": (by_crashes, "died 3 times"),
    "unreadable": (by_an_unreadable_record, "cannot be read"),
    "lost record": (by_a_lost_record, "its record is gone"),
    "abort while it waits": (by_abort_while_it_waits, "enough"),
    "abort while it runs": (by_abort_while_it_runs, "enough"),
    "by hand": (by_hand, "by hand"),
    "by hand while it runs": (by_hand_while_it_runs, "by hand"),
    "in a worker of SAQ": (by_a_worker_of_saq, "in SAQ"),
    "abort of SAQ": (by_an_abort_of_saq, "aborted"),
    "everything lost": (by_losing_everything, "gone"),
    "sweep": (by_sweep, "swept"),
}


class TestEveryEnd:
    @pytest.mark.parametrize("way", BAD_ENDS)
    async def test_a_job_that_ends_badly_ends_its_workflow(self, queue: Queue, one: AnyTask, way: str) -> None:
        """Whichever way that is: what follows is cancelled, the error is named, and nobody waits for ever."""
        end, error = BAD_ENDS[way]
        flow = await (one.s(1) | one.s() | one.s()).enqueue()
        await end(queue)

        with pytest.raises(WorkflowFailedError) as caught:
            await flow.wait(5)
        [failure] = caught.value.failures
        assert (failure.node, failure.task) == ("one#0", "one")
        assert error in failure.error
        assert (await flow.status()).counts["cancelled"] == 2
        redis: Any = queue.redis
        for key in FlowKeys.of(flow.id)[:3]:
            assert await redis.ttl(key) > 0
        assert not await redis.exists(queue.keys.flows)

    @pytest.mark.parametrize("way", BAD_ENDS)
    async def test_what_runs_on_after_failures_does_so_whichever_way(
        self, queue: Queue, one: AnyTask, way: str
    ) -> None:
        """The same ends, along an edge that says so."""
        end, _ = BAD_ENDS[way]
        flow = await (one.s(1) | one.si("cleaned").set(on_failure="continue")).enqueue()
        await end(queue)
        async with working(queue):
            assert await flow.wait(5) == "cleaned"
        assert await states(flow) in ("fc", "Ac")

    async def test_a_finish_by_hand_is_a_result(self, queue: Queue, one: AnyTask) -> None:
        """What follows gets it."""
        flow = await (one.s(1) | one.s()).enqueue()
        await (await first_job(queue)).finish(Status.COMPLETE, result="by hand")
        async with working(queue):
            assert await flow.wait(5) == "by hand"

    async def test_a_result_from_a_worker_of_saq_is_mended(self, queue: Queue, one: AnyTask) -> None:
        """It tells nobody, so somebody looks; twice does no harm."""
        flow = await (one.s(1) | one.s()).enqueue()
        job = await first_job(queue)
        job.status, job.result = Status.COMPLETE, [2**60 + 1]
        redis: Any = queue.redis
        await redis.lrem(queue.keys.queued, 1, job.id)
        await redis.zrem(queue.keys.incomplete, job.id)
        await redis.set(job.id, queue.serialize(job), ex=60)
        assert [await Mender(queue).run_once(), await Mender(queue).run_once()] == [1, 0]
        async with working(queue):
            assert await flow.wait(5) == [2**60 + 1]

    async def test_the_mender_leaves_jobs_alone_that_wait_or_run(self, queue: Queue, one: AnyTask) -> None:
        """Also one that has just been taken out of the queue, whose worker will tell."""
        flow = await group(one.s(1), one.s(2)).enqueue()
        await queue.claim(1, worker="w")
        assert await Mender(queue).run_once() == 0
        assert await states(flow) == "qq"
        async with working(queue):
            redis: Any = queue.redis
            await redis.zadd(queue.keys.leases, {"w": 1})
            await Rescuer(queue).run_once()
            assert await flow.wait(5) == [1, 2]

    async def test_a_spoilt_workflow_harms_no_other_job(self, queue: Queue, one: AnyTask) -> None:
        """Somebody wrote something else under its key; the jobs themselves end as ever."""
        flow = await (one.s(1) | one.s()).enqueue()
        redis: Any = queue.redis
        keys = FlowKeys.of(flow.id)
        await redis.set(keys.states, "spoilt", ex=60)
        await one.enqueue(5)
        await give_results(queue, 1, 2)
        assert (await lists(queue))["incomplete"] == []
        await redis.delete(*keys)

    @pytest.mark.parametrize("field", ["r2", "d1"], ids=["a record is gone", "a delay is nonsense"])
    async def test_what_one_workflow_cannot_go_on_with_reaches_no_other(
        self, queue: Queue, one: AnyTask, field: str
    ) -> None:
        """Both are settled in one call; what was to begin of the spoilt one begins with neither."""
        bad = await (one.s(1) | group(one.s(), one.s())).enqueue()
        good = await (one.s(2) | one.s()).enqueue()
        redis: Any = queue.redis
        flow = FlowKeys.of(bad.id).flow
        await (redis.hdel(flow, field) if field == "r2" else redis.hset(flow, field, "5 "))
        claims = await queue.claim(2, worker="w")
        ends = [queue.settlement(claim, Succeeded(1)) for claim in claims]
        assert (await queue.advance("w", ends, 0)).settled == [True, True]
        assert (await lists(queue))["queued"] == [node_key(good.id, 1)]
        await bad.revoke()

    async def test_a_job_with_a_key_like_a_nodes_is_a_job_like_any_other(self, queue: Queue, one: AnyTask) -> None:
        """It belongs to no workflow, and leaves nothing behind."""
        job = await one.using(key="flow:default:mine:7").enqueue(3)
        async with working(queue):
            assert await job.wait(5) == 3
        redis: Any = queue.redis
        assert [key async for key in redis.scan_iter("*:flow:default:mine*")] == [job.id.encode()]
