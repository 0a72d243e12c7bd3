"""Pausing, striking and weighing, against a real server."""

from __future__ import annotations

from typing import Any

import pytest
from saq.queue.redis import RedisQueue
from tests.redis.conftest import Gate
from tests.support import ended, eventually, lists, working

from knapsaq import Job, OptionError, Queue, Registry, Worker
from knapsaq.outcomes import Succeeded
from knapsaq.registry import AnyTask
from knapsaq.steering import RESTORED_A_CALL, Strike, Tidier


async def order_of(queue: Queue, number: int) -> list[str]:
    """Return the keys of the next jobs, each claimed alone."""
    taken = [claim.job.key for _ in range(number) for claim in await queue.claim(1, worker="w1")]
    assert not await queue.claim(1, worker="w1")
    return taken


class TestPause:
    async def test_nothing_begins_in_a_paused_queue_and_nothing_is_lost(self, queue: Queue, echo: AnyTask) -> None:
        """Jobs are accepted meanwhile, delayed ones become due, and all run once it is resumed."""
        await queue.pause()
        jobs = [await echo.enqueue("a"), await echo.using(delay=0.001).enqueue("b")]
        assert not await queue.claim(5, worker="w1")
        assert await queue.is_paused()
        await eventually(lambda: queue.line.execute("EXISTS", queue.keys.queued))

        assert await queue.resume()
        assert not await queue.resume()
        async with working(queue):
            assert [await job.wait(10) for job in jobs] == ["a", "b"]

    async def test_what_runs_goes_on_and_what_waits_begins_at_once_when_it_is_resumed(
        self, queue: Queue, gate: Gate, registry: Registry, echo: AnyTask
    ) -> None:
        """A worker hears of it by a push, not by asking."""
        async with working(queue):
            running = await registry.get("held").enqueue()
            await gate.entered()
            await queue.pause()
            waiting = await echo.enqueue("later")
            gate.open()
            assert await running.wait(10) == "let go"
            assert (await lists(queue))["queued"] == [waiting.key]
            await queue.resume()
            assert await waiting.wait(10) == "later"

    async def test_an_idle_worker_of_a_paused_queue_asks_for_nothing(self, queue: Queue, echo: AnyTask) -> None:
        """A job at the head of the queue does not keep it busy."""
        redis: Any = queue.redis
        async with working(queue):
            await queue.pause()
            job = await echo.enqueue("a")
            before = await self._scripts(redis)
            for _ in range(1000):  # time in which one that asks again and again would do so hundreds of times
                await redis.ping()
            assert await self._scripts(redis) - before < 10
            await queue.resume()
            assert await job.wait(10) == "a"

    @staticmethod
    async def _scripts(redis: Any) -> int:
        return int((await redis.info("commandstats"))["cmdstat_evalsha"]["calls"])

    async def test_a_pause_is_told_with_its_moment(self, queue: Queue) -> None:
        """None where the queue is not paused."""
        assert await queue.paused_since() is None
        await queue.pause()
        since = await queue.paused_since()
        assert since is not None
        assert abs(since.timestamp() * 1000 - queue.now_ms()) < 60_000
        await queue.resume()
        assert await queue.paused_since() is None


class TestStrike:
    async def test_the_jobs_of_a_struck_task_wait_and_the_others_run(self, queue: Queue, registry: Registry) -> None:
        """They hold up nobody, and run in their order once the strike is taken back."""

        @registry.task
        async def good() -> None: ...

        @registry.task
        async def bad(number: int) -> int:
            return number

        struck = [await bad.enqueue(number) for number in range(3)]
        assert await queue.strike("bad") == Strike("bad")
        other = await good.enqueue()
        assert await order_of(queue, 1) == [other.key]
        assert await queue.strikes() == [Strike("bad")]
        assert await queue.restore("bad")
        assert not await queue.restore("bad")
        assert await order_of(queue, 3) == [job.key for job in struck]
        assert await queue.strikes() == []
        for job in [*struck, other]:
            await job.abort("done")

    async def test_a_worker_that_ends_with_its_work_finds_what_waits_behind_thousands_of_struck_jobs(
        self, queue: Queue, registry: Registry
    ) -> None:
        """One call does not look at them all; the next ones do."""
        ran: list[str] = []

        @registry.task
        async def good() -> None:
            ran.append("good")

        @registry.task
        async def bad(number: int) -> None: ...

        await bad.enqueue_many([{"number": number} for number in range(2500)])
        await queue.strike("bad")
        await good.enqueue()

        worker = Worker(queue, burst=True, dequeue_timeout=0.1)
        worker.SIGNALS = []
        await worker.start()

        assert ran == ["good"]
        await queue.purge()
        await queue.restore("bad")

    @pytest.mark.parametrize("value", ["acme", 7, 1.5, True, ""])
    async def test_one_value_of_an_argument_can_be_struck(self, queue: Queue, one: AnyTask, value: Any) -> None:
        """Jobs with another value, or another type of it, run."""
        await queue.strike("one", given=value)
        hit, other = await one.enqueue(given=value), await one.enqueue(given="something else")
        without = await one.enqueue()
        assert await order_of(queue, 2) == [other.key, without.key]
        reason = (await hit.why())[0]
        assert str(reason).startswith(f"task 'one' with given={value!r} was struck")
        await queue.restore("one", given=value)
        assert await order_of(queue, 1) == [hit.key]

    async def test_a_job_that_is_struck_twice_waits_for_both(self, queue: Queue, one: AnyTask) -> None:
        """Taking back one strike leaves the other."""
        await queue.strike("one")
        await queue.strike("one", given=1)
        job = await one.enqueue(given=1)
        await order_of(queue, 0)
        await queue.restore("one")
        await order_of(queue, 0)
        await queue.restore("one", given=1)
        assert await order_of(queue, 1) == [job.key]

    async def test_a_struck_job_can_be_ended(self, queue: Queue, one: AnyTask) -> None:
        """It ends at once, and leaves nothing behind."""
        await queue.strike("one")
        job = await one.enqueue()
        await order_of(queue, 0)
        assert await job.revoke()
        assert (await queue.job(job.key) or job).status.value == "aborted"
        await queue.restore("one")
        await order_of(queue, 0)

    async def test_more_jobs_than_a_call_takes_come_back_in_their_order(self, queue: Queue, one: AnyTask) -> None:
        """Taking a strike back never takes Redis long."""
        await queue.strike("one")
        jobs = await one.enqueue_many([{"given": number} for number in range(RESTORED_A_CALL + 20)])
        while await queue.claim(10, worker="w1"):
            pass
        while await queue.count("queued"):
            await queue.claim(10, worker="w1")
        assert await queue.restore("one")
        claims = await queue.claim(len(jobs), worker="w1")
        assert [claim.job.key for claim in claims] == [job.key for job in jobs]
        await queue.advance("w1", [queue.settlement(claim, Succeeded(None)) for claim in claims], 0)

    @pytest.mark.parametrize("wrong", [{"a": 1, "b": 2}, {"given": None}, {"given": [1]}, {"given": 2**53}])
    async def test_a_strike_that_cannot_be_told_apart_is_refused(self, queue: Queue, wrong: dict[str, Any]) -> None:
        """One argument at most, and a value that the scripts compare exactly."""
        with pytest.raises(OptionError):
            await queue.strike("one", **wrong)
        with pytest.raises(OptionError):
            await queue.strike(7)  # type: ignore[arg-type]
        assert await queue.strikes() == []

    async def test_a_parameter_that_a_known_task_does_not_have_is_refused(self, queue: Queue, one: AnyTask) -> None:
        """A slip of the pen holds nothing; a task that is not known here may be another program's."""
        with pytest.raises(OptionError, match="given"):
            await queue.strike("one", givn=1)
        assert await queue.strikes() == []
        await queue.strike("of_another_program", anything=1)
        assert await queue.restore("of_another_program", anything=1)


class TestWeights:
    async def test_tenants_take_turns_by_their_weights(self, queue: Queue, registry: Registry) -> None:
        """A tenant with a weight of 3 gets three of four; a new weight counts from the next job on."""

        @registry.task(fair_key="tenant")
        async def work(tenant: str) -> None: ...

        await work.enqueue_many([{"tenant": "big"}] * 40)
        await work.enqueue_many([{"tenant": "small"}] * 40)
        await queue.weigh("big", 3)
        assert await queue.weights() == {"big": 3.0}
        first = [claim.job.kwargs for claim in await queue.claim(20, worker="w1")]
        assert [each and each["tenant"] for each in first].count("big") in (14, 15, 16)
        await queue.weigh("big", 1)
        assert await queue.weights() == {}
        second = [claim.job.kwargs for claim in await queue.claim(20, worker="w1")]
        assert [each and each["tenant"] for each in second].count("big") in (9, 10, 11)

    @pytest.mark.parametrize("weight", [0, -1, True, "2", float("nan"), 1e7])
    async def test_a_wrong_weight_is_refused(self, queue: Queue, weight: Any) -> None:
        """It is above 0 and at most a million."""
        with pytest.raises(OptionError, match="weight"):
            await queue.weigh("acme", weight)
        with pytest.raises(OptionError, match="tenant"):
            await queue.weigh(None, 1)  # type: ignore[arg-type]


class TestTidier:
    async def test_what_ended_outside_of_our_scripts_is_forgotten(self, queue: Queue, registry: Registry) -> None:
        """Its control, its slot and its mark go, and the job that waited for the slot runs."""

        @registry.task(concurrency=1, unique=False)
        async def locked(number: int) -> None: ...

        first, second = await locked.enqueue(1), await locked.enqueue(2)
        assert await order_of(queue, 1) == [first.key]
        redis: Any = queue.redis
        await redis.hdel(queue.keys.claims, first.id)
        await redis.lrem(queue.keys.active, 1, first.id)
        await redis.zrem(queue.keys.incomplete, first.id)
        assert await Tidier(queue).run_once() == 1
        assert await order_of(queue, 1) == [second.key]
        await redis.delete(first.id)


async def test_a_saq_producers_job_is_held_to_the_limits_of_its_task(queue: Queue, registry: Registry) -> None:
    """Programs of SAQ know no limits; whoever takes the job first puts it under them, and spends no attempt."""
    most = inside = 0

    @registry.task(concurrency=1)
    async def locked(ctx: dict[str, Any]) -> int:
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        await queue.is_paused()
        inside -= 1
        return int(ctx["job"].attempts)

    plain = RedisQueue(queue.redis, queue.name)
    jobs: list[Job[Any] | None] = []
    for _ in range(5):
        sent = await plain.enqueue("locked")
        assert sent is not None
        jobs.append(await queue.job(sent.key))
    async with working(queue):
        await ended(*jobs)
    assert [job.result for job in jobs if job] == [1] * 5
    assert most == 1


def test_equal_strikes_have_one_id() -> None:
    """So a strike is stored once, and found again by its words."""
    assert Strike("a", "b", 1).id == Strike("a", "b", 1).id
    assert len({Strike("a").id, Strike("b").id, Strike("a", "b", 1).id, Strike("a", "b", "1").id}) == 4
